//! Reading fields. What cannot be what this program wrote is an error with table and column.

use std::str::FromStr;

use serde::de::DeserializeOwned;
use sqlx::{Row as _, any::AnyRow};

use crate::{error::StoreError, owner::Owner};

/// The fields of one row.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a> {
    pub(crate) row: &'a AnyRow,
    /// For errors.
    pub(crate) table: &'static str,
}

impl Fields<'_> {
    pub(crate) fn text(self, column: &'static str) -> Result<String, StoreError> {
        self.row.try_get(column).map_err(|error| self.corrupt(column, error))
    }

    pub(crate) fn maybe_text(self, column: &'static str) -> Result<Option<String>, StoreError> {
        self.row.try_get(column).map_err(|error| self.corrupt(column, error))
    }

    pub(crate) fn int(self, column: &'static str) -> Result<i64, StoreError> {
        self.row.try_get(column).map_err(|error| self.corrupt(column, error))
    }

    pub(crate) fn maybe_int(self, column: &'static str) -> Result<Option<i64>, StoreError> {
        self.row.try_get(column).map_err(|error| self.corrupt(column, error))
    }

    /// An integer of a narrower type.
    pub(crate) fn number<T: TryFrom<i64>>(self, column: &'static str) -> Result<T, StoreError> {
        let value = self.int(column)?;
        T::try_from(value).map_err(|_| self.corrupt(column, format!("{value} is out of range")))
    }

    pub(crate) fn maybe_number<T: TryFrom<i64>>(
        self,
        column: &'static str,
    ) -> Result<Option<T>, StoreError> {
        let narrow = |value| {
            T::try_from(value).map_err(|_| self.corrupt(column, format!("{value} is out of range")))
        };
        self.maybe_int(column)?.map(narrow).transpose()
    }

    pub(crate) fn parsed<T>(self, column: &'static str) -> Result<T, StoreError>
    where
        T: FromStr,
        T::Err: ToString,
    {
        self.text(column)?.parse().map_err(|error: T::Err| self.corrupt(column, error))
    }

    pub(crate) fn maybe_parsed<T>(self, column: &'static str) -> Result<Option<T>, StoreError>
    where
        T: FromStr,
        T::Err: ToString,
    {
        let text = self.maybe_text(column)?;
        text.map(|text| text.parse().map_err(|error: T::Err| self.corrupt(column, error)))
            .transpose()
    }

    pub(crate) fn json<T: DeserializeOwned>(self, column: &'static str) -> Result<T, StoreError> {
        serde_json::from_str(&self.text(column)?).map_err(|error| self.corrupt(column, error))
    }

    pub(crate) fn maybe_json<T: DeserializeOwned>(
        self,
        column: &'static str,
    ) -> Result<Option<T>, StoreError> {
        let text = self.maybe_text(column)?;
        text.map(|text| serde_json::from_str(&text).map_err(|error| self.corrupt(column, error)))
            .transpose()
    }

    pub(crate) fn owner(self, column: &'static str) -> Result<Owner, StoreError> {
        let text = self.text(column)?;
        Owner::parse(&text).ok_or_else(|| self.corrupt(column, format!("{text:?} is no owner")))
    }

    // By value: what it is given is used up by its text.
    #[expect(clippy::needless_pass_by_value, reason = "an error at the end of its life")]
    pub(crate) fn corrupt(self, column: &'static str, reason: impl ToString) -> StoreError {
        StoreError::Corrupt { table: self.table, column, reason: reason.to_string() }
    }
}

/// Unsigned quantities as rows have them. What is beyond 2⁶³ is as good as 2⁶³.
pub(crate) fn stored(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
