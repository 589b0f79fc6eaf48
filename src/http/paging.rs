//! Which part of a list is wanted, as `OpenAI`'s lists are asked for: `?after=ID&limit=N&order=asc`.

use std::collections::BTreeMap;

use axum::extract::Query;
use pleach_store::{Listing, Metadata, Order, Page};

use super::{error::ApiError, wire::list::ObjectList};

/// What follows the question mark, by name.
pub(super) type QueryFields = Query<BTreeMap<String, String>>;

/// Most rows that may be asked for; a page has at most [`pleach_store::PAGE_ROWS_MAX`], and says that there are more.
const LIMIT_MAX: u32 = 10_000;

/// `after` and `limit`.
pub(super) fn read_page(query: &QueryFields, rows: u32) -> Result<Page<'_>, ApiError> {
    let rows_max = query.get("limit").map(|text| {
        let rows = text.parse().ok().filter(|rows| (1..=LIMIT_MAX).contains(rows));
        rows.ok_or_else(|| ApiError::OutOfRange {
            param: "limit".to_owned(),
            bounds: format!("from 1 to {LIMIT_MAX}"),
            found: text.clone(),
        })
    });
    let after = query.get("after").map(String::as_str);
    Ok(Page { after, rows_max: rows_max.transpose()?.unwrap_or(rows) })
}

/// `order`.
pub(super) fn read_order(query: &QueryFields, default: Order) -> Result<Order, ApiError> {
    match query.get("order").map(String::as_str) {
        None => Ok(default),
        Some("asc") => Ok(Order::Ascending),
        Some("desc") => Ok(Order::Descending),
        Some(_) => Err(ApiError::invalid("order", "it is neither asc nor desc")),
    }
}

/// `metadata[name]=value`, any number of times.
pub(super) fn read_metadata(query: &QueryFields) -> Metadata {
    let pairs = query.iter().filter_map(|(key, value)| {
        let name = key.strip_prefix("metadata[")?.strip_suffix(']')?;
        Some((name.to_owned(), value.clone()))
    });
    pairs.collect()
}

/// A page of cards.
pub(super) fn list<T, C: From<T>>(listing: Listing<T>, id: impl Fn(&C) -> &str) -> ObjectList<C> {
    let data: Vec<C> = listing.items.into_iter().map(C::from).collect();
    ObjectList {
        object: "list",
        first_id: data.first().map(|card| id(card).to_owned()),
        last_id: data.last().map(|card| id(card).to_owned()),
        data,
        has_more: listing.next.is_some(),
    }
}
