//! `OpenAI` supervised fine-tuning:
//!
//! ```json
//! {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…", "weight": 1}],
//!  "tools": [], "parallel_tool_calls": true}
//! ```

use super::messages;
use crate::data::{
    error::BadField,
    fields::Field,
    row::{Role, RowBody},
};

pub(in crate::data) const FIELDS: &[&str] =
    &["messages", "tools", "functions", "parallel_tool_calls"];

pub(in crate::data) fn read(row: &Field<'_>) -> Result<RowBody, BadField> {
    let conversation = messages::conversation(row)?;
    let at = row.require("messages")?;
    if !conversation.messages.iter().any(|message| message.role == Role::Assistant) {
        return Err(at.bad("a message of the assistant", "none"));
    }
    // Templates put a system message of their own before the first message, so what precedes an answer without a
    // question cannot be told from the answer.
    if conversation.messages[0].trained {
        return Err(at.items()?[0].bad(
            "a message before the assistant's first, or \"weight\": 0",
            "an answer to nothing",
        ));
    }
    Ok(RowBody::Chat(conversation))
}
