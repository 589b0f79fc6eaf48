//! What holds for any load.

use std::collections::BTreeMap;

use pleach::tenants::{BACKGROUND, PASSED_OVER_MAX};
use pleach_engine::{
    scheduler::Fifo,
    sequence::{FinishReason, FlowId, SequenceId, SequenceRequest},
};
use proptest::prelude::*;

use crate::{
    fake::{
        Accident,
        bench::{Bench, alone, assert_same_text, limits, request, tokens},
    },
    world::{World, fair, setting},
};

#[derive(Clone, Debug)]
enum Op {
    /// Flow, prompt family, prompt, completion.
    Submit(u64, usize, usize, usize),
    Cancel(usize),
    Drop(usize),
    Set(u64, u32, u8),
    Reset(u64),
    Steps(usize),
    Accident,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (0u64..5, 0usize..4, 1usize..60, 1usize..30).prop_map(|(f, s, p, c)| Op::Submit(f, s, p, c)),
        1 => any::<usize>().prop_map(Op::Cancel),
        1 => any::<usize>().prop_map(Op::Drop),
        1 => (0u64..5, 1u32..9, 0u8..4).prop_map(|(flow, weight, priority)| Op::Set(flow, weight, priority)),
        1 => (0u64..5).prop_map(Op::Reset),
        4 => (1usize..8).prop_map(Op::Steps),
        1 => Just(Op::Accident),
    ]
}

