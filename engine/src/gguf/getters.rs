//! Metadata by key and type.
//!
//! `x(key)` is `Ok(None)` where the key is absent, `require_x(key)` is an error there. Both are an error where the key
//! holds something else: a wrong file is refused, not guessed at. Widths of integers don't matter, only whether the
//! value fits; a signed number that is not negative is an unsigned one too (writers differ), and numbers are floats.

use std::collections::BTreeMap;

use super::{GgufError, GgufFile, MetaValue};

/// One optional getter and its `require_` twin.
macro_rules! getters {
    ($($(#[$doc:meta])* $name:ident, $require:ident -> $type:ty = $convert:expr;)*) => {$(
        $(#[$doc])*
        ///
        /// # Errors
        /// [`GgufError::KeyType`] or [`GgufError::KeyRange`] if the key holds something else.
        pub fn $name(&self, key: &str) -> Result<Option<$type>, GgufError> {
            self.meta(key).map(|value| $convert(key, value)).transpose()
        }

        $(#[$doc])*
        ///
        /// # Errors
        /// [`GgufError::KeyMissing`], and [`GgufError::KeyType`] or [`GgufError::KeyRange`] if the key holds something else.
        pub fn $require(&self, key: &str) -> Result<$type, GgufError> {
            self.$name(key)?.ok_or_else(|| GgufError::KeyMissing { key: key.to_owned() })
        }
    )*};
}

impl GgufFile {
    getters! {
        /// A string.
        str, require_str -> &str = string;
        /// An integer.
        u32, require_u32 -> u32 = |key: &str, value: &MetaValue| integer(key, value, "u32");
        /// An integer.
        u64, require_u64 -> u64 = |key: &str, value: &MetaValue| integer(key, value, "u64");
        /// An integer.
        usize, require_usize -> usize = |key: &str, value: &MetaValue| integer(key, value, "usize");
        /// A number, rounded to single precision.
        f32, require_f32 -> f32 = |key: &str, value: &MetaValue| float(key, value).map(to_f32);
        /// A number.
        f64, require_f64 -> f64 = float;
        /// A bool.
        bool, require_bool -> bool = boolean;
        /// An array of strings.
        strings, require_strings -> Vec<&str> = strings;
        /// An array of integers.
        u32s, require_u32s -> Vec<u32> = |key: &str, value: &MetaValue| integers(key, value, "u32");
        /// An array of integers.
        i64s, require_i64s -> Vec<i64> = |key: &str, value: &MetaValue| integers(key, value, "i64");
        /// An array of numbers, rounded to single precision.
        f32s, require_f32s -> Vec<f32> = floats;
        /// An array of bools.
        bools, require_bools -> &[bool] = booleans;
    }
}

/// For the parser, which needs two keys before there is a [`GgufFile`].
pub(super) fn u64_of(
    meta: &BTreeMap<String, MetaValue>,
    key: &str,
) -> Result<Option<u64>, GgufError> {
    meta.get(key).map(|value| integer(key, value, "u64")).transpose()
}

fn wrong_type(key: &str, expected: &'static str, value: &MetaValue) -> GgufError {
    GgufError::KeyType { key: key.to_owned(), expected, found: value.type_name() }
}

fn fit<T: TryFrom<i128>>(key: &str, value: i128, expected: &'static str) -> Result<T, GgufError> {
    T::try_from(value).map_err(|_| GgufError::KeyRange { key: key.to_owned(), value, expected })
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "rounding to single precision is what is asked for"
)]
fn to_f32(value: f64) -> f32 {
    value as f32
}

fn string<'a>(key: &str, value: &'a MetaValue) -> Result<&'a str, GgufError> {
    if let MetaValue::String(string) = value {
        Ok(string)
    } else {
        Err(wrong_type(key, "a string", value))
    }
}

fn boolean(key: &str, value: &MetaValue) -> Result<bool, GgufError> {
    if let MetaValue::Bool(boolean) = value {
        Ok(*boolean)
    } else {
        Err(wrong_type(key, "a bool", value))
    }
}

fn integer<T: TryFrom<i128>>(
    key: &str,
    value: &MetaValue,
    expected: &'static str,
) -> Result<T, GgufError> {
    if let MetaValue::Uint(integer) = value {
        fit(key, (*integer).into(), expected)
    } else if let MetaValue::Int(integer) = value {
        fit(key, (*integer).into(), expected)
    } else {
        Err(wrong_type(key, "an integer", value))
    }
}

fn float(key: &str, value: &MetaValue) -> Result<f64, GgufError> {
    if let MetaValue::Float(float) = value {
        Ok(*float)
    } else if let MetaValue::Uint(integer) = value {
        Ok(*integer as f64)
    } else if let MetaValue::Int(integer) = value {
        Ok(*integer as f64)
    } else {
        Err(wrong_type(key, "a number", value))
    }
}

fn strings<'a>(key: &str, value: &'a MetaValue) -> Result<Vec<&'a str>, GgufError> {
    if let MetaValue::Strings(strings) = value {
        Ok(strings.iter().collect())
    } else {
        Err(wrong_type(key, "an array of strings", value))
    }
}

