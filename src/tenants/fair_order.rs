//! Fair service: of the flows that have something waiting, the one that got least comes first.
//!
//! Every flow has a counter of what it was served, divided by its weight. Its prompt tokens count when a sequence is
//! admitted, since else all places that are free at once would go to one flow; its completion tokens when they are chosen,
//! since nobody knows them before. Prompt tokens from the prefix cache cost the engine nothing and are free, and so is
//! what is computed again after a preemption, which the flow did not ask for. What was counted is not given back when a
//! sequence is cancelled.
//!
//! A flow that comes back is lifted to the least counter of those that wait, so that idling saves up nothing; if it is
//! above, it stays there, so that a flow which never waits owes what it got.
//!
//! **Bound.** Two flows of one priority that have both something waiting all the time get, divided by their weights, at
//! most 2 `U` different amounts, where `U` is what one flow can be charged after it came first for the last time: the
//! longest prompt, and the completions of all places of the batch. For a flow is admitted only while its counter is the
//! least, and nobody enters below the least.
//!
//! **Priorities.** Higher classes come first, each with counters of its own. A class that was passed over
//! [`PASSED_OVER_MAX`] times comes first once; of several, the one that was passed over most. So with `C` classes waiting
//! each gets one of any `PASSED_OVER_MAX + C` admissions in a row, and no flow starves.
//!
//! **Memory.** The first of the order stays first while it finds no room: then nobody is admitted, so other counters do
//! not change except for what still runs. A flow that still runs may lose its turn to others, but only until they got `U`
//! more; it is admitted nothing meanwhile, so this ends.
//!
//! Source: the virtual token counter of "Fairness in Serving Large Language Models" (arXiv 2401.00588), algorithm 2 and
//! its section on weights; classes, prefixes and forgetting are added here.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

use pleach_engine::{
    scheduler::{QueuePolicy, Queued, Ticket},
    sequence::FlowId,
};

use super::{
    flow_class::{Counter, FlowClass, Place},
    flow_settings::{FlowSetting, FlowSettings, SettingsMap},
};

/// How many admissions from other classes a class with somebody waiting lets pass before it comes first.
pub const PASSED_OVER_MAX: usize = 16;

/// Most flows without a sequence that are remembered for what they owe. Beyond, the least indebted are forgotten.
pub const FLOWS_REMEMBERED_MAX: usize = 4096;

/// What a token costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenPrices {
    /// A prompt token that is computed.
    pub prompt: u32,
    /// A completion token.
    pub completion: u32,
}

impl Default for TokenPrices {
    /// Those of the source: a completion token is twice as dear.
    fn default() -> Self {
        Self { prompt: 1, completion: 2 }
    }
}

#[derive(Debug, Default)]
struct Flow {
    setting: FlowSetting,
    counter: Counter,
    /// Ascending.
    waiting: VecDeque<Ticket>,
    n_running: usize,
    /// Where it stands in its class. Behind the counter between a charge and [`FairOrder::settle`].
    place: Option<Place>,
    is_charged: bool,
}

/// Fair order over flows, see the module. Each call costs the logarithm of the number of flows.
#[derive(Debug)]
pub struct FairOrder {
    shared: Arc<FlowSettings>,
    settings: Arc<SettingsMap>,
    version: u64,
    prices: TokenPrices,
    /// Those with a sequence, and those in their class's `idle`.
    flows: HashMap<FlowId, Flow>,
    /// The highest priority first. They stay: 257 at most.
    classes: BTreeMap<Reverse<i16>, FlowClass>,
    /// Backlogged flows whose place is not that of their counter.
    charged: Vec<FlowId>,
}

impl FairOrder {
    /// Nobody waits yet.
    pub fn new(settings: Arc<FlowSettings>, prices: TokenPrices) -> Self {
        Self {
            shared: settings,
            settings: Arc::default(),
            version: 0,
            prices,
            flows: HashMap::new(),
            classes: BTreeMap::new(),
            charged: Vec::new(),
        }
    }

    /// Flows that it knows at present.
    pub fn n_flows(&self) -> usize {
        self.flows.len()
    }

    /// Brings settings and places up to date.
    fn settle(&mut self) {
        if let Some((version, settings)) = self.shared.newer_than(self.version) {
            (self.version, self.settings) = (version, settings);
            self.apply_settings();
        }
        while let Some(id) = self.charged.pop() {
            if let Some(flow) = self.flows.get_mut(&id) {
                flow.is_charged = false;
                self.replace(id);
            }
        }
    }

    fn apply_settings(&mut self) {
        let ids: Vec<FlowId> = self.flows.keys().copied().collect();
        for id in ids {
            let setting = FlowSetting::of(id, &self.settings);
            let Some(flow) = self.flows.get_mut(&id) else { continue };
            let old = std::mem::replace(&mut flow.setting, setting);
            if old.priority != setting.priority {
                self.change_class(id, old.priority);
            }
        }
    }

