//! A generation that is made again: from the base, of what is left of what it learned from.
//!
//! The round that made it knows its examples and whom it left out. Feedback that came later is for the next round: then both
//! generations have learned from the same rows, and can be compared on them.

use std::collections::{HashMap, HashSet};

use pleach_adapters::GenerationDigest;
use pleach_store::{Owner, Page, Store, StoreError, StoredRound};

use super::{
    dataset::{LoopData, Material},
    progress::{LeftOut, Progress},
};

/// The round that made a generation of a name's; `None` if no round did.
///
/// # Errors
/// When the store fails.
pub async fn round_that_made(
    store: &Store,
    owner: &Owner,
    name: &str,
    generation: GenerationDigest,
) -> Result<Option<StoredRound>, StoreError> {
    let generation = pleach_store::GenerationDigest(generation.0);
    let round = match store.lineage_under(owner, name, &generation).await {
        Ok(lineage) => lineage.from.round,
        Err(StoreError::NotFound { .. }) => None,
        Err(error) => return Err(error),
    };
    match round {
        Some(round) => store.round(owner, &round).await.map(Some),
        None => Ok(None),
    }
}

/// Ids of all that the data set of a round was made of.
pub(super) async fn examples_of(
    store: &Store,
    round: &StoredRound,
) -> Result<HashSet<String>, StoreError> {
    let (mut ids, mut after) = (HashSet::new(), None::<String>);
    loop {
        let page = Page { after: after.as_deref(), ..Page::FIRST };
        let listing = store.examples(&round.owner, &round.id, &page).await?;
        ids.extend(listing.items.into_iter().map(|example| example.id));
        after = listing.next;
        if after.is_none() {
            return Ok(ids);
        }
    }
}

/// Leaves in the material what has one of these ids.
pub(super) fn keep(material: &mut Material, ids: &HashSet<String>) {
    material.judged.retain_mut(|judged| {
        judged.opinions.retain(|opinion| ids.contains(&opinion.id));
        ids.contains(&judged.completion.id)
    });
}

/// Of those whom a round left out, who still has rows, and how many.
pub(super) fn still_left_out(before: &StoredRound, data: &LoopData) -> Vec<LeftOut> {
    // What a later version wrote is not known.
    let left_out = Progress::of(before).ok().and_then(|progress| progress.left_out);
    let mut rows: HashMap<&str, usize> = HashMap::new();
    for group in data.rows.iter().filter_map(|row| row.value["group"].as_str()) {
        *rows.entry(group).or_default() += 1;
    }
    let still =
        |left_out: LeftOut| rows.get(&*left_out.group).map(|&rows| LeftOut { rows, ..left_out });
    left_out.into_iter().flatten().filter_map(still).collect()
}
