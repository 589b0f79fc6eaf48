//! Texts with variables: `{{ item.reference.unit }}`, `{{ sample.output_text }}`, `{{ sample.output_json.value }}`.

use std::{borrow::Cow, fmt};

use serde_json::{Map, Value};

use super::{Answer, Unfilled};

/// A text with variables, read. Two namespaces: `item` is the row, `sample` the answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Template {
    pieces: Vec<Piece>,
}

#[derive(Clone, Debug, PartialEq)]
enum Piece {
    Text(String),
    /// Of the row; not empty.
    Item(Path),
    OutputText,
    /// A part of the answer as JSON; empty is all of it.
    OutputJson(Path),
}

/// Keys and indices, from the outside in.
#[derive(Clone, Debug, Default, PartialEq)]
struct Path(Vec<Key>);

#[derive(Clone, Debug, PartialEq)]
enum Key {
    Name(String),
    Index(usize),
}

impl fmt::Display for Path {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|key| match key {
            Key::Name(name) => write!(formatter, ".{name}"),
            Key::Index(index) => write!(formatter, "[{index}]"),
        })
    }
}

impl Template {
    /// Reads a text.
    ///
    /// # Errors
    /// What is wrong with it: a variable that is not closed, or that there is not.
    pub fn read(text: &str) -> Result<Self, String> {
        let (mut pieces, mut rest) = (Vec::new(), text);
        while let Some((before, after)) = rest.split_once("{{") {
            if !before.is_empty() {
                pieces.push(Piece::Text(before.to_owned()));
            }
            let Some((variable, after)) = after.split_once("}}") else {
                return Err("a variable that begins with `{{` is not closed".to_owned());
            };
            pieces.push(read_variable(variable.trim())?);
            rest = after;
        }
        if !rest.is_empty() {
            pieces.push(Piece::Text(rest.to_owned()));
        }
        Ok(Self { pieces })
    }

    pub(super) fn reads_json(&self) -> bool {
        self.pieces.iter().any(|piece| matches!(piece, Piece::OutputJson(_)))
    }

    /// The first variable of the row that `item` has not.
    pub(super) fn missing_from(&self, item: &Map<String, Value>) -> Option<String> {
        self.pieces.iter().find_map(|piece| match piece {
            Piece::Item(path) if path.of_row(item).is_none() => Some(format!("item{path}")),
            Piece::Item(_) | Piece::Text(_) | Piece::OutputText | Piece::OutputJson(_) => None,
        })
    }

    /// The text for one answer.
    pub(super) fn fill(
        &self,
        item: &Map<String, Value>,
        answer: &Answer<'_>,
    ) -> Result<String, Unfilled> {
        let mut text = String::new();
        for piece in &self.pieces {
            match piece {
                Piece::Text(piece) => text.push_str(piece),
                Piece::OutputText => text.push_str(answer.text),
                Piece::Item(path) => {
                    let value = path.of_row(item);
                    let value = value.ok_or_else(|| Unfilled::Missing(format!("item{path}")))?;
                    text.push_str(&shown(value));
                }
                Piece::OutputJson(path) => {
                    let value = answer.json.as_ref().and_then(|json| path.of(json));
                    text.push_str(&shown(value.ok_or(Unfilled::Unparsed)?));
                }
            }
        }
        Ok(text)
    }
}

/// A string as it is, anything else as JSON.
fn shown(value: &Value) -> Cow<'_, str> {
    match value {
        Value::String(text) => Cow::Borrowed(text),
        other @ (Value::Null
        | Value::Bool(_)
        | Value::Number(_)
        | Value::Array(_)
        | Value::Object(_)) => Cow::Owned(other.to_string()),
    }
}

fn read_variable(variable: &str) -> Result<Piece, String> {
    let path = Path::read(variable).ok_or_else(|| {
        format!("{variable:?} is no variable, such as item.reference or sample.output_text")
    })?;
    let mut keys = path.0.into_iter();
    let (space, first) = (keys.next(), keys.next());
    let rest = Path(keys.collect());
    match (space, first) {
        (Some(Key::Name(space)), Some(first)) if space == "item" => {
            Ok(Piece::Item(Path([first].into_iter().chain(rest.0).collect())))
        }
        (Some(Key::Name(space)), Some(Key::Name(name))) if space == "sample" => {
            match name.as_str() {
                "output_text" if rest.0.is_empty() => Ok(Piece::OutputText),
                "output_json" => Ok(Piece::OutputJson(rest)),
                _ => Err(format!(
                    "{variable:?} is not there: of sample there are output_text and output_json"
                )),
            }
        }
        _ => Err(format!("{variable:?} is neither of item nor of sample")),
    }
}

impl Path {
    /// `name.name[3].name`; also `name.3`.
    fn read(text: &str) -> Option<Self> {
        let mut keys = Vec::new();
        for part in text.split('.') {
            let (name, mut indices) = part.split_at(part.find('[').unwrap_or(part.len()));
            if name.is_empty() || name.contains(|c: char| c.is_whitespace() || "{}]\"'".contains(c))
            {
                return None;
            }
            keys.push(Key::Name(name.to_owned()));
            while let Some(inner) = indices.strip_prefix('[') {
                let (index, rest) = inner.split_once(']')?;
                let quoted = ['"', '\''].into_iter().find_map(|quote| {
                    index.strip_prefix(quote).and_then(|index| index.strip_suffix(quote))
                });
                keys.push(match quoted {
                    Some(name) => Key::Name(name.to_owned()),
                    None => Key::Index(index.parse().ok()?),
                });
                indices = rest;
            }
            if !indices.is_empty() {
                return None;
            }
        }
        Some(Self(keys))
    }

    fn of_row<'v>(&self, item: &'v Map<String, Value>) -> Option<&'v Value> {
        let (first, rest) = self.0.split_first()?;
        let Key::Name(name) = first else { return None };
        walk(item.get(name)?, rest)
    }

    fn of<'v>(&self, value: &'v Value) -> Option<&'v Value> {
        walk(value, &self.0)
    }
}

fn walk<'v>(value: &'v Value, keys: &[Key]) -> Option<&'v Value> {
    keys.iter().try_fold(value, |value, key| match (value, key) {
        (Value::Object(fields), Key::Name(name)) => fields.get(name),
        (Value::Array(items), Key::Index(index)) => items.get(*index),
        (Value::Array(items), Key::Name(name)) => items.get(name.parse::<usize>().ok()?),
        _ => None,
    })
}
