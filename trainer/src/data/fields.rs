//! JSON values that know their place in the row, so that every refusal names it.

use std::{borrow::Cow, fmt};

use serde_json::{Map, Value};

use super::error::BadField;

/// A value and the way to it. A field that is `null` counts as absent, as in the `OpenAI` API.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field<'a> {
    parent: Option<&'a Field<'a>>,
    step: Step<'a>,
    value: &'a Value,
}

#[derive(Clone, Copy, Debug)]
enum Step<'a> {
    Row,
    Key(&'a str),
    Index(usize),
}

impl<'a> Field<'a> {
    /// The whole row.
    pub(super) fn row(value: &'a Value) -> Self {
        Self { parent: None, step: Step::Row, value }
    }

    pub(super) fn value(&self) -> &'a Value {
        self.value
    }

    /// The field of this name, if this is an object that has it.
    pub(super) fn get<'b>(&'b self, name: &'b str) -> Option<Field<'b>> {
        let value = self.value.get(name).filter(|value| !value.is_null())?;
        Some(Field { parent: Some(self), step: Step::Key(name), value })
    }

    /// The field of this name.
    pub(super) fn require<'b>(&'b self, name: &'b str) -> Result<Field<'b>, BadField> {
        self.object()?;
        self.get(name).ok_or_else(|| {
            let missing = Field { parent: Some(self), step: Step::Key(name), value: &Value::Null };
            missing.bad("a value", "nothing")
        })
    }

    pub(super) fn object(&self) -> Result<&'a Map<String, Value>, BadField> {
        self.value.as_object().ok_or_else(|| self.wrong("an object"))
    }

    pub(super) fn text(&self) -> Result<&'a str, BadField> {
        self.value.as_str().ok_or_else(|| self.wrong("a string"))
    }

    pub(super) fn bool(&self) -> Result<bool, BadField> {
        self.value.as_bool().ok_or_else(|| self.wrong("true or false"))
    }

    /// A finite number.
    pub(super) fn number(&self) -> Result<f64, BadField> {
        let number = self.value.as_f64().filter(|number| number.is_finite());
        number.ok_or_else(|| self.wrong("a number"))
    }

    /// The items of a list.
    pub(super) fn items(&self) -> Result<Vec<Field<'_>>, BadField> {
        let items = self.value.as_array().ok_or_else(|| self.wrong("a list"))?;
        let item = |(index, value)| Field { parent: Some(self), step: Step::Index(index), value };
        Ok(items.iter().enumerate().map(item).collect())
    }

    /// This field is not `expected`.
    pub(super) fn wrong(&self, expected: impl Into<Cow<'static, str>>) -> BadField {
        self.bad(expected, kind(self.value))
    }

    /// This field should be `expected` and is `found`.
    pub(super) fn bad(
        &self,
        expected: impl Into<Cow<'static, str>>,
        found: impl Into<Cow<'static, str>>,
    ) -> BadField {
        BadField { path: self.to_string(), expected: expected.into(), found: found.into() }
    }
}

impl fmt::Display for Field<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parent = self.parent.filter(|parent| !matches!(parent.step, Step::Row));
        if let Some(parent) = parent {
            parent.fmt(f)?;
        }
        match self.step {
            Step::Row => f.write_str("row"),
            Step::Key(name) if parent.is_some() => write!(f, ".{name}"),
            Step::Key(name) => f.write_str(name),
            Step::Index(index) => write!(f, "[{index}]"),
        }
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
