//! Any order of events, against a simple model: who is resident, who uses what, who was used when, who waits since when.
//!
//! The decisions are run by hand and without threads, so every interleaving of loads, installs, requests and time is
//! one list of operations, and a failure shrinks to a short one.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Weak},
    time::Duration,
};

use proptest::prelude::*;
use tokio::{
    sync::oneshot::{self, error::TryRecvError},
    time::Instant,
};

use super::{
    cases,
    fake::{Answer, CONFIG, Device, Lease, Memory, bytes_of, generation},
};
use crate::{
    digest::GenerationDigest,
    residency::{
        InstallError, ResidencyConfig, ResidencyError, ResidencyLimits, Tier,
        lease::{ResidentLease, TakesBack},
        tiers::{Effect, Requested, Tiers},
    },
};

type FakeTiers = Tiers<GenerationDigest, Arc<Memory>>;

struct Nobody;

impl TakesBack for Nobody {
    fn take_back(self: Arc<Self>, _: GenerationDigest) {}
}

struct Request {
    digest: GenerationDigest,
    ticket: u64,
    answer: oneshot::Receiver<Answer>,
}

/// The tiers, all that is around them, and what a simple model knows of both.
pub(super) struct World {
    tiers: FakeTiers,
    pub(super) device: Device,
    now: Instant,
    wake_at: Option<Instant>,
    waiting: Vec<Request>,
    users: BTreeMap<GenerationDigest, Vec<Lease>>,
    granted: Vec<GenerationDigest>,
    /// Those whose answers are not collected yet.
    answered: BTreeSet<GenerationDigest>,
    loading: Vec<GenerationDigest>,
    installing: Vec<(GenerationDigest, Arc<GenerationDigest>)>,
    resident: BTreeSet<GenerationDigest>,
    pinned: BTreeSet<GenerationDigest>,
    forgotten: BTreeSet<GenerationDigest>,
    /// No name points at them.
    earlier: BTreeSet<GenerationDigest>,
    /// The event at which a resident was last asked for, or fell idle.
    used_at: BTreeMap<GenerationDigest, usize>,
    n_events: usize,
    /// Nothing happened that lets later requests go first: no prefetch, no memory that comes back late.
    is_strict: bool,
    kept_elsewhere: Vec<Arc<Memory>>,
}

impl World {
    pub(super) fn new(config: ResidencyConfig, capacity: usize) -> Self {
        Self {
            tiers: Tiers::new(config, capacity),
            device: Device::new(capacity),
            now: Instant::now(),
            wake_at: None,
            waiting: Vec::new(),
            users: BTreeMap::new(),
            granted: Vec::new(),
            answered: BTreeSet::new(),
            loading: Vec::new(),
            installing: Vec::new(),
            resident: BTreeSet::new(),
            pinned: BTreeSet::new(),
            forgotten: BTreeSet::new(),
            earlier: BTreeSet::new(),
            used_at: BTreeMap::new(),
            n_events: 0,
            is_strict: true,
            kept_elsewhere: Vec::new(),
        }
    }

    fn event<T>(&mut self, event: impl FnOnce(&mut FakeTiers) -> T) -> T {
        self.n_events += 1;
        self.tiers.set_now(self.now);
        let result = event(&mut self.tiers);
        self.decide();
        result
    }

