//! Names of tensors in a PEFT file.
//!
//! ```text
//! base_model.model . model.  layers.3.self_attn.q_proj . lora_A . [adapter .] weight
//! └ PEFT's wrapper └ root   └ site                      └ matrix └ only in raw state dicts
//! ```
//! The wrapper is missing in files that other tools wrote, the root in adapters of a bare decoder. What follows the site:
//!
//! | where | tensor |
//! |---|---|
//! | a linear, `lm_head` | `lora_A.[adapter.]weight`, `lora_B.[adapter.]weight`, `lora_B.[adapter.]bias` |
//! | | `lora_magnitude_vector[.weight]`, `lora_magnitude_vector.adapter.weight` |
//! | `embed_tokens` | `lora_embedding_A[.adapter]`, `lora_embedding_B[.adapter]` |
//! | `embed_tokens`, `lm_head` | `weight`, `modules_to_save.adapter.weight`; `base_layer.weight` |

use pleach_engine::site::{Site, TargetModule};

use super::targets::TreeRoot;

const WRAPPER: &str = "base_model.model.";

/// What a tensor is at its site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Matrix {
    /// `[R, K]`.
    A,
    /// `[N, R]`.
    B,
    /// Of `lora_B`, `[N]`.
    Bias,
    /// `DoRA`'s, `[N]`.
    Magnitude,
    /// A whole matrix beside the base's (`modules_to_save`).
    Saved,
    /// A whole matrix for the base's own, which PEFT saves with an adapted embedding or head.
    Base,
}

/// What a name says besides site and matrix; equal for all tensors of one adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NameStyle<'a> {
    pub(super) root: TreeRoot,
    wrapped: bool,
    adapter: Option<&'a str>,
}

impl NameStyle<'_> {
    /// What PEFT's `save_pretrained` writes for a causal language model.
    pub(super) const USUAL: Self = Self { root: TreeRoot::CausalLm, wrapped: true, adapter: None };

    /// The name of a tensor in this style.
    pub(super) fn name(self, site: Site, matrix: Matrix) -> String {
        let wrapper = if self.wrapped { WRAPPER } else { "" };
        let adapter = self.adapter.map(|adapter| format!(".{adapter}")).unwrap_or_default();
        let embedding = site == Site::EMBEDDING;
        let rest = match (matrix, self.adapter) {
            (Matrix::A | Matrix::B, _) if embedding => {
                format!("lora_embedding_{matrix:?}{adapter}")
            }
            (Matrix::A | Matrix::B, _) => format!("lora_{matrix:?}{adapter}.weight"),
            (Matrix::Bias, _) => format!("lora_B{adapter}.bias"),
            (Matrix::Magnitude, None) => "lora_magnitude_vector".to_owned(),
            (Matrix::Magnitude, Some(adapter)) => format!("lora_magnitude_vector.{adapter}.weight"),
            (Matrix::Saved, None) => "weight".to_owned(),
            (Matrix::Saved, Some(adapter)) => format!("modules_to_save.{adapter}.weight"),
            (Matrix::Base, _) => "base_layer.weight".to_owned(),
        };
        format!("{wrapper}{}.{rest}", self.root.path(site))
    }
}

/// A name that belongs to a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TensorName<'a> {
    pub(super) site: Site,
    pub(super) matrix: Matrix,
    pub(super) style: NameStyle<'a>,
}

impl<'a> TensorName<'a> {
    /// `None` when the name belongs to no site that any model could have.
    pub(super) fn parse(name: &'a str) -> Option<Self> {
        let (wrapped, path) = match name.strip_prefix(WRAPPER) {
            Some(path) => (true, path),
            None => (false, name),
        };
        let (root, site, rest) = parse_site(path)?;
        let (matrix, adapter) = parse_matrix(site, rest)?;
        Some(Self { site, matrix, style: NameStyle { root, wrapped, adapter } })
    }

    /// Whether both can be names in one file. Weights of the base never carry an adapter's name.
    pub(super) fn agrees_with(&self, other: &Self) -> bool {
        let bare = |name: &Self| NameStyle { adapter: None, ..name.style };
        if self.matrix == Matrix::Base || other.matrix == Matrix::Base {
            return bare(self) == bare(other);
        }
        self.style == other.style
    }
}

