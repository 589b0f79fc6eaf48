//! The name of a generation: SHA-256 over what its weights compute with.
//!
//! Canonical form, integers and floats little-endian:
//!
//! ```text
//! "pleach lora generation 1\0"
//! u64 number of sites, then for each site in ascending order:
//!   u32 layer   u8 index of the module   u32 rank R   f32 lora_scale
//!   u64 number of values of A, the values as f32, row-major [R, K]
//!   u64 number of values of B, the values as f32, row-major [N, R]
//! then, if there is anything beyond plain LoRA on linears of layers or of the ends:
//! "pleach more kinds 1\0"
//! in the order of sites, those of a site in the order of kinds, then embedding and head, for each array:
//!   u8 kind   u32 layer   u8 index of the module   u64 number of values, the values as f32
//!   kinds: 1 magnitudes (`DoRA`), 2 lora_bias, 3 a matrix of one's own (modules_to_save), 4 one for the base's (base_layer)
//! ```
//!
//! Tensor order, dtype and names in the file, and settings that change nothing (`task_type`, dropout), do not take part.

use std::{fmt, str::FromStr};

use pleach_engine::{adapter_weights::AdapterWeights, breaks::may_break, site::Site};
use sha2::{Digest, Sha256};

const GENERATION_TAG: &[u8] = b"pleach lora generation 1\0";
const MORE_KINDS_TAG: &[u8] = b"pleach more kinds 1\0";
const KV_TAG: &[u8] = b"pleach kv 1\0";

/// Hex digits of [`GenerationDigest::short`].
const SHORT_HEX_DIGITS: usize = 12;

/// Values hashed at once.
const CHUNK_VALUES: usize = 4096;

/// Names one immutable set of adapter weights and settings. Shown as 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GenerationDigest(pub [u8; 32]);

impl GenerationDigest {
    /// The digest of checked weights; equal weights and scales give equal digests, however they were stored.
    pub fn of(weights: &AdapterWeights) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(GENERATION_TAG);
        hasher.update((weights.sites.len() as u64).to_le_bytes());
        for site in &weights.sites {
            hasher.update(narrow(site.site.layer).to_le_bytes());
            hasher.update([narrow(site.site.module.index()).to_le_bytes()[0]]);
            hasher.update(narrow(site.rank).to_le_bytes());
            hasher.update(site.lora_scale.to_le_bytes());
            hash_values(&mut hasher, &site.a);
            hash_values(&mut hasher, &site.b);
        }
        let mut tag = Some(MORE_KINDS_TAG);
        for (kind, site, values) in more_kinds(weights) {
            hasher.update(tag.take().unwrap_or_default());
            hasher.update([kind]);
            hasher.update(narrow(site.layer).to_le_bytes());
            hasher.update([narrow(site.module.index()).to_le_bytes()[0]]);
            hash_values(&mut hasher, values);
        }
        Self(hasher.finalize().into())
    }

    /// The first 12 hex digits, for logs and tables. Not an identity.
    pub fn short(&self) -> String {
        let mut hex = self.to_string();
        hex.truncate(SHORT_HEX_DIGITS);
        hex
    }

    /// The key under which keys and values computed with this generation may be shared: the digest (which covers the
    /// scale) and a salt that separates whoever must not share, for example tenants.
    pub fn kv_key(&self, salt: &[u8]) -> [u8; 32] {
        kv_key(Some(self), salt)
    }
}

/// What there is beyond plain `LoRA`, with the kinds of the canonical form.
fn more_kinds(weights: &AdapterWeights) -> impl Iterator<Item = (u8, Site, &[f32])> {
    let of_sites = weights.sites.iter().flat_map(|site| {
        let parts = [(1, &site.magnitude), (2, &site.bias)];
        parts.into_iter().filter_map(|(kind, part)| Some((kind, site.site, part.as_deref()?)))
    });
    let own = weights
        .own_matrices()
        .map(|(site, own)| (if own.of_base { 4 } else { 3 }, site, own.values.as_slice()));
    of_sites.chain(own)
}

/// [`GenerationDigest::kv_key`] of the plain base.
pub fn base_kv_key(salt: &[u8]) -> [u8; 32] {
    kv_key(None, salt)
}

fn kv_key(digest: Option<&GenerationDigest>, salt: &[u8]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update(KV_TAG);
    // A leading 0 or 1 keeps the base apart from every digest; the salt is last, so it needs no length.
    match digest {
        None => hasher.update([0]),
        Some(GenerationDigest(bytes)) => {
            hasher.update([1]);
            hasher.update(bytes);
        }
    }
    hasher.update(salt);
    hasher.finalize().into()
}

/// Layers and ranks fit 32 bits by far; a larger number could only come from a bug, and may then not collide.
fn narrow(value: usize) -> u32 {
    u32::try_from(value).expect("layer, module and rank were checked against the model")
}

fn hash_values(hasher: &mut Sha256, values: &[f32]) {
    hasher.update((values.len() as u64).to_le_bytes());
    let mut bytes = Vec::with_capacity(values.len().min(CHUNK_VALUES) * size_of::<f32>());
    for chunk in values.chunks(CHUNK_VALUES) {
        may_break();
        bytes.clear();
        bytes.extend(chunk.iter().flat_map(|value| value.to_le_bytes()));
        hasher.update(&bytes);
    }
}