    fn decide(&mut self) {
        let (effects, wake_at) = self.tiers.decide();
        let mut started = Vec::new();
        for effect in effects {
            match effect {
                Effect::Grant { reply, digest, lease } => {
                    self.resident.insert(digest);
                    self.used_at.insert(digest, self.n_events);
                    self.answered.insert(digest);
                    let lease = ResidentLease::new(digest, lease, Weak::<Nobody>::new());
                    assert!(reply.send(Ok(lease)).is_ok(), "granted to someone who left");
                }
                Effect::Refuse { reply, error } => {
                    assert!(reply.send(Err(error)).is_ok(), "refused to someone who left");
                }
                Effect::Load(digest) => {
                    assert!(!self.loading.contains(&digest), "loaded twice");
                    assert_eq!(self.tiers.tier(&digest), Tier::Disk);
                    self.loading.push(digest);
                }
                Effect::Install(digest, packed) => {
                    assert!(self.installing.iter().all(|(other, _)| *other != digest));
                    assert!(!self.resident.contains(&digest), "installed twice");
                    started.push(digest);
                    self.installing.push((digest, packed));
                }
                Effect::DropLease(lease) => self.evicted(&lease),
                Effect::DropPacked(packed) => drop(packed),
            }
        }
        self.wake_at = wake_at;
        assert!(wake_at.is_none_or(|at| at > self.now), "a wake-up in the past");
        self.collect_answers();
        for digest in started {
            self.check_order(digest);
        }
        self.check();
    }

    fn evicted(&mut self, lease: &Arc<Memory>) {
        let digest = lease.digest;
        assert!(self.resident.remove(&digest), "evicted what was not resident");
        assert!(self.n_users(digest) == 0, "evicted while in use");
        assert!(!self.pinned.contains(&digest), "evicted while pinned");
        if !self.forgotten.contains(&digest) {
            for other in &self.resident {
                let is_used = self.n_users(*other) > 0 || self.answered.contains(other);
                let is_evictable = !is_used && !self.pinned.contains(other);
                let at = |digest| (!self.earlier.contains(digest), self.used_at[digest]);
                let (at, other_at) = (at(&digest), at(other));
                assert!(
                    !is_evictable || at <= other_at,
                    "{digest}, used at {at:?}, went before {other}, used at {other_at:?}",
                );
            }
        }
    }

    /// Whoever waits longer and is ready goes first.
    fn check_order(&self, digest: GenerationDigest) {
        let tickets = |digest| {
            self.waiting.iter().filter(move |request| request.digest == digest).map(|it| it.ticket)
        };
        let Some(ticket) = tickets(digest).min().filter(|_| self.is_strict) else { return };
        for earlier in self.waiting.iter().filter(|request| request.ticket < ticket) {
            let is_installing = self.installing.iter().any(|(other, _)| *other == earlier.digest);
            let is_ready = self.tiers.tier(&earlier.digest) == Tier::Host && !is_installing;
            assert!(!is_ready, "request {ticket} went before request {}", earlier.ticket);
        }
    }

    fn collect_answers(&mut self) {
        self.answered.clear();
        for mut request in std::mem::take(&mut self.waiting) {
            match request.answer.try_recv() {
                Ok(Ok(lease)) => {
                    assert_eq!(lease.digest(), request.digest);
                    self.granted.push(request.digest);
                    self.users.entry(request.digest).or_default().push(lease);
                }
                Ok(Err(error)) => self.check_error(request.digest, &error),
                Err(TryRecvError::Empty) => self.waiting.push(request),
                Err(TryRecvError::Closed) => panic!("a request without an answer"),
            }
        }
    }

    fn check_error(&self, digest: GenerationDigest, error: &ResidencyError) {
        match error {
            ResidencyError::NeverFits { needed, available, .. } => {
                let pinned: usize = self.pinned.iter().map(bytes_of).sum();
                assert_eq!(
                    (*needed, *available),
                    (bytes_of(&digest), self.device.capacity - pinned)
                );
                assert!(needed > available);
            }
            ResidencyError::AllPlacesPinned { max_loras, .. } => {
                assert!(self.pinned.len() >= *max_loras);
            }
            ResidencyError::DeviceFull { .. } => assert!(!self.is_strict),
            ResidencyError::QueueFull { waiting } => assert!(*waiting >= self.waiting.len()),
            ResidencyError::LoadFailed { .. } | ResidencyError::DeviceFailed { .. } => {}
            ResidencyError::ShuttingDown => panic!("nobody asked for shut-down"),
        }
    }

