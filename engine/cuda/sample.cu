// The end of a step: one token for every row of logits, chosen or given, its log-probability and the likeliest tokens.
//
//   logprob, top: of the logits as they come;  x = edited logits;  w_i = e^((x_i - max x) / temperature), 0 if below min_p
//   token = the first of the largest x, or: of the tokens that top_k and then top_p keep, in the order of the vocabulary,
//           the first at which the running sum of w passes uniform * (sum of w)
//
// Nothing is sorted: what is kept are the tokens above a value and the first few with exactly this value. That value is
// found by histograms of 2,048 bins in shared memory, first over the distance to the largest, then over the bits of the
// values in one bin. Weights are integers (units of 2^-40) and their sums exact, so no order of threads matters, and the
// token is the one of the CPU's sampler (sampler/draw.rs), which does the same arithmetic: keep the two alike.
//
// A row gives NO_TOKEN if it has a NaN, if its largest value is infinite, or if its given token is outside the vocabulary.
//
// | buffer  | shape                   | dtype        | note                                                    |
// |---------|-------------------------|--------------|---------------------------------------------------------|
// | logits  | [n_sample_rows][stride] | f32          | 16-byte rows; edited, and restored at the end           |
// | specs   | [n_sample_rows]         | SampleSpec   |                                                         |
// | edits   | [edits]                 | LogitEdit    | a row's tokens are different and within the vocabulary  |
// | results | [n_sample_rows]         | SampleResult | rows that are skipped are not written                   |
//
// One CTA of 1,024 threads a row. A segment is 512 neighbouring values, which one warp reads with 16-byte loads; warp w
// has the segments w, w + 32, ... Passes over the row (mostly from L2): 1 greedy, 2 drawn, and 2 or 3 more for each of
// top_k and top_p, 1 for log-probabilities, 1 more for the largest of edited logits beside those. On an H100, 128,256 tokens:
// 12 us greedy, 41 drawn, 44 with top_k 40, 78 with top_p 0.95 too, 91 with top_p 0.95 alone (64 rows).
#include "sample_cut.cuh"

constexpr u32 TOP_MAX = 20;
/// In `forced`: the host chooses for this row.
constexpr u32 SKIP = 0xfffffffeu;

struct SampleSpec {
  /// The random number, times 2^64.
  u64 uniform;
  /// Times 2^64; all bits: everything.
  u64 top_p;
  u32 forced;
  u32 n_top;
  /// 0: everything.
  u32 top_k;
  /// Negative: greedy.
  f32 inverse_temperature;
  /// Smallest weight, at most 1.
  f32 weight_min;
  /// Where the row's edits begin and end.
  u32 edits_begin, edits_end;
  u32 _pad;
};
static_assert(sizeof(SampleSpec) == 48, "as in ops/sample.rs");

/// `x' = f(x + bias) - frequency - presence`, with `f` dividing what is positive and multiplying the rest.
struct LogitEdit {
  u32 token;
  /// Minus infinity: banned, whatever the logit is.
  f32 bias;
  f32 repetition;
  f32 frequency;
  f32 presence;
  /// The logit, kept here by the kernel.
  f32 original;
};
static_assert(sizeof(LogitEdit) == 24, "as in ops/sample.rs");

struct SampleResult {
  u32 token;
  f32 logprob;
  u32 n_top;
  u32 _pad;
  u32 top_tokens[TOP_MAX];
  f32 top_logprobs[TOP_MAX];
};
static_assert(sizeof(SampleResult) == 176, "as in ops/sample.rs");

struct SampleParams {
  const StepHeader* step;
  f32* logits;
  const SampleSpec* specs;
  LogitEdit* edits;
  SampleResult* results;
  u32 stride;
  u32 vocab;
};
static_assert(sizeof(SampleParams) == 48, "as in ops/sample.rs");

/// The largest value of the CTA's row; infinite if there is a NaN. `mine` is this thread's.
__device__ __forceinline__ Best largest(const Row& row, Best& mine, Shared& shared) {
  f32 value = -INFINITE;
  u32 segment = threadIdx.x / WARP;
  bool nan = false;
  for (u32 s = threadIdx.x / WARP; s * SEGMENT < row.vocab; s += WARPS) {
    f32 x[LANE_VALUES];
    load_segment(row, s, x);
    f32 of_segment = x[0];
#pragma unroll
    for (u32 e = 0; e < LANE_VALUES; ++e) {
      nan |= x[e] != x[e];
      of_segment = x[e] > of_segment ? x[e] : of_segment;
    }
    if (of_segment > value) value = of_segment, segment = s;
  }
  // Read again: keeping the place of every candidate costs more.
  mine = {value, NONE};
  f32 x[LANE_VALUES];
  load_segment(row, segment, x);
#pragma unroll
  for (u32 e = LANE_VALUES; e-- > 0;) {
    if (x[e] == value && place(segment, e) < row.vocab) mine.index = place(segment, e);
  }
  return block_best(nan ? Best{INFINITE, 0} : mine, shared);
}

