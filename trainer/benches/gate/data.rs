//! Rows, labels, and draws among them.

use std::collections::BTreeMap;

use pleach_engine::sampler::philox4x32;
use serde_json::Value;

/// What is wrong with the labels of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Clean,
    Inverted,
    Garbage,
    /// Right labels, and a learning rate of zero.
    Same,
}

/// A text and its class.
#[derive(Clone)]
pub(crate) struct Labelled {
    pub(crate) text: String,
    pub(crate) label: usize,
}

/// Random numbers of a seed, for one purpose.
pub(crate) struct Random {
    key: [u32; 2],
    counter: u32,
}

impl Random {
    pub(crate) fn new(seed: u32, purpose: u32) -> Self {
        Self { key: [seed, purpose], counter: 0 }
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        let [word, ..] = philox4x32([self.counter, 0, 0, 0], self.key);
        self.counter += 1;
        usize::try_from((u64::from(word) * bound as u64) >> 32).unwrap()
    }

    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

/// The most frequent labels, and the beginnings of their texts.
pub(crate) fn read(path: &str, n_labels: usize, n_words: usize) -> (Vec<String>, Vec<Labelled>) {
    let text = std::fs::read_to_string(path).unwrap();
    let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let field = |row: &Value, name: &str| row[name].as_str().unwrap().to_owned();
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for row in &rows {
        *counts.entry(field(row, "label")).or_default() += 1;
    }
    let mut labels: Vec<String> = counts.keys().cloned().collect();
    labels.sort_by_key(|label| std::cmp::Reverse(counts[label]));
    labels.truncate(n_labels);
    let labelled = rows.iter().filter_map(|row| {
        let label = labels.iter().position(|label| *label == field(row, "label"))?;
        let text = field(row, "text");
        let words: Vec<&str> = text.split_whitespace().take(n_words).collect();
        Some(Labelled { text: words.join(" "), label })
    });
    let labelled = labelled.collect();
    (labels, labelled)
}
