//! Draining: for whom, of whom, and how it ends.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::fake::{Bench, CONFIG, generation, now, settle};

const DRAIN_AFTER: Duration = CONFIG.drain_after;

#[tokio::test(start_paused = true)]
async fn an_endless_stream_on_a_resident_does_not_keep_others_out() {
    let bench = Bench::new(100);
    let (hot, cold) = (generation(1, 60), generation(2, 60));
    let residency = bench.residency.clone();
    // Uses of 30 ms, one more every 10 ms: the resident is never idle.
    let stream = tokio::spawn(async move {
        let mut users = tokio::task::JoinSet::new();
        for _ in 0..200 {
            let residency = residency.clone();
            users.spawn(async move {
                let lease = residency.lease(hot).await.unwrap();
                sleep(Duration::from_millis(30)).await;
                drop(lease);
            });
            sleep(Duration::from_millis(10)).await;
        }
        users.join_all().await.len()
    });
    sleep(Duration::from_millis(100)).await;
    let asked = Instant::now();
    let lease = bench.lease(cold).await;
    let waited = asked.elapsed();
    assert!(waited > DRAIN_AFTER, "drained early: {waited:?}");
    assert!(waited <= DRAIN_AFTER + Duration::from_millis(35), "waited {waited:?}");
    sleep(Duration::from_millis(40)).await;
    drop(lease);
    assert_eq!(stream.await.unwrap(), 200);
    let stats = bench.residency.stats();
    assert_eq!((stats.drains, stats.draining_generations, stats.waiting), (1, 0, 0));
    assert!(stats.held_back > 0);
    bench.check();
}

#[tokio::test(start_paused = true)]
async fn who_is_held_back_goes_on_when_the_line_is_empty_again() {
    let bench = Bench::new(100);
    let hot = generation(1, 60);
    let lease = bench.lease(hot).await;
    let cold = bench.ask(generation(2, 60)).await;
    sleep(2 * DRAIN_AFTER).await;
    assert_eq!(bench.residency.stats().draining_generations, 1);
    let held_back = bench.ask(hot).await;
    settle().await;
    assert!(!held_back.is_finished());
    cold.abort();
    assert!(cold.await.unwrap_err().is_cancelled());
    now(held_back).await.unwrap();
    assert_eq!(bench.device.installs(hot), 1, "it never left");
    drop(lease);
    bench.check();
}

#[tokio::test(start_paused = true)]
async fn the_least_recently_asked_for_is_drained_and_no_more_than_needed() {
    let bench = Bench::new(120);
    let digests = [1, 2, 3].map(|number| generation(number, 40));
    let mut leases = Vec::new();
    for digest in digests {
        leases.push(bench.lease(digest).await);
    }
    leases.push(bench.lease(digests[0]).await);
    let cold = bench.ask(generation(9, 40)).await;
    sleep(DRAIN_AFTER + Duration::from_millis(10)).await;
    assert_eq!(bench.residency.stats().draining_generations, 1);
    // The others still take requests.
    drop(bench.lease(digests[0]).await);
    drop(bench.lease(digests[2]).await);
    let held_back = bench.ask(digests[1]).await;
    settle().await;
    assert!(!held_back.is_finished());
    drop(leases.remove(1));
    let cold = now(cold).await.unwrap();
    assert_eq!(bench.residency.stats().draining_generations, 0);
    drop(cold);
    now(held_back).await.unwrap();
    bench.check();
}

#[tokio::test(start_paused = true)]
async fn one_that_never_ends_does_not_keep_its_place_in_the_way() {
    let bench = Bench::new(120);
    let digests = [1, 2, 3].map(|number| generation(number, 40));
    let endless = bench.lease(digests[0]).await;
    let residency = bench.residency.clone();
    let stream = tokio::spawn(async move {
        loop {
            for digest in [digests[1], digests[2]] {
                let lease = residency.lease(digest).await.unwrap();
                let keep = async move {
                    sleep(Duration::from_millis(30)).await;
                    drop(lease);
                };
                tokio::spawn(keep);
            }
            sleep(Duration::from_millis(10)).await;
        }
    });
    sleep(Duration::from_millis(50)).await;
    let asked = Instant::now();
    let lease = timeout(Duration::from_secs(10), bench.lease(generation(9, 40))).await.unwrap();
    let waited = asked.elapsed();
    // The endless one first, another after as long again.
    assert!(waited <= 2 * DRAIN_AFTER + Duration::from_millis(35), "waited {waited:?}");
    assert!(bench.device.has(digests[0]));
    stream.abort();
    drop((lease, endless));
}

#[tokio::test(start_paused = true)]
async fn the_wait_in_line_counts_for_draining() {
    let bench = Bench::new(100);
    let first = bench.lease(generation(1, 100)).await;
    let second = bench.ask(generation(2, 100)).await;
    settle().await;
    let third = bench.ask(generation(3, 100)).await;
    sleep(4 * DRAIN_AFTER).await;
    drop(first);
    let second = now(second).await.unwrap();
    settle().await;
    assert_eq!(bench.residency.stats().draining_generations, 1, "at once");
    drop(second);
    now(third).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn pinning_a_draining_generation_ends_its_draining() {
    let bench = Bench::new(100);
    let hot = generation(1, 50);
    let lease = bench.lease(hot).await;
    let cold = bench.ask(generation(2, 100)).await;
    sleep(2 * DRAIN_AFTER).await;
    let held_back = bench.ask(hot).await;
    bench.residency.shared.update(|tiers| tiers.pin(hot));
    now(held_back).await.unwrap();
    let error = now(cold).await.unwrap_err().to_string();
    assert!(
        error.contains("needs 100 bytes of device memory, 50 of 100 are not pinned"),
        "{error}"
    );
    drop(lease);
    bench.check();
}

#[tokio::test(start_paused = true)]
async fn the_idle_keep_their_place_until_it_is_of_use() {
    let bench = Bench::new(100);
    let (held, idle) = (generation(1, 60), generation(2, 40));
    let lease = bench.lease(held).await;
    drop(bench.lease(idle).await);
    let large = bench.ask(generation(3, 80)).await;
    sleep(DRAIN_AFTER / 2).await;
    // Evicting it would not make room.
    drop(now(bench.ask(idle).await).await.unwrap());
    assert_eq!(bench.device.installs(idle), 1);
    // From now on every byte that falls free is kept for the large one.
    sleep(DRAIN_AFTER).await;
    assert!(!bench.device.has(idle));
    drop(lease);
    now(large).await.unwrap();
    bench.check();
}

#[tokio::test(start_paused = true)]
async fn a_use_that_was_held_back_counts_as_a_use() {
    let bench = Bench::new(100);
    let (one, two) = (generation(1, 50), generation(2, 50));
    let leases = (bench.lease(one).await, bench.lease(two).await);
    let cold = bench.ask(generation(3, 50)).await;
    sleep(2 * DRAIN_AFTER).await;
    let held_back = bench.ask(one).await;
    settle().await;
    cold.abort();
    let again = now(held_back).await.unwrap();
    let next = bench.ask(generation(4, 50)).await;
    sleep(DRAIN_AFTER + Duration::from_millis(10)).await;
    // The other one is drained now: it was asked for less recently.
    drop(now(bench.ask(one).await).await.unwrap());
    drop((leases.1, again));
    now(next).await.unwrap();
    bench.check();
}
