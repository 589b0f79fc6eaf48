//! Every metric name, label and bucket. `vllm:` names mean what they mean in vLLM (its dashboards and the Kubernetes
//! inference routers read them); everything that is ours begins with `pleach_`.

/// Served base, on every `vllm:` series.
pub const LABEL_MODEL: &str = "model_name";
/// Always `"0"`: there is one engine in a process.
pub const LABEL_ENGINE: &str = "engine";
/// Why a sequence ended: `stop`, `length`, `abort` or `error`.
pub const LABEL_FINISHED: &str = "finished_reason";
/// Adapter of a request; [`ADAPTER_BASE`], [`ADAPTER_COMPOSED`] and [`ADAPTER_OTHER`] besides aliases.
pub const LABEL_ADAPTER: &str = "adapter";
/// Digest of a generation.
pub const LABEL_GENERATION: &str = "generation";
/// Route of a request, as declared in the router.
pub const LABEL_PATH: &str = "path";
/// HTTP status.
pub const LABEL_STATUS: &str = "status";
/// `code` of the error envelope.
pub const LABEL_CODE: &str = "code";
/// Of [`CACHE_CONFIG`].
pub const LABEL_BLOCK_SIZE: &str = "block_size";
/// Of [`CACHE_CONFIG`].
pub const LABEL_BLOCKS: &str = "num_gpu_blocks";
/// Of [`CACHE_CONFIG`].
pub const LABEL_PREFIX_CACHING: &str = "enable_prefix_caching";
/// Of [`LORA_INFO`]: adapters that fit.
pub const LABEL_LORA_MAX: &str = "max_lora";
/// Of [`LORA_INFO`]: resident aliases, comma-separated (aliases hold no commas).
pub const LABEL_LORA_RUNNING: &str = "running_lora_adapters";
/// Of [`LORA_INFO`]: aliases with waiting sequences, comma-separated.
pub const LABEL_LORA_WAITING: &str = "waiting_lora_adapters";
/// Where an adapter is or was: `device`, `host` or `disk`.
pub const LABEL_TIER: &str = "tier";
/// `ok` or `failed`; of completions that are to be kept, also `kept` and `dropped`.
pub const LABEL_RESULT: &str = "result";
/// Tenant of a request, by its name; [`TENANT_OPERATOR`] and [`TENANT_OTHER`] besides.
pub const LABEL_TENANT: &str = "tenant";
/// `prompt` or `completion`; of feedback, what kind of thing was said.
pub const LABEL_KIND: &str = "kind";
/// Which limit, or what else, a request was refused for.
pub const LABEL_REASON: &str = "reason";
/// Of [`BUILD_INFO`].
pub const LABEL_VERSION: &str = "version";

/// The [`LABEL_ADAPTER`] of rows without adapter. The space keeps it apart from aliases, which hold none.
pub const ADAPTER_BASE: &str = "(plain base)";
/// The [`LABEL_ADAPTER`] of adapters beyond [`ADAPTER_LABELS_MAX`].
pub const ADAPTER_OTHER: &str = "(other adapters)";
/// The [`LABEL_ADAPTER`] of rows under several adapters at once: one for all, as there is no end of sums.
pub const ADAPTER_COMPOSED: &str = "(composed adapters)";
/// Most adapters with series of their own: each has about half a megabyte of histograms.
pub const ADAPTER_LABELS_MAX: usize = 64;
/// Most aliases listed in a label of [`LORA_INFO`].
pub const LORA_INFO_ALIASES_MAX: usize = 128;

/// The [`LABEL_TENANT`] of whoever runs the server.
pub const TENANT_OPERATOR: &str = "_operator";
/// The [`LABEL_TENANT`] of tenants beyond [`TENANT_LABELS_MAX`].
pub const TENANT_OTHER: &str = "_other";
/// Most tenants with series of their own.
pub const TENANT_LABELS_MAX: usize = 512;