/// Not the 64 hexadecimal digits of a digest.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("a generation is named by the 64 hexadecimal digits of its digest")]
pub struct NotADigest;

impl FromStr for GenerationDigest {
    type Err = NotADigest;

    fn from_str(text: &str) -> Result<Self, NotADigest> {
        let mut bytes = [0; 32];
        let digits = text.as_bytes();
        if digits.len() != 2 * bytes.len() {
            return Err(NotADigest);
        }
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |at: usize| char::from(pair[at]).to_digit(16).ok_or(NotADigest);
            *byte = u8::try_from(digit(0)? << 4 | digit(1)?).map_err(|_| NotADigest)?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for GenerationDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for GenerationDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GenerationDigest({self})")
    }
}

#[cfg(test)]
mod tests {
    use pleach_engine::{
        adapter_weights::{OwnMatrix, SiteWeights},
        site::{Site, TargetModule},
    };

    use super::*;

    #[test]
    fn a_digest_is_read_as_it_is_shown() {
        let digest = GenerationDigest(std::array::from_fn(|i| u8::try_from(7 * i).unwrap()));
        assert_eq!(digest.to_string().parse(), Ok(digest));
        assert_eq!(digest.to_string().to_uppercase().parse(), Ok(digest));
        for bad in ["", "00", &"g".repeat(64), &"0".repeat(63), &"0".repeat(65), &"é".repeat(32)] {
            assert_eq!(bad.parse::<GenerationDigest>(), Err(NotADigest), "{bad:?}");
        }
    }

    fn weights() -> AdapterWeights {
        let site = |layer, module| {
            let (a, b) = (vec![1.0, -2.0], vec![0.5, 0.25, 0.125]);
            SiteWeights::lora(Site { layer, module }, 1, 2.0, a, b)
        };
        AdapterWeights {
            sites: vec![site(0, TargetModule::QProj), site(1, TargetModule::DownProj)],
            ..AdapterWeights::default()
        }
    }

    #[test]
    fn every_part_of_the_content_changes_the_digest() {
        let edits: [fn(&mut AdapterWeights); 17] = [
            |w| w.sites[1].site.module = TargetModule::LmHead,
            |w| w.sites[0].bias = Some(vec![1.0, 2.0, 3.0]),
            |w| w.sites[0].magnitude = Some(vec![1.0, 2.0, 3.0]),
            |w| w.sites[1].magnitude = Some(vec![1.0, 2.0, 3.0]),
            |w| w.sites[1].magnitude = Some(vec![1.0, 2.0, -3.0]),
            |w| w.embedding = Some(OwnMatrix { values: vec![1.0], of_base: false }),
            |w| w.embedding = Some(OwnMatrix { values: vec![1.0], of_base: true }),
            |w| w.head = Some(OwnMatrix { values: vec![1.0], of_base: false }),
            |w| w.head = Some(OwnMatrix { values: vec![1.0], of_base: true }),
            |w| w.head = Some(OwnMatrix { values: vec![1.5], of_base: true }),
            |w| w.sites[0].site.layer = 1,
            |w| w.sites[0].site.module = TargetModule::KProj,
            |w| w.sites[0].rank = 2,
            |w| w.sites[0].lora_scale = 2.000_000_2,
            |w| w.sites[1].a[1] = -2.000_000_2,
            |w| w.sites[1].b[0] = 0.500_000_06,
            |w| {
                // The same values in a row, cut elsewhere.
                let moved = w.sites[1].a.pop().unwrap();
                w.sites[1].b.insert(0, moved);
            },
        ];
        let mut digests = vec![GenerationDigest::of(&weights())];
        assert_eq!(digests[0], GenerationDigest::of(&weights()));
        for edit in edits {
            let mut edited = weights();
            edit(&mut edited);
            digests.push(GenerationDigest::of(&edited));
        }
        let distinct: std::collections::HashSet<_> = digests.iter().collect();
        assert_eq!(distinct.len(), digests.len());
    }

    #[test]
    fn canonical_form_is_pinned() {
        // Independent computation: `tests/fixtures/adapters/make.py`, function `generation_digest`.
        let digest = GenerationDigest::of(&weights());
        assert_eq!(
            digest.to_string(),
            "350a1408cdbc8c072847db333666c125cfab25ba6d93fe3261f3916f55c0c61f"
        );
        assert_eq!(digest.short(), digest.to_string()[..12]);
    }

    #[test]
    fn kv_keys_differ_by_generation_and_salt() {
        let (one, two) = (GenerationDigest([1; 32]), GenerationDigest([2; 32]));
        let keys = [
            base_kv_key(b""),
            base_kv_key(b"a"),
            base_kv_key(&[&[1], [1; 32].as_slice()].concat()),
            one.kv_key(b""),
            one.kv_key(b"a"),
            two.kv_key(b""),
            two.kv_key(b"a"),
        ];
        let distinct: std::collections::HashSet<_> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len());
        assert_eq!(one.kv_key(b"a"), GenerationDigest([1; 32]).kv_key(b"a"));
    }
}
