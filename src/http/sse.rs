//! Server-sent events: one JSON object per `data:` line, an empty line after each, `[DONE]` at the end.

use std::{convert::Infallible, time::Duration};

use axum::{
    body::{Body, Bytes},
    http::{HeaderName, HeaderValue, header},
    response::{IntoResponse, Response},
};
use futures_util::stream;
use serde::Serialize;
use tokio::time::timeout;

use std::sync::Arc;

use super::{choice::ChoiceDelta, error::ApiError, generate::Running, wire::usage::Usage};
use crate::telemetry::Telemetry;

/// Silence after which a comment is sent: proxies then keep the connection, and a client that has gone is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

const DONE: &[u8] = b"data: [DONE]\n\n";
const COMMENT: &[u8] = b": waiting\n\n";

/// Writes what happens as the events of one endpoint.
pub trait ChunkWriter: Send + 'static {
    /// Writes an addition to a choice.
    fn delta(&mut self, delta: ChoiceDelta, events: &mut Events);
    /// Writes the usage, after all choices.
    fn usage(&mut self, usage: Usage, events: &mut Events);
}

/// Events to be sent together.
#[derive(Debug, Default)]
pub struct Events(Vec<u8>);

impl Events {
    /// Adds an event.
    ///
    /// # Panics
    /// If a wire type could not be written as JSON, which would be a bug.
    pub fn push(&mut self, json: &impl Serialize) {
        self.0.extend_from_slice(b"data: ");
        // Only string keys and plain structs go to clients: writing them to memory cannot fail.
        serde_json::to_writer(&mut self.0, json).expect("wire types are always valid JSON");
        self.0.extend_from_slice(b"\n\n");
    }

    fn take(&mut self) -> Bytes {
        Bytes::from(std::mem::take(&mut self.0))
    }
}

struct State<W> {
    running: Running,
    writer: W,
    telemetry: Arc<Telemetry>,
    include_usage: bool,
    done: bool,
}

/// The response that streams a request's choices. The connection polls it only while the client reads; what the engine
/// chooses meanwhile waits in the sequence, which `max_tokens` bounds. Dropping the body cancels the sequences.
pub fn respond(
    running: Running,
    writer: impl ChunkWriter,
    telemetry: Arc<Telemetry>,
    include_usage: bool,
) -> Response {
    let state = State { running, writer, telemetry, include_usage, done: false };
    let body = Body::from_stream(stream::unfold(state, |mut state| async move {
        let events = next_events(&mut state).await?;
        Some((Ok::<_, Infallible>(events), state))
    }));
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        // nginx would collect the events otherwise.
        (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    (headers, body).into_response()
}

async fn next_events<W: ChunkWriter>(state: &mut State<W>) -> Option<Bytes> {
    if state.done {
        return None;
    }
    let mut events = Events::default();
    match timeout(KEEP_ALIVE, state.running.next()).await {
        Err(_) => events.0.extend_from_slice(COMMENT),
        Ok(Some(Ok(delta))) => state.writer.delta(delta, &mut events),
        Ok(Some(Err(error))) => {
            report(state, &error);
            events.push(&error.envelope());
            events.0.extend_from_slice(DONE);
            state.done = true;
        }
        Ok(None) => {
            if state.include_usage {
                state.writer.usage(state.running.usage(), &mut events);
            }
            events.0.extend_from_slice(DONE);
            state.done = true;
        }
    }
    Some(events.take())
}

/// The status is out already: the error still counts, and shows in the log.
fn report<W>(state: &State<W>, error: &ApiError) {
    state.telemetry.count_error(error.code());
    tracing::warn!(%error, "a stream broke");
}
