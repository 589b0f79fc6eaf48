//! Names of tensors in a PEFT file.
//!
//! ```text
//! base_model.model . model.  layers.3.self_attn.q_proj . lora_A . [adapter .] weight
//! └ PEFT's wrapper └ root   └ site                      └ matrix └ only in raw state dicts
//! ```
//! The wrapper is missing in files that other tools wrote, the root in adapters of a bare decoder.

use pleach_engine::site::{Site, TargetModule};

use super::targets::TreeRoot;

const WRAPPER: &str = "base_model.model.";

/// One of the two factors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Matrix {
    /// `[R, K]`.
    A,
    /// `[N, R]`.
    B,
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
        format!("{wrapper}{}.lora_{matrix:?}{adapter}.weight", self.root.path(site))
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
        let (root, path) = match path.strip_prefix(TreeRoot::CausalLm.prefix()) {
            Some(path) => (TreeRoot::CausalLm, path),
            None => (TreeRoot::Decoder, path),
        };
        let mut parts = path.strip_prefix("layers.")?.split('.');
        let layer = layer_index(parts.next()?)?;
        let parent = parts.next()?;
        let module =
            TargetModule::from_name(parts.next()?).filter(|module| module.parent() == parent)?;
        let matrix = match parts.next()? {
            "lora_A" => Matrix::A,
            "lora_B" => Matrix::B,
            _ => return None,
        };
        let adapter = match (parts.next()?, parts.next(), parts.next()) {
            ("weight", None, None) => None,
            (adapter, Some("weight"), None) => Some(adapter),
            _ => return None,
        };
        Some(Self {
            site: Site { layer, module },
            matrix,
            style: NameStyle { root, wrapped, adapter },
        })
    }
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
        ("lora_magnitude_vector", "DoRA (`use_dora`)"),
        ("lora_embedding_", "LoRA on an embedding"),
        ("lora_diag", "KaSA (`kasa_config`)"),
        ("modules_to_save", "a whole saved module (`modules_to_save`)"),
        ("token_adapter", "trained token rows (`trainable_token_indices`)"),
        ("embed_tokens", "the embedding"),
        ("lm_head", "the head"),
    ];
    if name.rsplit('.').next() == Some("bias") {
        return Some("a bias (`bias` or `lora_bias`)");
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
            "base_model.model.lm_head.lora_A.weight",
        ] {
            assert_eq!(TensorName::parse(name), None, "{name}");
        }
    }
}
