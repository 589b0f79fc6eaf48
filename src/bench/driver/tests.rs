//! Runs against a server on the loopback interface with known delays and known ways to fail, chosen by model name.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::post,
};
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};

use super::{super::settings::*, Report, run};
use crate::bench::ErrorKind;

const FIRST_DELAY: Duration = Duration::from_millis(30);
const TOKEN_DELAY: Duration = Duration::from_millis(10);
const PROMPT_TOKENS: u64 = 11;

/// Ten short requests by two clients to model `m`.
pub(in crate::bench) fn settings(url: &str) -> Settings {
    Settings {
        url: url.to_owned(),
        model: "m".to_owned(),
        adapters: Vec::new(),
        mix: Mix::Uniform,
        endpoint: Endpoint::Chat,
        prompt_form: PromptForm::Words,
        prompt_tokens: Length { min: 5, max: 9 },
        shared_prefix: 0,
        output_tokens: Length { min: 6, max: 6 },
        ignore_eos: true,
        temperature: None,
        load: Load::Concurrency(2),
        limit: Limit::Requests(10),
        warmup: 0,
        seed: 1,
        timeout: Duration::from_secs(5),
        api_key: Some("k".to_owned()),
        samples: true,
    }
}

#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<SeenRequest>>>);

/// The body and the header with the key.
type SeenRequest = (Value, Option<String>);

async fn start() -> (String, Seen) {
    let seen = Seen::default();
    let router = Router::new()
        .route("/v1/chat/completions", post(answer))
        .route("/v1/completions", post(answer))
        .with_state(seen.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (url, seen)
}

async fn answer(State(seen): State<Seen>, headers: axum::http::HeaderMap, body: Bytes) -> Response {
    let request: Value = serde_json::from_slice(&body).unwrap();
    let key = headers.get(header::AUTHORIZATION).map(|value| value.to_str().unwrap().to_owned());
    seen.0.lock().unwrap().push((request.clone(), key));
    let tokens = request["max_tokens"].as_u64().unwrap();
    let is_chat = request.get("messages").is_some();
    let piece = |text: &str| {
        if is_chat {
            json!({"choices": [{"index": 0, "delta": {"content": text}}]})
        } else {
            json!({"choices": [{"index": 0, "text": text}]})
        }
    };
    let usage = json!({"choices": [], "usage": {
        "prompt_tokens": PROMPT_TOKENS, "completion_tokens": tokens, "prompt_tokens_details": {"cached_tokens": 4}}});
    let mut events = vec![
        json!({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
            .to_string(),
    ];
    events.extend((0..tokens).map(|_| piece(" w").to_string()));
    match request["model"].as_str().unwrap() {
        "full" => {
            let error = json!({"error": {"message": "the queue is full", "type": "rate_limit"}});
            return (StatusCode::TOO_MANY_REQUESTS, error.to_string()).into_response();
        }
        "garbled" => events[3] = "{\"choices\":[{".to_owned(),
        "cut" => events.truncate(3),
        "failing" => events[4] = json!({"error": {"message": "out of memory"}}).to_string(),
        "hanging" => events.truncate(2),
        "plain" => return "hello".into_response(),
        "countless" => events.push("[DONE]".to_owned()),
        _ => events.extend([usage.to_string(), "[DONE]".to_owned()]),
    }
    let is_hanging = request["model"] == "hanging";
    let events = stream::iter(events).enumerate().then(|(index, event)| async move {
        let delay = match index {
            0 => Duration::ZERO,
            1 => FIRST_DELAY,
            _ => TOKEN_DELAY,
        };
        tokio::time::sleep(delay).await;
        Ok::<_, Infallible>(format!("data: {event}\n\n"))
    });
    let end = stream::once(async move {
        if is_hanging {
            tokio::time::sleep(Duration::from_mins(1)).await;
        }
        Ok(String::new())
    });
    ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(events.chain(end)))
        .into_response()
}

async fn report(settings: &Settings) -> Report {
    run(settings, false).await.unwrap()
}

#[tokio::test]
async fn counts_are_exact_and_times_plausible() {
    let (url, seen) = start().await;
    let mut settings = settings(&url);
    settings.warmup = 3;
    let report = report(&settings).await;
    let all = &report.overall;
    assert_eq!((all.n_ok, all.n_failed, all.output_tokens, all.text_events), (10, 0, 60, 60));
    assert_eq!(
        (all.prompt_tokens, all.cached_tokens, all.n_without_usage, all.n_short),
        (110, 40, 0, 0)
    );
    assert_eq!(seen.0.lock().unwrap().len(), 13, "ten requests and three to warm up");
    assert!(seen.0.lock().unwrap().iter().all(|(_, key)| key.as_deref() == Some("Bearer k")));
    let (ttft, itl, e2e) = (all.ttft_ms.unwrap(), all.itl_ms.unwrap(), all.e2e_ms.unwrap());
    assert_eq!((ttft.count, itl.count, e2e.count), (10, 50, 10));
    // Delays are lower bounds; the machine may add to them, rarely by much.
    assert!(ttft.min >= 29.0 && ttft.p50 < 300.0, "{ttft:?}");
    assert!(itl.mean >= 9.0 && itl.p50 < 100.0, "{itl:?}");
    assert!(e2e.min >= 80.0 && e2e.p50 >= ttft.p50 + 45.0, "{e2e:?}");
    assert!(report.duration_s >= 5.0 * 0.08 && report.throughput.output_tokens_per_s <= 60.0 / 0.4);
    let samples = report.samples.as_ref().unwrap();
    assert!(samples.iter().enumerate().all(|(index, sample)| sample.index == index as u64));
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["overall"]["output_tokens"], 60);
    assert!(!json.to_string().contains("api_key"));
    let table = report.to_string();
    assert!(table.contains("TTFT") && table.contains("10 ok, 0 failed"), "{table}");
}

#[tokio::test]
async fn every_failure_has_its_kind() {
    let (url, _) = start().await;
    let mut settings = settings(&url);
    settings.timeout = Duration::from_millis(600);
    settings.mix = Mix::Distinct;
    let kinds = [
        ("full", ErrorKind::Status(429), "the queue is full"),
        ("garbled", ErrorKind::Malformed, "no JSON object"),
        ("cut", ErrorKind::Disconnected, "[DONE]"),
        ("failing", ErrorKind::Server, "out of memory"),
        ("hanging", ErrorKind::Timeout, "0.6 s"),
        ("plain", ErrorKind::Malformed, "no stream"),
    ];
    settings.adapters = kinds.iter().map(|(model, ..)| (*model).to_owned()).collect();
    settings.limit = Limit::Requests(12);
    settings.load = Load::Concurrency(6);
    let report = report(&settings).await;
    assert_eq!((report.overall.n_ok, report.overall.n_failed), (0, 12));
    for sample in report.samples.as_ref().unwrap() {
        let (_, kind, says) = kinds.iter().find(|(model, ..)| *model == &*sample.model).unwrap();
        let failure = sample.failure.as_ref().unwrap();
        assert_eq!(failure.kind, *kind, "{}: {}", sample.model, failure.message);
        assert!(failure.message.contains(says), "{}: {}", sample.model, failure.message);
    }
    let counted: u64 = report.errors.iter().map(|error| error.count).sum();
    assert_eq!((counted, report.errors.len()), (12, 5));
    assert_eq!(report.adapters["full"].n_failed, 2);
    assert!(report.to_string().contains("2 × http_429: the queue is full"), "{report}");
}

#[tokio::test]
async fn nobody_at_home_is_a_connect_error() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let report = report(&settings(&url)).await;
    assert_eq!((report.errors[0].kind, report.errors[0].count), (ErrorKind::Connect, 10));
    assert!(report.overall.ttft_ms.is_none());
}

