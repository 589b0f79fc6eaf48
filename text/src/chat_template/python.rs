//! Values as Python prints them.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the kinds of values are an open list of the template engine; one not named is handled like the rest"
)]

use std::fmt::Write as _;

use minijinja::{Error, ErrorKind, Value, value::ValueKind};

/// Nesting of a value that is written out; what arrives as JSON is bounded likewise.
pub(super) const DEPTH_MAX: usize = 128;

pub(super) fn too_deep() -> Error {
    Error::new(
        ErrorKind::InvalidOperation,
        format!("value is nested deeper than {DEPTH_MAX} levels"),
    )
}

/// `str(value)`.
pub(super) fn str(value: &Value) -> Result<String, Error> {
    if let Some(text) = value.as_str() {
        return Ok(text.to_owned());
    }
    let mut out = String::new();
    push_repr(value, &mut out, DEPTH_MAX)?;
    Ok(out)
}

fn push_repr(value: &Value, out: &mut String, depth: usize) -> Result<(), Error> {
    let inside = depth.checked_sub(1).ok_or_else(too_deep)?;
    match value.kind() {
        ValueKind::String => push_quoted(value.as_str().unwrap_or_default(), out)?,
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            for (place, item) in value.try_iter()?.enumerate() {
                out.push_str(if place == 0 { "" } else { ", " });
                push_repr(&item, out, inside)?;
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            for (place, key) in value.try_iter()?.enumerate() {
                out.push_str(if place == 0 { "" } else { ", " });
                push_repr(&key, out, inside)?;
                out.push_str(": ");
                push_repr(&value.get_item(&key)?, out, inside)?;
            }
            out.push('}');
        }
        ValueKind::Number if !value.is_integer() => {
            out.push_str(&float(f64::try_from(value.clone())?));
        }
        // The engine prints the rest as Python does: True, None, 12, nothing for undefined.
        _ => out.push_str(&value.to_string()),
    }
    Ok(())
}

/// `repr(text)`: single quotes unless the text has them and no double ones.
fn push_quoted(text: &str, out: &mut String) -> Result<(), Error> {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for character in text.chars() {
        match character {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            _ if character == quote => {
                out.push('\\');
                out.push(quote);
            }
            _ if character.is_control() => {
                write!(out, "\\x{:02x}", u32::from(character)).map_err(Error::from)?;
            }
            _ => out.push(character),
        }
    }
    out.push(quote);
    Ok(())
}

/// `repr(number)`: the fewest digits that give the number back; exponents from 16 and below -4, of two digits at least.
pub(super) fn float(number: f64) -> String {
    if number.is_nan() {
        return "nan".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = number.to_string();
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats() {
        let cases = [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (0.0001, "0.0001"),
            (0.000_01, "1e-05"),
            (-2.5e-7, "-2.5e-07"),
            (f64::NAN, "nan"),
            (f64::NEG_INFINITY, "-inf"),
        ];
        for (number, expected) in cases {
            assert_eq!(float(number), expected);
        }
    }

    #[test]
    fn quotes() {
        for (text, expected) in [
            ("a", "'a'"),
            ("it's", "\"it's\""),
            ("'\"", "'\\'\"'"),
            ("\n\\\u{1}é", "'\\n\\\\\\x01é'"),
        ] {
            let mut out = String::new();
            push_quoted(text, &mut out).unwrap();
            assert_eq!(out, expected);
        }
    }
}