/// Root and site, and what follows them.
fn parse_site(path: &str) -> Option<(TreeRoot, Site, &str)> {
    if let Some(rest) = path.strip_prefix("lm_head.") {
        return Some((TreeRoot::CausalLm, Site::HEAD, rest));
    }
    let (root, path) = match path.strip_prefix(TreeRoot::CausalLm.prefix()) {
        Some(path) => (TreeRoot::CausalLm, path),
        None => (TreeRoot::Decoder, path),
    };
    if let Some(rest) = path.strip_prefix("embed_tokens.") {
        return Some((root, Site::EMBEDDING, rest));
    }
    let (layer, path) = path.strip_prefix("layers.")?.split_once('.')?;
    let (parent, path) = path.split_once('.')?;
    let (module, rest) = path.split_once('.')?;
    let module =
        TargetModule::from_name(module).filter(|module| module.parent() == Some(parent))?;
    Some((root, Site { layer: layer_index(layer)?, module }, rest))
}

/// What the tensor is, and the adapter's name.
fn parse_matrix(site: Site, rest: &str) -> Option<(Matrix, Option<&str>)> {
    let mut parts = rest.split('.');
    let parts = (parts.next()?, parts.next(), parts.next(), parts.next());
    let embedding = site == Site::EMBEDDING;
    Some(match parts {
        ("lora_embedding_A", adapter, None, None) if embedding => (Matrix::A, adapter),
        ("lora_embedding_B", adapter, None, None) if embedding => (Matrix::B, adapter),
        ("base_layer", Some("weight"), None, None) if site.module.is_end() => (Matrix::Base, None),
        ("weight", None, None, None) if site.module.is_end() => (Matrix::Saved, None),
        ("modules_to_save", adapter, Some("weight"), None) if site.module.is_end() => {
            (Matrix::Saved, adapter)
        }
        _ if embedding => return None,
        ("lora_A", Some("weight"), None, None) => (Matrix::A, None),
        ("lora_A", adapter, Some("weight"), None) => (Matrix::A, adapter),
        ("lora_B", Some("weight"), None, None) => (Matrix::B, None),
        ("lora_B", adapter, Some("weight"), None) => (Matrix::B, adapter),
        ("lora_B", Some("bias"), None, None) => (Matrix::Bias, None),
        ("lora_B", adapter, Some("bias"), None) => (Matrix::Bias, adapter),
        ("lora_magnitude_vector", None | Some("weight"), None, None) => (Matrix::Magnitude, None),
        ("lora_magnitude_vector", adapter, Some("weight"), None) => (Matrix::Magnitude, adapter),
        _ => return None,
    })
}

/// Digits as Python prints them: no sign, no leading zero.
fn layer_index(digits: &str) -> Option<usize> {
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit())
        && (digits == "0" || !digits.starts_with('0'));
    if plain { digits.parse().ok() } else { None }
}

