//! Takes personal data and secrets out of what users write, before it is kept.
//!
//! Every finding becomes a placeholder of its kind and a number, `<EMAIL_1>`: the same value has the same number all
//! through a conversation, so that "write to a@b.org, not to c@d.org" still says something. What is found has a form
//! or a checksum that plain numbers, words and code don't have; names and addresses of people have none, and stay.
//!
//! Patterns are finite automata with bounded repetition, and scanners look a bounded number of bytes ahead, so the
//! time is linear in the text.

mod checksums;
mod contacts;
mod money;
mod national_ids;
mod secrets;

use std::{borrow::Cow, collections::BTreeMap, collections::HashMap, fmt};

use serde_json::Value;

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PiiKind {
    /// A private key, an API key or a token.
    Secret,
    /// Name and password in a URL.
    Credentials,
    /// An e-mail address.
    Email,
    /// An international bank account number.
    Iban,
    /// The number of a payment card.
    Card,
    /// A number that a state gave to a person.
    NationalId,
    /// A telephone number.
    Phone,
    /// A public IP address.
    Ip,
}

impl fmt::Display for PiiKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Secret => "SECRET",
            Self::Credentials => "CREDENTIALS",
            Self::Email => "EMAIL",
            Self::Iban => "IBAN",
            Self::Card => "CARD",
            Self::NationalId => "NATIONAL_ID",
            Self::Phone => "PHONE",
            Self::Ip => "IP",
        })
    }
}

/// A finding: bytes `start..end` of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Found {
    start: usize,
    end: usize,
    kind: PiiKind,
}

/// Finds personal data and secrets. Made once and shared.
#[derive(Debug)]
pub struct Redactor {
    secrets: secrets::Secrets,
    contacts: contacts::Contacts,
    money: money::Money,
    national_ids: national_ids::NationalIds,
}

impl Redactor {
    /// Compiles the patterns.
    ///
    /// # Errors
    /// If one of ours doesn't compile, which the tests rule out.
    pub fn new() -> Result<Self, regex::Error> {
        Ok(Self {
            secrets: secrets::Secrets::new()?,
            contacts: contacts::Contacts::new()?,
            money: money::Money::new()?,
            national_ids: national_ids::NationalIds::new()?,
        })
    }

    /// Begins a conversation: placeholders count from 1.
    pub fn conversation(&self) -> Redaction<'_> {
        Redaction {
            redactor: self,
            numbers: HashMap::new(),
            values: BTreeMap::new(),
            counts: BTreeMap::new(),
        }
    }

    /// Findings without overlap, in order. Where two overlap, the kind that is named first in [`PiiKind`] counts.
    fn find(&self, text: &str) -> Vec<Found> {
        let mut found = Vec::new();
        self.secrets.find(text, &mut found);
        self.contacts.find(text, &mut found);
        self.money.find(text, &mut found);
        self.national_ids.find(text, &mut found);
        // `password@host` of a URL is no address.
        let credentials: Vec<Found> =
            found.iter().filter(|found| found.kind == PiiKind::Credentials).copied().collect();
        found.retain(|found| {
            found.kind != PiiKind::Email
                || !credentials.iter().any(|of| (of.start..of.end).contains(&found.start))
        });
        found.sort_by_key(|found| (found.start, found.kind, found.end));
        let mut kept: Vec<Found> = Vec::with_capacity(found.len());
        for next in found {
            match kept.last_mut() {
                Some(last) if next.start < last.end => {
                    if next.kind < last.kind {
                        *last = Found { end: next.end.max(last.end), start: last.start, ..next };
                    } else {
                        last.end = last.end.max(next.end);
                    }
                }
                _ => kept.push(next),
            }
        }
        kept
    }
}

/// The redaction of one conversation.
#[derive(Clone, Debug)]
pub struct Redaction<'a> {
    redactor: &'a Redactor,
    /// Number of each value of a kind.
    numbers: HashMap<(PiiKind, String), usize>,
    /// Different values of a kind.
    values: BTreeMap<PiiKind, usize>,
    counts: BTreeMap<PiiKind, usize>,
}

impl Redaction<'_> {
    /// The text with placeholders.
    pub fn redact<'t>(&mut self, text: &'t str) -> Cow<'t, str> {
        let found = self.redactor.find(text);
        if found.is_empty() {
            return Cow::Borrowed(text);
        }
        let mut redacted = String::with_capacity(text.len());
        let mut kept = 0;
        for Found { start, end, kind } in found {
            redacted.push_str(&text[kept..start]);
            redacted.push_str(&self.placeholder(kind, &text[start..end]));
            kept = end;
        }
        redacted.push_str(&text[kept..]);
        Cow::Owned(redacted)
    }

    /// Redacts every string of a JSON value in place: messages with parts, arguments of tools. Keys of objects stay.
    pub fn redact_json(&mut self, value: &mut Value) {
        match value {
            Value::String(text) => {
                if let Cow::Owned(redacted) = self.redact(text) {
                    *text = redacted;
                }
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.redact_json(item)),
            Value::Object(fields) => fields.values_mut().for_each(|field| self.redact_json(field)),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    /// How many findings of each kind were replaced so far.
    pub fn counts(&self) -> &BTreeMap<PiiKind, usize> {
        &self.counts
    }

    fn placeholder(&mut self, kind: PiiKind, value: &str) -> String {
        *self.counts.entry(kind).or_default() += 1;
        // A number is the same with other spaces, an address with other letters.
        let plain = match kind {
            PiiKind::Email => value.to_lowercase(),
            PiiKind::Secret | PiiKind::Credentials | PiiKind::Ip => value.to_owned(),
            PiiKind::Iban | PiiKind::Card | PiiKind::NationalId | PiiKind::Phone => {
                value.chars().filter(|character| character.is_alphanumeric()).collect()
            }
        };
        let number = *self.numbers.entry((kind, plain)).or_insert_with(|| {
            let n_values = self.values.entry(kind).or_default();
            *n_values += 1;
            *n_values
        });
        format!("<{kind}_{number}>")
    }
}

/// Whether the byte before `start` or at `end` goes on with a word or number.
fn is_inside_word(text: &str, start: usize, end: usize) -> bool {
    let word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_' || !byte.is_ascii();
    let before = start.checked_sub(1).and_then(|at| text.as_bytes().get(at));
    before.is_some_and(word) || text.as_bytes().get(end).is_some_and(word)
}

/// Whether what stands at `start..end` is a part of a longer number: a digit beyond a point, comma, hyphen or slash.
fn is_inside_number(text: &str, start: usize, end: usize) -> bool {
    let bytes = text.as_bytes();
    let joins = |at: usize, beyond: Option<usize>| {
        bytes.get(at).is_some_and(|byte| b".,-/:+*=".contains(byte))
            && beyond.and_then(|at| bytes.get(at)).is_some_and(u8::is_ascii_digit)
    };
    let before = start.checked_sub(1).is_some_and(|at| joins(at, at.checked_sub(1)));
    before || joins(end, Some(end + 1))
}
