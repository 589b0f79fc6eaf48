//! The formats of rows, a page each. Each reader checks a row field by field and names the first that is wrong.

pub(super) mod chat;
pub(super) mod kto;
pub(super) mod labels;
mod legacy;
mod messages;
pub(super) mod origin;
pub(super) mod preference;
pub(super) mod reinforcement;
pub(super) mod text;