    /// Moves a flow, whose setting is new already, to its class. Classes have counters of their own: what it owes above the
    /// floor of one it owes above the floor of the other.
    fn change_class(&mut self, id: FlowId, old_priority: i16) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        let old = self.classes.entry(Reverse(old_priority)).or_default();
        let debt = flow.counter.saturating_sub(old.floor);
        let was_idle = old.idle.remove(&(flow.counter, id));
        old.replace(flow.place.take(), None, 0);
        let new = self.classes.entry(Reverse(flow.setting.priority)).or_default();
        flow.counter = new.floor + debt;
        if was_idle {
            new.idle.insert((flow.counter, id));
        }
        self.replace(id);
    }

    /// Puts a flow where its counter and its head belong.
    fn replace(&mut self, id: FlowId) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        let counter = flow.counter;
        let new = flow.waiting.front().map(|&head| Place { counter, head, flow: id });
        let class = self.classes.entry(Reverse(flow.setting.priority)).or_default();
        class.replace(std::mem::replace(&mut flow.place, new), new, counter);
        // What the floor has passed is worth no memory.
        while let Some(forgotten) = class.pop_idle(class.floor) {
            self.flows.remove(&forgotten);
        }
    }

    fn charge(&mut self, id: FlowId, n_tokens: usize, price: u32) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        let cost = (n_tokens as u128) * u128::from(price);
        flow.counter += (cost << 32) / u128::from(flow.setting.weight.get());
        if flow.place.is_some() && !flow.is_charged {
            flow.is_charged = true;
            self.charged.push(id);
        }
    }

    /// Takes a ticket out of its flow's line.
    fn unqueue(&mut self, queued: Queued) {
        let Some(flow) = self.flows.get_mut(&queued.flow) else { return };
        if let Ok(index) = flow.waiting.binary_search(&queued.ticket) {
            flow.waiting.remove(index);
        }
    }

    /// Remembers a flow without sequences if it owes anything, and forgets it if not.
    fn rest(&mut self, id: FlowId) {
        let Some(flow) = self.flows.get(&id) else { return };
        if flow.n_running > 0 || !flow.waiting.is_empty() {
            return;
        }
        let class = self.classes.entry(Reverse(flow.setting.priority)).or_default();
        if flow.counter <= class.floor {
            self.flows.remove(&id);
            return;
        }
        class.idle.insert((flow.counter, id));
        let n_idle: usize = self.classes.values().map(|class| class.idle.len()).sum();
        if n_idle > FLOWS_REMEMBERED_MAX {
            let class = self.classes.values_mut().find(|class| !class.idle.is_empty());
            if let Some(forgotten) = class.and_then(|class| class.pop_idle(Counter::MAX)) {
                self.flows.remove(&forgotten);
            }
        }
    }

    /// The class that comes first.
    fn first_class(&self) -> Option<Reverse<i16>> {
        let waiting = || self.classes.iter().filter(|(_, class)| !class.backlogged.is_empty());
        let overdue = waiting().filter(|(_, class)| class.n_passed_over >= PASSED_OVER_MAX);
        let first =
            overdue.max_by_key(|(_, class)| class.n_passed_over).or_else(|| waiting().next());
        first.map(|(&priority, _)| priority)
    }

    /// Adds the sequences of a class: the heads of its flows, then those behind them, and so on. So who waits for a prefix,
    /// and is overtaken, is overtaken by another flow first.
    fn append(&self, class: &FlowClass, n_max: usize, order: &mut Vec<Ticket>) {
        let flows = class.backlogged.iter().take(n_max - order.len());
        let mut lines: Vec<_> = flows
            .filter_map(|place| self.flows.get(&place.flow))
            .map(|flow| &flow.waiting)
            .collect();
        let mut depth = 0;
        while !lines.is_empty() && order.len() < n_max {
            let n_free = n_max - order.len();
            order.extend(lines.iter().map(|line| line[depth]).take(n_free));
            depth += 1;
            lines.retain(|line| line.len() > depth);
        }
    }
}

impl QueuePolicy for FairOrder {
    fn order(
        &mut self,
        _waiting: &mut dyn Iterator<Item = Ticket>,
        n_max: usize,
        order: &mut Vec<Ticket>,
    ) {
        self.settle();
        let Some(first) = self.first_class() else { return };
        let others = self.classes.keys().copied().filter(|&priority| priority != first);
        for priority in std::iter::once(first).chain(others) {
            if order.len() == n_max {
                return;
            }
            self.append(&self.classes[&priority], n_max, order);
        }
    }

    fn arrived(&mut self, queued: Queued) {
        self.settle();
        let setting = FlowSetting::of(queued.flow, &self.settings);
        let flow =
            self.flows.entry(queued.flow).or_insert_with(|| Flow { setting, ..Flow::default() });
        flow.waiting.push_back(queued.ticket);
        if flow.place.is_none() {
            let class = self.classes.entry(Reverse(flow.setting.priority)).or_default();
            class.idle.remove(&(flow.counter, queued.flow));
            flow.counter = flow.counter.max(class.floor);
            self.replace(queued.flow);
        }
    }

    fn admitted(&mut self, queued: Queued, n_uncached: usize) {
        self.charge(queued.flow, n_uncached, self.prices.prompt);
        self.unqueue(queued);
        let Some(flow) = self.flows.get_mut(&queued.flow) else { return };
        flow.n_running += 1;
        let admitted_class = Reverse(flow.setting.priority);
        for (&priority, class) in &mut self.classes {
            let is_passed_over = priority != admitted_class && !class.backlogged.is_empty();
            class.n_passed_over = if is_passed_over { class.n_passed_over + 1 } else { 0 };
        }
        self.replace(queued.flow);
    }

    fn left(&mut self, queued: Queued) {
        self.settle();
        self.unqueue(queued);
        self.replace(queued.flow);
        self.rest(queued.flow);
    }

    fn served(&mut self, flow: FlowId, n_tokens: usize) {
        self.charge(flow, n_tokens, self.prices.completion);
    }

    fn ended(&mut self, flow: FlowId) {
        if let Some(of_flow) = self.flows.get_mut(&flow) {
            of_flow.n_running = of_flow.n_running.saturating_sub(1);
        }
        self.rest(flow);
    }
}
