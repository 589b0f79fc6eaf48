//! Which generations with which scales.

use sha2::{Digest as _, Sha256};

use crate::digest::GenerationDigest;

/// Most parts of a composition.
pub const COMPOSED_PARTS_MAX: usize = 8;
/// Largest scale of a part, of either sign: far beyond any use, and far from what f32 holds.
pub const COMPOSED_SCALE_MAX: f32 = 100.0;

const TAG: &[u8] = b"pleach composition 1\0";

/// One generation of a composition.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ComposedPart {
    /// Which.
    pub generation: GenerationDigest,
    /// What its own `lora_scale` is multiplied by.
    pub scale: f32,
}

/// The sum of scaled generations, in canonical form: a part of scale 0 is none, and the order of a request says nothing.
/// So equal sums are one composition with equal bits, though f32 sums depend on their order.
#[derive(Clone, Debug, PartialEq)]
pub struct Composition {
    /// By digest, then by the bits of the scale.
    parts: Vec<ComposedPart>,
}

/// What rows of a composition run as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunsAs {
    /// The sum of nothing is the plain base.
    Base,
    /// One part of scale 1 is that generation itself, and shares its place and its cached prefixes.
    Generation(GenerationDigest),
    /// Weights of its own, under a digest of its own.
    Sum(GenerationDigest),
}

/// Why parts make no composition.
#[derive(Clone, Debug, thiserror::Error, PartialEq)]
pub enum CompositionError {
    /// None at all.
    #[error("no adapters are named")]
    Empty,
    /// Too many.
    #[error("{found} adapters, at most {COMPOSED_PARTS_MAX} can be composed")]
    TooMany {
        /// How many.
        found: usize,
    },
    /// NaN, infinite or absurd.
    #[error("the scale {scale} is outside -{COMPOSED_SCALE_MAX}..={COMPOSED_SCALE_MAX}")]
    Scale {
        /// The scale.
        scale: f32,
    },
}

impl Composition {
    /// Checks parts and brings them into canonical form.
    ///
    /// # Errors
    /// [`CompositionError`].
    pub fn new(parts: &[ComposedPart]) -> Result<Self, CompositionError> {
        if parts.is_empty() {
            return Err(CompositionError::Empty);
        }
        if parts.len() > COMPOSED_PARTS_MAX {
            return Err(CompositionError::TooMany { found: parts.len() });
        }
        // A NaN is in no range.
        let range = -COMPOSED_SCALE_MAX..=COMPOSED_SCALE_MAX;
        if let Some(part) = parts.iter().find(|part| !range.contains(&part.scale)) {
            return Err(CompositionError::Scale { scale: part.scale });
        }
        let mut parts: Vec<_> = parts.iter().filter(|part| part.scale != 0.0).copied().collect();
        parts.sort_unstable_by_key(|part| (part.generation, part.scale.to_bits()));
        Ok(Self { parts })
    }

    /// The parts in canonical order, without those of scale 0.
    pub fn parts(&self) -> &[ComposedPart] {
        &self.parts
    }

    /// What it runs as. The digest of a sum is SHA-256 over a tag of its own, `u64` number of parts, and for each its
    /// digest and its scale as f32, little-endian; prefixes are cached under it as under any generation's.
    pub fn runs_as(&self) -> RunsAs {
        match self.parts.as_slice() {
            [] => RunsAs::Base,
            #[expect(clippy::float_cmp, reason = "only the number 1 changes nothing")]
            [part] if part.scale == 1.0 => RunsAs::Generation(part.generation),
            parts => {
                let mut hasher = Sha256::new();
                hasher.update(TAG);
                hasher.update((parts.len() as u64).to_le_bytes());
                for part in parts {
                    hasher.update(part.generation.0);
                    hasher.update(part.scale.to_le_bytes());
                }
                RunsAs::Sum(GenerationDigest(hasher.finalize().into()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn part(byte: u8, scale: f32) -> ComposedPart {
        ComposedPart { generation: GenerationDigest([byte; 32]), scale }
    }

    fn runs_as(parts: &[ComposedPart]) -> RunsAs {
        Composition::new(parts).unwrap().runs_as()
    }

    #[test]
    fn what_a_composition_runs_as() {
        assert_eq!(runs_as(&[part(1, 0.0), part(2, -0.0)]), RunsAs::Base);
        let one = RunsAs::Generation(GenerationDigest([1; 32]));
        assert_eq!(runs_as(&[part(1, 1.0)]), one);
        assert_eq!(runs_as(&[part(2, 0.0), part(1, 1.0)]), one);
        let RunsAs::Sum(digest) = runs_as(&[part(2, -1.5), part(1, 0.5)]) else {
            panic!("two parts are a sum")
        };
        // Python: sha256(b"pleach composition 1\0" + pack("<Q", 2) + b"\1"*32 + pack("<f", .5) + b"\2"*32 + pack("<f", -1.5))
        assert_eq!(
            digest.to_string(),
            "8b79e1081c949799df6db1313d68e297bb759d323ec9ea456df8d451dafbfbf8"
        );
    }

    #[test]
    fn parts_that_make_no_composition_are_refused() {
        let refused = |parts: &[ComposedPart]| Composition::new(parts).unwrap_err().to_string();
        assert_eq!(refused(&[]), "no adapters are named");
        assert_eq!(refused(&[part(1, 0.0); 9]), "9 adapters, at most 8 can be composed");
        for scale in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 100.01, -1e30] {
            let message = format!("the scale {scale} is outside -100..=100");
            assert_eq!(refused(&[part(1, 1.0), part(2, scale)]), message);
        }
        assert_eq!(Composition::new(&[part(1, -100.0)]).unwrap().parts(), [part(1, -100.0)]);
    }

    /// Few generations and scales, so that equal ones are drawn.
    fn parts() -> impl Strategy<Value = Vec<ComposedPart>> {
        let scale = prop::sample::select(vec![0.0, -0.0, 1.0, -1.0, 0.5, 1e-30]);
        let part = (0u8..4, scale).prop_map(|(byte, scale)| part(byte, scale));
        prop::collection::vec(part, 1..=COMPOSED_PARTS_MAX)
    }

    /// The parts that count, as a multiset.
    fn multiset(parts: &[ComposedPart]) -> Vec<([u8; 32], u32)> {
        let mut set: Vec<_> = parts
            .iter()
            .filter(|part| part.scale != 0.0)
            .map(|part| (part.generation.0, part.scale.to_bits()))
            .collect();
        set.sort_unstable();
        set
    }

    proptest! {
        #[test]
        fn neither_order_nor_zeros_change_a_composition(
            (parts, shuffled) in parts().prop_flat_map(|parts| (Just(parts.clone()), Just(parts).prop_shuffle())),
        ) {
            let one = Composition::new(&parts).unwrap();
            let other = Composition::new(&shuffled).unwrap();
            prop_assert_eq!(&one, &other);
            let counting: Vec<_> = parts.iter().filter(|part| part.scale != 0.0).copied().collect();
            if !counting.is_empty() {
                prop_assert_eq!(&one, &Composition::new(&counting).unwrap());
            }
        }

        #[test]
        fn sums_have_one_digest_exactly_if_they_are_one_sum(one in parts(), other in parts()) {
            let same = multiset(&one) == multiset(&other);
            prop_assert_eq!(runs_as(&one) == runs_as(&other), same);
        }
    }
}
