//! Rows about one answer hang together, whoever said what about it.

use std::collections::HashMap;

use pleach_trainer::data::components;
use sha2::{Digest as _, Sha256};

use super::DataRow;
use crate::hex::hex;

/// What rows have in common.
#[derive(PartialEq, Eq, Hash)]
enum Key<'a> {
    Group(&'a str),
    Completion(&'a str),
}

/// Makes one group of groups that have rows about one completion, named like the first of them, and writes a digest of its
/// name into every row. Otherwise an adapter would be judged by questions that it has learned the answers of.
pub(super) fn join(rows: &mut [DataRow]) {
    let keys = (0_u32..).zip(&*rows).flat_map(|(index, row)| {
        let completions = row.completions.iter().map(|id| Key::Completion(id));
        completions.chain([Key::Group(&row.group)]).map(move |key| (index, key))
    });
    let set_of = components(u32::try_from(rows.len()).unwrap_or(u32::MAX), keys);
    let mut names: HashMap<u32, String> = HashMap::new();
    for (row, set) in rows.iter().zip(&set_of) {
        let name = names.entry(*set).or_insert_with(|| row.group.clone());
        if row.group < *name {
            name.clone_from(&row.group);
        }
    }
    for (row, set) in rows.iter_mut().zip(&set_of) {
        row.group.clone_from(&names[set]);
        row.value["group"] = hex(&Sha256::digest(&row.group)).into();
    }
}