fn booleans<'a>(key: &str, value: &'a MetaValue) -> Result<&'a [bool], GgufError> {
    if let MetaValue::Bools(booleans) = value {
        Ok(booleans)
    } else {
        Err(wrong_type(key, "an array of bools", value))
    }
}

fn integers<T: TryFrom<i128>>(
    key: &str,
    value: &MetaValue,
    expected: &'static str,
) -> Result<Vec<T>, GgufError> {
    if let MetaValue::Uints(integers) = value {
        integers.iter().map(|integer| fit(key, (*integer).into(), expected)).collect()
    } else if let MetaValue::Ints(integers) = value {
        integers.iter().map(|integer| fit(key, (*integer).into(), expected)).collect()
    } else {
        Err(wrong_type(key, "an array of integers", value))
    }
}

fn floats(key: &str, value: &MetaValue) -> Result<Vec<f32>, GgufError> {
    if let MetaValue::Floats(floats) = value {
        Ok(floats.iter().copied().map(to_f32).collect())
    } else if let MetaValue::Uints(integers) = value {
        Ok(integers.iter().map(|integer| *integer as f32).collect())
    } else if let MetaValue::Ints(integers) = value {
        Ok(integers.iter().map(|integer| *integer as f32).collect())
    } else {
        Err(wrong_type(key, "an array of numbers", value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::GgufBuilder;

    fn one_key_of_each_type() -> GgufFile {
        let mut builder = GgufBuilder::new();
        builder
            .meta("uint", 7_u64)
            .meta("large", u64::MAX)
            .meta("negative", -1_i32)
            .meta("signed", 5_i32)
            .meta("float", 0.25_f32)
            .meta("bool", true)
            .meta("string", "x")
            .meta("uints", vec![1_u32, 2])
            .meta("ints", vec![3_i32, -4])
            .meta("floats", vec![0.5_f32])
            .meta("bools", vec![true, false])
            .meta("strings", vec!["x", "y"]);
        GgufFile::from_bytes(builder.to_bytes()).unwrap()
    }

    #[test]
    fn getters_convert_what_fits() {
        let file = one_key_of_each_type();
        assert_eq!(file.u32("uint").unwrap(), Some(7));
        assert_eq!(file.usize("signed").unwrap(), Some(5));
        assert_eq!(file.u64("large").unwrap(), Some(u64::MAX));
        assert_eq!(file.f32("float").unwrap(), Some(0.25));
        assert_eq!(file.f64("negative").unwrap(), Some(-1.0));
        assert_eq!(file.f32("uint").unwrap(), Some(7.0));
        assert_eq!(file.bool("bool").unwrap(), Some(true));
        assert_eq!(file.str("string").unwrap(), Some("x"));
        assert_eq!(file.u32s("uints").unwrap(), Some(vec![1, 2]));
        assert_eq!(file.i64s("ints").unwrap(), Some(vec![3, -4]));
        assert_eq!(file.i64s("uints").unwrap(), Some(vec![1, 2]));
        assert_eq!(file.f32s("floats").unwrap(), Some(vec![0.5]));
        assert_eq!(file.f32s("ints").unwrap(), Some(vec![3.0, -4.0]));
        assert_eq!(file.bools("bools").unwrap(), Some(&[true, false][..]));
        assert_eq!(file.strings("strings").unwrap(), Some(vec!["x", "y"]));
        assert_eq!(file.str("none").unwrap(), None);
        assert_eq!(file.u32s("none").unwrap(), None);
    }

    #[test]
    fn getters_refuse_the_rest() {
        fn message<T: std::fmt::Debug>(result: Result<T, GgufError>) -> String {
            result.unwrap_err().to_string()
        }
        let file = one_key_of_each_type();
        assert_eq!(message(file.require_str("none")), "metadata key is missing: none");
        assert_eq!(message(file.require_u32s("none")), "metadata key is missing: none");
        for (found, expected) in [
            (message(file.u32("string")), "metadata key string is a string: expected an integer"),
            (
                message(file.require_str("uint")),
                "metadata key uint is an unsigned integer: expected a string",
            ),
            (
                message(file.bool("uint")),
                "metadata key uint is an unsigned integer: expected a bool",
            ),
            (message(file.f32("bool")), "metadata key bool is a bool: expected a number"),
            (
                message(file.bools("signed")),
                "metadata key signed is a signed integer: expected an array of bools",
            ),
            (message(file.u32("float")), "metadata key float is a float: expected an integer"),
            (
                message(file.str("bools")),
                "metadata key bools is an array of bools: expected a string",
            ),
            (
                message(file.strings("uints")),
                "metadata key uints is an array of unsigned integers: expected an array of strings",
            ),
            (
                message(file.f32s("strings")),
                "metadata key strings is an array of strings: expected an array of numbers",
            ),
            (
                message(file.u32s("floats")),
                "metadata key floats is an array of floats: expected an array of integers",
            ),
            (
                message(file.u32("large")),
                "metadata key large is 18446744073709551615, which does not fit u32",
            ),
            (message(file.u32("negative")), "metadata key negative is -1, which does not fit u32"),
            (message(file.u32s("ints")), "metadata key ints is -4, which does not fit u32"),
        ] {
            assert_eq!(found, expected);
        }
    }
}
