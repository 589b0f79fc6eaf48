//! Digests of rows: what a row is, whatever its line and its file.

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::row::{Conversation, Message, RowBody};

/// What a row says, in digests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct RowDigests {
    /// Of all that is learned from.
    pub(super) content: [u8; 32],
    /// Of what was judged, without the judgement: equal for two raters of one answer, or one pair in either order.
    pub(super) judged: [u8; 32],
    /// Of what begins the conversation, up to the first thing the user said; `None` for rows without one.
    pub(super) opening: Option<[u8; 32]>,
}

impl RowDigests {
    pub(super) fn of(body: &RowBody) -> Self {
        let opening = match body {
            RowBody::Chat(chat) => Some(opening(chat)),
            RowBody::Preference { prompt, .. }
            | RowBody::Rated { prompt, .. }
            | RowBody::Graded { prompt, .. } => Some(opening(prompt)),
            RowBody::Text(_) | RowBody::Labelled { .. } | RowBody::Scored { .. } => None,
        };
        Self { content: content(body), judged: judged(body), opening }
    }
}

fn content(body: &RowBody) -> [u8; 32] {
    let digest = Parts::new();
    match body {
        RowBody::Chat(chat) => digest.part("chat").chat(chat),
        RowBody::Preference { prompt, preferred, rejected } => {
            digest.part("preference").chat(prompt).message(preferred).message(rejected)
        }
        RowBody::Rated { prompt, completion, desirable } => {
            digest.part("rated").chat(prompt).message(completion).part(&desirable.to_string())
        }
        RowBody::Graded { prompt, fields } => {
            digest.part("graded").chat(prompt).part(&Value::Object(fields.clone()).to_string())
        }
        RowBody::Text(text) => digest.part("text").part(text),
        RowBody::Labelled { text, label } => digest.part("labelled").part(text).part(label),
        RowBody::Scored { text, score } => {
            digest.part("scored").part(text).part(&score.to_bits().to_string())
        }
    }
    .finish()
}

fn judged(body: &RowBody) -> [u8; 32] {
    match body {
        RowBody::Preference { prompt, preferred, rejected } => {
            let mut answers =
                [preferred, rejected].map(|answer| Parts::new().message(answer).finish());
            answers.sort_unstable();
            let digest = Parts::new().part("preference").chat(prompt);
            answers.iter().fold(digest, |digest, answer| digest.bytes(answer)).finish()
        }
        RowBody::Rated { prompt, completion, .. } => {
            Parts::new().part("rated").chat(prompt).message(completion).finish()
        }
        RowBody::Labelled { text, .. } | RowBody::Scored { text, .. } => {
            Parts::new().part("text").part(text).finish()
        }
        RowBody::Chat(_) | RowBody::Graded { .. } | RowBody::Text(_) => content(body),
    }
}

fn opening(chat: &Conversation) -> [u8; 32] {
    let user = |message: &&Message| message.role == super::row::Role::User;
    let text = chat.messages.iter().find(user).map(Message::text).unwrap_or_default();
    Parts::new().part("opening").part(text.trim()).finish()
}

/// SHA-256 of parts, each after its length, so that no two lists of parts run together.
struct Parts(Sha256);

impl Parts {
    fn new() -> Self {
        Self(Sha256::new())
    }

    fn bytes(self, bytes: &[u8]) -> Self {
        Self(self.0.chain_update((bytes.len() as u64).to_le_bytes()).chain_update(bytes))
    }

    fn part(self, text: &str) -> Self {
        self.bytes(text.as_bytes())
    }

    fn message(self, message: &Message) -> Self {
        self.part(&message.value.to_string()).bytes(&[u8::from(message.trained)])
    }

    fn chat(self, chat: &Conversation) -> Self {
        let tools = chat.tools.as_ref().map(ToString::to_string).unwrap_or_default();
        chat.messages.iter().fold(self.part(&tools), Self::message)
    }

    fn finish(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}
