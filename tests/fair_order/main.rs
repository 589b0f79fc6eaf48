//! Fair service, with the engine's real scheduler over a runner without a model, in virtual time: what `FairOrder`
//! promises (`properties.rs`, `promises.rs`), and what that means to a quiet tenant beside one that floods (`skew.rs`).

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic")]

#[path = "../../engine/tests/fake/mod.rs"]
mod fake;

mod promises;
mod properties;
mod skew;
mod world;