/// Histogram, seconds from arrival to the first token.
pub const TTFT: &str = "vllm:time_to_first_token_seconds";
/// Histogram, seconds between two tokens of a sequence.
pub const ITL: &str = "vllm:inter_token_latency_seconds";
/// Histogram, mean seconds per token after the first, one value per sequence.
pub const TPOT: &str = "vllm:request_time_per_output_token_seconds";
/// Histogram, seconds from arrival to the last token.
pub const E2E: &str = "vllm:e2e_request_latency_seconds";
/// Histogram, seconds in the queue.
pub const QUEUE_TIME: &str = "vllm:request_queue_time_seconds";
/// Histogram, seconds from the queue to the first token.
pub const PREFILL_TIME: &str = "vllm:request_prefill_time_seconds";
/// Histogram, seconds from the first to the last token.
pub const DECODE_TIME: &str = "vllm:request_decode_time_seconds";
/// Histogram, seconds from the queue to the last token.
pub const INFERENCE_TIME: &str = "vllm:request_inference_time_seconds";
/// Histogram, prompt tokens of a sequence.
pub const REQUEST_PROMPT_TOKENS: &str = "vllm:request_prompt_tokens";
/// Histogram, completion tokens of a sequence.
pub const REQUEST_GENERATION_TOKENS: &str = "vllm:request_generation_tokens";
/// Counter of prompt tokens.
pub const PROMPT_TOKENS: &str = "vllm:prompt_tokens_total";
/// Counter of completion tokens.
pub const GENERATION_TOKENS: &str = "vllm:generation_tokens_total";
/// Counter of ended sequences by [`LABEL_FINISHED`].
pub const REQUEST_SUCCESS: &str = "vllm:request_success_total";
/// Gauge of sequences in steps.
pub const RUNNING: &str = "vllm:num_requests_running";
/// Gauge of sequences in the queue.
pub const WAITING: &str = "vllm:num_requests_waiting";
/// Gauge, share of KV blocks held by sequences, 0 to 1.
pub const KV_USAGE: &str = "vllm:kv_cache_usage_perc";
/// Gauge, always 1; size and number of KV blocks in its labels.
pub const CACHE_CONFIG: &str = "vllm:cache_config_info";
/// Counter of prompt tokens looked up in the prefix cache.
pub const PREFIX_QUERIES: &str = "vllm:prefix_cache_queries_total";
/// Counter of prompt tokens found there.
pub const PREFIX_HITS: &str = "vllm:prefix_cache_hits_total";
/// Counter of preemptions.
pub const PREEMPTIONS: &str = "vllm:num_preemptions_total";
/// Gauge, time of the last update in seconds since 1970; exactly one series, adapters in its labels.
pub const LORA_INFO: &str = "vllm:lora_requests_info";

