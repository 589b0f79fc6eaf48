// The end of a step: for every row of logits the largest one, or the log-probability of a given token, and the
// likeliest tokens. Rows with a temperature or penalties are chosen by the host's sampler from the logits themselves.
//
//   token = forced, or the first of the largest;  logprob = x[token] - ln sum_i e^x[i];  top: by value, then by index
//
// A row with a NaN, or whose largest value is infinite, or a forced token outside the vocabulary, gives NO_TOKEN.
//
// | buffer  | shape                 | dtype        | note                                   |
// |---------|-----------------------|--------------|----------------------------------------|
// | logits  | [n_sample_rows][stride] | f32        |                                        |
// | specs   | [n_sample_rows]       | SampleSpec   |                                        |
// | results | [n_sample_rows]       | SampleResult | rows that are skipped are not written  |
//
// One CTA of 1,024 threads a row: one pass for the largest, one for the sum, one more (from L2) for each of the likeliest.
#include "step.cuh"

constexpr u32 THREADS = 1024;
constexpr u32 TOP_MAX = 20;
/// No forced token, no log-probabilities, no token.
constexpr u32 NONE = 0xffffffffu;
/// In `forced`: the host chooses for this row.
constexpr u32 SKIP = 0xfffffffeu;

struct SampleSpec {
  u32 forced;
  u32 n_top;
};

struct SampleResult {
  u32 token;
  f32 logprob;
  u32 n_top;
  u32 _pad;
  u32 top_tokens[TOP_MAX];
  f32 top_logprobs[TOP_MAX];
};
static_assert(sizeof(SampleResult) == 176, "as in ops/sample.rs");

struct SampleGreedyParams {
  const StepHeader* step;
  const f32* logits;
  const SampleSpec* specs;
  SampleResult* results;
  u32 stride;
  u32 vocab;
};
static_assert(sizeof(SampleGreedyParams) == 40, "as in ops/sample.rs");

struct Best {
  f32 value;
  u32 index;
};

/// Whether `a` comes before `b`: larger, or equal with a lower index. An index of NONE comes after all others.
__device__ __forceinline__ bool before(const Best& a, const Best& b) {
  if (b.index == NONE || a.index == NONE) return a.index != NONE;
  return a.value > b.value || (a.value == b.value && a.index < b.index);
}

/// The first in order of all threads' candidates.
__device__ __forceinline__ Best block_best(Best best, Best* scratch) {
#pragma unroll
  for (int mask = 16; mask > 0; mask >>= 1) {
    const Best other = {shuffle_xor(best.value, mask), shuffle_xor(best.index, mask)};
    if (before(other, best)) best = other;
  }
  __syncthreads();
  if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = best;
  __syncthreads();
  best = scratch[0];
  for (u32 w = 1; w < THREADS / WARP; ++w) {
    if (before(scratch[w], best)) best = scratch[w];
  }
  return best;
}

extern "C" __global__ void __launch_bounds__(THREADS) sample_greedy(const __grid_constant__ SampleGreedyParams p) {
  __shared__ Best scratch[THREADS / WARP];
  __shared__ f32 sums[THREADS / WARP];
  __shared__ u32 has_nan;
  const u32 n_rows = p.step->n_sample_rows;
  for (u32 t = blockIdx.x; t < n_rows; t += gridDim.x) {
    const SampleSpec spec = p.specs[t];
    if (spec.forced == SKIP) continue;
    const f32* logits = p.logits + u64(t) * p.stride;
    SampleResult* result = p.results + t;
    __syncthreads();
    if (threadIdx.x == 0) has_nan = 0;
    __syncthreads();
    Best best = {0.0f, NONE};
    bool nan = false;
    for (u32 i = threadIdx.x; i < p.vocab; i += THREADS) {
      const Best candidate = {logits[i], i};
      nan |= candidate.value != candidate.value;
      if (before(candidate, best)) best = candidate;
    }
    if (nan) has_nan = 1;
    // The barrier inside makes has_nan visible.
    best = block_best(best, scratch);
    const bool forced = spec.forced != NONE;
    const u32 token = forced ? spec.forced : best.index;
    const bool finite = best.value <= 3.402823466e38f && best.value >= -3.402823466e38f;
    if (has_nan || best.index == NONE || !finite || token >= p.vocab) {
      if (threadIdx.x == 0) {
        result->token = NONE;
        result->logprob = 0.0f;
        result->n_top = 0;
        result->_pad = 0;
      }
      continue;
    }
    const bool wanted = forced || spec.n_top != NONE;
    f32 log_sum = 0.0f;
    if (wanted) {
      f32 sum = 0.0f;
      for (u32 i = threadIdx.x; i < p.vocab; i += THREADS) sum += expf(logits[i] - best.value);
      log_sum = logf(block_sum<THREADS>(sum, sums));
    }
    const u32 n_top = spec.n_top == NONE ? 0 : min(min(spec.n_top, TOP_MAX), p.vocab);
    if (threadIdx.x == 0) {
      result->token = token;
      // The largest is taken off first: the difference of two near values is exact.
      result->logprob = wanted ? (logits[token] - best.value) - log_sum : 0.0f;
      result->n_top = n_top;
      result->_pad = 0;
    }
    Best last = best;
    for (u32 n = 0; n < n_top; ++n) {
      if (n > 0) {
        Best next = {0.0f, NONE};
        for (u32 i = threadIdx.x; i < p.vocab; i += THREADS) {
          const Best candidate = {logits[i], i};
          if (before(last, candidate) && before(candidate, next)) next = candidate;
        }
        last = block_best(next, scratch);
      }
      if (threadIdx.x == 0) {
        result->top_tokens[n] = last.index;
        result->top_logprobs[n] = (last.value - best.value) - log_sum;
      }
    }
  }
}
