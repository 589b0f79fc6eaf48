//! Which linears (and ends of the model) a config acts on, with which rank and scale: PEFT's rules, path by path.
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

/// Largest rank of one adapter at one site.
pub const ADAPTER_RANK_MAX: usize = 256;
const _: () = assert!(ADAPTER_RANK_MAX <= LORA_RANK_MAX, "the engine takes every adapter");

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
        let (prefix, name) = (self.prefix(), site.module.name());
        match site.module.parent() {
            Some(parent) => format!("{prefix}layers.{}.{parent}.{name}", site.layer),
            None if site.module == TargetModule::EmbedTokens => format!("{prefix}{name}"),
            None => name.to_owned(),
        }
    }

    /// Every site of a model in this tree; the bare decoder has no head.
    fn sites(self, n_layers: usize) -> Vec<Site> {
        let layers =
            (0..n_layers).flat_map(|layer| TargetModule::ALL.map(|module| Site { layer, module }));
        let head = (self == Self::CausalLm).then_some(Site::HEAD);
        layers.chain([Site::EMBEDDING]).chain(head).collect()
    }
}

/// What a config says about one site.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SiteSettings {
    /// Rank, `1..=ADAPTER_RANK_MAX`.
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

        let all: Vec<(Site, String)> =
            root.sites(spec.n_layers).into_iter().map(|site| (site, root.path(site))).collect();
        targets.refuse_foreign(&all)?;
        let mut sites = BTreeMap::new();
        for (site, path) in &all {
            // "all-linear" leaves the head out, and the embedding is no linear.
            let beyond = site.module.is_end() && matches!(targets, Matcher::All);
            if beyond || self.modules_to_save.contains(&site.module) {
                continue;
            }
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
        self.check_ends(&sites)?;
        if sites.is_empty() { Err(ConfigError::NoSite) } else { Ok(sites) }
    }

    /// What is not supported at the embedding and the head.
    fn check_ends(&self, sites: &BTreeMap<Site, SiteSettings>) -> Result<(), ConfigError> {
        let embedding = sites.contains_key(&Site::EMBEDDING);
        let ends = embedding || sites.contains_key(&Site::HEAD) || !self.modules_to_save.is_empty();
        for (is_on, key, what) in [
            (embedding && self.use_dora, "use_dora", "DoRA of an embedding"),
            (embedding && self.lora_bias, "lora_bias", "a bias beside lora_B of an embedding"),
            (
                ends && self.ensure_weight_tying,
                "ensure_weight_tying",
                "one adapter for embedding and head",
            ),
        ] {
            if is_on {
                return Err(ConfigError::Unsupported { key, what, value: "true".to_owned() });
            }
        }
        Ok(())
    }

    fn settings(&self, site: Site, rank: usize, alpha: f64) -> Result<SiteSettings, ConfigError> {
        if rank == 0 || rank > ADAPTER_RANK_MAX {
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
    /// Every linear of every layer.
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

    /// Refuses targets that the model lacks. Layer and exclusion settings do not excuse a listed name that exists
    /// nowhere: PEFT would say nothing, and nobody would notice a typing error.
    fn refuse_foreign(&self, all: &[(Site, String)]) -> Result<(), ConfigError> {
        let Self::List(list) = self else { return Ok(()) };
        let missing =
            list.iter().find(|name| !all.iter().any(|(_, path)| ends_with_component(path, name)));
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
