//! A generation that is made again: from the base, of what is left of what it learned from.
//!
//! The round that made it knows its examples and whom it left out. Feedback that came later is for the next round: then both
//! generations have learned from the same rows, and can be compared on them.

use std::collections::{HashMap, HashSet};

use pleach_adapters::GenerationDigest;
use pleach_store::{Owner, Page, Store, StoreError, StoredRound};

use super::{
    dataset::LoopData,
    progress::{LeftOut, Progress},
    steps::StepError,
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

/// What is known of the round that made the generation.
#[derive(Debug)]
pub(super) struct Before {
    /// Ids of the completions and the feedback that its data set was made of.
    pub(super) examples: HashSet<String>,
    /// As [`Progress::usual`].
    pub(super) usual: (u64, u64),
    left_out: Vec<LeftOut>,
}

impl Before {
    /// Of a rebuild; `None` for any other round.
    pub(super) async fn of(
        store: &Store,
        rebuild: &StoredRound,
    ) -> Result<Option<Self>, StepError> {
        let Some(generation) = rebuild.rebuild_of else { return Ok(None) };
        let generation = GenerationDigest(generation.0);
        let round = round_that_made(store, &rebuild.owner, &rebuild.name, generation).await?;
        let round = round.ok_or_else(|| {
            let message = "no round made the generation: nobody knows what it learned from";
            StepError::failed("data_unknown", message)
        })?;
        // What a later version wrote is not known.
        let progress = Progress::of(&round).ok();
        let usual = progress.as_ref().map(|progress| progress.usual).unwrap_or_default();
        let left_out = progress.and_then(|progress| progress.left_out).unwrap_or_default();
        Ok(Some(Self { examples: examples_of(store, &round).await?, usual, left_out }))
    }

    /// Of those who were left out, who still has rows, and how many.
    pub(super) fn left_out_of(self, data: &LoopData) -> Vec<LeftOut> {
        let mut rows: HashMap<&str, usize> = HashMap::new();
        for group in data.rows.iter().filter_map(|row| row.value["group"].as_str()) {
            *rows.entry(group).or_default() += 1;
        }
        let still = |left_out: LeftOut| {
            rows.get(&*left_out.group).map(|&rows| LeftOut { rows, ..left_out })
        };
        self.left_out.into_iter().filter_map(still).collect()
    }
}

async fn examples_of(store: &Store, round: &StoredRound) -> Result<HashSet<String>, StoreError> {
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
