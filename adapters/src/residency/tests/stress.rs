//! Many threads, many generations, little room.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{
    cases,
    fake::{Bench, CONFIG, bytes_of, generation},
};
use crate::residency::{ResidencyConfig, ResidencyError, ResidencyLimits};

const N_GENERATIONS: u64 = 200;
const N_TASKS: u64 = 32;

/// Different numbers without a dependency.
fn mix(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_threads_over_little_room() {
    let limits = ResidencyLimits { host_bytes_max: 600, max_loras: 20, max_cpu_loras: 50 };
    let config = ResidencyConfig { limits, drain_after: Duration::from_millis(2), ..CONFIG };
    let bench = Arc::new(Bench::with(400, config));
    let n_served = Arc::new(AtomicU64::new(0));
    let rounds = u64::from(cases(300));
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..N_TASKS {
        let (bench, n_served) = (Arc::clone(&bench), Arc::clone(&n_served));
        tasks.spawn(async move {
            let mut state = task;
            for _ in 0..rounds {
                // Skewed, so that some are hot.
                let number = mix(&mut state) % (mix(&mut state) % N_GENERATIONS + 1);
                let bytes = usize::try_from(number * 37 % 100).unwrap() + 1;
                let digest = generation(number, bytes);
                match mix(&mut state) % 20 {
                    0 => bench.residency.prefetch(digest),
                    1 => bench.residency.forget(digest),
                    2 => {
                        let wait = Duration::from_micros(mix(&mut state) % 500);
                        let _ = tokio::time::timeout(wait, bench.residency.lease(digest)).await;
                    }
                    3 => bench.residency.offer(digest, Arc::new(digest)),
                    _ => match bench.residency.lease(digest).await {
                        Ok(lease) => {
                            n_served.fetch_add(1, Ordering::Relaxed);
                            assert!(bench.device.has(digest), "in use and not on the device");
                            if mix(&mut state).is_multiple_of(4) {
                                tokio::task::yield_now().await;
                            }
                            assert!(bench.device.has(digest), "evicted while in use");
                            if mix(&mut state).is_multiple_of(8) {
                                std::thread::spawn(move || drop(lease)).join().unwrap();
                            }
                        }
                        Err(error) => panic!("{error}"),
                    },
                }
            }
        });
    }
    while let Some(task) = tasks.join_next().await {
        task.unwrap();
    }
    assert!(n_served.load(Ordering::Relaxed) > N_TASKS * rounds / 2);
    loop {
        let stats = bench.residency.stats();
        if (stats.waiting, stats.loading, stats.installing) == (0, 0, 0) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    bench.check();
    let stats = bench.residency.stats();
    assert_eq!((stats.in_use_generations, stats.draining_generations), (0, 0));
    assert_eq!(stats.device_bytes, bench.device.used());
    let live: usize = bench.device.state.lock().unwrap().live.keys().map(bytes_of).sum();
    assert_eq!(live, stats.device_bytes);
    bench.residency.shutdown();
    let answer = bench.residency.lease(generation(1, 1)).await;
    assert!(matches!(answer, Err(ResidencyError::ShuttingDown)));
    assert_eq!(bench.device.used(), 0);
}
