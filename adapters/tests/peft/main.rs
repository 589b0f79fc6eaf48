//! PEFT folders: the reference adapters load with known ranks, scales and digests; targets, ranks and scales are those
//! of PEFT's own code; every way to be refused names its key or tensor; mutated files never panic.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod config;
mod hostile;
mod load;
mod rules;
mod save;
mod support;
