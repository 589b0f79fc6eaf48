//! Lists.

use serde::Serialize;

/// One page of a list, as `OpenAI` has them.
#[derive(Clone, Debug, Serialize)]
pub struct ObjectList<T> {
    /// Always `list`.
    pub object: &'static str,
    /// The page.
    pub data: Vec<T>,
    /// Id of the first one.
    pub first_id: Option<String>,
    /// Id of the last one: what `after` asks for the next page.
    pub last_id: Option<String>,
    /// Whether there is another page.
    pub has_more: bool,
}

/// The answer to a deletion.
#[derive(Clone, Debug, Serialize)]
pub struct ObjectDeleted {
    /// Its id.
    pub id: String,
    /// What it was.
    pub object: &'static str,
    /// Always true.
    pub deleted: bool,
}
