//! A device with its own bookkeeping, and a source whose loads the test holds up and lets go.

use std::{
    collections::{HashMap, HashSet},
    error::Error,
    sync::{Arc, Condvar, Mutex},
    time::Duration,
};

use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use crate::{
    digest::GenerationDigest,
    residency::{
        AdapterDevice, AdapterSource, InstallError, Residency, ResidencyConfig, ResidencyError,
        ResidencyLimits, ResidentLease,
    },
};

/// A generation that knows its size: bytes 0..8 are its number, 8..16 its size.
pub(super) fn generation(number: u64, bytes: usize) -> GenerationDigest {
    let mut digest = [0; 32];
    digest[..8].copy_from_slice(&number.to_be_bytes());
    digest[8..16].copy_from_slice(&(bytes as u64).to_be_bytes());
    GenerationDigest(digest)
}

pub(super) fn bytes_of(digest: &GenerationDigest) -> usize {
    usize::try_from(u64::from_be_bytes(digest.0[8..16].try_into().unwrap())).unwrap()
}

#[derive(Debug, Default)]
pub(super) struct DeviceState {
    pub(super) used: usize,
    pub(super) live: HashMap<GenerationDigest, usize>,
    pub(super) installs: HashMap<GenerationDigest, usize>,
    /// Installs fail for good, or panic.
    pub(super) broken: HashSet<GenerationDigest>,
    pub(super) panicking: HashSet<GenerationDigest>,
    /// What is free is in pieces: a limit on the size of an install while this many are resident.
    pub(super) pieces: Option<(usize, usize)>,
}

/// Counts what is really there. Clones are one device.
#[derive(Clone, Debug)]
pub(super) struct Device {
    pub(super) capacity: usize,
    pub(super) state: Arc<Mutex<DeviceState>>,
    /// Installs wait while it is false.
    pub(super) open: watch::Sender<bool>,
}

#[derive(Debug)]
pub(super) struct Memory {
    pub(super) digest: GenerationDigest,
    state: Arc<Mutex<DeviceState>>,
}

impl Drop for Memory {
    fn drop(&mut self) {
        let mut state = self.state.lock().unwrap();
        state.used -= bytes_of(&self.digest);
        let n = state.live.get_mut(&self.digest).unwrap();
        *n -= 1;
        if *n == 0 {
            state.live.remove(&self.digest);
        }
    }
}

impl Device {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, state: Arc::default(), open: watch::channel(true).0 }
    }

    pub(super) fn take(&self, digest: GenerationDigest) -> Result<Arc<Memory>, InstallError> {
        let mut state = self.state.lock().unwrap();
        *state.installs.entry(digest).or_default() += 1;
        let is_panicking = state.panicking.contains(&digest);
        let is_broken = state.broken.contains(&digest);
        let bytes = bytes_of(&digest);
        let is_in_pieces = state
            .pieces
            .is_some_and(|(bytes_max, n_live)| bytes > bytes_max && state.live.len() >= n_live);
        if is_broken {
            return Err(InstallError::Failed("wrong shape".into()));
        }
        if is_in_pieces || state.used + bytes > self.capacity {
            return Err(InstallError::OutOfMemory);
        }
        if !is_panicking {
            state.used += bytes;
            *state.live.entry(digest).or_default() += 1;
        }
        drop(state);
        assert!(!is_panicking, "the device panics");
        Ok(Arc::new(Memory { digest, state: Arc::clone(&self.state) }))
    }

    pub(super) fn installs(&self, digest: GenerationDigest) -> usize {
        self.state.lock().unwrap().installs.get(&digest).copied().unwrap_or(0)
    }

    pub(super) fn used(&self) -> usize {
        self.state.lock().unwrap().used
    }

    pub(super) fn has(&self, digest: GenerationDigest) -> bool {
        self.state.lock().unwrap().live.contains_key(&digest)
    }
}

impl AdapterDevice for Device {
    type Packed = GenerationDigest;
    type Lease = Arc<Memory>;

    fn capacity_bytes(&self) -> usize {
        self.capacity
    }

    fn packed_bytes(&self, packed: &GenerationDigest) -> usize {
        bytes_of(packed)
    }

    async fn install(&self, packed: Arc<GenerationDigest>) -> Result<Arc<Memory>, InstallError> {
        let _ = self.open.subscribe().wait_for(|is_open| *is_open).await;
        self.take(*packed)
    }
}

#[derive(Debug, Default)]
pub(super) struct SourceState {
    pub(super) loads: HashMap<GenerationDigest, usize>,
    pub(super) broken: HashSet<GenerationDigest>,
    pub(super) panicking: HashSet<GenerationDigest>,
    /// These loads wait.
    held: HashSet<GenerationDigest>,
    n_running: usize,
    pub(super) n_running_max: usize,
}

