//! Which linears a config acts on, with which rank and scale: PEFT's rules, path by path.
//!
//! The rules are those of `check_target_module_exists` (`tuners/tuners_utils.py`), `get_pattern_key`
//! (`utils/other.py`) and `LoraLayer.update_layer` (`tuners/lora/layer.py`) of PEFT 0.21.2; a test compares them with
//! the output of that code.

use std::collections::BTreeMap;

use pleach_engine::{
    adapter_weights::LORA_RANK_MAX,
    site::{Site, TargetModule},
    spec::ModelSpec,
};

use super::{
    config::{AdapterConfig, ModuleNames},
    error::ConfigError,
    fields::shorten,
    pattern::Pattern,
};

/// Modules that PEFT can adapt and we cannot yet.
const UNSUPPORTED_MODULES: [&str; 2] = ["embed_tokens", "lm_head"];

/// Where the decoder's modules hang in the tree that the adapter was trained on. Patterns see paths from its root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TreeRoot {
    /// A causal language model: `model.layers.0.…`. What nearly every adapter has.
    CausalLm,
    /// The bare decoder: `layers.0.…`.
    Decoder,
}

impl TreeRoot {
    /// What comes before `layers.` in module paths.
    pub(super) fn prefix(self) -> &'static str {
        match self {
            Self::CausalLm => "model.",
            Self::Decoder => "",
        }
    }

    /// The site's path from this root.
    pub fn path(self, site: Site) -> String {
        format!(
            "{}layers.{}.{}.{}",
            self.prefix(),
            site.layer,
            site.module.parent(),
            site.module.name()
        )
    }

    /// Paths of the modules in [`UNSUPPORTED_MODULES`]; the bare decoder has no head.
    fn unsupported(self) -> Vec<(&'static str, String)> {
        let embedding = UNSUPPORTED_MODULES[0];
        let mut modules = vec![(embedding, format!("{}{embedding}", self.prefix()))];
        if self == Self::CausalLm {
            modules.push((UNSUPPORTED_MODULES[1], UNSUPPORTED_MODULES[1].to_owned()));
        }
        modules
    }
}

/// What a config says about one site.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SiteSettings {
    /// Rank, `1..=LORA_RANK_MAX`.
    pub rank: usize,
    /// `alpha / rank`, or `alpha / sqrt(rank)` for rsLoRA; rounded once, from f64.
    pub lora_scale: f32,
}

impl AdapterConfig {
    /// Every site of the model that this config acts on.
    ///
    /// # Errors
    /// When a target or layer does not exist in the model, a pattern is refused, or a rank is out of range.
    pub fn sites(
        &self,
        spec: &ModelSpec,
        root: TreeRoot,
    ) -> Result<BTreeMap<Site, SiteSettings>, ConfigError> {
        if let Some(&layer) = self.layers_to_transform.iter().find(|layer| **layer >= spec.n_layers)
        {
            return Err(ConfigError::NoSuchLayer { layer, n_layers: spec.n_layers });
        }
        let targets = Matcher::new("target_modules", &self.target_modules)?;
        let excluded = self
            .exclude_modules
            .as_ref()
            .map(|names| Matcher::new("exclude_modules", names))
            .transpose()?;
        let layers = LayerFilter::new(self)?;
        let ranks = Overrides::new("rank_pattern", &self.rank_pattern)?;
        let alphas = Overrides::new("alpha_pattern", &self.alpha_pattern)?;

        let all: Vec<(Site, String)> = (0..spec.n_layers)
            .flat_map(|layer| TargetModule::ALL.map(|module| Site { layer, module }))
            .map(|site| (site, root.path(site)))
            .collect();
        targets.refuse_foreign(&all, root, excluded.as_ref())?;
        let mut sites = BTreeMap::new();
        for (site, path) in &all {
            if let Some(excluded) = &excluded
                && excluded.contains(path)?
            {
                continue;
            }
            if targets.names(path) || (targets.contains(path)? && layers.contains(path)?) {
                let rank = ranks.find(path)?.unwrap_or(self.rank);
                let alpha = alphas.find(path)?.unwrap_or(self.lora_alpha);
                sites.insert(*site, self.settings(*site, rank, alpha)?);
            }
        }
        if sites.is_empty() { Err(ConfigError::NoSite) } else { Ok(sites) }
    }

    fn settings(&self, site: Site, rank: usize, alpha: f64) -> Result<SiteSettings, ConfigError> {
        if rank == 0 || rank > LORA_RANK_MAX {
            return Err(ConfigError::Rank { site, rank });
        }
        let divisor = if self.use_rslora { (rank as f64).sqrt() } else { rank as f64 };
        #[expect(
            clippy::cast_possible_truncation,
            reason = "rounding to f32 is meant; infinity is refused later"
        )]
        let lora_scale = (alpha / divisor) as f32;
        Ok(SiteSettings { rank, lora_scale })
    }
}

