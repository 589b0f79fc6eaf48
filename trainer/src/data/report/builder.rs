//! Measures rows as they come by.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{
    DataReport, Lengths, ReportSettings,
    agreement::{Ratings, number},
};
use crate::data::{
    digest::RowDigests,
    duplicates::NearDuplicates,
    encode::EncodeCounts,
    example::Record,
    format::Format,
    row::{Conversation, Message, Role, Row, RowBody},
};

/// Classes that are counted; a number of labels beyond all sense is a finding anyway.
const CLASSES_MAX: usize = 1000;

/// Takes rows and their records, then makes the report. Keeps about 400 bytes of a row.
#[derive(Debug)]
pub struct ReportBuilder {
    settings: ReportSettings,
    report: DataReport,
    lengths: Vec<u32>,
    contents: HashSet<[u8; 16]>,
    texts: NearDuplicates,
    /// Of what was judged: the first judgement, its rows, and whether another judgement was seen.
    judgements: HashMap<[u8; 16], (u32, u64, bool)>,
    categories: HashMap<String, u32>,
    ratings: Ratings,
    longer_preferred: u64,
    pairs: u64,
}

impl ReportBuilder {
    /// A report on nothing yet.
    pub fn new(settings: ReportSettings) -> Self {
        Self {
            texts: NearDuplicates::new(settings.near_duplicates),
            settings,
            report: DataReport::default(),
            lengths: Vec::new(),
            contents: HashSet::new(),
            judgements: HashMap::new(),
            categories: HashMap::new(),
            ratings: Ratings::default(),
            longer_preferred: 0,
            pairs: 0,
        }
    }

    /// Takes a row of the training set and what it became. All of them come before those of the validation set.
    ///
    /// # Panics
    /// After a row of the validation set.
    pub fn push(&mut self, row: &Row, records: &[Record]) {
        assert_eq!(self.report.validation_rows, 0, "training rows come before validation rows");
        let digests = RowDigests::of(&row.body);
        self.push_digested(row, &digests, records);
    }

    pub(in crate::data) fn push_digested(
        &mut self,
        row: &Row,
        digests: &RowDigests,
        records: &[Record],
    ) {
        self.report.rows += 1;
        self.report.duplicates += u64::from(!self.contents.insert(half(&digests.content)));
        self.texts.push(&dedup_text(&row.body));
        for record in records {
            self.report.tokens += record.n_tokens() as u64;
            self.report.targets += record.n_targets() as u64;
            self.lengths.push(u32::try_from(record.n_tokens()).unwrap_or(u32::MAX));
        }
        self.answers(&row.body);
        if let Some(judgement) = judgement(&row.body) {
            if let Some(rater) = &row.origin.rater {
                self.ratings.add(digests.judged, rater, &judgement);
            }
            let category = number(&mut self.categories, &judgement);
            let judged = self.judgements.entry(half(&digests.judged));
            let (first, n_rows, differ) = judged.or_insert((category, 0, false));
            *n_rows += 1;
            *differ |= *first != category;
        }
    }

    /// Takes a row of the validation set.
    pub fn push_validation(&mut self, row: &Row) {
        self.report.validation_rows += 1;
        self.texts.push(&dedup_text(&row.body));
    }

    /// The report, and for each row (training rows, then validation rows) its group of near duplicates, named by the
    /// group's first row.
    pub fn finish(
        mut self,
        format: Option<Format>,
        encoding: EncodeCounts,
        ignored_fields: BTreeMap<String, u64>,
    ) -> (DataReport, Vec<u32>) {
        let groups = self.texts.groups();
        let n_rows = usize::try_from(self.report.rows).unwrap_or(usize::MAX);
        let (train, validation) = groups.split_at(n_rows);
        let mut sizes: HashMap<u32, u64> = HashMap::new();
        for group in train {
            *sizes.entry(*group).or_default() += 1;
        }
        let report = &mut self.report;
        report.near_duplicates = sizes.values().map(|n| n - 1).sum();
        report.near_duplicate_groups = sizes.values().filter(|n| **n > 1).count() as u64;
        report.overlap = validation.iter().filter(|group| sizes.contains_key(group)).count() as u64;
        report.format = format;
        report.encoding = encoding;
        report.ignored_fields = ignored_fields;
        report.lengths = lengths(&mut self.lengths);
        report.longer_preferred =
            (self.pairs > 0).then(|| self.longer_preferred as f64 / self.pairs as f64);
        let differ = self.judgements.values().filter(|(_, _, differ)| *differ);
        report.contradictions = differ.map(|(_, n_rows, _)| n_rows).sum();
        report.agreement = self.ratings.agreement();
        report.findings = super::findings::of(report, &self.settings);
        (self.report, groups)
    }

