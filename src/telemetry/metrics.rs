//! The series of `/metrics`. Names, labels and buckets are in [`names`].

use std::collections::HashMap;

use pleach_adapters::ResidencyStats;
use pleach_engine::{engine::EngineStats, kv::KV_BLOCK_TOKENS};
use prometheus::{
    Counter, Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter,
    IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder, core::Collector,
};

use super::{names, residency::TierSeries, tenants::TenantVectors};

/// What the series say of the server; fixed at start.
#[derive(Clone, Debug)]
pub struct ServerFacts {
    /// First served name of the base.
    pub model_name: String,
    /// Context, tokens.
    pub context: usize,
    /// Blocks of the KV pool.
    pub kv_blocks: usize,
    /// Whether prefixes are reused.
    pub prefix_cache: bool,
}

/// An alias as `/metrics` shows it.
#[derive(Clone, Debug)]
pub struct AdapterFacts {
    /// The name.
    pub alias: String,
    /// Digest of its generation.
    pub generation: String,
    /// Whether requests or sequences wait for it.
    pub waiting: bool,
    /// Whether its generation is on the device.
    pub resident: bool,
}

/// The memory tiers of adapters at a scrape.
#[derive(Clone, Copy, Debug, Default)]
pub struct TierFacts {
    /// Their numbers.
    pub stats: ResidencyStats,
    /// Most generations on the device.
    pub max_loras: usize,
    /// Time spent on loading, all loads together.
    pub load_seconds: f64,
}

/// All series of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    pub(super) ttft: Histogram,
    pub(super) itl: Histogram,
    pub(super) tpot: Histogram,
    pub(super) e2e: Histogram,
    pub(super) queue_time: Histogram,
    pub(super) prefill_time: Histogram,
    pub(super) decode_time: Histogram,
    pub(super) inference_time: Histogram,
    pub(super) request_prompt_tokens: Histogram,
    pub(super) request_generation_tokens: Histogram,
    pub(super) finished: IntCounterVec,
    pub(super) by_adapter: AdapterHistograms,
    pub(super) by_tenant: TenantVectors,
    pub(super) responses: IntCounterVec,
    pub(super) errors: IntCounterVec,
    pub(super) adapter_wait: Histogram,
    pub(super) captured: IntCounterVec,
    pub(super) feedback: IntCounterVec,
    pub(super) trainings: IntCounterVec,
    pub(super) rounds: IntCounterVec,
    pub(super) training_itl_budget: Gauge,
    engine: EngineSeries,
    adapters: AdapterSeries,
    tiers: TierSeries,
}

/// The four latencies by adapter.
#[derive(Clone, Debug)]
pub struct AdapterHistograms {
    pub(super) queue: HistogramVec,
    pub(super) ttft: HistogramVec,
    pub(super) itl: HistogramVec,
    pub(super) e2e: HistogramVec,
}

#[derive(Debug)]
struct EngineSeries {
    running: IntGauge,
    waiting: IntGauge,
    kv_usage: Gauge,
    prompt_tokens: IntCounter,
    generation_tokens: IntCounter,
    prefix_queries: IntCounter,
    prefix_hits: IntCounter,
    preemptions: IntCounter,
    steps: IntCounter,
    step_seconds: Counter,
    training_seconds: Counter,
    undisturbed_itl: Gauge,
}

#[derive(Debug)]
struct AdapterSeries {
    count: IntGauge,
    info: IntGaugeVec,
    lora_info: GaugeVec,
}

