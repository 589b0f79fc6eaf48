//! `adapter_config.json`, read strictly.
//!
//! Every key falls into one of four classes:
//!
//! 1. **understood**: it becomes a field of [`AdapterConfig`];
//! 2. **inert**: it says how the adapter was made or is filed and changes nothing in `y += scale * B (A x)`;
//! 3. **not supported**: accepted while off (`null`, `false`, empty), refused by name otherwise;
//! 4. **unknown** (a newer PEFT, or a fork): as class 3. PEFT's own habit is that a feature which is not used is
//!    written as `null`, `false` or empty; anything else may change the result, so it is not skipped.

use pleach_engine::site::TargetModule;
use serde_json::Value;

use super::error::ConfigError;
use super::fields::{Fields, index, is_off, number, show, strings};

/// Most entries of a list or map of names or patterns: more than a full module path for every linear of 500 layers.
pub(super) const ENTRIES_MAX: usize = 4096;

/// Class 2. The configs of initializers count here because the initializer itself is judged by `init_lora_weights`.
const INERT: [&str; 14] = [
    "auto_mapping",
    "corda_config",
    "eva_config",
    "inference_mode",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
    "torch_dtype",
];

/// Class 3 and what each asks for.
const UNSUPPORTED: [(&str, &str); 13] = [
    ("trainable_token_indices", "changed rows of the embedding"),
    ("target_parameters", "low-rank changes of parameters that are not linears"),
    ("layer_replication", "layers used more than once"),
    ("fan_in_fan_out", "weights stored transposed"),
    ("megatron_config", "Megatron's parallel linears"),
    ("use_qalora", "QALoRA: inputs are pooled before lora_A"),
    ("use_bdlora", "BD-LoRA: block-diagonal factors"),
    ("alora_invocation_tokens", "aLoRA: the adapter acts only from a token sequence on"),
    ("arrow_config", "Arrow: routing between adapters"),
    ("kasa_config", "KaSA: a truncated base and a diagonal between the factors"),
    ("monteclora_config", "MonteCLoRA: sampled factors"),
    ("velora_config", "VeLoRA"),
    ("use_velora", "VeLoRA"),
];

/// Of class 3, those whose empty value still switches the variant on: PEFT asks `is not None`.
const ON_UNLESS_NULL: [&str; 6] = [
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "use_bdlora",
    "velora_config",
];

/// Initializers that leave the base as it is, lower case. `PiSSA`, `OLoRA`, `CorDA`, `LoftQ` and LoRA-GA subtract their start
/// from the base: such an adapter is right only on that changed base. (PEFT can convert it while saving, and then
/// writes `true` here.)
const BASE_KEEPING_INITS: [&str; 4] = ["gaussian", "orthogonal", "eva", "mica"];

/// A set of modules as `target_modules` and `exclude_modules` write it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModuleNames {
    /// `"all-linear"`: every linear of every layer.
    AllLinear,
    /// A regular expression for the whole module path.
    Pattern(String),
    /// Module paths, or their last components.
    List(Vec<String>),
}

/// Whole modules of an adapter's own that can be used, as `modules_to_save` may name them.
const SAVED_MODULES: [(&str, TargetModule); 3] = [
    ("embed_tokens", TargetModule::EmbedTokens),
    ("model.embed_tokens", TargetModule::EmbedTokens),
    ("lm_head", TargetModule::LmHead),
];

/// The settings of one PEFT `LoRA` adapter that its result depends on.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "the keys of the file, one field each")]
pub struct AdapterConfig {
    /// `r`, the rank where `rank_pattern` says nothing.
    pub rank: usize,
    /// `lora_alpha`, where `alpha_pattern` says nothing.
    pub lora_alpha: f64,
    /// Scale by `1/sqrt(rank)` instead of `1/rank` (arXiv 2312.03732).
    pub use_rslora: bool,
    /// Ranks by pattern; the first that matches counts.
    pub rank_pattern: Vec<(String, usize)>,
    /// Alphas by pattern; the first that matches counts.
    pub alpha_pattern: Vec<(String, f64)>,
    /// Where the adapter acts.
    pub target_modules: ModuleNames,
    /// Where it does not, whatever `target_modules` says.
    pub exclude_modules: Option<ModuleNames>,
    /// The only layers it acts on; empty means all.
    pub layers_to_transform: Vec<usize>,
    /// Patterns for the path component before the layer index; empty means any.
    pub layers_pattern: Vec<String>,
    /// `DoRA`: rows of the adapted weight are scaled to trained magnitudes (arXiv 2402.09353).
    pub use_dora: bool,
    /// A bias beside every `lora_B`.
    pub lora_bias: bool,
    /// Whole modules of its own: the embedding, the head.
    pub modules_to_save: Vec<TargetModule>,
    /// Adapters of a shared embedding and head are one; refused where there are any.
    pub ensure_weight_tying: bool,
    /// `base_model_name_or_path`: what the adapter says it was trained on.
    pub base_model_name: Option<String>,
}

