//! The filter `tojson` as `transformers` has it: Python's `json.dumps`, nothing escaped for HTML.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the kinds of values are an open list of the template engine; one not named is handled like the rest"
)]

use std::fmt::Write as _;

use minijinja::{
    Error, ErrorKind, Value,
    value::{Kwargs, Rest, ValueKind},
};

use super::python;

/// What `json.dumps` can be told.
struct Style {
    ascii: bool,
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
}

/// `tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
#[expect(clippy::needless_pass_by_value, reason = "what the engine passes to a filter")]
pub(super) fn tojson(
    value: &Value,
    positional: Rest<Value>,
    named: Kwargs,
) -> Result<Value, Error> {
    let argument = |place: usize, name: &str| -> Result<Value, Error> {
        let given = positional.get(place).cloned();
        Ok(given.or(named.get::<Option<Value>>(name)?).unwrap_or_default())
    };
    let (ascii, indent) = (argument(0, "ensure_ascii")?, argument(1, "indent")?);
    let (separators, sort_keys) = (argument(2, "separators")?, argument(3, "sort_keys")?);
    named.assert_all_used()?;
    if positional.len() > 4 {
        return Err(Error::from(ErrorKind::TooManyArguments));
    }

    let indent = match indent.kind() {
        ValueKind::Undefined | ValueKind::None => None,
        ValueKind::String => Some(indent.to_string()),
        _ => Some(" ".repeat(usize::from(u8::try_from(indent)?))),
    };
    let mut style = Style {
        ascii: ascii.is_true(),
        item_separator: if indent.is_some() { "," } else { ", " }.to_owned(),
        key_separator: ": ".to_owned(),
        indent,
        sort_keys: sort_keys.is_true(),
    };
    if !matches!(separators.kind(), ValueKind::Undefined | ValueKind::None) {
        style.item_separator = separators.get_item_by_index(0)?.to_string();
        style.key_separator = separators.get_item_by_index(1)?.to_string();
    }
    let mut out = String::new();
    style.push(value, 0, &mut out)?;
    Ok(Value::from(out))
}

impl Style {
    fn push(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        if depth >= python::DEPTH_MAX {
            return Err(python::too_deep());
        }
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&number(value)?),
            ValueKind::String => self.push_string(value.as_str().unwrap_or_default(), out)?,
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.push_all(('[', ']'), &items, depth, out, |item, out| {
                    self.push(item, depth + 1, out)
                })?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                self.push_all(('{', '}'), &keys, depth, out, |key, out| {
                    self.push_string(&key_text(key)?, out)?;
                    out.push_str(&self.key_separator);
                    self.push(&value.get_item(key)?, depth + 1, out)
                })?;
            }
            other => {
                let detail = format!("{other} is not JSON serializable");
                return Err(Error::new(ErrorKind::InvalidOperation, detail));
            }
        }
        Ok(())
    }

    /// Brackets, separators and line breaks around what `push_item` writes.
    fn push_all(
        &self,
        (open, close): (char, char),
        items: &[Value],
        depth: usize,
        out: &mut String,
        mut push_item: impl FnMut(&Value, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        out.push(open);
        for (place, item) in items.iter().enumerate() {
            if place > 0 {
                out.push_str(&self.item_separator);
            }
            self.new_line(depth + 1, out);
            push_item(item, out)?;
        }
        if !items.is_empty() {
            self.new_line(depth, out);
        }
        out.push(close);
        Ok(())
    }

    fn new_line(&self, depth: usize, out: &mut String) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            for _ in 0..depth {
                out.push_str(indent);
            }
        }
    }

    fn push_string(&self, text: &str, out: &mut String) -> Result<(), Error> {
        out.push('"');
        for character in text.chars() {
            match character {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                // Python escapes DEL only where it escapes whatever isn't ASCII: not at all, that is.
                _ if character < ' ' || (self.ascii && !character.is_ascii()) => {
                    for unit in character.encode_utf16(&mut [0; 2]) {
                        write!(out, "\\u{unit:04x}").map_err(Error::from)?;
                    }
                }
                _ => out.push(character),
            }
        }
        out.push('"');
        Ok(())
    }
}

fn number(value: &Value) -> Result<String, Error> {
    if value.is_integer() {
        return Ok(value.to_string());
    }
    let number = f64::try_from(value.clone())?;
    Ok(match number {
        _ if number.is_nan() => "NaN".to_owned(),
        _ if number.is_infinite() => if number > 0.0 { "Infinity" } else { "-Infinity" }.to_owned(),
        _ => python::float(number),
    })
}

/// Keys that aren't text are written as `json.dumps` writes them.
fn key_text(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.to_string()),
        ValueKind::None => Ok("null".to_owned()),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.to_owned()),
        ValueKind::Number => number(key),
        other => Err(Error::new(ErrorKind::InvalidOperation, format!("a key cannot be a {other}"))),
    }
}
