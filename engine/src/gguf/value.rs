//! Metadata values in memory.

/// A metadata value. Widths of numbers are not kept: readers ask for what they need, see the getters of
/// [`super::GgufFile`].
#[derive(Clone, Debug, PartialEq)]
pub enum MetaValue {
    /// Any unsigned integer type.
    Uint(u64),
    /// Any signed integer type.
    Int(i64),
    /// f32 or f64.
    Float(f64),
    /// bool.
    Bool(bool),
    /// UTF-8 string.
    String(String),
    /// Array of any unsigned integer type.
    Uints(Vec<u64>),
    /// Array of any signed integer type.
    Ints(Vec<i64>),
    /// Array of f32 or f64.
    Floats(Vec<f64>),
    /// Array of bools.
    Bools(Vec<bool>),
    /// Array of strings.
    Strings(StringArray),
}

impl MetaValue {
    /// What it is, for messages.
    pub const fn type_name(&self) -> &'static str {
        match self {
            Self::Uint(_) => "an unsigned integer",
            Self::Int(_) => "a signed integer",
            Self::Float(_) => "a float",
            Self::Bool(_) => "a bool",
            Self::String(_) => "a string",
            Self::Uints(_) => "an array of unsigned integers",
            Self::Ints(_) => "an array of signed integers",
            Self::Floats(_) => "an array of floats",
            Self::Bools(_) => "an array of bools",
            Self::Strings(_) => "an array of strings",
        }
    }
}

/// Strings one after the other in one buffer: a vocabulary is two allocations, not 150 000.
///
/// ```text
/// text  | h e l l o | w o | ! |      ends  | 5 | 7 | 8 |
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StringArray {
    text: String,
    /// Byte after each string; ascending.
    ends: Vec<usize>,
}

impl StringArray {
    /// Room for `n_strings`, which the caller has compared with the bytes that hold them.
    pub(super) fn with_capacity(n_strings: usize) -> Self {
        Self { text: String::new(), ends: Vec::with_capacity(n_strings) }
    }

    /// Adds a string at the end.
    pub fn push(&mut self, string: &str) {
        self.text.push_str(string);
        self.ends.push(self.text.len());
    }

    /// Number of strings.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// One string.
    pub fn get(&self, index: usize) -> Option<&str> {
        let end = *self.ends.get(index)?;
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        Some(&self.text[start..end])
    }

    /// All strings, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        let mut start = 0;
        self.ends.iter().map(move |&end| {
            let string = &self.text[start..end];
            start = end;
            string
        })
    }
}

impl<S: AsRef<str>> FromIterator<S> for StringArray {
    fn from_iter<I: IntoIterator<Item = S>>(strings: I) -> Self {
        let mut array = Self::default();
        for string in strings {
            array.push(string.as_ref());
        }
        array
    }
}

/// One `From` for each plain type and for vectors of it, so that builders read well.
macro_rules! from_plain {
    ($($plain:ty => $one:ident, $many:ident;)*) => {$(
        impl From<$plain> for MetaValue {
            fn from(value: $plain) -> Self {
                Self::$one(value.into())
            }
        }

        impl From<Vec<$plain>> for MetaValue {
            fn from(values: Vec<$plain>) -> Self {
                Self::$many(values.into_iter().map(Into::into).collect())
            }
        }
    )*};
}

from_plain! {
    u8 => Uint, Uints;
    u16 => Uint, Uints;
    u32 => Uint, Uints;
    u64 => Uint, Uints;
    i8 => Int, Ints;
    i16 => Int, Ints;
    i32 => Int, Ints;
    i64 => Int, Ints;
    f32 => Float, Floats;
    f64 => Float, Floats;
    bool => Bool, Bools;
}

impl From<&str> for MetaValue {
    fn from(value: &str) -> Self {
        Self::String(value.to_owned())
    }
}

impl From<String> for MetaValue {
    fn from(value: String) -> Self {
        Self::String(value)
    }
}

impl From<StringArray> for MetaValue {
    fn from(values: StringArray) -> Self {
        Self::Strings(values)
    }
}

impl From<Vec<&str>> for MetaValue {
    fn from(values: Vec<&str>) -> Self {
        Self::Strings(values.into_iter().collect())
    }
}

impl From<Vec<String>> for MetaValue {
    fn from(values: Vec<String>) -> Self {
        Self::Strings(values.into_iter().collect())
    }
}
