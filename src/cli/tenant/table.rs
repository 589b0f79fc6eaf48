//! Tenants and keys as tables.

use std::{fmt::Write as _, iter::once};

use pleach_store::{ApiKey, Tenant};

use crate::tenants::Quota;

/// A row for each tenant.
pub(super) fn tenants(tenants: &[Tenant]) -> String {
    let heading = ["ID", "NAME", "STATE", "WEIGHT", "PRIORITY", "LIMITS"].map(str::to_owned);
    let rows = tenants.iter().map(|tenant| {
        let settings = &tenant.settings;
        [
            tenant.id.to_string(),
            settings.name.clone(),
            state(tenant).to_owned(),
            settings.weight.to_string(),
            settings.priority.to_string(),
            limits(tenant).join(" "),
        ]
    });
    align(once(heading).chain(rows))
}

/// A line for each thing that is known of a tenant.
pub(super) fn tenant(tenant: &Tenant) -> String {
    let settings = &tenant.settings;
    let mut rows = vec![
        ["id".to_owned(), tenant.id.to_string()],
        ["name".to_owned(), settings.name.clone()],
        ["state".to_owned(), state(tenant).to_owned()],
        ["weight".to_owned(), settings.weight.to_string()],
        ["priority".to_owned(), settings.priority.to_string()],
    ];
    rows.extend(Quota::ALL.map(|quota| {
        let limit = quota.limit_in(&settings.quotas);
        let limit = limit.map_or_else(|| "none".to_owned(), |limit| limit.to_string());
        [quota.name().replace('_', "-"), limit]
    }));
    rows.push(["capture".to_owned(), settings.capture.to_string()]);
    rows.push(["keep-days".to_owned(), settings.keep_days.to_string()]);
    align(rows)
}

/// A row for each key.
pub(super) fn keys(keys: &[ApiKey], now_ms: i64) -> String {
    let heading = ["ID", "NAME", "STATE", "SCOPES", "AGE", "LAST USED"].map(str::to_owned);
    let rows = keys.iter().map(|key| {
        let last_used =
            key.last_used_ms.map_or_else(|| "never".to_owned(), |used_ms| ago(used_ms, now_ms));
        [
            key.id.clone(),
            key.name.clone(),
            state_of_key(key, now_ms).to_owned(),
            key.scopes.to_string(),
            ago(key.created_ms, now_ms),
            last_used,
        ]
    });
    align(once(heading).chain(rows))
}

fn state(tenant: &Tenant) -> &'static str {
    if tenant.disabled_ms.is_some() { "disabled" } else { "enabled" }
}

fn state_of_key(key: &ApiKey, now_ms: i64) -> &'static str {
    match (key.revoked_ms, key.expires_ms) {
        (Some(_), _) => "revoked",
        (None, Some(expires_ms)) if expires_ms <= now_ms => "expired",
        _ => "good",
    }
}

fn limits(tenant: &Tenant) -> Vec<String> {
    let shown = |quota: Quota| {
        let limit = quota.limit_in(&tenant.settings.quotas)?;
        Some(format!("{}={limit}", quota.name().replace('_', "-")))
    };
    Quota::ALL.into_iter().filter_map(shown).collect()
}

/// The time since, in its largest unit.
fn ago(then_ms: i64, now_ms: i64) -> String {
    let seconds = now_ms.saturating_sub(then_ms).max(0) / 1000;
    let units = [(86_400, 'd'), (3600, 'h'), (60, 'm')];
    let unit = units.into_iter().find(|&(size, _)| seconds >= size);
    let (size, unit) = unit.unwrap_or((1, 's'));
    format!("{}{unit}", seconds / size)
}

/// Columns of equal width, two spaces apart.
fn align<const N: usize>(rows: impl IntoIterator<Item = [String; N]>) -> String {
    let rows: Vec<_> = rows.into_iter().collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: [usize; N] = std::array::from_fn(|column| width(column).unwrap_or(0));
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            // Writing to a string cannot fail.
            let _ = write!(line, "{cell:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use pleach_store::{TenantId, TenantSettings};

    use super::*;

    #[test]
    fn columns_are_aligned_and_limits_named() {
        let mut settings = TenantSettings::named("Ünal & sons");
        settings.quotas.requests_per_minute = Some(60);
        settings.quotas.adapters = Some(3);
        let id = TenantId::parse("ten_0000000000000001").unwrap();
        let one = Tenant { id, settings, created_ms: 0, disabled_ms: Some(1) };
        assert_eq!(
            tenants(std::slice::from_ref(&one)),
            "ID                    NAME         STATE     WEIGHT  PRIORITY  LIMITS\n\
             ten_0000000000000001  Ünal & sons  disabled  1       0         requests-per-minute=60 adapters=3\n"
        );
        let shown = tenant(&one);
        assert!(shown.contains("requests-per-minute  60\n"), "{shown}");
        assert!(shown.contains("training-jobs        none\n"), "{shown}");
    }

    #[test]
    fn ages_have_their_largest_unit() {
        let ago = |seconds: i64| ago(0, seconds * 1000);
        assert_eq!([ago(59), ago(60), ago(7300), ago(200_000)], ["59s", "1m", "2h", "2d"]);
    }
}
