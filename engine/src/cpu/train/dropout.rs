//! Dropout masks as a function of where they apply (see [`Dropout`]).

use crate::{sampler::philox4x32, site::Site, train::Dropout};

/// Values decided by one call of the generator: sixteen bits each.
const PER_CALL: usize = 8;

/// The masks of one seed and probability.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Masks {
    key: [u32; 2],
    /// Numbers below are dropped, of `0..65536`.
    threshold: u32,
    /// What the others are multiplied by.
    scale: f32,
}

impl Masks {
    /// `None` if nothing is dropped.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of 65536; halves of a seed"
    )]
    pub(crate) fn new(dropout: Dropout) -> Option<Self> {
        let threshold = (f64::from(dropout.probability) * 65536.0).round() as u32;
        let key = [dropout.seed as u32, (dropout.seed >> 32) as u32];
        let scale = 65536.0 / (65536 - threshold.min(65535)) as f32;
        (threshold > 0).then_some(Self { key, threshold, scale })
    }

    /// Writes the factors, zero or `1 / (1 − p)`, of input features `first..first + out.len()` of one row. `first` is a
    /// multiple of 8; `(position, stream)` is the row's place.
    #[expect(clippy::cast_possible_truncation, reason = "layers and features are far below 2³²")]
    pub(crate) fn factors(
        &self,
        (position, stream): (u32, u32),
        site: Site,
        first: usize,
        out: &mut [f32],
    ) {
        let site = (site.layer * 16 + site.module.index()) as u32;
        for (index, out) in out.chunks_mut(PER_CALL).enumerate() {
            let counter = [(first / PER_CALL + index) as u32, position, site, stream];
            let words = philox4x32(counter, self.key);
            for (i, factor) in out.iter_mut().enumerate() {
                let number = (words[i / 2] >> (16 * (i % 2))) & 0xffff;
                *factor = if number < self.threshold { 0.0 } else { self.scale };
            }
        }
    }
}