__device__ __forceinline__ bool is_finite(f32 x) { return x <= FLOAT_MAX && x >= -FLOAT_MAX; }

/// The likeliest tokens into the result, by warp 0: each time, the thread whose token was taken gets its next one.
__device__ __forceinline__ void likeliest(const Row& row, u32 n_top, f32 log_sum, SampleResult* result, Shared& shared) {
  const u32 lane = threadIdx.x;
  for (u32 n = 0; n < n_top; ++n) {
    const Best best = warp_best(shared.best[lane]);
    if (lane == 0) {
      result->top_tokens[n] = best.index;
      // The largest is taken off first: the difference of two near values is exact.
      result->top_logprobs[n] = (best.value - row.max) - log_sum;
    }
    const u32 warp = best.index / SEGMENT % WARPS, owner = best.index % (4 * WARP) / 4;
    Best next = {0.0f, NONE};
    for (u32 w = lane;; w += WARP) {
      const u32 segment = warp + w / LANE_LOADS * WARPS;
      if (segment * SEGMENT >= row.vocab) break;
#pragma unroll
      for (u32 c = 0; c < 4; ++c) {
        const u32 index = segment * SEGMENT + w % LANE_LOADS * (4 * WARP) + owner * 4 + c;
        if (index >= row.vocab) break;
        const Best candidate = {row.logits[index], index};
        if (before(best, candidate) && before(candidate, next)) next = candidate;
      }
    }
    next = warp_best(next);
    const Best of_warp = warp_best(lane == owner ? next : shared.mine[warp * WARP + lane]);
    // No lane reads what another has written.
    if (lane == owner) shared.mine[warp * WARP + lane] = next;
    if (lane == warp) shared.best[lane] = of_warp;
  }
}

/// What log-probabilities take, and those of the likeliest tokens. `mine` is this thread's largest value.
__device__ __forceinline__ void log_probabilities(const Row& row, Best mine, u32 n_top, SampleResult* result, Shared& shared) {
  f32 sum = 0.0f;
  each(row, [&](f32 x) { sum += expf(x - row.max); });
  const f32 log_sum = logf(block_sum<THREADS>(sum, shared.float_sums));
  shared.mine[threadIdx.x] = mine;
  if (threadIdx.x == 0) shared.raw_max = row.max, shared.log_sum = log_sum;
  // shared.best has the warps' since `largest`.
  __syncthreads();
  if (n_top != NONE && threadIdx.x < WARP) likeliest(row, min(min(n_top, TOP_MAX), row.vocab), log_sum, result, shared);
}

/// The token of a segment at which the running sum passes `target`; warp 0 only.
__device__ __forceinline__ void walk(const Row& row, const Cut& cut, u32 segment, u64 target, u32 ties_left, Shared& shared) {
  constexpr u64 FOUND = ~0ull;
  f32 x[LANE_VALUES];
  load_segment(row, segment, x);
#pragma unroll
  for (u32 e = 0; e < LANE_VALUES; e += 4) {
    u32 n_ties = 0, all_ties;
#pragma unroll
    for (u32 c = 0; c < 4; ++c) n_ties += x[e + c] == cut.value;
    u32 tie = warp_sum_before(n_ties, all_ties);
    u64 of_value[4], of_lane = 0, of_all;
#pragma unroll
    for (u32 c = 0; c < 4; ++c) {
      const bool kept = x[e + c] > cut.value || (x[e + c] == cut.value && tie++ < ties_left);
      of_value[c] = kept ? units(row, x[e + c]) : 0;
      of_lane += of_value[c];
    }
    u64 sum = warp_sum_before(of_lane, of_all);
    if (sum <= target && target < sum + of_lane) {
      u32 c = 0;
#pragma unroll
      for (u32 last = 0; last < 3; ++last) {
        sum += of_value[last];
        if (sum <= target) c = last + 1;
      }
      shared.token = place(segment, e + c);
    }
    target = target < of_all ? FOUND : target == FOUND ? FOUND : target - of_all;
    ties_left -= min(ties_left, all_ties);
  }
}

