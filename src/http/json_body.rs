//! Reading a request's body: its type, its size, its time, and its JSON.

use std::{sync::Arc, time::Duration};

use axum::{
    body::{Body, BodyDataStream},
    extract::{FromRequest, Request},
    http::{HeaderMap, header},
};
use futures_util::StreamExt;
use tokio::time::{Instant, timeout, timeout_at};

use super::{error::ApiError, state::AppState, wire::fields::Fields};

/// How much of a body that is too large is read and thrown away, so that its sender gets to read the refusal instead of
/// a broken connection.
const DISCARD_BYTES_MAX: usize = 64 << 20;
const DISCARD_TIME_MAX: Duration = Duration::from_secs(5);

/// A JSON object that came as a body.
#[derive(Debug)]
pub struct JsonBody {
    /// Its fields.
    pub fields: Fields,
    /// Its bytes: what handling it costs at most, whichever field they are in.
    pub n_bytes: usize,
    /// When its last byte came: the server's latency begins here, however slow the client's upload was.
    pub arrived: std::time::Instant,
}

impl FromRequest<Arc<AppState>> for JsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &Arc<AppState>) -> Result<Self, ApiError> {
        check_content_type(request.headers())?;
        let announced = announced_bytes(request.headers());
        let limits = state.limits();
        let bytes =
            read(request.into_body(), announced, limits.body_bytes_max, limits.body_time_max)
                .await?;
        let arrived = std::time::Instant::now();
        let n_bytes = bytes.len();
        let fields = state.cpu.run(n_bytes, move || Fields::parse(&bytes)).await??;
        Ok(Self { fields, n_bytes, arrived })
    }
}

/// A browser may send other types to a server on the same machine without asking it first: only JSON is taken.
fn check_content_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let found = headers
        .get(header::CONTENT_TYPE)
        .map_or("", |value| value.to_str().unwrap_or("(not text)"));
    let essence = found.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let is_json = essence == "application/json"
        || essence.starts_with("application/") && essence.ends_with("+json");
    if is_json { Ok(()) } else { Err(ApiError::ContentType { found: found.to_owned() }) }
}

fn announced_bytes(headers: &HeaderMap) -> Option<usize> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

async fn read(
    body: Body,
    announced: Option<usize>,
    bytes_max: usize,
    time_max: Duration,
) -> Result<Vec<u8>, ApiError> {
    let mut chunks = body.into_data_stream();
    if announced.is_some_and(|announced| announced > bytes_max) {
        discard(&mut chunks).await;
        return Err(ApiError::BodyTooLarge { bytes_max });
    }
    let deadline = Instant::now() + time_max;
    let mut bytes = Vec::new();
    loop {
        match timeout_at(deadline, chunks.next()).await {
            Err(_) => return Err(ApiError::BodyTimeout { seconds: time_max.as_secs() }),
            Ok(None) => return Ok(bytes),
            Ok(Some(Err(error))) => return Err(ApiError::BodyBroken { detail: error.to_string() }),
            Ok(Some(Ok(chunk))) if bytes.len() + chunk.len() > bytes_max => {
                discard(&mut chunks).await;
                return Err(ApiError::BodyTooLarge { bytes_max });
            }
            Ok(Some(Ok(chunk))) => bytes.extend_from_slice(&chunk),
        }
    }
}

async fn discard(chunks: &mut BodyDataStream) {
    let all = async {
        let mut n_bytes = 0;
        while let Some(Ok(chunk)) = chunks.next().await {
            n_bytes += chunk.len();
            if n_bytes > DISCARD_BYTES_MAX {
                break;
            }
        }
    };
    // Whether it ended or took too long: the refusal is sent next.
    let _ = timeout(DISCARD_TIME_MAX, all).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_json_is_taken() {
        for (value, taken) in [
            ("application/json", true),
            ("Application/JSON; charset=utf-8", true),
            ("application/vnd.api+json", true),
            ("text/plain", false),
            ("application/x-www-form-urlencoded", false),
            ("", false),
        ] {
            let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, value.parse().unwrap())]);
            assert_eq!(check_content_type(&headers).is_ok(), taken, "{value:?}");
        }
        assert!(check_content_type(&HeaderMap::new()).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_never_ends_times_out() {
        let body =
            Body::from_stream(futures_util::stream::pending::<Result<Vec<u8>, std::io::Error>>());
        let error = read(body, None, 100, Duration::from_secs(3)).await.unwrap_err();
        assert_eq!(error, ApiError::BodyTimeout { seconds: 3 });
    }
}
