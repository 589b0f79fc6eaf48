//! Inputs that are nearly right: the changes that fuzzers make, drawn by a small generator, the same in every run.

/// Most changes of one input.
const CHANGES_MAX: usize = 6;
/// Most bytes that one change inserts or removes.
const SPAN_MAX: usize = 64;
/// What parsers look for.
const MEANT: &[u8] = b"{}[]()\",:\\%|-+.eE0123456789 \n\r\0\xff\xc3\xe2\xf0";

pub(crate) struct Mutations {
    seeds: Vec<Vec<u8>>,
    state: u64,
}

impl Mutations {
    /// # Panics
    /// Without a seed.
    pub(crate) fn new(seeds: Vec<Vec<u8>>) -> Self {
        assert!(!seeds.is_empty());
        Self { seeds, state: 0x9e37_79b9_7f4a_7c15 }
    }

    pub(crate) fn next(&mut self) -> Vec<u8> {
        let seed = self.below(self.seeds.len());
        let mut bytes = self.seeds[seed].clone();
        for _ in 0..=self.below(CHANGES_MAX) {
            self.change(&mut bytes);
        }
        bytes
    }

    fn change(&mut self, bytes: &mut Vec<u8>) {
        let at = self.below(bytes.len() + 1);
        let span = (1 + self.below(SPAN_MAX)).min(bytes.len() - at);
        let byte = if self.below(2) == 0 { MEANT[self.below(MEANT.len())] } else { self.byte() };
        match self.below(7) {
            0 => bytes.insert(at, byte),
            1 => drop(bytes.drain(at..at + span)),
            2 => bytes.truncate(at),
            // A part of another seed.
            3 => {
                let other = self.below(self.seeds.len());
                let from = self.below(self.seeds[other].len() + 1);
                let part = self.seeds[other][from..].iter().take(SPAN_MAX).copied();
                let part: Vec<u8> = part.collect();
                bytes.splice(at..at, part);
            }
            // A part of its own, once more.
            4 => {
                let part = bytes[at..at + span].to_vec();
                bytes.splice(at..at, part);
            }
            // A bit, as lengths and offsets change by powers of two.
            5 => {
                let bit = self.below(8);
                bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << bit);
            }
            _ => bytes.iter_mut().skip(at).take(1).for_each(|old| *old = byte),
        }
    }

    fn byte(&mut self) -> u8 {
        self.random().to_le_bytes()[7]
    }

    /// Less than `n`, which is not 0.
    fn below(&mut self, n: usize) -> usize {
        usize::try_from((self.random() >> 32) % n as u64).unwrap()
    }

    /// `xorshift64*`: Vigna, <https://arxiv.org/abs/1402.6246>.
    fn random(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}
