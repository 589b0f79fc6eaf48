//! `OpenAI`'s `x-ratelimit-*` headers, on every answer of an endpoint that the limits of a minute hold for.

use std::time::{Duration, Instant};

use axum::{
    extract::Request,
    http::{HeaderMap, HeaderName, HeaderValue},
    middleware::Next,
    response::Response,
};

use crate::tenants::{Caller, Rate};

/// Limit, what remains of it, and when all of it is there again.
type Names = [HeaderName; 3];

const REQUESTS: Names = [
    HeaderName::from_static("x-ratelimit-limit-requests"),
    HeaderName::from_static("x-ratelimit-remaining-requests"),
    HeaderName::from_static("x-ratelimit-reset-requests"),
];
const TOKENS: Names = [
    HeaderName::from_static("x-ratelimit-limit-tokens"),
    HeaderName::from_static("x-ratelimit-remaining-tokens"),
    HeaderName::from_static("x-ratelimit-reset-tokens"),
];

/// Adds the headers of the limits that the caller has, as they are when the answer begins: what it may take is set aside
/// by then, and not yet given back if it is a stream.
pub async fn tell(caller: Caller, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    if let Some(tenant) = caller.tenant() {
        let rates = tenant.rates(Instant::now());
        write(response.headers_mut(), REQUESTS, rates.requests);
        write(response.headers_mut(), TOKENS, rates.tokens);
    }
    response
}

fn write(headers: &mut HeaderMap, names: Names, rate: Option<Rate>) {
    let Some(Rate { limit, remaining, full_after }) = rate else { return };
    let [of_limit, of_remaining, of_reset] = names;
    headers.insert(of_limit, HeaderValue::from(limit));
    headers.insert(of_remaining, HeaderValue::from(remaining));
    if let Ok(reset) = HeaderValue::from_str(&show(full_after)) {
        headers.insert(of_reset, reset);
    }
}

/// `20ms`, `1s`, `6m0s`, `1h0m0s`: rounded up, in milliseconds below a second.
fn show(time: Duration) -> String {
    let ms = time.as_nanos().div_ceil(1_000_000);
    if ms > 0 && ms < 1000 {
        return format!("{ms}ms");
    }
    let seconds = ms.div_ceil(1000);
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, _) => format!("{minutes}m{seconds}s"),
        _ => format!("{hours}h{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_shown_as_openai_shows_them() {
        for (ns, shown) in [
            (0, "0s"),
            (1, "1ms"),
            (20_000_000, "20ms"),
            (999_000_001, "1s"),
            (1_000_000_000, "1s"),
            (1_000_000_001, "2s"),
            (360_000_000_000, "6m0s"),
            (359_999_999_999, "6m0s"),
            (3_725_000_000_000, "1h2m5s"),
        ] {
            assert_eq!(show(Duration::from_nanos(ns)), shown, "{ns}");
        }
    }
}