#[tokio::test]
async fn without_counts_from_the_server_events_are_counted() {
    let (url, _) = start().await;
    let mut settings = settings(&url);
    settings.model = "countless".to_owned();
    settings.endpoint = Endpoint::Completions;
    let report = report(&settings).await;
    assert_eq!((report.overall.output_tokens, report.overall.n_without_usage), (60, 10));
}

#[tokio::test]
async fn arrivals_come_at_their_rate_and_wait_for_nobody() {
    let (url, seen) = start().await;
    let mut settings = settings(&url);
    settings.load = Load::Rate { rate: 100.0, burstiness: 1.0 };
    settings.limit = Limit::Requests(60);
    settings.endpoint = Endpoint::Completions;
    settings.prompt_form = PromptForm::Ids;
    let report = report(&settings).await;
    assert_eq!((report.overall.n_ok, report.overall.output_tokens), (60, 360));
    // One by one they would take 60 × 80 ms.
    assert!((0.2..3.0).contains(&report.duration_s), "{}", report.duration_s);
    let last = report.samples.as_ref().unwrap().iter().map(|sample| sample.sent).max().unwrap();
    assert!((0.25..1.5).contains(&last.as_secs_f64()), "{last:?}");
    assert!(seen.0.lock().unwrap().iter().all(|(request, _)| request["prompt"][0].is_u64()));
}

#[tokio::test]
async fn a_duration_ends_the_sending_and_answers_are_waited_for() {
    let (url, _) = start().await;
    let mut settings = settings(&url);
    settings.limit = Limit::Duration(Duration::from_millis(300));
    let report = report(&settings).await;
    assert_eq!(report.overall.n_failed, 0);
    assert!((2..=12).contains(&report.overall.n_ok), "{}", report.overall.n_ok);
    let infinite =
        Settings { load: Load::Rate { rate: f64::INFINITY, burstiness: 1.0 }, ..settings };
    let infinite = Settings { limit: Limit::Requests(40), ..infinite };
    assert_eq!(run(&infinite, false).await.unwrap().overall.n_ok, 40);
}

/// A server that promises to keep connections and closes each when its second request comes.
#[tokio::test]
async fn a_connection_closed_under_a_request_is_no_failure() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = vec![0; 1 << 16];
                let _ = stream.read(&mut buffer).await;
                let body = "data: {\"choices\":[{\"text\":\"x\"}]}\n\ndata: [DONE]\n\n";
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
                let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
                let _ = stream.read(&mut buffer).await;
            });
        }
    });
    let mut settings = settings(&url);
    settings.load = Load::Concurrency(1);
    let report = report(&settings).await;
    assert_eq!((report.overall.n_ok, report.overall.n_failed), (10, 0), "{:?}", report.errors);
    assert!(report.overall.n_resent >= 1, "{report}");
}
