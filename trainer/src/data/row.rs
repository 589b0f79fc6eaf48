//! A row as its file has it, checked: what examples are made of.

use serde_json::{Map, Value};

/// One row of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Where it is in the file, from 1.
    pub line: u64,
    /// Where it came from.
    pub origin: Origin,
    /// What it says.
    pub body: RowBody,
}

/// Where a row came from. All are optional fields of every format, beside those of the format itself; they never
/// reach the model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// `user`: whose conversation it was.
    pub user: Option<String>,
    /// `conversation`: rows of one conversation are never on both sides of a split.
    pub conversation: Option<String>,
    /// `group`: more rows that belong together.
    pub group: Option<String>,
    /// `rater`: who judged; two rows that differ in nothing but rater and judgement are compared.
    pub rater: Option<String>,
    /// `trusted`: an anchor, which no cap leaves out.
    pub trusted: bool,
}

/// What a row says, by format.
#[derive(Clone, Debug, PartialEq)]
pub enum RowBody {
    /// A conversation to learn from.
    Chat(Conversation),
    /// Two answers, one better than the other.
    Preference {
        /// What was asked.
        prompt: Conversation,
        /// The better answer.
        preferred: Message,
        /// The worse answer.
        rejected: Message,
    },
    /// An answer and whether it was liked.
    Rated {
        /// What was asked.
        prompt: Conversation,
        /// The answer.
        completion: Message,
        /// Thumbs up.
        desirable: bool,
    },
    /// A prompt and what a grader needs to judge answers to it.
    Graded {
        /// What is asked.
        prompt: Conversation,
        /// The row's other fields.
        fields: Map<String, Value>,
    },
    /// A document.
    Text(String),
    /// A text and its class.
    Labelled {
        /// The text.
        text: String,
        /// The class.
        label: String,
    },
    /// A text and its number.
    Scored {
        /// The text.
        text: String,
        /// The number; finite.
        score: f32,
    },
}

/// Messages, in order, and the tools that the model could call.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    /// The messages.
    pub messages: Vec<Message>,
    /// As in the `OpenAI` API: a list that is not empty.
    pub tools: Option<Value>,
}

/// A message, ready for the chat template.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// The message as templates know it: no `weight`, and only roles of [`Role`].
    pub value: Value,
    /// Whether it is learned: an assistant's, unless its `weight` is 0.
    pub trained: bool,
}

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Instructions; `developer`, the newer name, too.
    System,
    /// The one who asks.
    User,
    /// The model.
    Assistant,
    /// What a tool answered.
    Tool,
}

impl Message {
    /// Its text: parts one after the other, with line breaks between; empty if it only calls tools.
    pub fn text(&self) -> String {
        match self.value.get("content") {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Array(parts)) => {
                let text = |part: &Value| {
                    let text = part.get("text").unwrap_or(part).as_str();
                    text.unwrap_or_default().to_owned()
                };
                parts.iter().map(text).collect::<Vec<_>>().join("\n")
            }
            _ => String::new(),
        }
    }

    /// Whether it calls tools.
    pub fn calls_tools(&self) -> bool {
        self.value.get("tool_calls").is_some_and(|calls| !calls.is_null())
    }
}

impl Conversation {
    /// The messages as the template takes them.
    pub fn values(&self) -> Vec<Value> {
        self.messages.iter().map(|message| message.value.clone()).collect()
    }

    /// This conversation with one message more, which is learned and nothing else.
    pub(super) fn answered(&self, answer: &Message) -> Self {
        let context =
            self.messages.iter().map(|message| Message { trained: false, ..message.clone() });
        let answer = Message { trained: true, ..answer.clone() };
        Self { messages: context.chain([answer]).collect(), tools: self.tools.clone() }
    }
}
