//! What the flags about adapters mean.

use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use pleach_adapters::{ResidencyConfig, ResidencyLimits};
use serde::Deserialize;

use super::{args::Args, settings::in_range};
use crate::{
    adapter_service::{AdapterSettings, AllowedRoots},
    models,
};

/// As many as the engine has slots for.
const MAX_LORAS_MAX: usize = 4096;
const MAX_CPU_LORAS_MAX: usize = 1 << 20;
/// The largest that vLLM takes; ours is less and is kept to.
const MAX_LORA_RANK_MAX: usize = 512;
/// Below `PLEACH_HOME`.
const SPOOL_FOLDER: &str = "adapters";

/// An entry of vLLM's `--lora-modules`. Other keys, such as `base_model_name`, are of no use here.
#[derive(Deserialize)]
struct LoraModule {
    name: String,
    path: PathBuf,
}

/// `--adapter` and `--lora-modules`, in this order.
pub(super) fn read_adapters(args: &Args) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let mut adapters = Vec::new();
    for text in &args.adapter {
        adapters.push(read_pair("--adapter", text)?);
    }
    for text in &args.lora_modules {
        let json = || format!("--lora-modules {text:?}");
        if text.trim_start().starts_with('[') {
            let modules: Vec<LoraModule> = serde_json::from_str(text).with_context(json)?;
            adapters.extend(modules.into_iter().map(|module| (module.name, module.path)));
        } else if text.trim_start().starts_with('{') {
            let module: LoraModule = serde_json::from_str(text).with_context(json)?;
            adapters.push((module.name, module.path));
        } else {
            adapters.push(read_pair("--lora-modules", text)?);
        }
    }
    Ok(adapters)
}

fn read_pair(flag: &str, text: &str) -> anyhow::Result<(String, PathBuf)> {
    let (name, folder) =
        text.split_once('=').with_context(|| format!("{flag} {text:?} is not NAME=DIR"))?;
    ensure!(!name.is_empty() && !folder.is_empty(), "{flag} {text:?} is not NAME=DIR");
    Ok((name.to_owned(), PathBuf::from(folder)))
}

/// How adapters are taken in and kept.
pub(super) fn read_settings(args: &Args) -> anyhow::Result<AdapterSettings> {
    let default = AdapterSettings::default();
    let limits = default.residency.limits;
    let max_loras = args.max_loras.unwrap_or(limits.max_loras);
    let max_cpu_loras = args.max_cpu_loras.unwrap_or(limits.max_cpu_loras);
    let rank_max = args.max_lora_rank.unwrap_or(default.rank_max);
    let limits = ResidencyLimits {
        max_loras: in_range("--max-loras", max_loras, MAX_LORAS_MAX)?,
        max_cpu_loras: in_range("--max-cpu-loras", max_cpu_loras, MAX_CPU_LORAS_MAX)?,
        ..limits
    };
    Ok(AdapterSettings {
        roots: AllowedRoots::new(&args.adapter_root)?,
        rank_max: in_range("--max-lora-rank", rank_max, MAX_LORA_RANK_MAX)?,
        residency: ResidencyConfig { limits, ..default.residency },
        spool: models::home().map_or(default.spool, |home| home.join(SPOOL_FOLDER)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adapters_are_read_in_all_forms() {
        let args = Args {
            adapter: vec!["a=x=1".to_owned()],
            lora_modules: vec![
                "b=y".to_owned(),
                r#"{"name": "c", "path": "z", "base_model_name": "m"}"#.to_owned(),
                r#"[{"name": "d", "path": "w", "is_3d_lora_weight": false}]"#.to_owned(),
            ],
            ..Args::default()
        };
        let expected = [("a", "x=1"), ("b", "y"), ("c", "z"), ("d", "w")];
        let expected = expected.map(|(name, path)| (name.to_owned(), PathBuf::from(path)));
        assert_eq!(read_adapters(&args).unwrap(), expected);
    }
}
