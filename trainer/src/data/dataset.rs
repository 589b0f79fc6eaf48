//! A file from end to end: rows read, encoded, measured, and kept as what is trained on.

use std::collections::BTreeMap;

use pleach_engine::breaks::may_break;
use sha2::{Digest as _, Sha256};

use super::{
    digest::RowDigests,
    encode::Encoder,
    error::DataError,
    example::Record,
    read::RowSource,
    report::{DataReport, ReportBuilder, ReportSettings},
    row::{Origin, Row, RowBody},
    split::{Assignment, SplitItem, SplitSettings, components, split},
};

/// Bad lines that are listed; a file of nothing else would only repeat itself.
const BAD_LINES_MAX: usize = 20;

/// A record and what is known of its row.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// What is trained on.
    pub record: Record,
    /// The line of its row.
    pub line: u64,
    /// Index of its row among all rows; several records may come from one.
    pub row: u32,
    /// SHA-256 of what the row says.
    pub digest: [u8; 32],
    /// Where the row came from.
    pub origin: Origin,
    /// Rows of one number belong together: they share a user, a conversation, its opening, a group, or are near
    /// duplicates.
    pub group: u32,
    /// Class, or range of lengths.
    pub stratum: String,
}

/// What a file became.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DataSet {
    /// In the order of the file.
    pub items: Vec<Item>,
}

/// A data set and the report on it.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What is trained on.
    pub data: DataSet,
    /// What is validated with; empty if nothing was given. Groups are numbered apart from those of `data`.
    pub validation: DataSet,
    /// What is known of the data.
    pub report: DataReport,
}

impl DataSet {
    /// Parts that no group straddles, for the items in order.
    ///
    /// # Panics
    /// As [`split()`](super::split()).
    pub fn split(&self, settings: &SplitSettings) -> Assignment {
        let item = |item: &Item| (item.group, item.digest, item.stratum.clone());
        let items: Vec<_> = self.items.iter().map(item).collect();
        let items: Vec<SplitItem<'_>> = items
            .iter()
            .map(|(group, digest, stratum)| SplitItem { group: *group, digest: *digest, stratum })
            .collect();
        split(&items, settings)
    }

    /// SHA-256 of what all rows say, whatever their order: the digest of the data in an adapter's lineage.
    pub fn digest(&self) -> [u8; 32] {
        let mut digests: Vec<([u8; 32], u32)> =
            self.items.iter().map(|item| (item.digest, item.row)).collect();
        digests.sort_unstable();
        digests.dedup();
        let add = |hash: Sha256, (digest, _): ([u8; 32], u32)| hash.chain_update(digest);
        digests.into_iter().fold(Sha256::new(), add).finalize().into()
    }

    /// Rows of each class, by name; empty for records without classes.
    pub fn classes(&self) -> BTreeMap<String, u64> {
        let mut classes = BTreeMap::new();
        for item in &self.items {
            let name = match &item.record {
                Record::Labelled { label, .. } => label.to_string(),
                Record::Rated { desirable, .. } => desirable.to_string(),
                Record::Supervised(_)
                | Record::Preference { .. }
                | Record::Prompt { .. }
                | Record::Scored { .. } => {
                    continue;
                }
            };
            *classes.entry(name).or_default() += 1;
        }
        classes
    }
}

/// Reads, encodes and measures all rows: those to train on, then those to validate with, which the report only
/// compares with them. Near duplicates are grouped.
///
/// # Errors
/// The first bad lines, at most 20. An empty file is one, too.
pub fn load(
    train: &mut dyn RowSource,
    validation: Option<&mut dyn RowSource>,
    encoder: &mut Encoder<'_>,
    settings: ReportSettings,
) -> Result<Loaded, Vec<DataError>> {
    let mut report = ReportBuilder::new(settings);
    let mut train_rows = Collected::default();
    let mut errors = Vec::new();
    collect(train, encoder, &mut errors, |row, digests, records| {
        report.push_digested(&row, &digests, &records);
        train_rows.push(&row, digests, records);
    });
    let counts = encoder.counts();
    let mut validation_rows = Collected::default();
    if let Some(validation) = validation {
        collect(validation, encoder, &mut errors, |row, digests, records| {
            report.push_validation(&row);
            validation_rows.push(&row, digests, records);
        });
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    let (report, near_duplicates) = report.finish(train.format(), counts, train.ignored_fields());
    let (of_train, of_validation) = near_duplicates.split_at(train_rows.openings.len());
    Ok(Loaded {
        data: train_rows.grouped(of_train),
        validation: validation_rows.grouped(of_validation),
        report,
    })
}

/// Reads and encodes all rows of a source. After an error no row is kept, but the next errors are.
fn collect(
    source: &mut dyn RowSource,
    encoder: &mut Encoder<'_>,
    errors: &mut Vec<DataError>,
    mut keep: impl FnMut(Row, RowDigests, Vec<Record>),
) {
    for row in source {
        may_break();
        if errors.len() == BAD_LINES_MAX {
            return;
        }
        match row.and_then(|row| encoder.encode(&row).map(|records| (row, records))) {
            Ok((row, records)) if errors.is_empty() => {
                let digests = RowDigests::of(&row.body);
                keep(row, digests, records);
            }
            Ok(_) => {}
            Err(error) => errors.push(error),
        }
    }
}

/// Items whose groups are not yet known.
#[derive(Default)]
struct Collected {
    items: Vec<Item>,
    openings: Vec<Option<[u8; 32]>>,
}

/// Why two rows belong together.
#[derive(PartialEq, Eq, Hash)]
enum Tie<'a> {
    User(&'a str),
    Conversation(&'a str),
    Group(&'a str),
    Opening([u8; 32]),
    NearDuplicate(u32),
    Row(u32),
}

impl Collected {
    fn push(&mut self, row: &Row, digests: RowDigests, records: Vec<Record>) {
        let index = u32::try_from(self.openings.len()).unwrap_or(u32::MAX);
        self.openings.push(digests.opening);
        for record in records {
            self.items.push(Item {
                stratum: stratum(&row.body, record.n_tokens()),
                record,
                line: row.line,
                row: index,
                digest: digests.content,
                origin: row.origin.clone(),
                group: 0,
            });
        }
    }

    fn grouped(mut self, near_duplicates: &[u32]) -> DataSet {
        let n_items = u32::try_from(self.items.len()).unwrap_or(u32::MAX);
        let ties = (0..n_items).zip(&self.items).flat_map(|(index, item)| {
            let (origin, row) = (&item.origin, item.row as usize);
            let named = [
                origin.user.as_deref().map(Tie::User),
                origin.conversation.as_deref().map(Tie::Conversation),
                origin.group.as_deref().map(Tie::Group),
                self.openings[row].map(Tie::Opening),
                Some(Tie::NearDuplicate(near_duplicates[row])),
                Some(Tie::Row(item.row)),
            ];
            named.into_iter().flatten().map(move |tie| (index, tie))
        });
        let groups = components(n_items, ties);
        self.items.iter_mut().zip(groups).for_each(|(item, group)| item.group = group);
        DataSet { items: self.items }
    }
}

/// The class, or the range of lengths by powers of two.
fn stratum(body: &RowBody, n_tokens: usize) -> String {
    match body {
        RowBody::Labelled { label, .. } => label.clone(),
        RowBody::Rated { desirable, .. } => desirable.to_string(),
        RowBody::Chat(_)
        | RowBody::Preference { .. }
        | RowBody::Graded { .. }
        | RowBody::Text(_)
        | RowBody::Scored { .. } => {
            format!("{} tokens or less", n_tokens.max(1).next_power_of_two())
        }
    }
}