impl Metrics {
    /// Makes and registers every series.
    ///
    /// # Errors
    /// When two have one name, or a name or label is not valid: a bug, found by the first test.
    #[expect(clippy::too_many_lines, reason = "a list of series")]
    pub fn new(facts: &ServerFacts) -> prometheus::Result<Self> {
        let make = Maker { registry: Registry::new(), model_name: facts.model_name.clone() };
        let tokens = names::token_buckets(facts.context);
        let vllm = |name, help, buckets| make.histogram(name, help, buckets);
        let cache_config = make.register(IntGaugeVec::new(
            make.vllm_opts(names::CACHE_CONFIG, "Size and number of KV blocks."),
            &[names::LABEL_BLOCK_SIZE, names::LABEL_BLOCKS, names::LABEL_PREFIX_CACHING],
        )?)?;
        let prefix_caching = if facts.prefix_cache { "True" } else { "False" };
        cache_config
            .with_label_values(&[
                &KV_BLOCK_TOKENS.to_string(),
                &facts.kv_blocks.to_string(),
                prefix_caching,
            ])
            .set(1);
        let build_info = make.register(IntGaugeVec::new(
            Opts::new(names::BUILD_INFO, "The running program."),
            &[names::LABEL_VERSION],
        )?)?;
        build_info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Ok(Self {
            ttft: vllm(
                names::TTFT,
                "Seconds from arrival to the first token.",
                names::TTFT_BUCKETS,
            )?,
            itl: vllm(names::ITL, "Seconds between two tokens of a sequence.", names::ITL_BUCKETS)?,
            tpot: vllm(names::TPOT, "Mean seconds per token after the first.", names::ITL_BUCKETS)?,
            e2e: vllm(
                names::E2E,
                "Seconds from arrival to the last token.",
                names::REQUEST_BUCKETS,
            )?,
            queue_time: vllm(names::QUEUE_TIME, "Seconds in the queue.", names::REQUEST_BUCKETS)?,
            prefill_time: vllm(
                names::PREFILL_TIME,
                "Seconds from the queue to the first token.",
                names::REQUEST_BUCKETS,
            )?,
            decode_time: vllm(
                names::DECODE_TIME,
                "Seconds from the first to the last token.",
                names::REQUEST_BUCKETS,
            )?,
            inference_time: vllm(
                names::INFERENCE_TIME,
                "Seconds from the queue to the last token.",
                names::REQUEST_BUCKETS,
            )?,
            request_prompt_tokens: vllm(
                names::REQUEST_PROMPT_TOKENS,
                "Prompt tokens of a sequence.",
                &tokens,
            )?,
            request_generation_tokens: vllm(
                names::REQUEST_GENERATION_TOKENS,
                "Completion tokens of a sequence.",
                &tokens,
            )?,
            finished: make.register(IntCounterVec::new(
                make.vllm_opts(names::REQUEST_SUCCESS, "Ended sequences by reason."),
                &[names::LABEL_FINISHED],
            )?)?,
            by_adapter: AdapterHistograms::new(&make)?,
            by_tenant: TenantVectors::new(&make)?,
            responses: make.register(IntCounterVec::new(
                Opts::new(names::HTTP_RESPONSES, "Responses by route and status."),
                &[names::LABEL_PATH, names::LABEL_STATUS],
            )?)?,
            errors: make.register(IntCounterVec::new(
                Opts::new(names::ERRORS, "Refused and failed requests by error code."),
                &[names::LABEL_CODE],
            )?)?,
            adapter_wait: make.register(Histogram::with_opts(
                HistogramOpts::new(
                    names::ADAPTER_WAIT,
                    "Seconds that requests waited for their adapter to be on the device.",
                )
                .buckets(names::FINE_BUCKETS.to_vec()),
            )?)?,
            captured: make.register(IntCounterVec::new(
                Opts::new(
                    names::CAPTURED,
                    "Completions that were to be kept, by what became of them.",
                ),
                &[names::LABEL_RESULT],
            )?)?,
            feedback: make.register(IntCounterVec::new(
                Opts::new(names::FEEDBACK, "Feedback that was taken, by kind."),
                &[names::LABEL_KIND],
            )?)?,
            trainings: make.register(IntCounterVec::new(
                Opts::new(names::TRAININGS, "Trainings that ended in this process, by result."),
                &[names::LABEL_RESULT],
            )?)?,
            rounds: make.register(IntCounterVec::new(
                Opts::new(names::ROUNDS, "Rounds of the learning loop that ended, by result."),
                &[names::LABEL_RESULT],
            )?)?,
            training_itl_budget: make.register(Gauge::new(
                names::TRAINING_ITL_BUDGET,
                "Seconds between two tokens that a training keeps to; 0 while none keeps to anything.",
            )?)?,
            engine: EngineSeries::new(&make)?,
            adapters: AdapterSeries::new(&make)?,
            tiers: TierSeries::new(&make)?,
            registry: make.registry,
        })
    }