/// Clones are one source.
#[derive(Clone, Debug, Default)]
pub(super) struct Source {
    shared: Arc<(Mutex<SourceState>, Condvar)>,
}

impl Source {
    pub(super) fn state(&self) -> std::sync::MutexGuard<'_, SourceState> {
        self.shared.0.lock().unwrap()
    }

    pub(super) fn loads(&self, digest: GenerationDigest) -> usize {
        self.state().loads.get(&digest).copied().unwrap_or(0)
    }

    pub(super) fn hold(&self, digest: GenerationDigest) {
        self.state().held.insert(digest);
    }

    pub(super) fn let_go(&self, digest: GenerationDigest) {
        self.state().held.remove(&digest);
        self.shared.1.notify_all();
    }
}

impl AdapterSource for Source {
    type Packed = GenerationDigest;

    fn load(
        &self,
        digest: &GenerationDigest,
    ) -> Result<GenerationDigest, Box<dyn Error + Send + Sync>> {
        let mut state = self.state();
        *state.loads.entry(*digest).or_default() += 1;
        state.n_running += 1;
        state.n_running_max = state.n_running_max.max(state.n_running);
        let mut state =
            self.shared.1.wait_while(state, |state| state.held.contains(digest)).unwrap();
        state.n_running -= 1;
        let is_broken = state.broken.contains(digest);
        let is_panicking = state.panicking.contains(digest);
        drop(state);
        assert!(!is_panicking, "the parser panics");
        if is_broken { Err("truncated".into()) } else { Ok(*digest) }
    }
}

pub(super) type Tested = Residency<Device, Source>;
pub(super) type Lease = ResidentLease<Arc<Memory>>;
pub(super) type Answer = Result<Lease, ResidencyError>;

pub(super) struct Bench {
    pub(super) device: Device,
    pub(super) source: Source,
    pub(super) residency: Tested,
}

pub(super) const CONFIG: ResidencyConfig = ResidencyConfig {
    limits: ResidencyLimits { host_bytes_max: 10_000, max_loras: 1000, max_cpu_loras: 1000 },
    max_waiting: 100,
    max_loads: 4,
    max_installs: 2,
    drain_after: Duration::from_millis(50),
    failure_kept: Duration::from_secs(1),
    out_of_memory_patience: Duration::from_secs(30),
};

impl Bench {
    pub(super) fn new(capacity: usize) -> Self {
        Self::with(capacity, CONFIG)
    }

    pub(super) fn with(capacity: usize, config: ResidencyConfig) -> Self {
        let (device, source) = (Device::new(capacity), Source::default());
        let residency = Residency::new(device.clone(), source.clone(), config);
        Self { device, source, residency }
    }

    pub(super) async fn lease(&self, digest: GenerationDigest) -> Lease {
        self.residency.lease(digest).await.unwrap()
    }

    /// A request that waits in a task of its own, and has its place in line when this returns.
    pub(super) async fn ask(&self, digest: GenerationDigest) -> JoinHandle<Answer> {
        let residency = self.residency.clone();
        let request = tokio::spawn(async move { residency.lease(digest).await });
        tokio::task::yield_now().await;
        request
    }

    /// A request like [`Self::ask`]'s that gives its lease back at once, whoever awaits it when.
    pub(super) async fn visit(&self, digest: GenerationDigest) -> JoinHandle<()> {
        let residency = self.residency.clone();
        let visit = tokio::spawn(async move { drop(residency.lease(digest).await.unwrap()) });
        tokio::task::yield_now().await;
        visit
    }

    /// Waits, in real time if need be, for what blocking threads do; the paused clock stands still.
    pub(super) async fn until(&self, condition: impl Fn(&Self) -> bool) {
        for _ in 0..100_000 {
            if condition(self) {
                return;
            }
            tokio::task::yield_now().await;
            std::thread::yield_now();
        }
        assert!(condition(self), "nothing happened: {:?}", self.residency);
    }

    /// Checks the books against themselves and against the device.
    pub(super) fn check(&self) {
        self.residency.shared.lock().check();
        assert!(self.device.used() <= self.device.capacity);
    }
}

/// Gives all that can happen without time passing a chance to happen.
pub(super) async fn settle() {
    sleep(Duration::from_millis(1)).await;
}

/// The answer that must be there at once.
pub(super) async fn now(request: JoinHandle<Answer>) -> Answer {
    let started = Instant::now();
    let answer = timeout(Duration::from_millis(3), request).await.expect("no answer").unwrap();
    assert!(started.elapsed() <= Duration::from_millis(3));
    answer
}