proptest! {
    /// Every sequence ends, and as it does alone; the pool is whole.
    #[test]
    fn a_fair_crowd_changes_nothing(
        n_kv_blocks in 2usize..14,
        max_batch in 1usize..7,
        n_more_rows in 0usize..40,
        prefix_cache in any::<bool>(),
        ops in proptest::collection::vec(op(), 1..60),
    ) {
        let limits = limits(n_kv_blocks, max_batch, max_batch + n_more_rows);
        let (policy, settings) = fair(&[]);
        let mut bench = Bench::with_policy(limits, prefix_cache, policy);
        let mut requests: Vec<SequenceRequest> = Vec::new();
        for op in ops {
            match op {
                Op::Submit(flow, family, n_prompt, n_completion) => {
                    let prompt = tokens(family, n_prompt.min(limits.max_prompt_tokens()));
                    let wanted = SequenceRequest { flow: FlowId(flow), ..request(prompt, n_completion) };
                    bench.submit(wanted.clone());
                    requests.push(wanted);
                }
                Op::Cancel(nth) if !requests.is_empty() => {
                    bench.scheduler.cancel(SequenceId((nth % requests.len()) as u64));
                }
                Op::Drop(nth) if !requests.is_empty() => bench.streams[nth % requests.len()] = None,
                Op::Cancel(_) | Op::Drop(_) => {}
                Op::Set(flow, weight, priority) => settings.set(FlowId(flow), setting(weight, priority)),
                Op::Reset(flow) => settings.remove(FlowId(flow)),
                Op::Steps(n) => (0..n).for_each(|_| { bench.step(); }),
                Op::Accident => bench.runner.accident = Some(Accident::Error),
            }
        }
        bench.run_to_end(20_000);
        for (index, request) in requests.iter().enumerate() {
            if bench.streams[index].is_none() {
                continue;
            }
            let found = bench.outcome(index);
            let expected = alone(request, limits);
            if matches!(found.end, Some(Ok(FinishReason::Cancelled) | Err(_))) {
                prop_assert!(expected.tokens.starts_with(&found.tokens));
            } else {
                assert_same_text(&found, &expected);
            }
        }
    }

    #[test]
    fn one_flow_is_first_come_first_served(
        n_kv_blocks in 4usize..20,
        max_batch in 1usize..6,
        prefix_cache in any::<bool>(),
        wanted in proptest::collection::vec((0usize..4, 1usize..60, 1usize..20, 0usize..3), 1..40),
    ) {
        let limits = limits(n_kv_blocks, max_batch, 40);
        let mut worlds = [
            World::new(limits, prefix_cache, fair(&[(7, 3, 2)]).0),
            World::new(limits, prefix_cache, Box::new(Fifo)),
        ];
        for world in &mut worlds {
            for &(family, n_prompt, n_completion, n_steps) in &wanted {
                let prompt = tokens(family, n_prompt.min(limits.max_prompt_tokens()));
                world.submit_prompt(7, prompt, n_completion);
                (0..n_steps).for_each(|_| { world.step(); });
            }
            while world.step() {}
        }
        let [fair, fifo] = worlds;
        prop_assert_eq!(&fair.admissions, &fifo.admissions);
        prop_assert_eq!(fair.now - fair.all[0].arrived, fifo.now - fifo.all[0].arrived);
        for (fair, fifo) in fair.all.iter().zip(&fifo.all) {
            prop_assert_eq!(fair.waited(), fifo.waited());
        }
    }

    /// Whatever else comes first, within a flow the older does, when nobody waits for a prefix.
    #[test]
    fn a_flow_is_first_come_first_served_within_itself(
        max_batch in 1usize..6,
        wanted in proptest::collection::vec((0u64..4, 1usize..60, 1usize..20, 0usize..3), 1..80),
    ) {
        let (policy, _) = fair(&[(1, 5, 0), (2, 1, 1), (3, 2, 1)]);
        let mut world = World::new(limits(40, max_batch, 30), false, policy);
        for (flow, n_prompt, n_completion, n_steps) in wanted {
            world.submit(flow, n_prompt, n_completion);
            (0..n_steps).for_each(|_| { world.step(); });
        }
        while world.step() {}
        prop_assert_eq!(world.admissions.len(), world.all.len());
        let mut last_of = BTreeMap::new();
        for &index in &world.admissions {
            let before = last_of.insert(world.all[index].flow, index);
            prop_assert!(before.is_none_or(|before| before < index));
        }
    }

    /// The theorem of the source, for flows of any weight: over any time in which two have always something waiting, what
    /// they get, divided by their weights, differs by no more than each can be charged after it came first.
    #[test]
    fn backlogged_flows_get_their_shares(
        max_batch in 1usize..7,
        weights in proptest::collection::vec(1u32..5, 2..5),
        sizes in proptest::collection::vec((1usize..60, 1usize..25), 30..31),
    ) {
        let flows: Vec<_> = (0u64..).zip(&weights).map(|(flow, &weight)| (flow, weight, 0)).collect();
        let mut world = World::new(limits(100, max_batch, 40), false, fair(&flows).0);
        let prompt_max = sizes.iter().map(|size| size.0).max().unwrap();
        let completion_max = sizes.iter().map(|size| size.1).max().unwrap();
        let charged_max = (prompt_max + 2 * max_batch * completion_max) as f64;
        let mut extremes = vec![(0f64, 0f64); flows.len() * flows.len()];
        for step in 0..600 {
            for &(flow, ..) in &flows {
                while world.n_waiting(flow) < 2 * max_batch {
                    // Each flow has a mix of its own.
                    let n_mix = 3 + usize::try_from(flow).unwrap();
                    let (n_prompt, n_completion) = sizes[(world.all.len() + step) % n_mix * 7 % sizes.len()];
                    world.submit(flow, n_prompt, n_completion);
                }
            }
            world.step();
            let share = |index: usize| world.served(index as u64) as f64 / f64::from(weights[index]);
            for (pair, (least, most)) in extremes.iter_mut().enumerate() {
                let difference = share(pair / flows.len()) - share(pair % flows.len());
                *least = least.min(difference);
                *most = most.max(difference);
            }
        }
        for (pair, (least, most)) in extremes.into_iter().enumerate() {
            let bound = charged_max / f64::from(weights[pair / flows.len()])
                + charged_max / f64::from(weights[pair % flows.len()]);
            prop_assert!(most - least <= bound, "{least} to {most}, more than {bound}");
        }
        let total: u64 = (0..).zip(&flows).map(|(flow, _)| world.served(flow)).sum();
        prop_assert!(total as f64 > 2.0 * charged_max, "too short to tell");
    }

    /// Any sequence, in any class, of any size, is admitted while others flood the queue without end.
    #[test]
    fn nobody_waits_for_ever(
        n_kv_blocks in 5usize..20,
        max_batch in 1usize..5,
        flows in proptest::collection::vec((1u32..9, 0u8..3), 2..5),
        marked_flow in 0usize..5,
        n_marked in 1usize..150,
        sizes in proptest::collection::vec((1usize..40, 1usize..12), 5..20),
    ) {
        let limits = limits(n_kv_blocks, max_batch, 30);
        let flows: Vec<_> = (0u64..).zip(flows).map(|(flow, (weight, priority))| (flow, weight, priority)).collect();
        let mut world = World::new(limits, false, fair(&flows).0);
        let flood = |world: &mut World| {
            for &(flow, ..) in &flows {
                while world.n_waiting(flow) < max_batch + 1 {
                    let (n_prompt, n_completion) = sizes[world.all.len() % sizes.len()];
                    world.submit(flow, n_prompt, n_completion);
                }
            }
        };
        for _ in 0..20 {
            flood(&mut world);
            world.step();
        }
        let flow = flows[marked_flow % flows.len()].0;
        let marked = world.submit(flow, n_marked.min(limits.max_prompt_tokens()), 3);
        for _ in 0..20_000 {
            if world.all[marked].admitted.is_some() {
                break;
            }
            flood(&mut world);
            world.step();
        }
        prop_assert!(world.all[marked].admitted.is_some());
    }

    /// The stated bound of classes that wait, and that the highest gets all the rest. What nobody waits for is a class below
    /// all others.
    #[test]
    fn every_class_gets_one_of_so_many(
        max_batch in 1usize..5,
        priorities in proptest::collection::btree_set(any::<u8>(), 2..6),
    ) {
        let mut flows: Vec<_> = (0u64..).zip(&priorities).map(|(flow, &priority)| (flow, 1, priority)).collect();
        let highest = flows.len() as u64 - 1;
        flows.push((BACKGROUND.0, 1, u8::MAX));
        let mut world = World::new(limits(100, max_batch, 40), false, fair(&flows).0);
        for _ in 0..1000 {
            for &(flow, ..) in &flows {
                while world.n_waiting(flow) < 8 {
                    world.submit(flow, 5, 2);
                }
            }
            world.step();
        }
        let n_classes = flows.len();
        let admitted: Vec<u64> = world.admissions.iter().map(|&index| world.all[index].flow.0).collect();
        for window in admitted.windows(PASSED_OVER_MAX + n_classes) {
            for &(flow, ..) in &flows {
                prop_assert!(window.contains(&flow), "{flow} not in {window:?}");
            }
        }
        let n_highest = admitted.iter().filter(|&&flow| flow == highest).count();
        prop_assert!(n_highest * (PASSED_OVER_MAX + 1) >= admitted.len() * (PASSED_OVER_MAX + 2 - n_classes));
        let n_background = admitted.iter().filter(|&&flow| flow == BACKGROUND.0).count();
        prop_assert!(n_background <= admitted.len() / PASSED_OVER_MAX + 1, "{n_background} of {}", admitted.len());
    }
}
