//! SIGHUP: the configuration is read again, and what can change while requests run is changed. Flags and environment are
//! those of the start, so it is the file that has news.

use anyhow::Context as _;
use serde_json::{Map, Value};

use super::{Serving, args::Args, settings::Settings};

/// Keys of the configuration that take effect at once. All others wait for a restart.
const AT_ONCE: [&str; 7] = [
    "adapter",
    "adapter-root",
    "api-key",
    "body-limit",
    "lora-modules",
    "max-lora-rank",
    "shutdown-grace",
];

/// Reads the configuration again.
#[derive(Debug)]
pub(super) struct Reloader {
    /// Flags and environment.
    typed: Args,
    /// What is in force.
    effective: Args,
    /// What the program made of that.
    pub(super) settings: Settings,
}

impl Reloader {
    /// The configuration at the start.
    ///
    /// # Errors
    /// When it cannot be read, or asks for what cannot be.
    pub(super) fn new(typed: Args) -> anyhow::Result<Self> {
        let effective = typed.clone().with_config_file()?;
        let settings = Settings::from_args(&effective)?;
        Ok(Self { typed, effective, settings })
    }

    /// Reads it again and changes what can be changed. A configuration that cannot be used changes nothing; an adapter
    /// that cannot be loaded stays as it was, and harms no other.
    pub(super) async fn reload(&mut self, serving: &Serving) {
        if let Err(error) = self.try_reload(serving).await {
            let error = crate::cli::describe(&error);
            tracing::error!(error, "the configuration cannot be used: everything stays as it was");
        }
    }

    async fn try_reload(&mut self, serving: &Serving) -> anyhow::Result<()> {
        let wanted = self.typed.clone().with_config_file()?;
        let News { effective, changed, waiting } = news(&self.effective, &wanted)?;
        let settings = Settings::from_args(&effective)?;
        let state = &serving.state;
        settings.check_exposure(state.store.has_keys().await?)?;
        state.set_limits(settings.limits());
        state.tenants.set_operator_key(settings.operator_key());
        let adapters = settings.adapters();
        state.adapters.set_rules(settings.adapter_settings());
        for (name, error) in state.adapters.reconfigure(self.settings.adapters(), adapters).await {
            tracing::error!(adapter = name, %error, "the configured adapter stays as it was");
        }
        if !waiting.is_empty() {
            let keys = waiting.join(", ");
            tracing::warn!(keys, "changed in the configuration, but only a restart changes them");
        }
        tracing::info!(changed = changed.join(", "), "configuration read again");
        (self.effective, self.settings) = (effective, settings);
        Ok(())
    }
}

/// What a configuration says that another did not.
struct News {
    /// The new one, except for what waits.
    effective: Args,
    /// Keys that changed.
    changed: Vec<String>,
    /// Keys that changed and wait for a restart.
    waiting: Vec<String>,
}

fn news(before: &Args, wanted: &Args) -> anyhow::Result<News> {
    let (before, mut effective) = (table(before)?, table(wanted)?);
    let differing: Vec<_> =
        before.keys().filter(|key| before.get(*key) != effective.get(*key)).cloned().collect();
    let (changed, waiting): (Vec<_>, Vec<_>) =
        differing.into_iter().partition(|key| AT_ONCE.contains(&key.as_str()));
    for key in &waiting {
        let old = before.get(key).cloned().unwrap_or_default();
        effective.insert(key.clone(), old);
    }
    let effective =
        serde_json::from_value(Value::Object(effective)).context("the configuration's keys")?;
    Ok(News { effective, changed, waiting })
}

/// Every key with its value.
fn table(args: &Args) -> anyhow::Result<Map<String, Value>> {
    let value = serde_json::to_value(args).context("the configuration's keys")?;
    let Value::Object(table) = value else { anyhow::bail!("the configuration is no table") };
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_effect_at_once_are_keys() {
        let table = table(&Args::default()).unwrap();
        for key in AT_ONCE {
            assert!(table.contains_key(key), "{key}");
        }
    }

    #[test]
    fn what_waits_for_a_restart_keeps_its_value() {
        let before = Args { port: Some(1), api_key: Some("a".to_owned()), ..Args::default() };
        let wanted = Args {
            port: Some(2),
            threads: Some(1),
            body_limit: Some("1MiB".to_owned()),
            adapter: vec!["x=y".to_owned()],
            ..Args::default()
        };
        let News { effective, changed, waiting } = news(&before, &wanted).unwrap();
        assert_eq!(changed, ["adapter", "body-limit", "api-key"]);
        assert_eq!(waiting, ["port", "threads"]);
        assert_eq!((effective.port, effective.threads), (Some(1), None));
        assert_eq!(effective.api_key, None);
        assert_eq!(effective.adapter, ["x=y"]);
        let same = news(&wanted, &wanted).unwrap();
        assert!(same.changed.is_empty() && same.waiting.is_empty());
    }
}
