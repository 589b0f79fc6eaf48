//! The series of the adapters' memory tiers.

use prometheus::{Counter, IntCounterVec, IntGauge, IntGaugeVec, Opts};

use super::{
    metrics::{Maker, TierFacts},
    names,
};

const DEVICE: &str = "device";
const HOST: &str = "host";
const DISK: &str = "disk";
const OK: &str = "ok";
const FAILED: &str = "failed";

#[derive(Debug)]
pub(super) struct TierSeries {
    generations: IntGaugeVec,
    bytes: IntGaugeVec,
    capacity: IntGauge,
    in_use: IntGauge,
    waiting: IntGauge,
    loading: IntGauge,
    requests: IntCounterVec,
    loads: IntCounterVec,
    installs: IntCounterVec,
    evictions: IntCounterVec,
    load_seconds: Counter,
}

impl TierSeries {
    pub(super) fn new(make: &Maker) -> prometheus::Result<Self> {
        let gauge = |name, help| make.register(IntGauge::new(name, help)?);
        let gauges = |name, help| {
            make.register(IntGaugeVec::new(Opts::new(name, help), &[names::LABEL_TIER])?)
        };
        let counters =
            |name, help, label| make.register(IntCounterVec::new(Opts::new(name, help), &[label])?);
        Ok(Self {
            generations: gauges(names::TIER_GENERATIONS, "Adapter generations by tier.")?,
            bytes: gauges(names::TIER_BYTES, "Bytes of adapter generations by tier.")?,
            capacity: gauge(names::DEVICE_CAPACITY, "Bytes of the device for adapters.")?,
            in_use: gauge(names::TIERS_IN_USE, "Adapter generations that sequences use.")?,
            waiting: gauge(names::TIERS_WAITING, "Requests that wait for an adapter.")?,
            loading: gauge(names::TIERS_LOADING, "Adapter loads and installs under way.")?,
            requests: counters(
                names::TIER_REQUESTS,
                "Requests by where they found their adapter.",
                names::LABEL_TIER,
            )?,
            loads: counters(names::LOADS, "Adapter loads from disk.", names::LABEL_RESULT)?,
            installs: counters(
                names::INSTALLS,
                "Adapter installs on the device.",
                names::LABEL_RESULT,
            )?,
            evictions: counters(
                names::EVICTIONS,
                "Adapter generations that left a tier.",
                names::LABEL_TIER,
            )?,
            load_seconds: make.register(Counter::new(
                names::LOAD_SECONDS,
                "Seconds spent on loading adapters.",
            )?)?,
        })
    }

    /// The tiers count by themselves: each series is set to what they say.
    pub(super) fn update(&self, facts: &TierFacts) {
        let count = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        let stats = &facts.stats;
        for (series, device, host) in [
            (&self.generations, stats.device_generations, stats.host_generations),
            (&self.bytes, stats.device_bytes, stats.host_bytes),
        ] {
            series.with_label_values(&[DEVICE]).set(count(device));
            series.with_label_values(&[HOST]).set(count(host));
        }
        self.capacity.set(count(stats.device_capacity_bytes));
        self.in_use.set(count(stats.in_use_generations));
        self.waiting.set(count(stats.waiting));
        self.loading.set(count(stats.loading + stats.installing));
        for (series, label, value) in [
            (&self.requests, DEVICE, stats.device_hits + stats.held_back),
            (&self.requests, HOST, stats.host_hits),
            (&self.requests, DISK, stats.misses),
            (&self.loads, OK, stats.loads),
            (&self.loads, FAILED, stats.load_failures),
            (&self.installs, OK, stats.installs),
            (&self.installs, FAILED, stats.install_failures),
            (&self.evictions, DEVICE, stats.device_evictions),
            (&self.evictions, HOST, stats.host_evictions),
        ] {
            let counter = series.with_label_values(&[label]);
            counter.inc_by(value.saturating_sub(counter.get()));
        }
        self.load_seconds.inc_by((facts.load_seconds - self.load_seconds.get()).max(0.0));
    }
}