    fn check(&mut self) {
        self.tiers.check();
        let tiers = &self.tiers;
        // Retirement is remembered as long as anything else of the generation is.
        self.forgotten.retain(|digest| {
            tiers.tier(digest) != Tier::Disk
                || self.loading.contains(digest)
                || self.waiting.iter().any(|request| request.digest == *digest)
                || !self.is_strict
        });
        self.earlier.retain(|digest| tiers.remembers(digest));
        for digest in &self.resident {
            assert_eq!(tiers.tier(digest), Tier::Device);
            assert!(self.device.has(*digest));
        }
        let installing = self.installing.iter().map(|(digest, _)| digest);
        let bytes: usize = self.resident.iter().chain(installing).map(bytes_of).sum();
        let stats = tiers.stats();
        assert_eq!(stats.device_bytes, bytes);
        assert_eq!(stats.in_use_generations, self.users.len());
        assert!(stats.waiting >= self.waiting.len());
        let limits = tiers.limits();
        // Each request in line may be one too many by itself, when limits were lowered; never more than those.
        assert!(stats.host_generations <= limits.max_cpu_loras + CONFIG.max_waiting);
    }

    fn n_users(&self, digest: GenerationDigest) -> usize {
        self.users.get(&digest).map_or(0, Vec::len)
    }

    pub(super) fn advance_to(&mut self, at: Instant) {
        self.now = self.now.max(at);
        self.event(|_| ());
    }

    pub(super) fn request(&mut self, digest: GenerationDigest) {
        self.n_events += 1;
        self.tiers.set_now(self.now);
        match self.tiers.request(digest) {
            Ok(Requested::Granted(lease)) => {
                assert!(self.resident.contains(&digest));
                self.used_at.insert(digest, self.n_events);
                self.granted.push(digest);
                let lease = ResidentLease::new(digest, lease, Weak::<Nobody>::new());
                self.users.entry(digest).or_default().push(lease);
            }
            Ok(Requested::Waits { ticket, answer }) => {
                assert!(self.waiting.iter().all(|request| request.ticket < ticket));
                self.waiting.push(Request { digest, ticket, answer });
            }
            Err(error) => self.check_error(digest, &error),
        }
        self.decide();
    }

    pub(super) fn take_granted(&mut self) -> Vec<GenerationDigest> {
        std::mem::take(&mut self.granted)
    }

    /// One use of a generation ends.
    pub(super) fn release(&mut self, digest: GenerationDigest) {
        let Some(leases) = self.users.get_mut(&digest) else { return };
        leases.pop();
        if leases.is_empty() {
            self.users.remove(&digest);
            self.used_at.insert(digest, self.n_events + 1);
        }
        self.event(|tiers| tiers.release(digest));
    }

    fn cancel(&mut self, index: usize) {
        if !self.waiting.is_empty() {
            let request = self.waiting.remove(index % self.waiting.len());
            self.event(|tiers| tiers.cancel(request.digest, request.ticket));
        }
    }

    fn finish_load(&mut self, index: usize, is_good: bool) {
        if self.loading.is_empty() {
            return;
        }
        let digest = self.loading.remove(index % self.loading.len());
        let loaded =
            if is_good { Ok((Arc::new(digest), bytes_of(&digest))) } else { Err("broken".into()) };
        self.event(|tiers| tiers.loaded(digest, loaded));
    }

    fn finish_install(&mut self, index: usize, is_good: bool) {
        if self.installing.is_empty() {
            return;
        }
        let (digest, packed) = self.installing.remove(index % self.installing.len());
        assert_eq!(*packed, digest);
        let installed = if is_good {
            self.device.take(digest)
        } else {
            Err(InstallError::Failed("wrong shape".into()))
        };
        match &installed {
            Ok(_) => {
                self.resident.insert(digest);
                self.used_at.insert(digest, self.n_events + 1);
            }
            Err(InstallError::OutOfMemory) => {
                assert!(!self.is_strict, "over capacity, though all memory came back");
            }
            Err(InstallError::Failed(_)) => {}
        }
        self.event(|tiers| tiers.installed(digest, installed));
    }

