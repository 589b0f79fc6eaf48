//! `pleach tenant key`.
#![expect(clippy::print_stderr, reason = "what is not the key itself goes to standard error")]

use std::time::Duration;

use anyhow::{Context as _, bail};
use pleach_store::{ApiKey, NewApiKey, Page, Scopes, Store, TenantId};

use super::{find, print_json, table};
use crate::{
    http::wire::tenants::{ApiKeyCard, ApiKeyRevoked, NewApiKeyCard},
    telemetry::unix_time,
};

/// What to do with keys.
#[derive(Debug, clap::Subcommand)]
pub(super) enum KeyCommand {
    /// Make a key and print it: it cannot be shown again.
    Add {
        /// Whose key: a tenant's name or id.
        tenant: String,
        /// For people.
        #[arg(long, default_value = "default")]
        name: String,
        /// What it may do: infer (completions), feedback, train (change adapters), admin (tenants, keys, shared adapters).
        #[arg(long, default_value = "infer", value_name = "SCOPE,…")]
        scopes: String,
        /// Refuse it after this time, such as 12h or 30d [default: never].
        #[arg(long, value_name = "TIME", value_parser = parse_time)]
        expires_in: Option<Duration>,
    },
    /// List the keys of a tenant, revoked and expired ones too.
    List {
        /// A tenant's name or id.
        tenant: String,
    },
    /// Refuse a key from now on.
    Revoke {
        /// Whose key: a tenant's name or id.
        tenant: String,
        /// The key's id: the 16 digits in the middle of the key.
        key: String,
    },
}

pub(super) async fn execute(store: &Store, command: KeyCommand, json: bool) -> anyhow::Result<()> {
    match command {
        KeyCommand::Add { tenant, name, scopes, expires_in } => {
            let tenant = find(store, &tenant).await?;
            let (scopes, expires_ms) = (read_scopes(&scopes)?, expires_in.map(expiry).transpose()?);
            let key = NewApiKey { tenant: tenant.id, name, scopes, expires_ms };
            let (key, text) = store.create_key(key).await?;
            if json {
                return print_json(&NewApiKeyCard { card: key.into(), key: text.reveal() });
            }
            eprintln!("key {} of {}; it is not shown again:", key.id, tenant.settings.name);
            println!("{}", text.reveal());
            Ok(())
        }
        KeyCommand::List { tenant } => {
            let keys = all_keys(store, &find(store, &tenant).await?.id).await?;
            if json {
                return print_json(&keys.into_iter().map(ApiKeyCard::from).collect::<Vec<_>>());
            }
            print!("{}", table::keys(&keys, now_ms()));
            Ok(())
        }
        KeyCommand::Revoke { tenant, key } => {
            store.revoke_key(&find(store, &tenant).await?.id, &key).await?;
            if json {
                return print_json(&ApiKeyRevoked { id: key, object: "api_key", revoked: true });
            }
            println!("revoked {key}");
            Ok(())
        }
    }
}

async fn all_keys(store: &Store, tenant: &TenantId) -> anyhow::Result<Vec<ApiKey>> {
    let mut keys = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let page = store.keys(tenant, &Page { after: after.as_deref(), ..Page::FIRST }).await?;
        keys.extend(page.items);
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(keys),
        }
    }
}

fn read_scopes(text: &str) -> anyhow::Result<Scopes> {
    let scopes = Scopes::parse(text).map_err(|word| {
        anyhow::anyhow!("--scopes: {word:?} is none of infer, feedback, train, admin")
    })?;
    if scopes.is_empty() {
        bail!("--scopes is empty: a key without scopes may do nothing");
    }
    Ok(scopes)
}

fn expiry(after: Duration) -> anyhow::Result<i64> {
    let at = unix_time().checked_add(after).context("--expires-in is too long")?;
    i64::try_from(at.as_millis()).context("--expires-in is too long")
}

fn now_ms() -> i64 {
    i64::try_from(unix_time().as_millis()).unwrap_or(i64::MAX)
}

/// Reads `90s`, `15m`, `12h`, `30d`.
fn parse_time(text: &str) -> Result<Duration, String> {
    let parse = || {
        let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
        let seconds = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            "d" => 86_400,
            _ => return None,
        };
        let number: u64 = number.parse().ok().filter(|&number| number > 0)?;
        number.checked_mul(seconds).map(Duration::from_secs)
    };
    parse().ok_or_else(|| format!("{text:?} is no time such as 90s, 15m, 12h or 30d"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit() {
        assert_eq!(parse_time("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_time("30d"), Ok(Duration::from_hours(30 * 24)));
        for bad in ["", "d", "30", "0h", "-1h", "1w", "1é", "99999999999999999999d"] {
            assert!(parse_time(bad).unwrap_err().contains("no time"), "{bad}");
        }
        assert!(expiry(Duration::MAX).is_err());
    }

    #[test]
    fn scopes_are_named() {
        assert_eq!(read_scopes("train,infer").unwrap().to_string(), "infer,train");
        assert!(read_scopes("root").unwrap_err().to_string().contains("\"root\""));
        assert!(read_scopes(" ").unwrap_err().to_string().contains("--scopes"));
    }
}
