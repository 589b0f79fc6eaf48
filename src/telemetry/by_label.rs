//! What is measured for each adapter, or for each tenant, in bounded memory.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, PoisonError, RwLock},
};

/// Something that exists once for each label: at most so many, one more for all other labels, and one for who has none. So
/// a client that could choose labels freely cannot make memory grow.
#[derive(Debug)]
pub struct ByLabel<T> {
    unlabelled: Arc<T>,
    // Read by every request, written when a label is first used; never held over an await.
    labelled: RwLock<HashMap<String, Arc<T>>>,
    labels_max: usize,
    other: &'static str,
    make: fn(&str, &T) -> T,
}

impl<T> ByLabel<T> {
    /// Starts with that of who has no label; `make` makes another from its label and that one. Beyond `labels_max` labels
    /// are taken for `other`.
    pub fn new(
        unlabelled: T,
        labels_max: usize,
        other: &'static str,
        make: fn(&str, &T) -> T,
    ) -> Self {
        let unlabelled = Arc::new(unlabelled);
        Self { unlabelled, labelled: RwLock::default(), labels_max, other, make }
    }

    /// That of a label, or of who has none.
    pub fn get(&self, label: Option<&str>) -> Arc<T> {
        let Some(label) = label else { return Arc::clone(&self.unlabelled) };
        if let Some(found) = self.peek(label) {
            return found;
        }
        let mut labelled = self.labelled.write().unwrap_or_else(PoisonError::into_inner);
        let label = if labelled.len() < self.labels_max { label } else { self.other };
        let entry = labelled.entry(label.to_owned());
        Arc::clone(entry.or_insert_with(|| Arc::new((self.make)(label, &self.unlabelled))))
    }

    /// That of a label, if it was used and is told apart.
    pub fn peek(&self, label: &str) -> Option<Arc<T>> {
        self.labelled.read().unwrap_or_else(PoisonError::into_inner).get(label).map(Arc::clone)
    }

    /// All that have a label.
    pub fn labelled(&self) -> BTreeMap<String, Arc<T>> {
        let labelled = self.labelled.read().unwrap_or_else(PoisonError::into_inner);
        labelled.iter().map(|(label, value)| (label.clone(), Arc::clone(value))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_beyond_the_most_share_one() {
        let table = ByLabel::new(String::new(), 64, "_other", |label, _| label.to_owned());
        for index in 0..1000 {
            table.get(Some(&format!("adapter-{index}")));
        }
        assert_eq!(table.labelled().len(), 64 + 1);
        assert_eq!(*table.get(Some("adapter-3")), "adapter-3");
        assert_eq!(*table.get(Some("adapter-999")), "_other");
        assert_eq!(*table.get(None), "");
    }
}
