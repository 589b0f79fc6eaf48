//! How alike two texts are, from 0 to 1.
//!
//! | metric | words | value | source |
//! |---|---|---|---|
//! | `fuzzy_match` | characters | `2 L / (n + m)`, `L` the longest common subsequence | the ratio of rapidfuzz |
//! | `bleu` | words and signs | geometric mean of the precisions of 1- to 4-grams, times the brevity penalty; from 2-grams on one is added to hits and number | Papineni 2002, Lin and Och 2004 |
//! | `gleu` | words and signs | the lesser of precision and recall over all 1- to 4-grams | arXiv 1609.08144 |
//! | `rouge_1` … `rouge_5` | lower-case words | F1 of n-grams | Lin 2004 |
//! | `rouge_l` | lower-case words | F1 of the longest common subsequence | Lin 2004 |
//!
//! Two empty texts are equal, an empty one and another have nothing in common. `OpenAI` does not say how its own are
//! smoothed or cut into words, so values may differ from its in later digits.

use std::collections::HashMap;

/// Longest text that is compared, characters: the time goes with the square.
const CHARS_MAX: usize = 8192;
/// Longest n-grams of BLEU and GLEU.
const ORDER: usize = 4;

/// How texts are compared, see the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// By characters.
    FuzzyMatch,
    /// Precision of n-grams.
    Bleu,
    /// Precision and recall of n-grams.
    Gleu,
    /// F1 of n-grams of so many words, 1 to 5.
    Rouge(u8),
    /// F1 of the longest common subsequence.
    RougeL,
}

impl Metric {
    /// All that are offered.
    pub const ALL: [Self; 9] = [
        Self::FuzzyMatch,
        Self::Bleu,
        Self::Gleu,
        Self::Rouge(1),
        Self::Rouge(2),
        Self::Rouge(3),
        Self::Rouge(4),
        Self::Rouge(5),
        Self::RougeL,
    ];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::FuzzyMatch => "fuzzy_match",
            Self::Bleu => "bleu",
            Self::Gleu => "gleu",
            Self::Rouge(1) => "rouge_1",
            Self::Rouge(2) => "rouge_2",
            Self::Rouge(3) => "rouge_3",
            Self::Rouge(4) => "rouge_4",
            Self::Rouge(_) => "rouge_5",
            Self::RougeL => "rouge_l",
        }
    }

    /// How alike a text is to its reference, and whether one of them was cut before.
    pub fn of(self, input: &str, reference: &str) -> (f64, bool) {
        let (input, input_is_cut) = cut(input);
        let (reference, reference_is_cut) = cut(reference);
        (self.value(input, reference), input_is_cut || reference_is_cut)
    }

    fn value(self, input: &str, reference: &str) -> f64 {
        match self {
            Self::FuzzyMatch => {
                let (a, b): (Vec<char>, Vec<char>) =
                    (input.chars().collect(), reference.chars().collect());
                share(2 * common(&a, &b), a.len() + b.len())
            }
            Self::Bleu => bleu(&signs(input), &signs(reference)),
            Self::Gleu => gleu(&signs(input), &signs(reference)),
            Self::Rouge(n) => {
                let (a, b) = (words(input), words(reference));
                let (hits, of_input, of_reference) = overlap(&a, &b, usize::from(n));
                // Texts that are too short for an n-gram are alike if they are equal.
                if of_input + of_reference == 0 {
                    return f64::from(u8::from(a == b));
                }
                share(2 * hits, of_input + of_reference)
            }
            Self::RougeL => {
                let (a, b) = (words(input), words(reference));
                share(2 * common(&a, &b), a.len() + b.len())
            }
        }
    }
}

fn cut(text: &str) -> (&str, bool) {
    match text.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => (&text[..end], true),
        None => (text, false),
    }
}

/// `part / whole`; nothing of nothing is all of it.
fn share(part: usize, whole: usize) -> f64 {
    if whole == 0 { 1.0 } else { part as f64 / whole as f64 }
}

/// Runs of letters and digits, and every other sign by itself.
fn signs(text: &str) -> Vec<String> {
    let mut signs: Vec<String> = Vec::new();
    let mut follows_word = false;
    for c in text.chars() {
        let is_word = c.is_alphanumeric() || c == '_';
        match signs.last_mut() {
            Some(word) if is_word && follows_word => word.push(c),
            _ if !c.is_whitespace() => signs.push(c.to_string()),
            _ => {}
        }
        follows_word = is_word;
    }
    signs
}

/// Runs of letters and digits in lower case.
fn words(text: &str) -> Vec<String> {
    let text = text.to_lowercase();
    let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_owned).collect()
}

/// Length of the longest common subsequence: time `n m`, memory `m`.
fn common<T: PartialEq>(a: &[T], b: &[T]) -> usize {
    let mut lengths = vec![0usize; b.len() + 1];
    for item in a {
        // Of the row before: one column to the left.
        let mut diagonal = 0;
        for (column, other) in b.iter().enumerate() {
            let above = lengths[column + 1];
            lengths[column + 1] =
                if item == other { diagonal + 1 } else { above.max(lengths[column]) };
            diagonal = above;
        }
    }
    lengths[b.len()]
}

/// N-grams that both have, and those of each.
fn overlap(a: &[String], b: &[String], n: usize) -> (usize, usize, usize) {
    let mut counts: HashMap<&[String], usize> = HashMap::new();
    for gram in b.windows(n) {
        *counts.entry(gram).or_default() += 1;
    }
    let mut hits = 0;
    for gram in a.windows(n) {
        if let Some(count) = counts.get_mut(gram).filter(|count| **count > 0) {
            *count -= 1;
            hits += 1;
        }
    }
    (hits, a.len().saturating_sub(n - 1), b.len().saturating_sub(n - 1))
}

fn bleu(input: &[String], reference: &[String]) -> f64 {
    if input.is_empty() || reference.is_empty() {
        return share(0, input.len() + reference.len());
    }
    let mut log_precision = 0.0;
    for n in 1..=ORDER {
        let (hits, of_input, _) = overlap(input, reference, n);
        let added = usize::from(n > 1);
        log_precision += share(hits + added, of_input + added).ln() / ORDER as f64;
    }
    let brevity = (1.0 - reference.len() as f64 / input.len() as f64).min(0.0);
    (log_precision + brevity).exp()
}

fn gleu(input: &[String], reference: &[String]) -> f64 {
    let (mut hits, mut of_input, mut of_reference) = (0, 0, 0);
    for n in 1..=ORDER {
        let found = overlap(input, reference, n);
        (hits, of_input, of_reference) =
            (hits + found.0, of_input + found.1, of_reference + found.2);
    }
    share(hits, of_input.max(of_reference))
}
