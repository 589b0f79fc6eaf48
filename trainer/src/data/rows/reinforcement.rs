//! `OpenAI` reinforcement fine-tuning: a question, and whatever else the grader reads.
//!
//! ```json
//! {"messages": [{"role": "user", "content": "…"}], "reference_answer": {"unit": "km", "value": 4}}
//! ```

use super::{chat, messages, origin};
use crate::data::{
    error::BadField,
    fields::Field,
    row::{Role, RowBody},
};

pub(in crate::data) fn read(row: &Field<'_>) -> Result<RowBody, BadField> {
    let mut prompt = messages::conversation(row)?;
    let at = row.require("messages")?;
    if prompt.messages.last().is_some_and(|last| last.role == Role::Assistant) {
        let items = at.items()?;
        return Err(items[items.len() - 1].bad("a message that asks", "one of the assistant"));
    }
    prompt.messages.iter_mut().for_each(|message| message.trained = false);
    let known = |name: &str| chat::FIELDS.contains(&name) || origin::FIELDS.contains(&name);
    let free = row.object()?.iter().filter(|(name, _)| !known(name));
    let fields = free.map(|(name, value)| (name.clone(), value.clone())).collect();
    Ok(RowBody::Graded { prompt, fields })
}