    fn answers(&mut self, body: &RowBody) {
        match body {
            RowBody::Chat(chat) => {
                let learned = chat.messages.iter().filter(|message| message.trained);
                learned.for_each(|message| self.answer(message));
            }
            RowBody::Preference { preferred, rejected, .. } => {
                self.answer(preferred);
                self.answer(rejected);
                let (better, worse) = (preferred.text(), rejected.text());
                self.pairs += 1;
                self.report.equal_pairs += u64::from(preferred.value == rejected.value);
                self.longer_preferred += u64::from(better.chars().count() > worse.chars().count());
            }
            RowBody::Rated { completion, desirable, .. } => {
                self.answer(completion);
                self.class(&desirable.to_string());
            }
            RowBody::Labelled { label, .. } => self.class(label),
            RowBody::Graded { .. } | RowBody::Text(_) | RowBody::Scored { .. } => {}
        }
    }

    fn answer(&mut self, message: &Message) {
        self.report.answers += 1;
        if message.calls_tools() {
            return;
        }
        match message.text().trim().chars().count() {
            0 => self.report.empty_answers += 1,
            n if n < self.settings.tiny_answer_chars => self.report.tiny_answers += 1,
            _ => {}
        }
    }

    fn class(&mut self, name: &str) {
        let classes = &mut self.report.classes;
        if let Some(n) = classes.get_mut(name) {
            *n += 1;
        } else if classes.len() < CLASSES_MAX {
            classes.insert(name.to_owned(), 1);
        }
    }
}

/// What near duplicates are told by: everything but system messages, which many rows share.
fn dedup_text(body: &RowBody) -> String {
    let chat = |chat: &Conversation| {
        let said = chat.messages.iter().filter(|message| message.role != Role::System);
        said.map(Message::text).collect::<Vec<_>>().join("\n")
    };
    match body {
        RowBody::Chat(messages) => chat(messages),
        RowBody::Preference { prompt, preferred, rejected } => {
            [chat(prompt), preferred.text(), rejected.text()].join("\n")
        }
        RowBody::Rated { prompt, completion, .. } => [chat(prompt), completion.text()].join("\n"),
        RowBody::Graded { prompt, .. } => chat(prompt),
        RowBody::Text(text) | RowBody::Labelled { text, .. } | RowBody::Scored { text, .. } => {
            text.clone()
        }
    }
}

/// The judgement as a category; `None` for rows that judge nothing.
fn judgement(body: &RowBody) -> Option<String> {
    Some(match body {
        RowBody::Rated { desirable, .. } => desirable.to_string(),
        RowBody::Labelled { label, .. } => label.clone(),
        // Of the two answers, in an order that both raters have, the one that is better.
        RowBody::Preference { preferred, rejected, .. } => {
            let (a, b) = (preferred.value.to_string(), rejected.value.to_string());
            if a <= b { "first" } else { "second" }.to_owned()
        }
        RowBody::Chat(_) | RowBody::Graded { .. } | RowBody::Text(_) | RowBody::Scored { .. } => {
            return None;
        }
    })
}

/// Half of a digest: enough to tell rows apart, and half of the memory.
fn half(digest: &[u8; 32]) -> [u8; 16] {
    let mut half = [0; 16];
    half.copy_from_slice(&digest[..16]);
    half
}

fn lengths(lengths: &mut [u32]) -> Lengths {
    lengths.sort_unstable();
    let Some(&max) = lengths.last() else { return Lengths::default() };
    // Nearest rank: the least length that so many percent do not exceed.
    let percentile = |percent: usize| lengths[(lengths.len() * percent).div_ceil(100).max(1) - 1];
    let sum: u64 = lengths.iter().map(|n| u64::from(*n)).sum();
    Lengths {
        mean: sum as f64 / lengths.len() as f64,
        p50: percentile(50),
        p95: percentile(95),
        p99: percentile(99),
        max,
    }
}
