//! What every request gets around its handler: an id, a count, and a catch for bugs.

use std::{panic::AssertUnwindSafe, sync::Arc};

use axum::{
    extract::{MatchedPath, Request, State},
    http::{HeaderName, HeaderValue},
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures_util::FutureExt;
use tracing::Instrument;

use super::{
    error::{ApiError, ErrorCode},
    ids,
    state::AppState,
};

/// Names a request in the client's and the server's logs.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longest id taken over from a client.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// The label of requests that match no route: their paths are as many as clients can think of.
const PATH_UNMATCHED: &str = "(unmatched)";

/// Gives the request an id, counts the response, and turns a panic into a 500 of this request alone.
pub async fn around(State(state): State<Arc<AppState>>, request: Request, next: Next) -> Response {
    let id =
        request.headers().get(&REQUEST_ID).filter(|id| is_sane(id)).cloned().unwrap_or_else(|| {
            // Hexadecimal digits are always a valid header.
            HeaderValue::from_str(&ids::random("req-")).unwrap_or(HeaderValue::from_static("req-"))
        });
    let path = request.extensions().get::<MatchedPath>().cloned();
    let path = path.as_ref().map_or(PATH_UNMATCHED, MatchedPath::as_str);
    let span = tracing::info_span!("request", id = id.to_str().unwrap_or_default(), path);
    let handled = AssertUnwindSafe(next.run(request)).catch_unwind().instrument(span.clone()).await;
    let mut response = handled.unwrap_or_else(|_| {
        span.in_scope(|| {
            ApiError::Internal { detail: "an unexpected fault".to_owned() }.into_response()
        })
    });
    let code = response.extensions().get::<ErrorCode>().map(|code| code.0);
    state.telemetry.count_response(path, response.status().as_u16(), code);
    tracing::debug!(parent: &span, status = response.status().as_u16(), code, "responded");
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

fn is_sane(id: &HeaderValue) -> bool {
    let bytes = id.as_bytes();
    (1..=REQUEST_ID_BYTES_MAX).contains(&bytes.len())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:/+=@".contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_with_odd_characters_or_lengths_are_not_taken_over() {
        let sane = |text: &str| is_sane(&HeaderValue::from_str(text).unwrap());
        assert!(sane("req-1234"));
        assert!(sane(&"a".repeat(128)));
        for bad in
            [String::new(), "a".repeat(129), "a b".to_owned(), "a\"b".to_owned(), "{}".to_owned()]
        {
            assert!(!sane(&bad), "{bad:?}");
        }
    }
}