/// `target_modules` or `exclude_modules`, ready to be asked.
enum Matcher<'a> {
    /// Every linear of a layer.
    All,
    /// The whole path.
    Pattern(Pattern),
    /// The whole path or its end after a dot.
    List(&'a [String]),
}

impl<'a> Matcher<'a> {
    fn new(key: &'static str, names: &'a ModuleNames) -> Result<Self, ConfigError> {
        Ok(match names {
            ModuleNames::AllLinear => Self::All,
            ModuleNames::Pattern(source) => Self::Pattern(Pattern::full(key, source)?),
            ModuleNames::List(list) => Self::List(list),
        })
    }

    fn contains(&self, path: &str) -> Result<bool, ConfigError> {
        match self {
            Self::All => Ok(true),
            Self::Pattern(pattern) => pattern.is_match(path),
            Self::List(list) => Ok(list.iter().any(|name| ends_with_component(path, name))),
        }
    }

    /// Whether the whole path is listed. PEFT then asks no further, not even for `layers_to_transform`.
    fn names(&self, path: &str) -> bool {
        match self {
            Self::All | Self::Pattern(_) => false,
            Self::List(list) => list.iter().any(|name| name == path),
        }
    }

    /// Refuses targets that are not linears of a layer. Layer and exclusion settings do not excuse a listed name that
    /// exists nowhere: PEFT would say nothing, and nobody would notice a typing error.
    fn refuse_foreign(
        &self,
        all: &[(Site, String)],
        root: TreeRoot,
        excluded: Option<&Matcher<'_>>,
    ) -> Result<(), ConfigError> {
        for (module, path) in root.unsupported() {
            let excluded = excluded.map_or(Ok(false), |matcher| matcher.contains(&path))?;
            let named = match self {
                // PEFT leaves the head out of "all-linear", and the embedding is no linear.
                Self::All => false,
                Self::Pattern(_) | Self::List(_) => self.contains(&path)?,
            };
            if named && !excluded {
                return Err(ConfigError::TargetUnsupported { module });
            }
        }
        let Self::List(list) = self else { return Ok(()) };
        let missing = list.iter().find(|name| {
            let excused =
                root.unsupported().iter().any(|(_, path)| ends_with_component(path, name));
            !excused && !all.iter().any(|(_, path)| ends_with_component(path, name))
        });
        missing.map_or(Ok(()), |name| Err(ConfigError::TargetWithoutSite { target: shorten(name) }))
    }
}

/// `path == name or path.endswith("." + name)`.
fn ends_with_component(path: &str, name: &str) -> bool {
    path.strip_suffix(name).is_some_and(|head| head.is_empty() || head.ends_with('.'))
}

/// `layers_to_transform` and `layers_pattern`.
struct LayerFilter<'a> {
    layers: &'a [usize],
    patterns: Vec<Pattern>,
}

impl<'a> LayerFilter<'a> {
    fn new(config: &'a AdapterConfig) -> Result<Self, ConfigError> {
        const KEY: &str = "layers_pattern";
        let patterns = if config.layers_pattern.is_empty() {
            vec![Pattern::any_layers(KEY)?]
        } else {
            config
                .layers_pattern
                .iter()
                .map(|source| Pattern::layers(KEY, source))
                .collect::<Result<_, _>>()?
        };
        Ok(Self { layers: &config.layers_to_transform, patterns })
    }

    fn contains(&self, path: &str) -> Result<bool, ConfigError> {
        if self.layers.is_empty() {
            return Ok(true);
        }
        for pattern in &self.patterns {
            if let Some(layer) = pattern.layer_index(path)? {
                return Ok(self.layers.contains(&layer));
            }
        }
        Ok(false)
    }
}

/// `rank_pattern` or `alpha_pattern`: the first pattern that matches a path decides.
struct Overrides<T>(Vec<(Pattern, T)>);

impl<T: Copy> Overrides<T> {
    fn new(key: &'static str, entries: &[(String, T)]) -> Result<Self, ConfigError> {
        let compiled =
            entries.iter().map(|(source, value)| Ok((Pattern::suffix(key, source)?, *value)));
        compiled.collect::<Result<_, _>>().map(Self)
    }

    fn find(&self, path: &str) -> Result<Option<T>, ConfigError> {
        for (pattern, value) in &self.0 {
            if pattern.is_match(path)? {
                return Ok(Some(*value));
            }
        }
        Ok(None)
    }
}