impl AdapterConfig {
    /// Reads the contents of an `adapter_config.json`.
    ///
    /// # Errors
    /// [`ConfigError`] names the key. What depends on the model (do the targets exist, is the rank allowed at each
    /// site) is checked by [`AdapterConfig::sites`].
    pub fn from_json(json: &[u8]) -> Result<Self, ConfigError> {
        let mut fields = Fields::parse(json)?;
        let method =
            fields.string("peft_type")?.ok_or(ConfigError::Missing { key: "peft_type" })?;
        if method != "LORA" {
            return Err(ConfigError::PeftType { found: method });
        }
        refuse_unsupported(&mut fields)?;
        let config = Self {
            rank: fields
                .read("r", "a positive integer", positive)?
                .ok_or(ConfigError::Missing { key: "r" })?,
            lora_alpha: fields
                .read("lora_alpha", "a number", number)?
                .ok_or(ConfigError::Missing { key: "lora_alpha" })?,
            use_rslora: fields.bool("use_rslora")?.unwrap_or(false),
            rank_pattern: fields.map("rank_pattern", "an object of positive integers", positive)?,
            alpha_pattern: fields.map("alpha_pattern", "an object of numbers", number)?,
            target_modules: target_modules(&mut fields)?,
            exclude_modules: exclude_modules(&mut fields)?,
            layers_to_transform: fields
                .read(
                    "layers_to_transform",
                    "a layer index or a list of them",
                    one_or_more_indices,
                )?
                .unwrap_or_default(),
            layers_pattern: fields
                .read("layers_pattern", "a string or a list of strings", one_or_more_strings)?
                .unwrap_or_default(),
            use_dora: fields.bool("use_dora")?.unwrap_or(false),
            lora_bias: fields.bool("lora_bias")?.unwrap_or(false),
            modules_to_save: modules_to_save(&mut fields)?,
            ensure_weight_tying: fields.bool("ensure_weight_tying")?.unwrap_or(false),
            base_model_name: fields
                .string("base_model_name_or_path")?
                .filter(|name| !name.is_empty()),
        };
        for key in INERT {
            fields.take(key);
        }
        if let Some((key, value)) = fields.rest().into_iter().find(|(_, value)| !is_off(value)) {
            return Err(ConfigError::UnknownKey {
                key: super::fields::shorten(&key),
                value: show(&value),
            });
        }
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        if self.use_dora && self.lora_bias {
            return Err(ConfigError::Unsupported {
                key: "lora_bias",
                what: "a bias beside lora_B, together with `use_dora`",
                value: "true".to_owned(),
            });
        }
        let sizes = [
            ("rank_pattern", self.rank_pattern.len()),
            ("alpha_pattern", self.alpha_pattern.len()),
            ("layers_to_transform", self.layers_to_transform.len()),
            ("layers_pattern", self.layers_pattern.len()),
        ];
        if let Some((key, found)) = sizes.into_iter().find(|(_, found)| *found > ENTRIES_MAX) {
            return Err(ConfigError::TooManyEntries { key, found });
        }
        let listed = matches!(self.target_modules, ModuleNames::List(_));
        if !self.layers_to_transform.is_empty() && !listed {
            return Err(ConfigError::Conflict {
                key: "layers_to_transform",
                why: "when `target_modules` is a string",
            });
        }
        if !self.layers_pattern.is_empty() && self.layers_to_transform.is_empty() {
            return Err(ConfigError::Conflict {
                key: "layers_pattern",
                why: "without `layers_to_transform`",
            });
        }
        Ok(())
    }
}

