//! Near duplicates in linear time: `MinHash` signatures of word 1- and 2-grams, bands of them as buckets (LSH), groups
//! by union-find.
//!
//! ```text
//! text ─> words ─> n-grams ─> hashes h ─> signature: min over h of (a_i h + b_i) mod 2^32, for 128 pairs (a_i, b_i)
//! P(two signatures agree at i) = Jaccard similarity J of the sets of n-grams
//! bucket of a band = 4 places of the signature; 32 bands; P(no common bucket) = (1 - J^4)^32 = 1e-4 at J = 0.7
//! ```
//!
//! Two texts of a common bucket are near duplicates when their signatures agree at 70 % of the places, an estimate of J
//! with a standard error of 0.04. Sources: Broder 1997; Leskovec, Rajaraman and Ullman, *Mining of Massive Datasets*, ch. 3.

use std::collections::{HashMap, hash_map::Entry};

use super::{counter_rng::CounterRng, union_find::UnionFind};

/// Places of a signature.
const PLACES: usize = 128;
/// Places of a band: few enough that near duplicates share one, enough that strangers don't.
const BAND: usize = 4;
/// Texts of a bucket that a new one is compared with. It keeps the time linear where many texts share their words.
const COMPARED_MAX: usize = 16;
/// The functions are the same in every run: groups are part of what a run is repeated from.
const SEED: u64 = 0x6d69_6e68_6173_6831;

/// What a near duplicate is.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct NearDuplicateSettings {
    /// Jaccard similarity of the word 1- and 2-grams, from 0 to 1.
    pub similarity_min: f64,
}

impl Default for NearDuplicateSettings {
    fn default() -> Self {
        Self { similarity_min: 0.7 }
    }
}

/// Signatures of texts: 256 bytes each.
#[derive(Clone, Debug)]
pub struct NearDuplicates {
    settings: NearDuplicateSettings,
    functions: Vec<(u32, u32)>,
    /// `[texts, PLACES]`. The lower halves of the minima are enough: different ones agree once in 65 536.
    signatures: Vec<u16>,
    words: Vec<u64>,
}

impl NearDuplicates {
    /// No texts yet.
    pub fn new(settings: NearDuplicateSettings) -> Self {
        let rng = CounterRng::new(SEED, 0);
        let half = |counter| {
            let [a, b, c, d, ..] = rng.at(counter).to_le_bytes();
            u32::from_le_bytes([a, b, c, d])
        };
        // Odd factors: then a function is a permutation of 2^32 values.
        let functions = (0..PLACES as u64).map(|i| (half(2 * i) | 1, half(2 * i + 1))).collect();
        Self { settings, functions, signatures: Vec::new(), words: Vec::new() }
    }

    /// Number of texts.
    pub fn len(&self) -> usize {
        self.signatures.len() / PLACES
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.signatures.is_empty()
    }

    /// Adds a text.
    pub fn push(&mut self, text: &str) {
        self.words.clear();
        push_words(text, &mut self.words);
        if self.words.is_empty() {
            self.words.push(hash_of(text.trim()));
        }
        let mut lowest = [u32::MAX; PLACES];
        let mut add = |hash: u64| {
            // The lower half of FNV alone is weak where words are short.
            let hash =
                u32::try_from((hash ^ (hash >> 29)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32)
                    .unwrap_or(0);
            for (low, (a, b)) in lowest.iter_mut().zip(&self.functions) {
                *low = (*low).min(hash.wrapping_mul(*a).wrapping_add(*b));
            }
        };
        self.words.iter().for_each(|&word| add(word));
        self.words.windows(2).for_each(|pair| add(pair[0].rotate_left(23) ^ pair[1]));
        #[expect(clippy::cast_possible_truncation, reason = "the lower half is what is kept")]
        self.signatures.extend(lowest.map(|low| low as u16));
    }

    /// The group of each text, named by its first text. Near duplicates of near duplicates are in one group.
    pub fn groups(&self) -> Vec<u32> {
        let n_texts = u32::try_from(self.len()).unwrap_or(u32::MAX);
        let mut groups = UnionFind::new(n_texts);
        for band in 0..PLACES / BAND {
            let mut buckets: HashMap<u64, Vec<u32>> = HashMap::new();
            for text in 0..n_texts {
                match buckets.entry(self.bucket(text, band)) {
                    Entry::Vacant(bucket) => {
                        bucket.insert(vec![text]);
                    }
                    Entry::Occupied(mut bucket) => {
                        self.join(&mut groups, bucket.get_mut(), text);
                    }
                }
            }
        }
        groups.names()
    }

    fn join(&self, groups: &mut UnionFind, bucket: &mut Vec<u32>, text: u32) {
        let mut known = false;
        for &other in bucket.iter() {
            let similarity = self.similarity(text, other);
            if similarity >= self.settings.similarity_min {
                groups.join(text, other);
            }
            known |= similarity >= 1.0;
        }
        if !known && bucket.len() < COMPARED_MAX {
            bucket.push(text);
        }
    }

    fn signature(&self, text: u32) -> &[u16] {
        let start = text as usize * PLACES;
        &self.signatures[start..start + PLACES]
    }

    fn bucket(&self, text: u32, band: usize) -> u64 {
        let places = &self.signature(text)[band * BAND..(band + 1) * BAND];
        places.iter().fold(0, |bucket, place| bucket << 16 | u64::from(*place))
    }

    /// Estimate of the Jaccard similarity.
    fn similarity(&self, a: u32, b: u32) -> f64 {
        let places = self.signature(a).iter().zip(self.signature(b));
        places.filter(|(a, b)| a == b).count() as f64 / PLACES as f64
    }
}

/// Hashes of the words of a text: lower case, all numbers alike, and in scripts that don't divide words every
/// character a word.
fn push_words(text: &str, words: &mut Vec<u64>) {
    let mut word = Fnv::new();
    let mut in_number = false;
    for character in text.chars() {
        if !character.is_alphanumeric() {
            word.end_into(words);
            in_number = false;
        } else if character.is_numeric() {
            if !in_number {
                word.add('0');
            }
            in_number = true;
        } else {
            in_number = false;
            let divided = is_undivided(character);
            if divided {
                word.end_into(words);
            }
            character.to_lowercase().for_each(|lower| word.add(lower));
            if divided {
                word.end_into(words);
            }
        }
    }
    word.end_into(words);
}

/// Scripts that are written without spaces: Thai to Khmer, Chinese and Japanese.
fn is_undivided(character: char) -> bool {
    matches!(u32::from(character),
        0x0e00..=0x0eff | 0x1000..=0x109f | 0x1780..=0x17ff | 0x3040..=0x30ff | 0x3400..=0x9fff | 0xf900..=0xfaff
        | 0x2_0000..=0x3_ffff)
}

fn hash_of(text: &str) -> u64 {
    let mut hash = Fnv::new();
    text.chars().for_each(|character| hash.add(character));
    hash.state
}

/// FNV-1a of 64 bits, over characters.
struct Fnv {
    state: u64,
    empty: bool,
}

impl Fnv {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;

    fn new() -> Self {
        Self { state: Self::OFFSET, empty: true }
    }

    fn add(&mut self, character: char) {
        self.state = (self.state ^ u64::from(u32::from(character))).wrapping_mul(Self::PRIME);
        self.empty = false;
    }

    fn end_into(&mut self, words: &mut Vec<u64>) {
        if !self.empty {
            words.push(self.state);
            *self = Self::new();
        }
    }
}