    pub(super) fn finish_all(&mut self) {
        while !self.loading.is_empty() || !self.installing.is_empty() {
            self.finish_load(0, true);
            self.finish_install(0, true);
        }
    }

    fn prefetch(&mut self, digest: GenerationDigest) {
        self.is_strict = false;
        if self.resident.contains(&digest) {
            self.used_at.insert(digest, self.n_events + 1);
        }
        self.event(|tiers| tiers.prefetch(digest));
    }

    fn pin(&mut self, digest: GenerationDigest) {
        if self.n_users(digest) > 0 {
            self.pinned.insert(digest);
            self.forgotten.remove(&digest);
            self.event(|tiers| tiers.pin(digest));
        }
    }

    fn unpin(&mut self, digest: GenerationDigest) {
        self.pinned.remove(&digest);
        self.event(|tiers| tiers.unpin(digest));
    }

    fn forget(&mut self, digest: GenerationDigest) {
        self.pinned.remove(&digest);
        self.forgotten.insert(digest);
        self.event(|tiers| tiers.forget(digest));
    }

    fn set_current(&mut self, digest: GenerationDigest, is_current: bool) {
        if is_current {
            self.earlier.remove(&digest);
        } else if self.tiers.remembers(&digest) {
            self.earlier.insert(digest);
        }
        self.event(|tiers| tiers.set_current(digest, is_current));
    }

    fn offer(&mut self, digest: GenerationDigest) {
        self.earlier.remove(&digest);
        self.forgotten.remove(&digest);
        self.event(|tiers| tiers.offer(digest, Arc::new(digest), bytes_of(&digest)));
    }

    /// Somebody holds the device's own lease beyond its use.
    fn keep_elsewhere(&mut self, digest: GenerationDigest) {
        if let Some(lease) = self.users.get(&digest).and_then(|leases| leases.first()) {
            self.is_strict = false;
            self.kept_elsewhere.push(Arc::clone(lease.device_lease()));
        }
    }

    fn run(&mut self, operation: &Operation) {
        let digest = |number: usize| {
            let number = number % SIZES.len();
            generation(number as u64, SIZES[number])
        };
        match *operation {
            Operation::Request(number) => self.request(digest(number)),
            Operation::Cancel(index) => self.cancel(index),
            Operation::Release(index) => {
                if let Some(digest) = self.users.keys().nth(index % self.users.len().max(1)) {
                    self.release(*digest);
                }
            }
            Operation::FinishLoad(index, is_good) => self.finish_load(index, is_good),
            Operation::FinishInstall(index, is_good) => self.finish_install(index, is_good),
            Operation::Advance(ms) => self.advance_to(self.now + Duration::from_millis(ms)),
            Operation::Prefetch(number) => self.prefetch(digest(number)),
            Operation::Pin(number) => self.pin(digest(number)),
            Operation::Unpin(number) => self.unpin(digest(number)),
            Operation::Forget(number) => self.forget(digest(number)),
            Operation::SetCurrent(number, is_current) => {
                self.set_current(digest(number), is_current);
            }
            Operation::Offer(number) => self.offer(digest(number)),
            Operation::KeepElsewhere(number) => self.keep_elsewhere(digest(number)),
            Operation::ReturnAll => self.kept_elsewhere.clear(),
            Operation::SetLimits { host_bytes_max, max_loras, max_cpu_loras } => {
                let limits = ResidencyLimits { host_bytes_max, max_loras, max_cpu_loras };
                self.event(|tiers| tiers.set_limits(limits));
            }
        }
    }