/// A token at random; the same in all threads.
__device__ __forceinline__ u32 draw(const Row& row, const SampleSpec& spec, Shared& shared) {
  Cut cut = {-INFINITE, 0};
  if (spec.top_k > 0 && spec.top_k < row.vocab) cut = select<false>(row, cut, spec.top_k, spec.top_p, shared);
  if (spec.top_p != ~0ull) cut = select<true>(row, cut, spec.top_k, spec.top_p, shared);
  for (u32 s = threadIdx.x / WARP; s * SEGMENT < row.vocab; s += WARPS) {
    f32 x[LANE_VALUES];
    load_segment(row, s, x);
    Units kept;
    u32 ties = 0;
#pragma unroll
    for (u32 e = 0; e < LANE_VALUES; ++e) {
      ties += x[e] == cut.value;
      if (x[e] > cut.value) kept.add(row, x[e]);
    }
    const u64 above = warp_total(kept.sum());
    ties = warp_total(ties);
    if (threadIdx.x % WARP == 0) {
      shared.segment_units[s] = above;
      shared.segment_ties[s] = ties;
    }
  }
  __syncthreads();
  const bool has_segment = threadIdx.x * SEGMENT < row.vocab;
  const u64 above = has_segment ? shared.segment_units[threadIdx.x] : 0;
  const u32 ties = has_segment ? shared.segment_ties[threadIdx.x] : 0;
  const u64 tie_units = cut.n_ties > 0 ? units(row, cut.value) : 0;
  u64 all_above, all_ties;
  const u64 above_before = block_sum_before(above, all_above, shared);
  const u32 ties_before = static_cast<u32>(block_sum_before(ties, all_ties, shared));
  const u64 begin = above_before + min(ties_before, cut.n_ties) * tie_units;
  const u64 end = above_before + above + min(ties_before + ties, cut.n_ties) * tie_units;
  const u64 target = high_product(all_above + min(static_cast<u32>(all_ties), cut.n_ties) * tie_units, spec.uniform);
  if (begin <= target && target < end) {
    shared.segment = threadIdx.x;
    shared.needed = target - begin;
    shared.ties_left = cut.n_ties - min(ties_before, cut.n_ties);
  }
  __syncthreads();
  if (threadIdx.x < WARP) walk(row, cut, shared.segment, shared.needed, shared.ties_left, shared);
  __syncthreads();
  return shared.token;
}

/// Bias, ban and penalties in the order, and with the roundings, of sampler/penalties.rs.
__device__ __forceinline__ f32 edited(f32 x, const LogitEdit& edit) {
  x = edit.bias == -INFINITE ? edit.bias : add_rn(x, edit.bias);
  x = x > 0.0f ? x / edit.repetition : mul_rn(x, edit.repetition);
  return add_rn(add_rn(x, -edit.frequency), -edit.presence);
}

extern "C" __global__ void __launch_bounds__(THREADS) sample(const __grid_constant__ SampleParams p) {
  __shared__ Shared shared;
  const u32 n_rows = p.step->n_sample_rows;
  for (u32 t = blockIdx.x; t < n_rows; t += gridDim.x) {
    // Read again after every barrier, which keeps it out of registers.
    const SampleSpec& spec = p.specs[t];
    if (spec.forced == SKIP) continue;
    Row row = {p.logits + u64(t) * p.stride, p.vocab, 0.0f, spec.inverse_temperature, spec.weight_min};
    const bool forced = spec.forced != NONE;
    const bool wanted = forced || spec.n_top != NONE;
    u32 n_edits = forced ? 0 : spec.edits_end - spec.edits_begin;
    bool chosen = !forced || spec.forced < p.vocab;
    Best best = {0.0f, NONE};
    if (wanted || n_edits == 0) {
      Best mine;
      best = largest(row, mine, shared);
      row.max = best.value;
      chosen = chosen && is_finite(row.max);
      if (!chosen) n_edits = 0;
      if (wanted && chosen) log_probabilities(row, mine, spec.n_top, p.results + t, shared);
    }
    if (n_edits > 0) {
      __syncthreads();
      for (u32 e = threadIdx.x; e < n_edits; e += THREADS) {
        LogitEdit& edit = p.edits[spec.edits_begin + e];
        f32& x = row.logits[edit.token];
        edit.original = x;
        x = edited(x, edit);
      }
      __syncthreads();
      Best mine;
      best = largest(row, mine, shared);
      row.max = best.value;
    }
    u32 token = forced ? spec.forced : best.index;
    if (chosen && !forced) {
      chosen = is_finite(row.max);
      if (chosen && spec.inverse_temperature >= 0.0f) token = draw(row, spec, shared);
    }
    // Also: nobody reads the edited values, or this row's shared memory, any more.
    __syncthreads();
    if (n_edits > 0) {
      for (u32 e = threadIdx.x; e < n_edits; e += THREADS) {
        const LogitEdit& edit = p.edits[spec.edits_begin + e];
        row.logits[edit.token] = edit.original;
      }
      __syncthreads();
    }
    if (threadIdx.x == 0) {
      SampleResult* result = p.results + t;
      result->token = chosen ? token : NONE;
      result->logprob = chosen && wanted ? (row.logits[token] - shared.raw_max) - shared.log_sum : 0.0f;
      result->n_top = chosen && spec.n_top != NONE ? min(min(spec.n_top, TOP_MAX), p.vocab) : 0;
      result->_pad = 0;
    }
  }
}
