//! The store, on SQLite and on a real PostgreSQL server: each test runs on both. Where no server can be had, its half is
//! skipped with a notice.

#![expect(
    clippy::unwrap_used,
    reason = "the bodies of tests are functions that run on both databases"
)]

mod aliases;
mod blobs;
mod completions;
mod files;
mod garbage;
mod jobs;
mod keys;
mod kill;
mod lineage;
mod place;
mod policies;
mod registration;
mod remote;
mod retirement;
mod rounds;
mod schema;
mod tenants;

/// Makes two tests of each function that takes a [`place::Place`].
macro_rules! on_both {
    ($($name:ident),+ $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name(crate::place::Place::sqlite()).await;
            })+
        }

        mod postgres {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                // Without a server there was a notice already.
                if let Some(place) = crate::place::Place::postgres() {
                    super::$name(place).await;
                }
            })+
        }
    };
}
pub(crate) use on_both;
