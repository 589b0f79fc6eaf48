//! A device whose memory comes back late, or in pieces.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};

use super::fake::{Bench, CONFIG, generation, now, settle};
use crate::residency::{ResidencyError, Tier};

#[tokio::test(start_paused = true)]
async fn memory_that_comes_back_late_is_waited_for() {
    let bench = Bench::new(100);
    let (one, two) = (generation(1, 60), generation(2, 60));
    let lease = bench.lease(one).await;
    let held_elsewhere = Arc::clone(lease.device_lease());
    drop(lease);
    let waits = bench.ask(two).await;
    let small = bench.ask(generation(3, 10)).await;
    sleep(Duration::from_millis(500)).await;
    assert!(!waits.is_finished());
    let stats = bench.residency.stats();
    assert!((3..30).contains(&stats.out_of_memory), "not busy, not asleep: {stats:?}");
    drop(held_elsewhere);
    sleep(Duration::from_millis(65)).await;
    drop(now(waits).await.unwrap());
    now(small).await.unwrap();
    assert_eq!(bench.residency.tier(one), Tier::Host);
    bench.check();
}

#[tokio::test(start_paused = true)]
async fn memory_in_pieces_costs_more_residents_their_place() {
    let bench = Bench::new(100);
    let small: Vec<_> = (1..=5).map(|number| generation(number, 15)).collect();
    for &digest in &small {
        drop(bench.lease(digest).await);
    }
    // 25 bytes are free and one eviction would do by the books, but the large one fits only when two are left.
    bench.device.state.lock().unwrap().pieces = Some((20, 3));
    drop(bench.lease(generation(9, 40)).await);
    let n_left = small.iter().filter(|&&digest| bench.device.has(digest)).count();
    assert_eq!(n_left, 2);
    bench.check();
}

#[tokio::test(start_paused = true)]
async fn memory_in_pieces_and_all_in_use_drains() {
    let bench = Bench::new(100);
    let (one, two) = (generation(1, 15), generation(2, 15));
    let leases = (bench.lease(one).await, bench.lease(two).await);
    bench.device.state.lock().unwrap().pieces = Some((20, 2));
    let waits = bench.ask(generation(9, 40)).await;
    sleep(Duration::from_millis(50)).await;
    let held_back = bench.ask(one).await;
    settle().await;
    assert!(!waits.is_finished() && !held_back.is_finished());
    drop(leases.0);
    sleep(Duration::from_millis(130)).await;
    drop(now(waits).await.unwrap());
    now(held_back).await.unwrap();
    bench.check();
}

#[tokio::test(start_paused = true)]
async fn memory_that_never_comes_back_is_an_error_in_the_end() {
    let bench = Bench::new(100);
    let lease = bench.lease(generation(1, 60)).await;
    let held_elsewhere = Arc::clone(lease.device_lease());
    drop(lease);
    let asked = Instant::now();
    let small = bench.ask(generation(3, 10)).await;
    let error = bench.residency.lease(generation(2, 60)).await.unwrap_err();
    assert!(matches!(error, ResidencyError::DeviceFull { needed: 60, .. }), "{error}");
    assert!(asked.elapsed() < CONFIG.out_of_memory_patience + Duration::from_secs(1));
    now(small).await.unwrap();
    // The next one is not judged by the patience that this one used up.
    let waits = bench.ask(generation(4, 70)).await;
    sleep(Duration::from_secs(1)).await;
    drop(held_elsewhere);
    drop(waits.await.unwrap().unwrap());
    bench.check();
}

#[tokio::test(start_paused = true)]
async fn who_gives_up_during_a_shortage_frees_the_line() {
    let bench = Bench::new(100);
    let lease = bench.lease(generation(1, 60)).await;
    let held_elsewhere = Arc::clone(lease.device_lease());
    drop(lease);
    let gives_up = bench.ask(generation(2, 60)).await;
    sleep(Duration::from_millis(100)).await;
    let next = bench.ask(generation(3, 40)).await;
    settle().await;
    assert!(!next.is_finished());
    gives_up.abort();
    now(next).await.unwrap();
    bench.residency.prefetch(generation(4, 60));
    settle().await;
    assert_eq!(bench.residency.stats().waiting, 0, "a prefetch does not insist");
    drop(held_elsewhere);
    bench.check();
}
