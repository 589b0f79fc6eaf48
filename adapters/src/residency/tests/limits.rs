//! Limits, pins, retirement, shut-down.

use std::sync::Arc;

use super::fake::{Bench, CONFIG, generation, now, settle};
use crate::residency::{ResidencyConfig, ResidencyError, ResidencyLimits, Tier};

#[tokio::test(start_paused = true)]
async fn a_pinned_generation_stays() {
    let bench = Bench::new(100);
    let (pinned, other) = (generation(1, 40), generation(2, 60));
    bench.residency.pin(pinned).await.unwrap();
    bench.residency.pin(pinned).await.unwrap();
    for number in 2..6 {
        drop(bench.lease(generation(number, 60)).await);
    }
    assert_eq!(bench.residency.tier(pinned), Tier::Device);
    let stats = bench.residency.stats();
    assert_eq!((stats.pinned_bytes, stats.pinned_generations), (40, 1));

    let too_large = bench.residency.lease(generation(7, 61)).await.unwrap_err();
    assert!(
        matches!(
            too_large,
            ResidencyError::NeverFits { needed: 61, available: 60, capacity: 100, .. }
        ),
        "{too_large}"
    );
    bench.residency.unpin(pinned);
    drop(bench.lease(generation(7, 61)).await);
    assert_eq!(bench.residency.tier(pinned), Tier::Host);
    assert_eq!(bench.residency.tier(other), Tier::Host);
    bench.check();
}

#[tokio::test(start_paused = true)]
async fn what_no_name_points_at_stays_until_its_bytes_are_needed_and_goes_first() {
    let limits = ResidencyLimits { host_bytes_max: 120, ..CONFIG.limits };
    let bench = Bench::with(80, ResidencyConfig { limits, ..CONFIG });
    let [named, earlier, new, more] = [1, 2, 3, 4].map(|number| generation(number, 40));
    for digest in [named, earlier] {
        drop(bench.lease(digest).await);
    }
    // In use once more when its name has moved.
    bench.residency.set_current(earlier, false);
    drop(bench.lease(earlier).await);
    let tiers = |digests: [_; 3]| digests.map(|digest| bench.residency.tier(digest));
    assert_eq!(tiers([named, earlier, new]), [Tier::Device, Tier::Device, Tier::Disk]);
    // Used later than the other, it goes before it; back again it need not be read.
    drop(bench.lease(new).await);
    assert_eq!(tiers([named, earlier, new]), [Tier::Device, Tier::Host, Tier::Device]);
    bench.residency.set_current(earlier, true);
    drop(bench.lease(earlier).await);
    assert_eq!((bench.source.loads(earlier), bench.residency.tier(named)), (1, Tier::Host));
    // And so in host memory.
    bench.residency.set_current(new, false);
    drop(bench.lease(more).await);
    assert_eq!(tiers([named, new, more]), [Tier::Host, Tier::Disk, Tier::Device]);
    bench.check();
}

#[tokio::test(start_paused = true)]
async fn what_never_fits_is_told_at_once_and_harms_nobody() {
    let bench = Bench::new(100);
    let holder = bench.lease(generation(1, 100)).await;
    let waits = bench.ask(generation(2, 50)).await;
    settle().await;
    for _ in 0..3 {
        let error = now(bench.ask(generation(3, 101)).await).await.unwrap_err();
        assert!(matches!(error, ResidencyError::NeverFits { needed: 101, available: 100, .. }));
    }
    assert_eq!(bench.source.loads(generation(3, 101)), 1, "its size is known from host memory");
    drop(holder);
    now(waits).await.unwrap();
    bench.check();
}

