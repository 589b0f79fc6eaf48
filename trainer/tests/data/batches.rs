//! Batches: nothing is lost, budgets hold, a position is all that a run needs to go on.

use pleach_trainer::data::{BatchPlan, BatchSettings, Order, Packing, Position, StepPlan};
use proptest::prelude::*;

fn settings(order: Order, packing: Packing) -> BatchSettings {
    BatchSettings { batch_size: 4, tokens_max: 100, order, packing, seed: 11 }
}

fn steps(plan: &BatchPlan, n_epochs: u32) -> Vec<StepPlan> {
    plan.steps_from(Position::default(), n_epochs).collect()
}

proptest! {
    #[test]
    fn every_record_comes_once_an_epoch_and_budgets_hold(
        lengths in prop::collection::vec(1_u32..150, 1..80),
        batch_size in 1_usize..20,
        in_order in any::<bool>(),
        seed in any::<u64>(),
        epoch in 0_u32..3,
    ) {
        let packing = if in_order { Packing::InOrder } else { Packing::FirstFitDecreasing };
        let settings = BatchSettings { batch_size, seed, ..settings(Order::Shuffled, packing) };
        let plan = BatchPlan::new(lengths.clone(), settings);
        let epoch = plan.epoch(epoch);
        let mut seen = Vec::new();
        for step in 0..plan.steps_per_epoch() {
            let step = epoch.step(step).unwrap();
            prop_assert!(step.records.len() <= batch_size && !step.records.is_empty());
            let mut packed = step.micro_batches.concat();
            if in_order {
                prop_assert_eq!(&packed, &step.records);
            }
            let mut records = step.records.clone();
            packed.sort_unstable();
            records.sort_unstable();
            prop_assert_eq!(packed, records);
            for micro_batch in &step.micro_batches {
                let n_tokens: u32 = micro_batch.iter().map(|record| lengths[*record as usize]).sum();
                prop_assert!(!micro_batch.is_empty() && (n_tokens <= 100 || micro_batch.len() == 1));
            }
            seen.extend(step.records);
        }
        prop_assert!(epoch.step(plan.steps_per_epoch()).is_none());
        seen.sort_unstable();
        prop_assert!(seen.into_iter().eq(0..u32::try_from(lengths.len()).unwrap()));
    }

    #[test]
    fn a_run_goes_on_from_any_position(
        n_records in 1_u32..50,
        seed in any::<u64>(),
        stop in 0_usize..60,
    ) {
        let lengths: Vec<u32> = (0..n_records).map(|record| record * 7 % 90).collect();
        let settings = BatchSettings { seed, ..settings(Order::Shuffled, Packing::FirstFitDecreasing) };
        let whole = steps(&BatchPlan::new(lengths.clone(), settings.clone()), 3);
        let stop = stop % whole.len();
        let position = whole[stop].position;
        let rest: Vec<StepPlan> = BatchPlan::new(lengths, settings).steps_from(position, 3).collect();
        prop_assert_eq!(&whole[stop..], &rest[..]);
    }
}

#[test]
fn orders() {
    let lengths = vec![10; 10];
    let shuffled = BatchPlan::new(lengths.clone(), settings(Order::Shuffled, Packing::InOrder));
    let records = |steps: &[StepPlan]| -> Vec<u32> {
        steps.iter().flat_map(|step| step.records.clone()).collect()
    };
    let two_epochs = records(&steps(&shuffled, 2));
    assert_ne!(two_epochs[..10], two_epochs[10..]);
    let other_seed = BatchSettings { seed: 12, ..settings(Order::Shuffled, Packing::InOrder) };
    assert_ne!(records(&steps(&BatchPlan::new(lengths.clone(), other_seed), 2)), two_epochs);
    let sequential = BatchPlan::new(lengths.clone(), settings(Order::Sequential, Packing::InOrder));
    assert!(records(&steps(&sequential, 1)).into_iter().eq(0..10));
    // The order of the reference curves: index i of the run is example (7 i + i / 40) mod 40, in steps of 4.
    let listed: Vec<u32> = (0..120).map(|i| (7 * i + i / 40) % 40).collect();
    let explicit =
        BatchPlan::new(vec![10; 40], settings(Order::Explicit(listed.clone()), Packing::InOrder));
    assert_eq!(explicit.steps_per_epoch(), 30);
    assert_eq!(explicit.epoch(0).step(0).unwrap().records, [0, 7, 14, 21]);
    assert_eq!(records(&steps(&explicit, 1)), listed);
}

#[test]
fn first_fit_decreasing_fills_what_in_order_leaves_open() {
    let lengths = vec![60, 60, 40, 40];
    let micro_batches = |packing| {
        let plan = BatchPlan::new(lengths.clone(), settings(Order::Sequential, packing));
        plan.epoch(0).step(0).unwrap().micro_batches
    };
    assert_eq!(micro_batches(Packing::InOrder), [vec![0], vec![1, 2], vec![3]]);
    assert_eq!(micro_batches(Packing::FirstFitDecreasing), [[0, 2], [1, 3]]);
}
