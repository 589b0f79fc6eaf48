//! A dropped request leaves nothing behind, wherever it was.

use std::{
    future::Future,
    pin::pin,
    task::{Context, Poll, Waker},
};

use super::fake::{Bench, generation, now, settle};
use crate::residency::Tier;

fn poll_once<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

#[tokio::test(start_paused = true)]
async fn while_it_waits_for_a_load_that_runs() {
    let bench = Bench::new(100);
    let digest = generation(1, 60);
    bench.source.hold(digest);
    let request = bench.ask(digest).await;
    request.abort();
    bench.until(|bench| bench.residency.stats().waiting == 0).await;
    bench.source.let_go(digest);
    bench.until(|bench| bench.residency.tier(digest) == Tier::Host).await;
    settle().await;
    assert_eq!(bench.residency.tier(digest), Tier::Host, "loaded, and not installed for nobody");
    bench.check();
}

#[tokio::test(start_paused = true)]
async fn before_its_load_began() {
    let bench =
        Bench::with(100, crate::residency::ResidencyConfig { max_loads: 1, ..super::fake::CONFIG });
    bench.source.hold(generation(1, 10));
    let first = bench.ask(generation(1, 10)).await;
    let second = bench.ask(generation(2, 10)).await;
    second.abort();
    bench.until(|bench| bench.residency.stats().waiting == 1).await;
    bench.source.let_go(generation(1, 10));
    first.await.unwrap().unwrap();
    settle().await;
    assert_eq!(bench.source.loads(generation(2, 10)), 0);
    bench.check();
}

#[tokio::test(start_paused = true)]
async fn in_line_and_while_it_is_installed() {
    let bench = Bench::new(100);
    let holder = bench.lease(generation(1, 100)).await;
    let in_line = bench.ask(generation(2, 100)).await;
    settle().await;
    let behind = bench.ask(generation(3, 100)).await;
    settle().await;
    in_line.abort();
    settle().await;
    drop(holder);
    drop(now(behind).await.unwrap());

    bench.device.open.send_replace(false);
    let installing = bench.ask(generation(4, 50)).await;
    settle().await;
    assert_eq!(bench.residency.stats().installing, 1);
    installing.abort();
    settle().await;
    assert_eq!(bench.residency.stats().waiting, 0);
    bench.device.open.send_replace(true);
    settle().await;
    let stats = bench.residency.stats();
    assert_eq!((stats.installing, stats.in_use_generations), (0, 0));
    assert_eq!(bench.residency.tier(generation(4, 50)), Tier::Device);
    bench.check();
}

#[tokio::test(start_paused = true)]
async fn with_the_answer_under_way() {
    let bench = Bench::new(100);
    let digest = generation(1, 60);
    {
        let mut request = pin!(bench.residency.lease(digest));
        assert!(poll_once(request.as_mut()).is_pending());
        bench.until(|bench| bench.residency.stats().in_use_generations == 1).await;
    }
    assert_eq!(bench.residency.stats().in_use_generations, 0);
    drop(now(bench.ask(generation(2, 60)).await).await.unwrap());
    assert_eq!(bench.residency.tier(digest), Tier::Host);
    bench.check();
}

#[tokio::test(start_paused = true)]
async fn one_of_several() {
    let bench = Bench::new(100);
    let digest = generation(1, 60);
    bench.source.hold(digest);
    let first = bench.ask(digest).await;
    let second = bench.ask(digest).await;
    first.abort();
    bench.source.let_go(digest);
    drop(second.await.unwrap().unwrap());
    assert_eq!(bench.source.loads(digest), 1);
    let stats = bench.residency.stats();
    assert_eq!((stats.waiting, stats.in_use_generations), (0, 0));
    bench.check();
}

#[tokio::test(start_paused = true)]
async fn the_residency_may_go_before_its_leases() {
    let bench = Bench::new(100);
    let lease = bench.lease(generation(1, 60)).await;
    let Bench { device, residency, .. } = bench;
    drop(residency);
    settle().await;
    assert!(device.has(generation(1, 60)));
    drop(lease);
    assert_eq!(device.used(), 0);
}
