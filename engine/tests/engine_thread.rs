//! The owner thread: many clients, vanishing ones, accidents, leases, a full queue, and shut-down.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic")]

mod fake;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use fake::{Accident, FakeRunner, NAN_TOKEN, VOCAB, audit::Audit};
use pleach_engine::{
    adapter_weights::{AdapterWeights, SiteWeights},
    backend::RunError,
    engine::{EngineConfig, EngineHandle, GuestTerms, SequenceStream, SubmitError},
    packed_adapter::PackedAdapter,
    sampler::SamplingParams,
    sequence::{FinishReason, FlowId, SequenceEvent, SequenceRequest},
    site::{Site, TargetModule},
};

/// Longer than any machine needs; a test that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(30);

fn request(first: u32, n_prompt: u32, max_tokens: usize) -> SequenceRequest {
    SequenceRequest {
        prompt: (0..n_prompt).map(|i| (first + i * i) % NAN_TOKEN).collect(),
        adapter: None,
        kv_key: [0; 32],
        flow: FlowId::default(),
        sampling: Arc::new(SamplingParams::default()),
        max_tokens,
        min_tokens: 0,
        stop_tokens: Vec::new(),
        prompt_logprobs: None,
    }
}

/// Tokens and last event.
async fn collect(mut stream: SequenceStream) -> (Vec<u32>, Option<SequenceEvent>) {
    let mut tokens = Vec::new();
    let mut last = None;
    while let Some(event) = stream.recv().await {
        match &event {
            SequenceEvent::Token(token) => tokens.push(token.token),
            SequenceEvent::Admitted { .. }
            | SequenceEvent::PromptScores(_)
            | SequenceEvent::Finished { .. }
            | SequenceEvent::Failed(_) => {}
        }
        last = Some(event);
    }
    (tokens, last)
}

fn is_finished(event: Option<&SequenceEvent>, wanted: FinishReason) -> bool {
    matches!(event, Some(SequenceEvent::Finished { reason, .. }) if *reason == wanted)
}

async fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn start(runner: FakeRunner, config: EngineConfig) -> EngineHandle {
    EngineHandle::start(Box::new(runner), config).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_clients_some_vanish() {
    let config = EngineConfig { max_batch: 5, max_step_rows: 24, ..EngineConfig::default() };
    let engine = start(FakeRunner::new(16, 200, 64), config);
    let mut alone = Vec::new();
    for first in 0..6 {
        alone.push(collect(engine.submit(request(first, 10 + 7 * first, 20)).unwrap()).await.0);
    }
    let alone = Arc::new(alone);
    let mut clients = Vec::new();
    for client in 0..12u32 {
        let (engine, alone) = (engine.clone(), Arc::clone(&alone));
        clients.push(tokio::spawn(async move {
            for turn in 0..12u32 {
                let first = (client + turn) % 6;
                let mut stream = engine.submit(request(first, 10 + 7 * first, 20)).unwrap();
                if (client + 2 * turn) % 5 == 0 {
                    for _ in 0..turn {
                        stream.recv().await.unwrap();
                    }
                    continue;
                }
                let (tokens, last) = collect(stream).await;
                assert_eq!(tokens, alone[first as usize]);
                assert!(is_finished(last.as_ref(), FinishReason::Length), "{last:?}");
            }
        }));
    }
    for client in clients {
        client.await.unwrap();
    }
    wait_until("all places are free", || {
        let stats = engine.stats();
        stats.running == 0 && stats.waiting == 0 && stats.kv_blocks_used == 0
    })
    .await;
    assert!(engine.stats().prefix_hits > 0);
    engine.shutdown(PATIENCE).await;
}

#[tokio::test]
async fn a_full_queue_refuses_and_a_dropped_stream_makes_room() {
    let mut runner = FakeRunner::new(16, 200, 64);
    runner.step_time = Duration::from_millis(1);
    let config = EngineConfig { max_batch: 1, max_queue: 2, ..EngineConfig::default() };
    let engine = start(runner, config);
    let mut streams: Vec<_> = (0..3).map(|i| engine.submit(request(i, 5, 190)).unwrap()).collect();
    assert_eq!(engine.submit(request(4, 5, 1)).unwrap_err(), SubmitError::QueueFull { queued: 2 });
    streams.pop();
    wait_until("the dropped one gave its place back", || engine.submit(request(4, 5, 1)).is_ok())
        .await;
    streams.clear();
    wait_until("all are cancelled", || engine.stats().running + engine.stats().waiting == 0).await;
    let last = collect(engine.submit(request(1, 5, 3)).unwrap()).await.1;
    assert!(is_finished(last.as_ref(), FinishReason::Length));
}

#[tokio::test]
async fn dropping_a_stream_stops_its_steps() {
    let mut runner = FakeRunner::new(16, 250, 64);
    runner.step_time = Duration::from_millis(5);
    let seen = Arc::clone(&runner.seen);
    let engine = start(runner, EngineConfig::default());
    let mut stream = engine.submit(request(1, 5, 240)).unwrap();
    assert!(matches!(stream.recv().await, Some(SequenceEvent::Admitted { .. })));
    assert!(matches!(stream.recv().await, Some(SequenceEvent::Token(_))));
    drop(stream);
    wait_until("cancelled", || engine.stats().running == 0).await;
    let n_steps = seen.steps.load(Ordering::Relaxed);
    assert!(n_steps < 100, "{n_steps} steps for nobody");
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(seen.steps.load(Ordering::Relaxed), n_steps, "steps while idle");
}

/// An adapter that acts nowhere.
fn empty(engine: &EngineHandle) -> PackedAdapter {
    engine.adapter_packer().pack(&AdapterWeights::default()).unwrap()
}

#[tokio::test]
async fn a_slot_is_freed_after_the_last_sequence_that_uses_it() {
    let mut runner = FakeRunner::new(16, 250, 64);
    runner.step_time = Duration::from_millis(1);
    let seen = Arc::clone(&runner.seen);
    let engine = start(runner, EngineConfig::default());
    let lease = engine.install_adapter(&empty(&engine)).unwrap();
    let mut wanted = request(1, 5, 60);
    wanted.adapter = Some(lease.clone());
    let stream = engine.submit(wanted).unwrap();
    drop(lease);
    let other = engine.install_adapter(&empty(&engine)).unwrap();
    assert_eq!(seen.slots_removed.load(Ordering::Relaxed), 0);
    let (tokens, last) = collect(stream).await;
    assert_eq!(tokens.len(), 60);
    assert!(is_finished(last.as_ref(), FinishReason::Length));
    wait_until("the first slot is freed", || seen.slots_removed.load(Ordering::Relaxed) == 1).await;
    // Idle by now: nobody is waited for.
    drop(other);
    assert_eq!(seen.slots_removed.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn steps_go_on_while_an_adapter_is_on_its_way() {
    let mut runner = FakeRunner::new(16, 250, 64);
    runner.step_time = Duration::from_millis(1);
    runner.install_time = Duration::from_millis(40);
    let seen = Arc::clone(&runner.seen);
    let engine = start(runner, EngineConfig::default());
    let install = || {
        let engine = engine.clone();
        tokio::task::spawn_blocking(move || engine.install_adapter(&empty(&engine)).unwrap())
    };
    let first = install().await.unwrap();
    assert_eq!(seen.steps.load(Ordering::Relaxed), 0);
    let stream = engine.submit(request(1, 5, 200)).unwrap();
    wait_until("it runs", || seen.steps.load(Ordering::Relaxed) > 0).await;
    let before = seen.steps.load(Ordering::Relaxed);
    let second = install().await.unwrap();
    assert!(seen.steps.load(Ordering::Relaxed) > before, "no step meanwhile");
    assert_ne!(first.slot(), second.slot());
    let mut wanted = request(2, 5, 5);
    wanted.adapter = Some(second);
    assert_eq!(collect(engine.submit(wanted).unwrap()).await.0.len(), 5);
    assert_eq!(collect(stream).await.0.len(), 200);
}

#[tokio::test]
async fn an_adapter_that_does_not_fit_is_refused() {
    let engine = start(FakeRunner::new(16, 250, 64), EngineConfig::default());
    let site = Site { layer: 9, module: TargetModule::QProj };
    let weights = AdapterWeights {
        sites: vec![SiteWeights::lora(site, 1, 1.0, vec![0.0; 4], vec![0.0; 4])],
        ..AdapterWeights::default()
    };
    let error = engine.adapter_packer().pack(&weights).unwrap_err();
    assert!(matches!(error, RunError::Adapter(_)), "{error}");
}

#[tokio::test]
async fn an_accident_fails_its_batch_and_no_other() {
    for accident in [Accident::Error, Accident::Panic] {
        let mut runner = FakeRunner::new(16, 250, 64);
        runner.accident_token = Some((NAN_TOKEN, accident));
        let engine = start(runner, EngineConfig::default());
        let good = collect(engine.submit(request(1, 40, 5)).unwrap()).await.0;
        let mut bad = request(1, 40, 5);
        bad.prompt.push(NAN_TOKEN);
        let (_, last) = collect(engine.submit(bad).unwrap()).await;
        assert!(
            matches!(&last, Some(SequenceEvent::Failed(message)) if message.contains("accident")),
            "{last:?}"
        );
        assert_eq!(collect(engine.submit(request(1, 40, 5)).unwrap()).await.0, good);
    }
}

#[tokio::test]
async fn what_cannot_run_is_refused_at_once() {
    let engine = start(FakeRunner::new(3, 250, 64), EngineConfig::default());
    assert_eq!(engine.max_prompt_tokens(), 47);
    assert_eq!(
        engine.submit(request(1, 48, 1)).unwrap_err(),
        SubmitError::TooLong { prompt: 48, limit: 47 }
    );
    for bad in [
        request(1, 0, 1),
        request(1, 5, 0),
        SequenceRequest { prompt: vec![1, 50], ..request(1, 5, 1) },
    ] {
        let error = engine.submit(bad).unwrap_err();
        assert!(matches!(error, SubmitError::InvalidPrompt(_)), "{error}");
    }
    let (tokens, last) = collect(engine.submit(request(1, 47, 9)).unwrap()).await;
    assert!(tokens.len() == 1 && is_finished(last.as_ref(), FinishReason::Length));
    assert_eq!(engine.limits().vocab, VOCAB);
}

#[tokio::test]
async fn shutdown_lets_sequences_finish_within_the_grace() {
    let mut runner = FakeRunner::new(16, 250, 64);
    runner.step_time = Duration::from_millis(1);
    let engine = start(runner, EngineConfig { max_batch: 1, ..EngineConfig::default() });
    let streams: Vec<_> = (0..3).map(|i| engine.submit(request(i, 5, 10)).unwrap()).collect();
    let stopping = engine.clone();
    let shutdown = tokio::spawn(async move { stopping.shutdown(PATIENCE).await });
    for stream in streams {
        let (tokens, last) = collect(stream).await;
        assert!(tokens.len() == 10 && is_finished(last.as_ref(), FinishReason::Length));
    }
    shutdown.await.unwrap();
    assert!(engine.is_stopping());
    assert_eq!(engine.submit(request(1, 5, 1)).unwrap_err(), SubmitError::ShuttingDown);
    assert!(engine.install_adapter(&empty(&engine)).is_err());
    engine.shutdown(PATIENCE).await;
}

#[tokio::test]
async fn shutdown_cancels_what_does_not_finish() {
    let mut runner = FakeRunner::new(16, 250, 64);
    runner.step_time = Duration::from_millis(20);
    let engine = start(runner, EngineConfig { max_batch: 1, ..EngineConfig::default() });
    let streams: Vec<_> = (0..3).map(|i| engine.submit(request(i, 5, 200)).unwrap()).collect();
    let start = Instant::now();
    engine.shutdown(Duration::from_millis(50)).await;
    assert!(start.elapsed() < Duration::from_secs(3), "200 steps of 20 ms were not waited for");
    for stream in streams {
        let (tokens, last) = collect(stream).await;
        assert!(
            tokens.len() < 200 && is_finished(last.as_ref(), FinishReason::Cancelled),
            "{last:?}"
        );
    }
    assert_eq!(engine.stats().kv_blocks_used, 0);
}

#[tokio::test]
async fn without_handles_sequences_still_finish() {
    let engine = start(FakeRunner::new(16, 250, 64), EngineConfig::default());
    let lease = engine.install_adapter(&empty(&engine)).unwrap();
    let stream = engine.submit(request(1, 5, 30)).unwrap();
    drop(engine);
    let (tokens, last) = collect(stream).await;
    assert!(tokens.len() == 30 && is_finished(last.as_ref(), FinishReason::Length));
    drop(lease);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_has_what_steps_leave_and_changes_no_token() {
    let mut runner = FakeRunner::new(64, 250, 64);
    runner.step_time = Duration::from_millis(1);
    let config = EngineConfig { max_batch: 4, ..EngineConfig::default() };
    let engine = start(runner, config);
    let alone = collect(engine.submit(request(1, 5, 200)).unwrap()).await.0;
    let stats = engine.stats();
    assert!(stats.step_time >= 200 * Duration::from_millis(1), "{stats:?}");
    assert_eq!((stats.guest_time, stats.undisturbed_itl_p99), (Duration::ZERO, None));
    let mut guest = engine.guest().unwrap();
    let is_over = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&is_over);
    let working = tokio::task::spawn_blocking(move || {
        let interval_max = Duration::from_millis(20);
        guest.set_terms(Some(GuestTerms { interval_max, gap_per_step: 2.0 }));
        let mut n_gaps = 0;
        while !stop.load(Ordering::Relaxed) {
            let Some(turn) = guest.enter(Duration::from_micros(100), interval_max) else {
                continue;
            };
            n_gaps += u32::from(!turn.has_time(PATIENCE));
            while !stop.load(Ordering::Relaxed) && turn.has_time(Duration::from_micros(100)) {
                std::thread::yield_now();
            }
        }
        n_gaps
    });
    let streams: Vec<_> = (0..3).map(|_| engine.submit(request(1, 5, 200)).unwrap()).collect();
    for stream in streams {
        assert_eq!(collect(stream).await.0, alone);
    }
    wait_until("intervals were measured", || engine.stats().undisturbed_itl_p99.is_some()).await;
    is_over.store(true, Ordering::Relaxed);
    assert!(working.await.unwrap() > 20, "the guest had gaps");
    assert!(engine.stats().guest_time > Duration::ZERO);
    engine.shutdown(PATIENCE).await;
}

#[tokio::test]
async fn a_policy_of_ones_own_orders_the_queue() {
    let audit = Audit::new(true);
    let runner = Box::new(FakeRunner::new(16, 250, 64));
    let config = EngineConfig { max_batch: 2, ..EngineConfig::default() };
    let engine = EngineHandle::start_with_policy(runner, config, Box::new(audit.clone())).unwrap();
    let mut streams: Vec<_> = (0..20)
        .map(|i| {
            let flow = FlowId(u64::from(i % 3));
            engine.submit(SequenceRequest { flow, ..request(i, 20, 5) }).unwrap()
        })
        .collect();
    // One of the last vanishes, wherever it is.
    drop(streams.pop());
    for stream in streams {
        let (tokens, last) = collect(stream).await;
        assert_eq!(tokens.len(), 5);
        assert!(is_finished(last.as_ref(), FinishReason::Length));
    }
    engine.shutdown(PATIENCE).await;
    audit.check_end(&engine.stats());
    let heard = audit.heard();
    assert_eq!(heard.n_admitted + heard.n_left, 20);
}
