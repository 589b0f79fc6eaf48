//! The tiers under test: decisions by themselves against a simple model (`model.rs`), and the whole on tokio's paused
//! clock with a device and a source that obey the test (`fake.rs`).

mod bound;
mod cancel;
mod device_trouble;
mod draining;
mod fake;
mod limits;
mod line;
mod model;
mod stress;
mod trouble;

/// Cases of a randomized test: `n`, or `n` times `PLEACH_TEST_CASES` for a long run.
fn cases(n: u32) -> u32 {
    n * std::env::var("PLEACH_TEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}
