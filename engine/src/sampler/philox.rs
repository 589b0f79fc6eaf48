//! Philox4x32-10, a counter-based random generator: the n-th number of a seed is a pure function, so a sequence draws
//! the same numbers in any batch and after preemption.
//!
//! Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011; test vectors of Random123.

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const KEY_STEPS: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// Four random words for this counter and key (Philox4x32-10, Salmon et al., SC 2011).
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let mut c = counter;
    let mut k = key;
    for _ in 0..ROUNDS {
        let (hi0, lo0) = wide_product(MULTIPLIERS[0], c[0]);
        let (hi1, lo1) = wide_product(MULTIPLIERS[1], c[2]);
        c = [hi1 ^ c[1] ^ k[0], lo1, hi0 ^ c[3] ^ k[1], lo0];
        k = [k[0].wrapping_add(KEY_STEPS[0]), k[1].wrapping_add(KEY_STEPS[1])];
    }
    c
}

/// A number in `[0, 1)`, times 2⁶⁴: number `index` of `seed`.
pub(super) fn uniform(seed: u64, index: u64) -> u64 {
    let [index_hi, index_lo] = halves(index);
    let [seed_hi, seed_lo] = halves(seed);
    let words = philox4x32([index_lo, index_hi, 0, 0], [seed_lo, seed_hi]);
    (u64::from(words[0]) << 32) | u64::from(words[1])
}

fn wide_product(a: u32, b: u32) -> (u32, u32) {
    let [hi, lo] = halves(u64::from(a) * u64::from(b));
    (hi, lo)
}

#[expect(clippy::cast_possible_truncation, reason = "taking a word apart is the point")]
fn halves(word: u64) -> [u32; 2] {
    [(word >> 32) as u32, word as u32]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `kat_vectors` of Random123, the lines `philox4x32 10`.
    #[test]
    fn published_vectors() {
        let ones = u32::MAX;
        for (counter, key, expected) in [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([ones; 4], [ones; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ] {
            assert_eq!(philox4x32(counter, key), expected);
        }
    }

    #[test]
    fn uniform_is_spread() {
        let n = 4000;
        let mut bins = [0u32; 10];
        for index in 0..n {
            bins[((uniform(7, index) >> 32) as usize * 10) >> 32] += 1;
        }
        assert!(bins.iter().all(|&count| (300..500).contains(&count)), "{bins:?}");
        assert!(uniform(7, 0) != uniform(8, 0) && uniform(7, 1 << 32) != uniform(7, 0));
    }
}