    /// Everybody goes home: all who wait must be served or refused on the way, and nothing may be left.
    fn end(&mut self) {
        self.kept_elsewhere.clear();
        while let Some(digest) = self.pinned.first() {
            self.unpin(*digest);
        }
        for _ in 0..1000 {
            self.finish_all();
            while let Some(digest) = self.users.keys().next() {
                self.release(*digest);
            }
            if self.waiting.is_empty() && self.loading.is_empty() && self.installing.is_empty() {
                break;
            }
            if let Some(at) = self.wake_at {
                self.advance_to(at);
            }
        }
        assert_eq!(self.waiting.len(), 0, "these wait for ever: {:?}", self.tiers);
        for (number, bytes) in SIZES.into_iter().enumerate() {
            self.forget(generation(number as u64, bytes));
        }
        let stats = self.tiers.stats();
        assert_eq!((stats.device_bytes, stats.host_bytes, stats.waiting), (0, 0, 0), "{stats:?}");
        assert_eq!((stats.device_generations, stats.host_generations), (0, 0));
        assert_eq!(self.device.used(), 0);
    }
}

const SIZES: [usize; 9] = [10, 20, 25, 30, 40, 50, 70, 100, 101];
const CAPACITY: usize = 100;

#[derive(Clone, Debug)]
enum Operation {
    Request(usize),
    Cancel(usize),
    Release(usize),
    FinishLoad(usize, bool),
    FinishInstall(usize, bool),
    Advance(u64),
    Prefetch(usize),
    Pin(usize),
    Unpin(usize),
    Forget(usize),
    SetCurrent(usize, bool),
    Offer(usize),
    KeepElsewhere(usize),
    ReturnAll,
    SetLimits { host_bytes_max: usize, max_loras: usize, max_cpu_loras: usize },
}

fn plain_operation() -> impl Strategy<Value = Operation> {
    let index = 0..100_usize;
    prop_oneof![
        12 => index.clone().prop_map(Operation::Request),
        2 => index.clone().prop_map(Operation::Cancel),
        6 => index.clone().prop_map(Operation::Release),
        8 => (index.clone(), prop::bool::weighted(0.95)).prop_map(|(index, is_good)| Operation::FinishLoad(index, is_good)),
        8 => (index.clone(), prop::bool::weighted(0.95)).prop_map(|(index, is_good)| Operation::FinishInstall(index, is_good)),
        4 => (0..400_u64).prop_map(Operation::Advance),
        1 => index.clone().prop_map(Operation::Pin),
        1 => index.clone().prop_map(Operation::Unpin),
        1 => index.clone().prop_map(Operation::Forget),
        2 => (index.clone(), any::<bool>()).prop_map(|(index, is_current)| Operation::SetCurrent(index, is_current)),
        1 => index.prop_map(Operation::Offer),
        1 => (0..200_usize, 0..8_usize, 0..8_usize).prop_map(|(host_bytes_max, max_loras, max_cpu_loras)| {
            Operation::SetLimits { host_bytes_max, max_loras, max_cpu_loras }
        }),
    ]
}

fn any_operation() -> impl Strategy<Value = Operation> {
    let index = 0..100_usize;
    prop_oneof![
        12 => plain_operation(),
        1 => index.clone().prop_map(Operation::Prefetch),
        1 => index.prop_map(Operation::KeepElsewhere),
        1 => Just(Operation::ReturnAll),
    ]
}

fn run(operations: &[Operation]) {
    let limits = ResidencyLimits { host_bytes_max: 150, max_loras: 5, max_cpu_loras: 6 };
    let mut world = World::new(ResidencyConfig { limits, max_waiting: 30, ..CONFIG }, CAPACITY);
    for operation in operations {
        world.run(operation);
    }
    world.end();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases(500)))]

    #[test]
    fn every_order_of_events_keeps_the_rules(operations in prop::collection::vec(plain_operation(), 1..150)) {
        run(&operations);
    }

    #[test]
    fn and_so_with_prefetches_and_late_memory(operations in prop::collection::vec(any_operation(), 1..150)) {
        run(&operations);
    }
}
