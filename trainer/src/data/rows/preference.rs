//! Pairs of answers. `OpenAI` DPO, whose schema also has the names `preferred_completion` and
//! `non_preferred_completion`:
//!
//! ```json
//! {"input": {"messages": [{"role": "user", "content": "…"}], "tools": [], "parallel_tool_calls": true},
//!  "preferred_output": [{"role": "assistant", "content": "…"}],
//!  "non_preferred_output": [{"role": "assistant", "content": "…"}]}
//! ```
//!
//! and TRL's `{"prompt": …, "chosen": …, "rejected": …}`, each a list of messages or a string.

use super::messages;
use crate::data::{error::BadField, fields::Field, row::RowBody};

pub(in crate::data) const FIELDS: &[&str] = &[
    "input",
    "prompt",
    "preferred_output",
    "preferred_completion",
    "chosen",
    "non_preferred_output",
    "non_preferred_completion",
    "rejected",
];

pub(in crate::data) fn read(row: &Field<'_>) -> Result<RowBody, BadField> {
    let answer = |names: [&'static str; 3]| {
        let found = names.into_iter().find_map(|name| row.get(name));
        messages::answer(&found.map_or_else(|| row.require(names[0]), Ok)?)
    };
    Ok(RowBody::Preference {
        prompt: messages::prompt(row)?,
        preferred: answer(["preferred_output", "preferred_completion", "chosen"])?,
        rejected: answer(["non_preferred_output", "non_preferred_completion", "rejected"])?,
    })
}
