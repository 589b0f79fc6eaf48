//! Sends one request and times its answer.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use reqwest::{Client, Response, Url, header};

use super::{
    plan::Planned,
    sample::{ErrorKind, Failure, Sample},
    settings::Settings,
    sse::{Event, EventSplitter, error_message},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// As much of an error's body as is read.
const ERROR_BODY_BYTES_MAX: usize = 1 << 14;

/// A client of one endpoint. Clones share their connections.
#[derive(Clone, Debug)]
pub(super) struct BenchClient {
    client: Client,
    url: Url,
    authorization: Option<header::HeaderValue>,
    timeout: Duration,
}

impl BenchClient {
    pub(super) fn new(settings: &Settings) -> anyhow::Result<Self> {
        let url = Url::parse(&format!("{}{}", settings.url, settings.endpoint.path()))?;
        let mut builder = Client::builder()
            .user_agent(concat!("pleach-bench/", env!("CARGO_PKG_VERSION")))
            .http1_only()
            .pool_max_idle_per_host(usize::MAX)
            .connect_timeout(CONNECT_TIMEOUT);
        if url.host_str().is_some_and(is_loopback) {
            builder = builder.no_proxy();
        }
        let authorization = match &settings.api_key {
            Some(key) => {
                let mut value = header::HeaderValue::try_from(format!("Bearer {key}"))?;
                value.set_sensitive(true);
                Some(value)
            }
            None => None,
        };
        Ok(Self { client: builder.build()?, url, authorization, timeout: settings.timeout })
    }

    /// Sends a request that was due at `due`, which is when its clock starts; `start` is when the run's did.
    pub(super) async fn send(
        &self,
        index: u64,
        planned: Planned,
        start: Instant,
        due: Instant,
    ) -> Sample {
        let mut watch = StopWatch::new(due);
        let body = planned.body;
        let ended = tokio::time::timeout(self.timeout, self.exchange(body, &mut watch)).await;
        let failure = match ended {
            Ok(Ok(())) => None,
            Ok(Err(failure)) => Some(failure),
            Err(_) => {
                let message = format!("not finished within {} s", self.timeout.as_secs_f64());
                Some(Failure { kind: ErrorKind::Timeout, message })
            }
        };
        let sent = due.saturating_duration_since(start);
        watch.into_sample(index, planned.model, planned.output_tokens, sent, failure)
    }

    async fn exchange(&self, body: Vec<u8>, watch: &mut StopWatch) -> Result<(), Failure> {
        let mut request = self
            .client
            .post(self.url.clone())
            .header(header::CONTENT_TYPE, "application/json")
            .body(body);
        if let Some(value) = &self.authorization {
            request = request.header(header::AUTHORIZATION, value.clone());
        }
        let second = request.try_clone();
        let mut sent = request.send().await;
        // Servers close idle connections when they like, sometimes just as one is used again. A browser would not show
        // that to anyone; the clock runs on, and the report tells how often it happened.
        if let (Err(error), Some(second)) = (&sent, second)
            && error.is_request()
            && !error.is_connect()
        {
            watch.is_resent = true;
            sent = second.send().await;
        }
        let mut response = sent.map_err(|error| transport_failure(&error))?;
        let status = response.status();
        if !status.is_success() {
            let message = error_message(&beginning(&mut response).await);
            return Err(Failure { kind: ErrorKind::Status(status.as_u16()), message });
        }
        let mut splitter = EventSplitter::default();
        let mut n_events = 0_u64;
        while let Some(bytes) = response.chunk().await.map_err(|error| transport_failure(&error))? {
            let now = Instant::now();
            splitter.push(&bytes).map_err(|error| malformed(error.to_string()))?;
            while let Some(data) = splitter.next_data() {
                n_events += 1;
                match Event::read(data) {
                    Event::Done => {
                        watch.end = now;
                        // To the end of the body, so that the connection can be used again.
                        while let Ok(Some(_)) = response.chunk().await {}
                        return Ok(());
                    }
                    Event::Chunk { has_text, usage } => {
                        if has_text {
                            watch.text_at(now);
                        }
                        watch.usage = usage.or(watch.usage);
                    }
                    Event::Failure(message) => {
                        return Err(Failure { kind: ErrorKind::Server, message });
                    }
                    Event::Malformed => {
                        let begin: String =
                            String::from_utf8_lossy(data).chars().take(80).collect();
                        return Err(malformed(format!("no JSON object: {begin:?}")));
                    }
                }
            }
        }
        if n_events == 0 {
            return Err(malformed("the answer is no stream of events".to_owned()));
        }
        Err(Failure {
            kind: ErrorKind::Disconnected,
            message: "the stream ended before [DONE]".to_owned(),
        })
    }
}

/// The times of one request.
struct StopWatch {
    due: Instant,
    first_text: Option<Instant>,
    last_text: Instant,
    end: Instant,
    itl_us: Vec<u32>,
    usage: Option<super::sse::Usage>,
    is_resent: bool,
}

impl StopWatch {
    fn new(due: Instant) -> Self {
        Self {
            due,
            first_text: None,
            last_text: due,
            end: due,
            itl_us: Vec::new(),
            usage: None,
            is_resent: false,
        }
    }

    fn text_at(&mut self, now: Instant) {
        if self.first_text.is_none() {
            self.first_text = Some(now);
        } else {
            let gap = now.saturating_duration_since(self.last_text).as_micros();
            self.itl_us.push(u32::try_from(gap).unwrap_or(u32::MAX));
        }
        self.last_text = now;
    }

    fn into_sample(
        self,
        index: u64,
        model: Arc<str>,
        asked_tokens: u32,
        sent: Duration,
        failure: Option<Failure>,
    ) -> Sample {
        let end = if failure.is_some() { Instant::now() } else { self.end };
        let usage = self.usage.unwrap_or_default();
        let text_events = self.itl_us.len() as u64 + u64::from(self.first_text.is_some());
        Sample {
            index,
            model,
            sent,
            ttft: self.first_text.map(|first| first.saturating_duration_since(self.due)),
            e2e: end.saturating_duration_since(self.due),
            itl_us: self.itl_us,
            asked_tokens,
            prompt_tokens: usage.prompt_tokens,
            cached_tokens: usage
                .prompt_tokens_details
                .and_then(|details| details.cached_tokens)
                .unwrap_or(0),
            output_tokens: self.usage.map_or(text_events, |usage| usage.completion_tokens),
            has_usage: self.usage.is_some(),
            is_resent: self.is_resent,
            failure,
        }
    }
}

/// Whether `host` is this machine, where no proxy is wanted.
pub(crate) fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn malformed(message: String) -> Failure {
    Failure { kind: ErrorKind::Malformed, message }
}

fn transport_failure(error: &reqwest::Error) -> Failure {
    let mut source: &dyn std::error::Error = error;
    while let Some(next) = source.source() {
        source = next;
    }
    let kind = if error.is_connect() { ErrorKind::Connect } else { ErrorKind::Disconnected };
    Failure { kind, message: source.to_string() }
}

async fn beginning(response: &mut Response) -> Vec<u8> {
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        body.extend_from_slice(&chunk[..chunk.len().min(ERROR_BODY_BYTES_MAX - body.len())]);
        if body.len() >= ERROR_BODY_BYTES_MAX {
            break;
        }
    }
    body
}
