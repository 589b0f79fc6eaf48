//! What the order of waiting sequences costs the engine's owner thread.
//!
//! `cargo bench -p pleach --bench fair_order`
//!
//! With as many waiting as the default queue holds, each round is one admission: the order is asked, its first sequence
//! is admitted, its flow gets another one, and a token is chosen for each of 32 running sequences of different flows.

#![expect(clippy::print_stdout, reason = "a command-line tool")]

use std::{
    collections::{BTreeSet, VecDeque},
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use pleach::tenants::{FairOrder, FlowSettings, TokenPrices};
use pleach_engine::{
    scheduler::{Fifo, QueuePolicy, Queued, Ticket},
    sequence::FlowId,
};

const N_WAITING: u64 = 1024;
const N_RUNNING: usize = 32;
const N_ROUNDS: u64 = 20_000;

/// Time of each kind of call, over all rounds.
#[derive(Default)]
struct Times {
    order: Duration,
    long_order: Duration,
    change: Duration,
    served: Duration,
}

fn run(policy: &mut dyn QueuePolicy, n_flows: u64) -> Times {
    let mut times = Times::default();
    // One floods: every seventh sequence is its.
    let flow_of =
        |ticket: u64| if ticket.is_multiple_of(7) { FlowId(0) } else { FlowId(ticket % n_flows) };
    let mut waiting = BTreeSet::new();
    for ticket in 0..N_WAITING {
        policy.arrived(Queued { ticket: Ticket(ticket), flow: flow_of(ticket) });
        waiting.insert(Ticket(ticket));
    }
    let mut running: VecDeque<FlowId> = VecDeque::new();
    let mut order = Vec::new();
    for ticket in N_WAITING..N_WAITING + N_ROUNDS {
        let started = Instant::now();
        order.clear();
        policy.order(&mut waiting.iter().copied(), 64, &mut order);
        black_box(&order);
        times.long_order += started.elapsed();

        // The order that an admission asks for finds counters that changed since.
        for &flow in &running {
            policy.served(flow, 1);
        }
        let started = Instant::now();
        order.clear();
        policy.order(&mut waiting.iter().copied(), 1, &mut order);
        times.order += started.elapsed();

        let Some(&first) = order.first() else { break };
        waiting.remove(&first);
        let admitted = Queued { ticket: first, flow: flow_of(first.0) };
        let arrived = Queued { ticket: Ticket(ticket), flow: flow_of(ticket) };
        waiting.insert(arrived.ticket);
        let started = Instant::now();
        policy.admitted(admitted, 100);
        policy.arrived(arrived);
        times.change += started.elapsed();

        running.push_back(admitted.flow);
        if running.len() > N_RUNNING
            && let Some(flow) = running.pop_front()
        {
            policy.ended(flow);
        }
        let started = Instant::now();
        for &flow in &running {
            policy.served(flow, 1);
        }
        times.served += started.elapsed();
    }
    times
}

fn main() {
    println!("{N_WAITING} waiting, {N_RUNNING} running; mean of {N_ROUNDS} rounds, ns");
    for n_flows in [1, 16, 1024] {
        let fair = FairOrder::new(Arc::new(FlowSettings::default()), TokenPrices::default());
        let policies: [(&str, Box<dyn QueuePolicy>); 2] =
            [("fifo", Box::new(Fifo)), ("fair", Box::new(fair))];
        for (name, mut policy) in policies {
            let times = run(&mut *policy, n_flows);
            let mean = |time: Duration| time.as_nanos() / u128::from(N_ROUNDS);
            println!(
                "{name}, {n_flows:>4} flows: order of 1 {:>6}, of 64 {:>6}, admitted + arrived {:>6}, 32 x served {:>6}",
                mean(times.order),
                mean(times.long_order),
                mean(times.change),
                mean(times.served),
            );
        }
    }
}
