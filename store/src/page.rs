//! Listings come in pages: no list is as long as a table.

/// Rows of a page at most, whatever was asked for.
pub const PAGE_ROWS_MAX: u32 = 1000;

/// Which part of a list is wanted. Lists are in the order of their key (a name or an id), as the database compares
/// texts; a row that is added or removed meanwhile makes no other one appear twice or not at all.
#[derive(Clone, Debug)]
pub struct Page<'a> {
    /// [`Listing::next`] of the page before; `None` is the first page.
    pub after: Option<&'a str>,
    /// Rows wanted, from 1 to [`PAGE_ROWS_MAX`]; beyond that is taken for the nearest of the two.
    pub rows_max: u32,
}

impl Page<'_> {
    /// The first page, as long as a page may be.
    pub const FIRST: Self = Self { after: None, rows_max: PAGE_ROWS_MAX };

    /// Keys are never empty, so every one is after this.
    pub(crate) fn after(&self) -> &str {
        self.after.unwrap_or_default()
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows_max.clamp(1, PAGE_ROWS_MAX) as usize
    }

    /// One row more than wanted: it tells whether there is another page.
    pub(crate) fn limit(&self) -> i64 {
        i64::from(self.rows_max.clamp(1, PAGE_ROWS_MAX)) + 1
    }
}

/// In which direction a list goes whose keys are ids that begin with the time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// Oldest first.
    #[default]
    Ascending,
    /// Newest first.
    Descending,
}

impl Order {
    /// One of two queries. Both have the last id as `$2`; an empty one is before every other.
    pub(crate) fn pick(self, ascending: &'static str, descending: &'static str) -> &'static str {
        match self {
            Self::Ascending => ascending,
            Self::Descending => descending,
        }
    }
}

/// One page of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing<T> {
    /// Its rows.
    pub items: Vec<T>,
    /// Where the next page begins, if there is one.
    pub next: Option<String>,
}

impl<T> Listing<T> {
    /// A page of what was read with [`Page::limit`].
    pub(crate) fn new(mut items: Vec<T>, page: &Page<'_>, key: impl Fn(&T) -> String) -> Self {
        let has_more = items.len() > page.rows();
        items.truncate(page.rows());
        let next = items.last().filter(|_| has_more).map(key);
        Self { items, next }
    }
}
