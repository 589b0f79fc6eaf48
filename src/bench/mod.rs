//! A load generator for any server that speaks the `OpenAI` API.
//!
//! It shares a machine with the server more often than not, so it is thrifty: one connection per request in flight,
//! kept open; a body built before the clock starts; and events of a stream searched for a few words, not parsed.
//!
//! The way of a run: [`Settings`] → a [`Plan`](plan::Plan) of requests, each drawn from the seed and its index alone →
//! [`driver`] sends them → a [`Sample`] each → [`Report`].

mod client;
mod driver;
mod plan;
mod random;
mod report;
mod sample;
mod settings;
pub(crate) mod sse;
mod stats;
mod table;
mod words;

pub(crate) use self::client::is_loopback;
pub use self::{
    driver::run,
    report::{ErrorReport, GroupReport, Report, Throughput},
    sample::{ErrorKind, Sample},
    settings::{Endpoint, Length, Limit, Load, Mix, PromptForm, Settings},
    stats::Summary,
};