    /// The text of all series. `last` is the snapshot of the previous call: counters grow by the difference.
    ///
    /// # Errors
    /// When a series cannot be written as text.
    pub fn render(
        &self,
        last: &EngineStats,
        stats: &EngineStats,
        adapters: &[AdapterFacts],
        tiers: &TierFacts,
        unix_time: f64,
    ) -> prometheus::Result<Vec<u8>> {
        self.engine.update(last, stats);
        self.adapters.update(adapters, tiers.max_loras, unix_time);
        self.tiers.update(tiers);
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

impl AdapterHistograms {
    fn new(make: &Maker) -> prometheus::Result<Self> {
        let histogram = |name, help| {
            let opts = HistogramOpts::new(name, help).buckets(names::FINE_BUCKETS.to_vec());
            make.register(HistogramVec::new(opts, &[names::LABEL_ADAPTER])?)
        };
        Ok(Self {
            queue: histogram(names::ADAPTER_QUEUE_TIME, "Seconds in the queue, by adapter.")?,
            ttft: histogram(
                names::ADAPTER_TTFT,
                "Seconds from arrival to the first token, by adapter.",
            )?,
            itl: histogram(
                names::ADAPTER_ITL,
                "Seconds between two tokens of a sequence, by adapter.",
            )?,
            e2e: histogram(
                names::ADAPTER_E2E,
                "Seconds from arrival to the last token, by adapter.",
            )?,
        })
    }
}

impl EngineSeries {
    fn new(make: &Maker) -> prometheus::Result<Self> {
        let gauge = |name, help| make.register(IntGauge::with_opts(make.vllm_opts(name, help))?);
        let counter =
            |name, help| make.register(IntCounter::with_opts(make.vllm_opts(name, help))?);
        Ok(Self {
            running: gauge(names::RUNNING, "Sequences in steps.")?,
            waiting: gauge(names::WAITING, "Sequences in the queue.")?,
            kv_usage: make.register(Gauge::with_opts(
                make.vllm_opts(names::KV_USAGE, "Share of KV blocks held by sequences, 0 to 1."),
            )?)?,
            prompt_tokens: counter(
                names::PROMPT_TOKENS,
                "Prompt tokens computed or found in the prefix cache.",
            )?,
            generation_tokens: counter(names::GENERATION_TOKENS, "Completion tokens.")?,
            prefix_queries: counter(
                names::PREFIX_QUERIES,
                "Prompt tokens looked up in the prefix cache.",
            )?,
            prefix_hits: counter(names::PREFIX_HITS, "Prompt tokens found in the prefix cache.")?,
            preemptions: counter(
                names::PREEMPTIONS,
                "Sequences sent back to the queue for want of KV blocks.",
            )?,
            steps: make.register(IntCounter::new(names::STEPS, "Forward passes.")?)?,
            step_seconds: make
                .register(Counter::new(names::STEP_SECONDS, "Seconds of forward passes.")?)?,
            training_seconds: make.register(Counter::new(
                names::TRAINING_SECONDS,
                "Seconds that trainings computed, between forward passes and while there were none.",
            )?)?,
            undisturbed_itl: make.register(Gauge::new(
                names::UNDISTURBED_ITL,
                "99th percentile of seconds between two tokens without a training; 0 until it is known.",
            )?)?,
        })
    }

    fn update(&self, last: &EngineStats, stats: &EngineStats) {
        let count = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        self.running.set(count(stats.running));
        self.waiting.set(count(stats.waiting));
        self.kv_usage.set(stats.kv_blocks_used as f64 / stats.kv_blocks_total.max(1) as f64);
        for (counter, before, after) in [
            (&self.prompt_tokens, last.prompt_tokens, stats.prompt_tokens),
            (&self.generation_tokens, last.completion_tokens, stats.completion_tokens),
            (&self.prefix_queries, last.prefix_queries, stats.prefix_queries),
            (&self.prefix_hits, last.prefix_hits, stats.prefix_hits),
            (&self.preemptions, last.preemptions, stats.preemptions),
            (&self.steps, last.steps, stats.steps),
        ] {
            counter.inc_by(after.saturating_sub(before));
        }
        for (counter, before, after) in [
            (&self.step_seconds, last.step_time, stats.step_time),
            (&self.training_seconds, last.guest_time, stats.guest_time),
        ] {
            counter.inc_by(after.saturating_sub(before).as_secs_f64());
        }
        self.undisturbed_itl.set(stats.undisturbed_itl_p99.unwrap_or_default().as_secs_f64());
    }
}

impl AdapterSeries {
    fn new(make: &Maker) -> prometheus::Result<Self> {
        Ok(Self {
            count: make.register(IntGauge::new(names::ADAPTERS, "Registered adapters.")?)?,
            info: make.register(IntGaugeVec::new(
                Opts::new(names::ADAPTER_INFO, "The generation of each adapter."),
                &[names::LABEL_ADAPTER, names::LABEL_GENERATION],
            )?)?,
            lora_info: make.register(GaugeVec::new(
                Opts::new(
                    names::LORA_INFO,
                    "Resident adapters; the value is the time of the update.",
                ),
                &[names::LABEL_LORA_MAX, names::LABEL_LORA_RUNNING, names::LABEL_LORA_WAITING],
            )?)?,
        })
    }

    /// Old label sets go first: there is always exactly one series of adapters, the newest.
    fn update(&self, adapters: &[AdapterFacts], max_loras: usize, unix_time: f64) {
        self.count.set(i64::try_from(adapters.len()).unwrap_or(i64::MAX));
        self.info.reset();
        for adapter in adapters.iter().take(names::ADAPTER_LABELS_MAX) {
            self.info.with_label_values(&[&adapter.alias, &adapter.generation]).set(1);
        }
        let join = |keep: fn(&AdapterFacts) -> bool| {
            let aliases: Vec<&str> = adapters
                .iter()
                .filter(|adapter| keep(adapter))
                .take(names::LORA_INFO_ALIASES_MAX)
                .map(|adapter| adapter.alias.as_str())
                .collect();
            aliases.join(",")
        };
        self.lora_info.reset();
        self.lora_info
            .with_label_values(&[
                &max_loras.to_string(),
                &join(|adapter| adapter.resident),
                &join(|adapter| adapter.waiting),
            ])
            .set(unix_time);
    }
}

/// Makes series and registers them at once.
pub(super) struct Maker {
    registry: Registry,
    model_name: String,
}

impl Maker {
    pub(super) fn register<C: Collector + Clone + 'static>(
        &self,
        series: C,
    ) -> prometheus::Result<C> {
        self.registry.register(Box::new(series.clone()))?;
        Ok(series)
    }

    fn vllm_labels(&self) -> HashMap<String, String> {
        HashMap::from([
            (names::LABEL_MODEL.to_owned(), self.model_name.clone()),
            (names::LABEL_ENGINE.to_owned(), "0".to_owned()),
        ])
    }

    fn vllm_opts(&self, name: &str, help: &str) -> Opts {
        Opts::new(name, help).const_labels(self.vllm_labels())
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> prometheus::Result<Histogram> {
        let opts = HistogramOpts::new(name, help)
            .const_labels(self.vllm_labels())
            .buckets(buckets.to_vec());
        self.register(Histogram::with_opts(opts)?)
    }
}
