//! One tenant floods, four are busy, one is quiet.

use std::time::Duration;

use pleach_engine::scheduler::{Fifo, QueuePolicy, SchedulerLimits};

use crate::{
    fake::VOCAB,
    world::{World, fair},
};

/// Has a hundred sequences waiting for each one of a busy tenant.
const FLOOD: u64 = 0;
const BUSY: [u64; 4] = [1, 2, 3, 4];
/// Sends one short sequence now and then, less than its share.
const QUIET: u64 = 5;

const BUSY_WAITING: usize = 2;
const FLOOD_WAITING: usize = 100 * BUSY_WAITING;
const MAX_BATCH: usize = 8;
const COMPLETION_MAX: usize = 48;
const QUIET_EVERY: Duration = Duration::from_millis(500);
const N_STEPS: usize = 6000;

struct Outcome {
    /// Jain's index of what the tenants that always wait were served: 1 is even, 1/n is all to one of n.
    jain: f64,
    quiet_waits: Vec<Duration>,
    quiet_overtakers_max: usize,
    longest_step: Duration,
}

impl Outcome {
    fn quiet_p99(&self) -> Duration {
        self.quiet_waits[(self.quiet_waits.len() * 99).div_ceil(100) - 1]
    }
}

fn run(policy: Box<dyn QueuePolicy>) -> Outcome {
    let limits = SchedulerLimits {
        max_batch: MAX_BATCH,
        max_step_rows: 64,
        n_kv_blocks: 256,
        context: 250,
        vocab: VOCAB,
    };
    let mut world = World::new(limits, false, policy);
    let mut random = 1u64;
    let mut below = |n: usize| {
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(random >> 33).unwrap() % n
    };
    let mut next_quiet = world.now;
    for _ in 0..N_STEPS {
        for (tenant, n_waiting) in
            std::iter::once((FLOOD, FLOOD_WAITING)).chain(BUSY.map(|tenant| (tenant, BUSY_WAITING)))
        {
            for _ in world.n_waiting(tenant)..n_waiting {
                // From short prompts with long completions to long prompts with short ones.
                let n_skew = usize::try_from(tenant).unwrap() * 8;
                let n_completion = 4 + below(COMPLETION_MAX - 3 - n_skew);
                world.submit(tenant, 10 + below(20 + 5 * n_skew), n_completion);
            }
        }
        if world.now >= next_quiet {
            world.submit(QUIET, 5 + below(20), 4 + below(8));
            next_quiet = world.now + QUIET_EVERY;
        }
        world.step();
    }
    let served: Vec<f64> =
        std::iter::once(FLOOD).chain(BUSY).map(|tenant| world.served(tenant) as f64).collect();
    let sum: f64 = served.iter().sum();
    let of_squares: f64 = served.iter().map(|served| served * served).sum();
    let quiet: Vec<_> = world.all.iter().filter(|follow| follow.flow.0 == QUIET).collect();
    // Who still waits has waited until now.
    let mut quiet_waits: Vec<Duration> = quiet
        .iter()
        .map(|follow| follow.waited().unwrap_or_else(|| world.now - follow.arrived))
        .collect();
    quiet_waits.sort_unstable();
    Outcome {
        jain: sum * sum / (served.len() as f64 * of_squares),
        quiet_waits,
        quiet_overtakers_max: quiet
            .iter()
            .filter_map(|follow| follow.n_overtakers())
            .max()
            .unwrap(),
        longest_step: world.longest_step,
    }
}

/// A tenant that gets less than its share enters level with the least served of the others, or above it by what its last
/// sequence cost if that was a moment ago: so each of the others overtakes it at most once. As these are fewer than the
/// places of the batch, it waits at most as many steps as the longest completion has tokens.
#[test]
fn who_floods_holds_up_nobody() {
    let fair = run(fair(&[]).0);
    let fifo = run(Box::new(Fifo));
    println!(
        "Jain index {:.4} (fifo {:.4}); quiet tenant: P99 wait {:?}, longest {:?}, of {} (fifo {:?}); overtaken by {}",
        fair.jain,
        fifo.jain,
        fair.quiet_p99(),
        fair.quiet_waits.last().unwrap(),
        fair.quiet_waits.len(),
        fifo.quiet_p99(),
        fair.quiet_overtakers_max,
    );
    assert!(fair.quiet_waits.len() > 100);
    assert!(fair.jain >= 0.95, "{}", fair.jain);
    assert!(fair.quiet_overtakers_max <= BUSY.len() + 1, "{}", fair.quiet_overtakers_max);
    let bound = fair.longest_step * u32::try_from(COMPLETION_MAX).unwrap();
    assert!(*fair.quiet_waits.last().unwrap() <= bound);
    // Else the load proves nothing.
    assert!(
        fifo.jain < 0.5 && fifo.quiet_p99() > 5 * bound,
        "{} {:?}",
        fifo.jain,
        fifo.quiet_p99()
    );
}
