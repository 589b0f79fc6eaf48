//! Kernels against [`crate::reference`], on every instruction set of this processor.
//!
//! Outputs are filled with a marked NaN first, so that a kernel that skips a value, or writes one that is not its own,
//! is found out. Every kernel is also run on one row and on many: a row's bits must not change.

mod attention;
mod elementwise;
mod int8_rows;
mod lora;
mod matmul;
mod packing;
#[path = "../../../tests/support/random.rs"]
pub(super) mod random;

use crate::quant::BlockFormat;

use super::Isa;
pub(super) use random::Random;

/// A NaN that no kernel makes.
const UNTOUCHED: f32 = f32::from_bits(0x7fc0_beef);
/// Marked values before and after a buffer.
const GUARD: usize = 64;

/// Instruction sets of this processor; names the missing ones.
pub(super) fn isas() -> Vec<Isa> {
    let (here, missing): (Vec<_>, Vec<_>) =
        Isa::ALL.into_iter().partition(|isa| isa.is_available());
    for isa in missing {
        eprintln!("skipped: no {isa} on this processor");
    }
    here
}

pub(super) fn is_untouched(value: f32) -> bool {
    value.to_bits() == UNTOUCHED.to_bits()
}

pub(super) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

pub(super) fn widen(values: &[f32]) -> Vec<f64> {
    values.iter().copied().map(f64::from).collect()
}

/// A buffer of marked values with guards around it.
pub(super) struct Guarded(Vec<f32>);

impl Guarded {
    pub(super) fn new(len: usize) -> Self {
        Self(vec![UNTOUCHED; len + 2 * GUARD])
    }

    pub(super) fn values(&mut self) -> &mut [f32] {
        let end = self.0.len() - GUARD;
        &mut self.0[GUARD..end]
    }

    /// The values, if the guards are as they were.
    pub(super) fn checked(self, what: &str) -> Vec<f32> {
        let end = self.0.len() - GUARD;
        let guards = self.0[..GUARD].iter().chain(&self.0[end..]);
        assert!(guards.copied().all(is_untouched), "{what}: wrote outside its buffer");
        self.0[GUARD..end].to_vec()
    }
}

/// Worst error of `found`, as a share of `magnitude` (what rounding is proportional to); panics above `tolerance`.
pub(super) fn assert_close(
    what: &str,
    found: &[f32],
    expected: &[f64],
    magnitude: &[f64],
    tolerance: f64,
) {
    assert_eq!(found.len(), expected.len(), "{what}");
    assert_eq!(found.len(), magnitude.len(), "{what}");
    for (i, ((&found, &expected), &magnitude)) in
        found.iter().zip(expected).zip(magnitude).enumerate()
    {
        let error = (f64::from(found) - expected).abs();
        let allowed = tolerance * magnitude + f64::from(f32::MIN_POSITIVE);
        assert!(
            error <= allowed,
            "{what}, value {i}: {found}, expected {expected}: {} of {allowed}",
            error / allowed
        );
    }
}

/// Bytes of rows whose codes and small scales are random. The f16 scales are finite: from 2⁻¹⁰ to 2⁻³ if `tame` (values of
/// weights), any otherwise; of both signs, a few of them zero.
pub(super) fn random_rows(
    random: &mut Random,
    format: BlockFormat,
    n_rows: usize,
    n_in: usize,
    tame: bool,
) -> Vec<Vec<u8>> {
    let scales: &[usize] = match format {
        BlockFormat::F16 | BlockFormat::Q4_0 | BlockFormat::Q5_0 | BlockFormat::Q8_0 => &[0],
        BlockFormat::Q4_1 | BlockFormat::Q5_1 | BlockFormat::Q4K | BlockFormat::Q5K => &[0, 2],
        BlockFormat::Q2K => &[80, 82],
        BlockFormat::Q3K => &[108],
        BlockFormat::Q6K => &[208],
        BlockFormat::F32 | BlockFormat::Bf16 => &[],
    };
    let row = |random: &mut Random| {
        let mut bytes: Vec<u8> =
            (0..format.row_bytes(n_in).unwrap()).map(|_| random.next().to_le_bytes()[0]).collect();
        for block in bytes.chunks_exact_mut(format.block_bytes()) {
            for &at in scales {
                let [low, high] = u16::try_from(random.below(1 << 16)).unwrap().to_le_bytes();
                let exponent = if tame {
                    u8::try_from(random.between(5, 12)).unwrap()
                } else {
                    (high >> 2 & 31).min(30)
                };
                let half = [low, high & 0x83 | exponent << 2];
                block[at..at + 2].copy_from_slice(if random.chance(5) { &[0, 0] } else { &half });
            }
            if format == BlockFormat::F32 {
                block.copy_from_slice(&random.unit().to_le_bytes());
            }
            if format == BlockFormat::Bf16 {
                block.copy_from_slice(&half::bf16::from_f32(random.unit()).to_le_bytes());
            }
        }
        bytes
    };
    (0..n_rows).map(|_| row(random)).collect()
}
