//! The way up and down, the line, and who goes first.

use std::time::Duration;

use super::fake::{Bench, CONFIG, generation, now, settle};
use crate::residency::{ResidencyConfig, Tier};

#[tokio::test(start_paused = true)]
async fn a_cold_generation_comes_up_and_stays() {
    let bench = Bench::new(100);
    let digest = generation(1, 60);
    assert_eq!(bench.residency.tier(digest), Tier::Disk);
    let lease = bench.lease(digest).await;
    assert_eq!(lease.digest(), digest);
    assert_eq!(lease.device_lease().digest, digest);
    assert_eq!(bench.residency.tier(digest), Tier::Device);
    let stats = bench.residency.stats();
    assert_eq!((stats.device_bytes, stats.in_use_generations, stats.host_bytes), (60, 1, 60));
    drop(lease);
    assert_eq!(bench.residency.stats().in_use_generations, 0);

    let again = bench.lease(digest).await;
    assert_eq!((bench.source.loads(digest), bench.device.installs(digest)), (1, 1));
    let stats = bench.residency.stats();
    assert_eq!((stats.misses, stats.device_hits, stats.waiting), (1, 1, 0));
    drop(again);
    bench.check();
}

#[tokio::test(start_paused = true)]
async fn equal_requests_share_one_load_and_one_install() {
    let bench = Bench::new(100);
    let digest = generation(1, 60);
    bench.source.hold(digest);
    let mut requests = Vec::new();
    for _ in 0..20 {
        requests.push(bench.ask(digest).await);
    }
    assert_eq!(bench.residency.stats().waiting, 20);
    bench.source.let_go(digest);
    let mut leases = Vec::new();
    for request in requests {
        leases.push(request.await.unwrap().unwrap());
    }
    assert_eq!((bench.source.loads(digest), bench.device.installs(digest)), (1, 1));
    leases.truncate(1);
    assert_eq!(bench.residency.stats().in_use_generations, 1);
    leases.clear();
    assert_eq!(bench.residency.stats().in_use_generations, 0);
    bench.check();
}

