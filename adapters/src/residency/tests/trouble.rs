//! Sources that fail.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;

use super::fake::{Bench, CONFIG, generation, now};
use crate::residency::{ResidencyError, Tier};

#[tokio::test(start_paused = true)]
async fn a_broken_file_is_told_to_all_and_not_parsed_again_at_once() {
    let bench = Bench::new(100);
    let broken = generation(1, 60);
    bench.source.state().broken.insert(broken);
    bench.source.hold(broken);
    let (one, two) = (bench.ask(broken).await, bench.ask(broken).await);
    bench.source.let_go(broken);
    let errors = [one.await.unwrap().unwrap_err(), two.await.unwrap().unwrap_err()];
    let [
        ResidencyError::LoadFailed { reason, .. },
        ResidencyError::LoadFailed { reason: same, .. },
    ] = &errors
    else {
        panic!("{errors:?}")
    };
    assert!(Arc::ptr_eq(reason, same));
    assert_eq!(errors[0].to_string(), "cannot load adapter generation 000000000000: truncated");
    for _ in 0..100 {
        bench.residency.lease(broken).await.unwrap_err();
    }
    bench.residency.prefetch(broken);
    assert_eq!(bench.source.loads(broken), 1);
    drop(bench.lease(generation(2, 60)).await);

    bench.source.state().broken.clear();
    sleep(CONFIG.failure_kept).await;
    drop(bench.lease(broken).await);
    assert_eq!(bench.source.loads(broken), 2);
    bench.check();
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_forgotten_with_its_generation_or_a_good_copy() {
    let bench = Bench::new(100);
    let broken = generation(1, 60);
    bench.source.state().broken.insert(broken);
    bench.residency.lease(broken).await.unwrap_err();
    bench.residency.forget(broken);
    bench.residency.lease(broken).await.unwrap_err();
    assert_eq!(bench.source.loads(broken), 2);
    bench.residency.offer(broken, Arc::new(broken));
    drop(bench.lease(broken).await);
}

#[tokio::test(start_paused = true)]
async fn more_failures_than_are_remembered_do_no_harm() {
    let bench = Bench::new(100);
    for number in 0..1000 {
        bench.source.state().broken.insert(generation(number, 10));
        bench.residency.lease(generation(number, 10)).await.unwrap_err();
    }
    assert_eq!(bench.residency.stats().load_failures, 1000);
    drop(bench.lease(generation(2000, 10)).await);
    bench.check();
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_the_parser_is_an_error_of_its_requests() {
    let bench = Bench::new(100);
    bench.source.state().panicking.insert(generation(1, 60));
    let error = bench.residency.lease(generation(1, 60)).await.unwrap_err().to_string();
    assert!(error.ends_with("panic: the parser panics"), "{error}");
    drop(bench.lease(generation(2, 60)).await);
    bench.check();
}

#[tokio::test(start_paused = true)]
async fn the_device_refuses_or_panics() {
    let bench = Bench::new(100);
    let (broken, panicking) = (generation(1, 60), generation(2, 60));
    bench.device.state.lock().unwrap().broken.insert(broken);
    bench.device.state.lock().unwrap().panicking.insert(panicking);
    let error = bench.residency.lease(broken).await.unwrap_err();
    assert!(matches!(error, ResidencyError::DeviceFailed { .. }));
    assert!(error.to_string().ends_with(": wrong shape"), "{error}");
    bench.residency.lease(broken).await.unwrap_err();
    assert_eq!(bench.device.installs(broken), 1);
    let error = bench.residency.lease(panicking).await.unwrap_err();
    assert!(error.to_string().contains("panic"), "{error}");
    assert_eq!(bench.residency.stats().device_bytes, 0);
    drop(now(bench.ask(generation(3, 100)).await).await.unwrap());
    bench.device.state.lock().unwrap().broken.clear();
    sleep(Duration::from_secs(2)).await;
    drop(bench.lease(broken).await);
    assert_eq!(bench.residency.tier(broken), Tier::Device);
    bench.check();
}