#[tokio::test(start_paused = true)]
async fn places_are_limited_too() {
    let limits = ResidencyLimits { max_loras: 2, ..CONFIG.limits };
    let bench = Bench::with(1000, ResidencyConfig { limits, ..CONFIG });
    for number in 1..=5 {
        drop(bench.lease(generation(number, 10)).await);
    }
    assert_eq!(bench.residency.stats().device_generations, 2);
    bench.residency.pin(generation(5, 10)).await.unwrap();
    bench.residency.pin(generation(4, 10)).await.unwrap();
    let error = bench.residency.lease(generation(1, 10)).await.unwrap_err();
    assert!(matches!(error, ResidencyError::AllPlacesPinned { max_loras: 2, .. }), "{error}");

    bench.residency.set_limits(ResidencyLimits { max_loras: 3, ..limits });
    let lease = bench.lease(generation(1, 10)).await;
    bench.residency.set_limits(ResidencyLimits { max_loras: 1, ..limits });
    bench.residency.unpin(generation(4, 10));
    bench.residency.unpin(generation(5, 10));
    assert_eq!(bench.residency.stats().device_generations, 1, "idle ones go at once");
    assert!(bench.device.has(generation(1, 10)));
    drop(lease);
    bench.check();
}

#[tokio::test(start_paused = true)]
async fn host_memory_keeps_the_most_recently_used_within_its_limits() {
    let limits = ResidencyLimits { host_bytes_max: 100, ..CONFIG.limits };
    let bench = Bench::with(40, ResidencyConfig { limits, ..CONFIG });
    let digests: Vec<_> = (1..=4).map(|number| generation(number, 40)).collect();
    for &digest in &digests {
        drop(bench.lease(digest).await);
        bench.check();
    }
    let tiers: Vec<_> = digests.iter().map(|&digest| bench.residency.tier(digest)).collect();
    assert_eq!(tiers, [Tier::Disk, Tier::Disk, Tier::Host, Tier::Device]);
    assert_eq!(bench.residency.stats().host_bytes, 80);

    bench.residency.set_limits(ResidencyLimits { max_cpu_loras: 1, ..limits });
    assert_eq!(bench.residency.stats().host_generations, 1);
    bench.residency.set_limits(ResidencyLimits { host_bytes_max: 0, ..limits });
    assert_eq!(bench.residency.stats().host_bytes, 0);
    // Without any room in host memory, one by one.
    let mut requests = Vec::new();
    for &digest in &digests {
        requests.push(bench.visit(digest).await);
    }
    for request in requests {
        request.await.unwrap();
    }
    assert_eq!(bench.residency.stats().host_bytes, 0);
    bench.check();
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_do_not_fill_host_memory() {
    let limits = ResidencyLimits { host_bytes_max: 100, ..CONFIG.limits };
    let bench = Bench::with(40, ResidencyConfig { limits, max_loads: 2, ..CONFIG });
    let holder = bench.lease(generation(0, 40)).await;
    let mut requests = Vec::new();
    for number in 1..=50 {
        requests.push(bench.visit(generation(number, 40)).await);
    }
    settle().await;
    let stats = bench.residency.stats();
    assert!(stats.host_bytes <= 100 + 2 * 40, "{stats:?}");
    assert_eq!(stats.waiting, 50);
    drop(holder);
    for request in requests {
        request.await.unwrap();
        assert!(bench.residency.stats().host_bytes <= 100 + 2 * 40);
    }
    bench.check();
}

#[tokio::test(start_paused = true)]
async fn the_line_has_an_end() {
    let bench = Bench::with(100, ResidencyConfig { max_waiting: 3, ..CONFIG });
    let holder = bench.lease(generation(0, 100)).await;
    let mut requests = Vec::new();
    for number in 1..=3 {
        requests.push(bench.visit(generation(number, 100)).await);
    }
    let error = bench.residency.lease(generation(4, 100)).await.unwrap_err();
    assert!(matches!(error, ResidencyError::QueueFull { waiting: 3 }), "{error}");
    bench.residency.prefetch(generation(5, 100));
    assert_eq!(bench.residency.stats().waiting, 3);
    drop(bench.lease(generation(0, 100)).await);
    drop(holder);
    for request in requests {
        request.await.unwrap();
    }
    bench.check();
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_generation_goes_when_nobody_needs_it() {
    let bench = Bench::new(100);
    let digest = generation(1, 60);
    let lease = bench.lease(digest).await;
    bench.residency.forget(digest);
    assert_eq!(bench.residency.tier(digest), Tier::Device);
    assert_eq!(bench.residency.stats().host_bytes, 0);
    drop(lease);
    assert_eq!(bench.residency.tier(digest), Tier::Disk);
    assert_eq!(bench.device.used(), 0);

    // Idle, pinned, in host memory, on its way.
    drop(bench.lease(digest).await);
    bench.residency.forget(digest);
    assert_eq!(bench.residency.tier(digest), Tier::Disk);
    bench.residency.pin(digest).await.unwrap();
    bench.residency.forget(digest);
    assert_eq!(bench.residency.tier(digest), Tier::Disk);
    bench.residency.offer(digest, Arc::new(digest));
    assert_eq!(bench.residency.tier(digest), Tier::Host);
    bench.residency.forget(digest);
    assert_eq!(bench.residency.tier(digest), Tier::Disk);
    bench.source.hold(digest);
    let request = bench.ask(digest).await;
    bench.residency.forget(digest);
    bench.source.let_go(digest);
    drop(request.await.unwrap().unwrap());
    assert_eq!(bench.residency.tier(digest), Tier::Disk);
    assert_eq!(bench.device.used(), 0);
    bench.check();
}

#[tokio::test(start_paused = true)]
async fn an_offered_generation_needs_no_load() {
    let bench = Bench::new(100);
    let digest = generation(1, 60);
    bench.residency.offer(digest, Arc::new(digest));
    bench.residency.offer(digest, Arc::new(digest));
    assert_eq!(bench.residency.stats().host_bytes, 60);
    drop(bench.lease(digest).await);
    assert_eq!(bench.source.loads(digest), 0);

    // While a load of the same is under way.
    let other = generation(2, 40);
    bench.source.hold(other);
    let request = bench.ask(other).await;
    bench.residency.offer(other, Arc::new(other));
    now(request).await.unwrap();
    bench.check();
    bench.source.let_go(other);
    bench.until(|bench| bench.residency.stats().loading == 0).await;
    assert_eq!(bench.residency.stats().host_bytes, 100);
    bench.check();
}

#[tokio::test(start_paused = true)]
async fn after_shut_down_everyone_is_refused_and_nothing_is_held() {
    let bench = Bench::new(100);
    let lease = bench.lease(generation(1, 60)).await;
    bench.source.hold(generation(2, 10));
    let loading = bench.ask(generation(2, 10)).await;
    bench.device.open.send_replace(false);
    let installing = bench.ask(generation(4, 10)).await;
    bench.until(|bench| bench.residency.stats().installing == 1).await;
    let in_line = bench.ask(generation(3, 100)).await;
    bench.until(|bench| bench.residency.tier(generation(3, 100)) == Tier::Host).await;
    bench.residency.shutdown();
    bench.residency.shutdown();
    for request in [loading, in_line, installing] {
        assert!(matches!(now(request).await, Err(ResidencyError::ShuttingDown)));
    }
    bench.source.let_go(generation(2, 10));
    bench.device.open.send_replace(true);
    let answer = bench.residency.lease(generation(1, 60)).await;
    assert!(matches!(answer, Err(ResidencyError::ShuttingDown)));
    bench.residency.offer(generation(1, 60), Arc::new(generation(1, 60)));
    bench.residency.prefetch(generation(1, 60));
    settle().await;
    assert!(bench.device.has(generation(1, 60)), "a lease that is out stays valid");
    drop(lease);
    settle().await;
    assert_eq!(bench.device.used(), 0);
    let stats = bench.residency.stats();
    assert_eq!((stats.host_bytes, stats.device_bytes, stats.waiting, stats.loading), (0, 0, 0, 0));
}