#[tokio::test(start_paused = true)]
async fn clones_of_a_lease_are_one_use() {
    let bench = Bench::new(100);
    let lease = bench.lease(generation(1, 60)).await;
    let clone = lease.clone();
    drop(lease);
    let waits = bench.ask(generation(2, 60)).await;
    settle().await;
    assert!(!waits.is_finished() && bench.device.has(generation(1, 60)));
    drop(clone);
    now(waits).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_least_recently_used_goes_and_comes_back_from_host_memory() {
    let bench = Bench::new(100);
    let [one, two, three] = [1, 2, 3].map(|number| generation(number, 40));
    drop(bench.lease(one).await);
    drop(bench.lease(two).await);
    drop(bench.lease(one).await);
    drop(bench.lease(three).await);
    let tiers = [one, two, three].map(|digest| bench.residency.tier(digest));
    assert_eq!(tiers, [Tier::Device, Tier::Host, Tier::Device]);
    assert!(!bench.device.has(two));

    drop(bench.lease(two).await);
    assert_eq!((bench.source.loads(two), bench.device.installs(two)), (1, 2));
    assert_eq!(bench.residency.tier(one), Tier::Host);
    assert_eq!(bench.residency.stats().host_hits, 1);
    bench.check();
}

#[tokio::test(start_paused = true)]
async fn sizes_share_bytes_and_only_as_many_go_as_must() {
    let bench = Bench::new(100);
    let small: Vec<_> = (1..=5).map(|number| generation(number, 20)).collect();
    for &digest in &small {
        drop(bench.lease(digest).await);
    }
    assert_eq!(bench.residency.stats().device_generations, 5);
    let large = bench.lease(generation(9, 50)).await;
    let tiers: Vec<_> = small.iter().map(|&digest| bench.residency.tier(digest)).collect();
    assert_eq!(tiers, [Tier::Host, Tier::Host, Tier::Host, Tier::Device, Tier::Device]);
    assert_eq!(bench.residency.stats().device_bytes, 90);
    drop(large);
}

#[tokio::test(start_paused = true)]
async fn what_is_in_use_stays_and_the_newcomer_waits() {
    let bench = Bench::new(100);
    let first = bench.lease(generation(1, 60)).await;
    let waits = bench.ask(generation(2, 60)).await;
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert!(!waits.is_finished() && bench.device.has(generation(1, 60)));
    drop(first);
    now(waits).await.unwrap();
    assert!(!bench.device.has(generation(1, 60)));
    bench.check();
}

#[tokio::test(start_paused = true)]
async fn a_lease_may_end_on_a_thread_without_a_runtime() {
    let bench = Bench::new(100);
    let first = bench.lease(generation(1, 60)).await;
    let waits = bench.ask(generation(2, 60)).await;
    settle().await;
    std::thread::spawn(move || drop(first)).join().unwrap();
    now(waits).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_slow_load_holds_up_only_its_own_requests() {
    let bench = Bench::new(100);
    let (slow, fast) = (generation(1, 60), generation(2, 60));
    bench.source.hold(slow);
    let waits = bench.ask(slow).await;
    drop(bench.lease(fast).await);
    assert!(!waits.is_finished());
    bench.source.let_go(slow);
    waits.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_large_generation_is_not_passed_by_small_ones() {
    let bench = Bench::new(100);
    let holder = bench.lease(generation(1, 50)).await;
    let large = bench.ask(generation(2, 80)).await;
    bench.until(|bench| bench.residency.tier(generation(2, 80)) == Tier::Host).await;
    let small = bench.ask(generation(3, 30)).await;
    settle().await;
    assert!(
        !large.is_finished() && !small.is_finished(),
        "30 bytes are free, but it is not its turn"
    );
    drop(holder);
    let large = now(large).await.unwrap();
    settle().await;
    assert!(!small.is_finished());
    drop(large);
    now(small).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_line_is_first_come_first_served() {
    let config = ResidencyConfig { max_loads: 1, ..CONFIG };
    let bench = Bench::with(100, config);
    let holder = bench.lease(generation(0, 100)).await;
    let mut requests = Vec::new();
    for number in 1..10 {
        requests.push(bench.ask(generation(number, 100)).await);
    }
    settle().await;
    let mut lease = holder;
    for (index, request) in requests.into_iter().enumerate() {
        drop(lease);
        lease = now(request).await.unwrap();
        assert_eq!(lease.digest(), generation(index as u64 + 1, 100));
    }
    assert_eq!(bench.source.state().n_running_max, 1);
    bench.check();
}

#[tokio::test(start_paused = true)]
async fn a_prefetch_saves_the_request_the_wait() {
    let bench = Bench::new(100);
    let digest = generation(1, 60);
    bench.residency.prefetch(digest);
    bench.residency.prefetch(digest);
    bench.until(|bench| bench.residency.tier(digest) == Tier::Device).await;
    drop(bench.lease(digest).await);
    let stats = bench.residency.stats();
    assert_eq!((stats.device_hits, stats.misses, stats.loads, stats.waiting), (1, 0, 1, 0));
    bench.check();
}

#[tokio::test(start_paused = true)]
async fn a_prefetch_evicts_the_idle_but_waits_for_nobody() {
    let bench = Bench::new(100);
    let (held, idle) = (bench.lease(generation(1, 50)).await, generation(2, 50));
    drop(bench.lease(idle).await);
    bench.residency.prefetch(generation(3, 50));
    bench.until(|bench| bench.residency.tier(generation(3, 50)) == Tier::Device).await;
    assert_eq!(bench.residency.tier(idle), Tier::Host);

    bench.residency.prefetch(generation(4, 100));
    bench.until(|bench| bench.residency.tier(generation(4, 100)) == Tier::Host).await;
    settle().await;
    let stats = bench.residency.stats();
    assert_eq!((stats.waiting, stats.drains, stats.device_generations), (0, 0, 2));
    // The line is free for others.
    drop(bench.lease(idle).await);
    drop(held);
    bench.check();
}

#[tokio::test(start_paused = true)]
async fn a_request_takes_over_the_place_of_its_prefetch() {
    let bench = Bench::new(100);
    let holder = bench.lease(generation(1, 100)).await;
    let (early, late) = (generation(2, 100), generation(3, 100));
    bench.source.hold(early);
    bench.residency.prefetch(early);
    let second = bench.ask(late).await;
    bench.until(|bench| bench.residency.tier(late) == Tier::Host).await;
    let first = bench.ask(early).await;
    bench.source.let_go(early);
    bench.until(|bench| bench.residency.tier(early) == Tier::Host).await;
    drop(holder);
    let first = now(first).await.unwrap();
    assert!(!second.is_finished());
    drop(first);
    now(second).await.unwrap();
}