/// What an unusable tensor is for, where its name tells.
pub(super) fn feature_of(name: &str) -> Option<&'static str> {
    const FEATURES: [(&str, &str); 7] = [
        ("lora_magnitude_vector", "DoRA of an embedding"),
        ("lora_diag", "KaSA (`kasa_config`)"),
        (
            "modules_to_save",
            "a whole saved module (`modules_to_save`) other than embed_tokens and lm_head",
        ),
        ("token_adapter", "trained token rows (`trainable_token_indices`)"),
        ("base_layer", "a weight of the base"),
        ("embed_tokens", "the embedding"),
        ("lm_head", "the head"),
    ];
    if name.rsplit('.').next() == Some("bias") {
        return Some("a bias of the base (`bias`)");
    }
    FEATURES.into_iter().find(|(part, _)| name.contains(part)).map(|(_, feature)| feature)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_all_writers() {
        let site = Site { layer: 10, module: TargetModule::OProj };
        for (prefix, root) in [
            ("base_model.model.model.", TreeRoot::CausalLm),
            ("model.", TreeRoot::CausalLm),
            ("base_model.model.", TreeRoot::Decoder),
            ("", TreeRoot::Decoder),
        ] {
            for adapter in ["", ".default"] {
                for (letter, matrix) in [("A", Matrix::A), ("B", Matrix::B)] {
                    let name =
                        format!("{prefix}layers.10.self_attn.o_proj.lora_{letter}{adapter}.weight");
                    let parsed = TensorName::parse(&name).unwrap();
                    assert_eq!(
                        (parsed.site, parsed.matrix, parsed.style.root),
                        (site, matrix, root),
                        "{name}"
                    );
                    assert_eq!(parsed.style.name(site, matrix), name);
                }
            }
        }
    }

    #[test]
    fn names_of_every_kind() {
        let linear = Site { layer: 10, module: TargetModule::OProj };
        for (site, matrix, saved, raw) in [
            (
                linear,
                Matrix::Bias,
                "model.layers.10.self_attn.o_proj.lora_B.bias",
                "lora_B.default.bias",
            ),
            (
                linear,
                Matrix::Magnitude,
                "model.layers.10.self_attn.o_proj.lora_magnitude_vector",
                "lora_magnitude_vector.default.weight",
            ),
            (Site::HEAD, Matrix::A, "lm_head.lora_A.weight", "lora_A.default.weight"),
            (
                Site::HEAD,
                Matrix::Magnitude,
                "lm_head.lora_magnitude_vector",
                "lora_magnitude_vector.default.weight",
            ),
            (Site::HEAD, Matrix::Saved, "lm_head.weight", "modules_to_save.default.weight"),
            (
                Site::EMBEDDING,
                Matrix::A,
                "model.embed_tokens.lora_embedding_A",
                "lora_embedding_A.default",
            ),
            (
                Site::EMBEDDING,
                Matrix::B,
                "model.embed_tokens.lora_embedding_B",
                "lora_embedding_B.default",
            ),
            (
                Site::EMBEDDING,
                Matrix::Saved,
                "model.embed_tokens.weight",
                "modules_to_save.default.weight",
            ),
        ] {
            let saved = format!("base_model.model.{saved}");
            let raw = format!("base_model.model.{}.{raw}", site.path());
            for (name, adapter) in [(&saved, None), (&raw, Some("default"))] {
                let parsed = TensorName::parse(name).unwrap();
                assert_eq!(
                    (parsed.site, parsed.matrix, parsed.style.adapter),
                    (site, matrix, adapter),
                    "{name}"
                );
                assert_eq!(parsed.style.name(site, matrix), *name);
                for end in [Site::EMBEDDING, Site::HEAD] {
                    let base = format!("base_model.model.{}.base_layer.weight", end.path());
                    let base = TensorName::parse(&base).unwrap();
                    assert_eq!((base.site, base.matrix), (end, Matrix::Base));
                    assert!(base.agrees_with(&parsed) && parsed.agrees_with(&base), "{name}");
                }
            }
        }
    }

    #[test]
    fn names_of_no_site() {
        for name in [
            "",
            "base_model.model.model.layers.0.self_attn.q_proj.lora_A",
            "base_model.model.model.layers.0.mlp.q_proj.lora_A.weight",
            "base_model.model.model.layers.00.self_attn.q_proj.lora_A.weight",
            "base_model.model.model.layers.+1.self_attn.q_proj.lora_A.weight",
            "base_model.model.model.layers..self_attn.q_proj.lora_A.weight",
            "base_model.model.model.layers.99999999999999999999.self_attn.q_proj.lora_A.weight",
            "base_model.model.model.layers.0.self_attn.qkv_proj.lora_A.weight",
            "base_model.model.model.layers.0.self_attn.q_proj.lora_C.weight",
            "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight.weight.x",
            "base_model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight",
            "base_model.model.model.lm_head.lora_A.weight",
            "base_model.model.lm_head.lora_embedding_A",
            "base_model.model.model.embed_tokens.lora_A.weight",
            "base_model.model.model.embed_tokens.lora_magnitude_vector",
            "base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight",
            "base_model.model.model.layers.0.self_attn.q_proj.weight",
            "base_model.model.model.layers.0.self_attn.q_proj.lora_A.bias",
            "base_model.model.model.norm.weight",
        ] {
            assert_eq!(TensorName::parse(name), None, "{name}");
        }
    }
}
