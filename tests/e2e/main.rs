//! The real program with the real default model, driven from outside: by the `openai` client, by sixty-four clients at
//! once, by clients that misbehave, and by the other subcommands.
#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod anchors;
mod bad_files;
mod bad_input;
mod churn;
mod cli;
mod composition;
mod kill;
mod learning;
mod load;
mod openai_client;
mod program;
mod random_adapter;
mod raw_client;
mod rebuild;
mod reinforcement;
mod reload;
mod restart;
mod server;
mod shutdown;
mod tenants;
mod training;
mod training_methods;