fn refuse_unsupported(fields: &mut Fields) -> Result<(), ConfigError> {
    for (key, what) in UNSUPPORTED {
        let Some(value) = fields.take(key) else { continue };
        let off = if ON_UNLESS_NULL.contains(&key) {
            value == Value::Bool(false)
        } else {
            is_off(&value)
        };
        if !off {
            return Err(ConfigError::Unsupported { key, what, value: show(&value) });
        }
    }
    if let Some(bias) = fields.string("bias")?.filter(|bias| bias != "none") {
        return Err(ConfigError::Unsupported {
            key: "bias",
            what: "trained biases of the base",
            value: bias,
        });
    }
    let Some(init) = fields.take("init_lora_weights") else { return Ok(()) };
    let keeps_base = match &init {
        Value::Bool(_) => true,
        Value::String(name) => BASE_KEEPING_INITS.contains(&name.to_lowercase().as_str()),
        Value::Null | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            return Err(ConfigError::Type {
                key: "init_lora_weights",
                expected: "true, false or a name",
                found: show(&init),
            });
        }
    };
    if keeps_base {
        return Ok(());
    }
    Err(ConfigError::Unsupported {
        key: "init_lora_weights",
        what: "an initializer that may change the base; save with PEFT's conversion to plain LoRA",
        value: show(&init),
    })
}

fn modules_to_save(fields: &mut Fields) -> Result<Vec<TargetModule>, ConfigError> {
    const KEY: &str = "modules_to_save";
    let names = fields.read(KEY, "a list of strings", |value| {
        if is_off(value) { Some(Vec::new()) } else { strings(value) }
    })?;
    let mut modules = Vec::new();
    for name in names.unwrap_or_default() {
        let Some((_, module)) = SAVED_MODULES.into_iter().find(|(saved, _)| *saved == name) else {
            return Err(ConfigError::Unsupported {
                key: KEY,
                what: "whole modules other than embed_tokens and lm_head",
                value: super::fields::shorten(&name),
            });
        };
        if !modules.contains(&module) {
            modules.push(module);
        }
    }
    Ok(modules)
}

fn target_modules(fields: &mut Fields) -> Result<ModuleNames, ConfigError> {
    let names = fields
        .read("target_modules", "a list of strings, a pattern or \"all-linear\"", |value| {
            if value.as_str().is_some_and(|text| text.eq_ignore_ascii_case("all-linear")) {
                return Some(ModuleNames::AllLinear);
            }
            module_names(value)
        })?
        .ok_or(ConfigError::Missing { key: "target_modules" })?;
    check_entries("target_modules", names)
}

fn exclude_modules(fields: &mut Fields) -> Result<Option<ModuleNames>, ConfigError> {
    let names = fields.read("exclude_modules", "a list of strings or a pattern", module_names)?;
    // An empty string or list excludes nothing.
    let names = names.filter(|names| match names {
        ModuleNames::AllLinear => true,
        ModuleNames::Pattern(pattern) => !pattern.is_empty(),
        ModuleNames::List(list) => !list.is_empty(),
    });
    names.map(|names| check_entries("exclude_modules", names)).transpose()
}

fn module_names(value: &Value) -> Option<ModuleNames> {
    match value.as_str() {
        Some(pattern) => Some(ModuleNames::Pattern(pattern.to_owned())),
        None => strings(value).map(ModuleNames::List),
    }
}

fn check_entries(key: &'static str, names: ModuleNames) -> Result<ModuleNames, ConfigError> {
    match &names {
        ModuleNames::List(list) if list.len() > ENTRIES_MAX => {
            Err(ConfigError::TooManyEntries { key, found: list.len() })
        }
        ModuleNames::List(_) | ModuleNames::Pattern(_) | ModuleNames::AllLinear => Ok(names),
    }
}

fn positive(value: &Value) -> Option<usize> {
    index(value).filter(|number| *number > 0)
}

fn one_or_more_indices(value: &Value) -> Option<Vec<usize>> {
    match value.as_array() {
        Some(items) => items.iter().map(index).collect(),
        None => Some(vec![index(value)?]),
    }
}

fn one_or_more_strings(value: &Value) -> Option<Vec<String>> {
    match value.as_str() {
        Some("") => Some(Vec::new()),
        Some(text) => Some(vec![text.to_owned()]),
        None => strings(value),
    }
}
