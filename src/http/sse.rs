//! Server-sent events: one JSON object per `data:` line, an empty line after each, `[DONE]` at the end.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    http::{HeaderName, HeaderValue, header},
    response::{IntoResponse, Response},
};
use futures_util::Stream;
use serde::Serialize;
use tokio::time::{Instant, Sleep, sleep};

use super::{choice::ChoiceDelta, error::ApiError, generate::Running, wire::usage::Usage};
use crate::telemetry::Telemetry;

/// Silence after which a comment is sent: proxies then keep the connection, and a client that has gone is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Events that are ready together leave together, up to about this much: a client that lags catches up in few writes, and
/// none takes more memory than this for its own.
const TOGETHER_BYTES_MAX: usize = 16 << 10;
/// Room for the usual event.
const EVENT_BYTES: usize = 512;

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
        if self.0.capacity() == 0 {
            self.0.reserve(EVENT_BYTES);
        }
        self.0.extend_from_slice(b"data: ");
        // Only string keys and plain structs go to clients: writing them to memory cannot fail.
        serde_json::to_writer(&mut self.0, json).expect("wire types are always valid JSON");
        self.0.extend_from_slice(b"\n\n");
    }

    fn take(&mut self) -> Bytes {
        Bytes::from(std::mem::take(&mut self.0))
    }
}

struct EventStream<W> {
    running: Running,
    writer: W,
    telemetry: Arc<Telemetry>,
    include_usage: bool,
    /// Of the last bytes.
    sent: Instant,
    /// Set anew only when it rings: a timer for each token would cost more than the token.
    keep_alive: Pin<Box<Sleep>>,
    done: bool,
}

/// The response that streams a request's choices. The connection polls it only while the client reads; what the engine
/// chooses meanwhile waits in the sequence, which `max_tokens` bounds. Dropping the body cancels the sequences.
pub fn respond(
    running: Running,
    writer: impl ChunkWriter + Unpin,
    telemetry: Arc<Telemetry>,
    include_usage: bool,
) -> Response {
    let body = Body::from_stream(EventStream {
        running,
        writer,
        telemetry,
        include_usage,
        sent: Instant::now(),
        keep_alive: Box::pin(sleep(KEEP_ALIVE)),
        done: false,
    });
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        // nginx would collect the events otherwise.
        (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    (headers, body).into_response()
}

impl<W: ChunkWriter + Unpin> Stream for EventStream<W> {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Infallible>>> {
        if self.done {
            return Poll::Ready(None);
        }
        let mut events = Events::default();
        self.write_ready(context, &mut events);
        if events.0.is_empty() {
            if !self.is_silent(context) {
                return Poll::Pending;
            }
            events.0.extend_from_slice(COMMENT);
        }
        self.sent = Instant::now();
        Poll::Ready(Some(Ok(events.take())))
    }
}

impl<W: ChunkWriter> EventStream<W> {
    /// Writes what is there, and nothing that would have to be waited for.
    fn write_ready(&mut self, context: &mut Context<'_>, events: &mut Events) {
        while !self.done && events.0.len() < TOGETHER_BYTES_MAX {
            let Poll::Ready(delta) = self.running.poll_next(context) else { return };
            match delta {
                Some(Ok(delta)) => self.writer.delta(delta, events),
                Some(Err(error)) => {
                    self.report(&error);
                    events.push(&error.envelope());
                    events.0.extend_from_slice(DONE);
                    self.done = true;
                }
                None => {
                    if self.include_usage {
                        self.writer.usage(self.running.usage(), events);
                    }
                    events.0.extend_from_slice(DONE);
                    self.done = true;
                }
            }
        }
    }

    /// Whether nothing was sent for [`KEEP_ALIVE`].
    fn is_silent(&mut self, context: &mut Context<'_>) -> bool {
        while self.keep_alive.as_mut().poll(context).is_ready() {
            let due = self.sent + KEEP_ALIVE;
            if due > Instant::now() {
                self.keep_alive.as_mut().reset(due);
            } else {
                self.keep_alive.as_mut().reset(Instant::now() + KEEP_ALIVE);
                return true;
            }
        }
        false
    }

    /// The status is out already: the error still counts, and shows in the log.
    fn report(&self, error: &ApiError) {
        self.telemetry.count_error(error.code());
        tracing::warn!(%error, "a stream broke");
    }
}
