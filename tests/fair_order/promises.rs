//! One situation each.

use std::collections::HashMap;

use pleach::tenants::FLOWS_REMEMBERED_MAX;
use pleach_engine::{
    scheduler::{QueuePolicy, Queued, Ticket},
    sequence::FlowId,
};

use crate::{
    fake::bench::{limits, tokens},
    world::{World, fair, setting},
};

/// Steps during which these flows always have something waiting.
fn steps(world: &mut World, n_steps: usize, flows: &[u64], n_prompt: usize, n_completion: usize) {
    for _ in 0..n_steps {
        for &flow in flows {
            while world.n_waiting(flow) < 6 {
                world.submit(flow, n_prompt, n_completion);
            }
        }
        world.step();
    }
}

#[test]
fn idling_saves_up_nothing() {
    let mut world = World::new(limits(100, 3, 40), false, fair(&[]).0);
    steps(&mut world, 2000, &[1], 10, 5);
    let alone = world.served(1);
    steps(&mut world, 200, &[1, 2], 10, 5);
    let (first, second) = (world.served(1) - alone, world.served(2));
    assert!(alone > 10_000 && second > 1000);
    // The charges of one prompt and three places, on both sides.
    assert!(first.abs_diff(second) <= 2 * (10 + 3 * 2 * 5), "{first} and {second}");
}

/// It always comes back with nothing waiting, so it must not be forgiven what it got.
#[test]
fn who_never_queues_owes_what_it_got() {
    let mut world = World::new(limits(100, 1, 40), false, fair(&[]).0);
    let mut dear = world.submit(1, 10, 60);
    for _ in 0..3000 {
        if world.all[dear].has_ended {
            dear = world.submit(1, 10, 60);
        }
        steps(&mut world, 1, &[2], 4, 2);
    }
    let (dear, cheap) = (world.served(1), world.served(2));
    assert!(dear > 1000 && dear <= cheap + 2 * (10 + 2 * 60), "{dear} and {cheap}");
}

#[test]
fn a_large_head_is_not_starved_by_small_ones() {
    let limits = limits(9, 4, 40);
    let mut world = World::new(limits, false, fair(&[]).0);
    steps(&mut world, 50, &[2, 3], 10, 20);
    // Needs the whole pool.
    let large = world.submit(1, limits.max_prompt_tokens(), 1);
    steps(&mut world, 60, &[2, 3], 10, 20);
    // Level with the least served, behind one that stood there already.
    assert!(world.all[large].n_overtakers().is_some_and(|n| n <= 1), "{:?}", world.all[large]);
}

#[test]
fn cached_prompt_tokens_are_free() {
    let mut world = World::new(limits(100, 1, 200), true, fair(&[]).0);
    let prompt = tokens(1, 97);
    for _ in 0..3 {
        world.submit_prompt(1, prompt.clone(), 1);
        while world.step() {}
    }
    // Once all of it, then what a block of 16 does not hold.
    assert_eq!(world.served(1), 97 + 1 + 1 + 3 * 2);
    // One that pays for its prompts comes first less often than one that does not.
    for _ in 0..20 {
        world.submit_prompt(1, prompt.clone(), 1);
        world.submit(2, 97, 1);
    }
    for _ in 0..11 {
        world.step();
    }
    assert!(world.n_waiting(1) < 12 && world.n_waiting(2) > 15);
}

#[test]
fn settings_change_while_it_runs() {
    let (policy, settings) = fair(&[]);
    let mut world = World::new(limits(100, 4, 40), false, policy);
    let mut gained = |settled: usize| {
        steps(&mut world, settled, &[1, 2], 10, 5);
        let before = [world.served(1), world.served(2)];
        steps(&mut world, 500, &[1, 2], 10, 5);
        (world.served(1) - before[0]) as f64 / (world.served(2) - before[1]) as f64
    };
    assert!((gained(20) - 1.0).abs() < 0.1);
    settings.set(FlowId(1), setting(3, 0));
    assert!((gained(20) - 3.0).abs() < 0.3);
    settings.replace(HashMap::from([(FlowId(2), setting(1, 1))]));
    assert!(gained(20) < 0.1, "the higher class gets nearly all");
    settings.remove(FlowId(2));
    // Back in one class neither owes for the time in two.
    assert!((gained(20) - 1.0).abs() < 0.1);
    assert_eq!(settings.get(FlowId(2)), setting(1, 0));
}

#[test]
fn flows_that_are_gone_are_forgotten() {
    let (mut policy, _) = fair(&[]);
    let mut next = 0;
    let mut queued = |flow| {
        next += 1;
        Queued { ticket: Ticket(next), flow: FlowId(flow) }
    };
    // Keeps the floor down, so that all others owe something.
    let least = queued(0);
    policy.arrived(least);
    for flow in 1..20_000 {
        let one = queued(flow);
        policy.arrived(one);
        policy.admitted(one, 10);
        policy.served(one.flow, 5);
        policy.ended(one.flow);
        assert!(policy.n_flows() <= FLOWS_REMEMBERED_MAX + 1);
    }
    assert_eq!(policy.n_flows(), FLOWS_REMEMBERED_MAX + 1);
    // The floor passes them.
    policy.admitted(least, 10_000);
    policy.ended(FlowId(0));
    assert_eq!(policy.n_flows(), 0);
    // Who only waited leaves nothing behind either.
    let one = queued(1);
    policy.arrived(one);
    assert_eq!(policy.n_flows(), 1);
    policy.left(one);
    assert_eq!(policy.n_flows(), 0);
}

#[test]
fn the_order_begins_the_same_however_long() {
    let (mut policy, _) = fair(&[(3, 1, 1)]);
    for (ticket, flow) in [1, 1, 1, 2, 3, 3, 1, 2].into_iter().enumerate() {
        policy.arrived(Queued { ticket: Ticket(ticket as u64), flow: FlowId(flow) });
    }
    for n_max in 0..10 {
        let mut order = Vec::new();
        policy.order(&mut std::iter::empty(), n_max, &mut order);
        // The higher class, then heads before those behind them.
        let all = [4, 5, 0, 3, 1, 7, 2, 6].map(Ticket);
        assert_eq!(order, all[..n_max.min(8)]);
    }
}