/// Histogram by [`LABEL_ADAPTER`], seconds in the queue.
pub const ADAPTER_QUEUE_TIME: &str = "pleach_queue_time_seconds";
/// Histogram by [`LABEL_ADAPTER`], seconds from arrival to the first token.
pub const ADAPTER_TTFT: &str = "pleach_time_to_first_token_seconds";
/// Histogram by [`LABEL_ADAPTER`], seconds between two tokens.
pub const ADAPTER_ITL: &str = "pleach_inter_token_latency_seconds";
/// Histogram by [`LABEL_ADAPTER`], seconds from arrival to the last token.
pub const ADAPTER_E2E: &str = "pleach_e2e_latency_seconds";
/// Counter of responses by [`LABEL_PATH`] and [`LABEL_STATUS`].
pub const HTTP_RESPONSES: &str = "pleach_http_responses_total";
/// Counter of refused and failed requests by [`LABEL_CODE`].
pub const ERRORS: &str = "pleach_request_errors_total";
/// Gauge of registered aliases.
pub const ADAPTERS: &str = "pleach_adapters";
/// Gauge, always 1, by [`LABEL_ADAPTER`] and [`LABEL_GENERATION`].
pub const ADAPTER_INFO: &str = "pleach_adapter_info";
/// Histogram, seconds that requests waited for their adapter to be on the device.
pub const ADAPTER_WAIT: &str = "pleach_adapter_wait_seconds";
/// Gauge of generations by [`LABEL_TIER`].
pub const TIER_GENERATIONS: &str = "pleach_adapter_generations";
/// Gauge of their bytes by [`LABEL_TIER`].
pub const TIER_BYTES: &str = "pleach_adapter_bytes";
/// Gauge, bytes of the device for adapters.
pub const DEVICE_CAPACITY: &str = "pleach_adapter_device_capacity_bytes";
/// Gauge of generations that sequences use.
pub const TIERS_IN_USE: &str = "pleach_adapter_generations_in_use";
/// Gauge of requests that wait for an adapter.
pub const TIERS_WAITING: &str = "pleach_adapter_requests_waiting";
/// Gauge of loads and installs under way.
pub const TIERS_LOADING: &str = "pleach_adapter_loading";
/// Counter of requests by where they found their adapter, [`LABEL_TIER`].
pub const TIER_REQUESTS: &str = "pleach_adapter_requests_total";
/// Counter of loads from disk by [`LABEL_RESULT`].
pub const LOADS: &str = "pleach_adapter_loads_total";
/// Counter of installs on the device by [`LABEL_RESULT`].
pub const INSTALLS: &str = "pleach_adapter_installs_total";
/// Counter of generations that left a tier, by [`LABEL_TIER`].
pub const EVICTIONS: &str = "pleach_adapter_evictions_total";
/// Counter of seconds spent on loading.
pub const LOAD_SECONDS: &str = "pleach_adapter_load_seconds_total";
/// Counter of requests under `/v1` by [`LABEL_TENANT`] and [`LABEL_STATUS`].
pub const TENANT_REQUESTS: &str = "pleach_tenant_requests_total";
/// Counter of tokens by [`LABEL_TENANT`] and [`LABEL_KIND`], as `usage` counts them.
pub const TENANT_TOKENS: &str = "pleach_tenant_tokens_total";
/// Histogram by [`LABEL_TENANT`], seconds from arrival to the first token.
pub const TENANT_TTFT: &str = "pleach_tenant_time_to_first_token_seconds";
/// Counter of refusals by [`LABEL_TENANT`] and [`LABEL_REASON`].
pub const TENANT_REFUSED: &str = "pleach_tenant_refused_total";
/// Counter of completions that were to be kept, by [`LABEL_RESULT`]: `kept`, `dropped` or `failed`.
pub const CAPTURED: &str = "pleach_captured_completions_total";
/// Counter of feedback by [`LABEL_KIND`].
pub const FEEDBACK: &str = "pleach_feedback_total";
/// Counter of trainings that ended in this process, by [`LABEL_RESULT`]: `succeeded`, `failed` or `interrupted`.
pub const TRAININGS: &str = "pleach_trainings_total";
/// Counter of rounds of the learning loop that ended, by [`LABEL_RESULT`]: the names of their last states.
pub const ROUNDS: &str = "pleach_learning_rounds_total";
/// Counter of seconds that trainings computed.
pub const TRAINING_SECONDS: &str = "pleach_training_seconds_total";
/// Gauge of seconds between two tokens that a training keeps to; 0 while none keeps to anything.
pub const TRAINING_ITL_BUDGET: &str = "pleach_training_itl_budget_seconds";
/// Gauge of the 99th percentile of seconds between two tokens without a training; 0 until it is known.
pub const UNDISTURBED_ITL: &str = "pleach_undisturbed_itl_p99_seconds";
/// Counter of seconds that steps took.
pub const STEP_SECONDS: &str = "pleach_step_seconds_total";
/// Counter of steps.
pub const STEPS: &str = "pleach_steps_total";
/// Gauge, always 1, by [`LABEL_VERSION`].
pub const BUILD_INFO: &str = "pleach_build_info";

/// vLLM's buckets of [`TTFT`].
pub const TTFT_BUCKETS: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];
/// vLLM's buckets of [`ITL`] and [`TPOT`].
pub const ITL_BUCKETS: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0,
];
/// vLLM's buckets of the times of whole requests.
pub const REQUEST_BUCKETS: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
];
/// Ours: finer below 10 ms, where small models live.
pub const FINE_BUCKETS: &[f64] = &[
    0.001, 0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.4, 0.75,
    1.5, 3.0, 6.0, 12.0, 30.0, 60.0, 120.0,
];

/// vLLM's buckets of token counts: 1, 2, 5, 10, … up to the model's context.
pub fn token_buckets(context: usize) -> Vec<f64> {
    let mut buckets = Vec::new();
    let mut decade = 1_usize;
    loop {
        for mantissa in [1, 2, 5] {
            let Some(bound) = decade.checked_mul(mantissa).filter(|&bound| bound <= context.max(1))
            else {
                return buckets;
            };
            buckets.push(bound as f64);
        }
        let Some(next) = decade.checked_mul(10) else { return buckets };
        decade = next;
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn token_buckets_end_at_the_context() {
        assert_eq!(super::token_buckets(60), [1.0, 2.0, 5.0, 10.0, 20.0, 50.0]);
        assert_eq!(super::token_buckets(0), [1.0]);
    }
}
