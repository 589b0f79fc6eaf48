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
// top_k and top_p, 1 for log-probabilities, 1 more for the largest of edited logits beside those.
#include "step.cuh"

constexpr u32 THREADS = 1024;
constexpr u32 WARPS = THREADS / WARP;
constexpr u32 TOP_MAX = 20;
/// No forced token, no log-probabilities, no token.
constexpr u32 NONE = 0xffffffffu;
/// In `forced`: the host chooses for this row.
constexpr u32 SKIP = 0xfffffffeu;
/// 16-byte words that a lane has of a segment.
constexpr u32 LANE_LOADS = 4;
constexpr u32 LANE_VALUES = 4 * LANE_LOADS;
constexpr u32 SEGMENT = WARP * LANE_VALUES;
/// One for each thread: vocabularies of up to 524,288 tokens.
constexpr u32 SEGMENTS_MAX = THREADS;
/// Two for each thread.
constexpr u32 BINS = 2 * THREADS;
/// Of the first histogram, for a distance of 1 in the logits or in the exponent.
constexpr f32 BINS_PER_UNIT = 128.0f;
constexpr f32 FLOAT_MAX = 3.402823466e38f;
constexpr f32 INFINITE = __builtin_huge_valf();

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

// Sums and products that the compiler must not fuse: the CPU's have the same bits.
#if defined(__CUDACC__)
__device__ __forceinline__ f32 add_rn(f32 a, f32 b) { return __fadd_rn(a, b); }
__device__ __forceinline__ f32 mul_rn(f32 a, f32 b) { return __fmul_rn(a, b); }
/// Only where the product is exact, and fusing so changes nothing.
__device__ __forceinline__ f32 fma_rn(f32 a, f32 b, f32 c) { return __fmaf_rn(a, b, c); }
__device__ __forceinline__ u64 high_product(u64 a, u64 b) { return __umul64hi(a, b); }
#else
inline f32 add_rn(f32 a, f32 b) { return a + b; }
inline f32 mul_rn(f32 a, f32 b) { return a * b; }
inline f32 fma_rn(f32 a, f32 b, f32 c) { return a * b + c; }
inline u64 high_product(u64 a, u64 b) { return static_cast<u64>(static_cast<unsigned __int128>(a) * b >> 64); }
#endif

struct Best {
  f32 value;
  u32 index;
};

/// What is kept: all larger values, and the first `n_ties` of those that are equal.
struct Cut {
  f32 value;
  u32 n_ties;
};

/// What threads tell each other; every array is used between two barriers.
struct Shared {
  /// Amounts by bin: two words, since shared memory adds words only.
  u32 bins_low[BINS];
  u32 bins_high[BINS];
  /// Units above the cut, and values at it, by segment.
  u64 segment_units[SEGMENTS_MAX];
  u32 segment_ties[SEGMENTS_MAX];
  Best best[WARPS];
  /// By thread.
  Best mine[THREADS];
  u64 sums[WARPS];
  f32 float_sums[WARPS];
  /// What one thread has found.
  u64 amount, needed;
  u32 key_low, key_high;
  u32 segment, ties_left;
  u32 token;
};

/// A row and how it is weighted.
struct Row {
  f32* logits;
  u32 vocab;
  f32 max;
  f32 inverse_temperature;
  f32 weight_min;
};

/// Whether `a` comes before `b`: larger, or equal with a lower index. An index of NONE comes after all others.
__device__ __forceinline__ bool before(const Best& a, const Best& b) {
  if (b.index == NONE || a.index == NONE) return a.index != NONE;
  return a.value > b.value || (a.value == b.value && a.index < b.index);
}

__device__ __forceinline__ Best warp_best(Best best) {
#pragma unroll
  for (int mask = 16; mask > 0; mask >>= 1) {
    const Best other = {shuffle_xor(best.value, mask), shuffle_xor(best.index, mask)};
    if (before(other, best)) best = other;
  }
  return best;
}

/// The first in order of all threads' candidates.
__device__ __forceinline__ Best block_best(Best best, Shared& shared) {
  best = warp_best(best);
  __syncthreads();
  if (threadIdx.x % WARP == 0) shared.best[threadIdx.x / WARP] = best;
  __syncthreads();
  return warp_best(shared.best[threadIdx.x % WARP]);
}

template <typename T>
__device__ __forceinline__ T warp_total(T x) {
#pragma unroll
  for (int mask = 16; mask > 0; mask >>= 1) x += shuffle_xor(x, mask);
  return x;
}

/// Sum over the lanes before this one, and over all of them.
template <typename T>
__device__ __forceinline__ T warp_sum_before(T x, T& total) {
  T sum = 0;
#pragma unroll
  for (int mask = 1; mask < 32; mask <<= 1) {
    const T other = shuffle_xor(x, mask);
    if (threadIdx.x & mask) sum += other;
    x += other;
  }
  total = x;
  return sum;
}

/// Sum over the threads before this one, and over all of them.
__device__ __forceinline__ u64 block_sum_before(u64 x, u64& total, Shared& shared) {
  u64 of_warp;
  const u64 sum = warp_sum_before(x, of_warp);
  __syncthreads();
  if (threadIdx.x % WARP == 0) shared.sums[threadIdx.x / WARP] = of_warp;
  __syncthreads();
  const u64 other = shared.sums[threadIdx.x % WARP];
  total = warp_total(other);
  return sum + warp_total(threadIdx.x % WARP < threadIdx.x / WARP ? other : 0);
}

/// Place in the row of a lane's value `e` of a segment; it rises with `e`.
__device__ __forceinline__ u32 place(u32 segment, u32 e) {
  return segment * SEGMENT + e / 4 * (4 * WARP) + threadIdx.x % WARP * 4 + e % 4;
}

/// Values beyond the vocabulary are minus infinity; rows are long enough to be read in whole words.
__device__ __forceinline__ void load_segment(const Row& row, u32 segment, f32 (&x)[LANE_VALUES]) {
#pragma unroll
  for (u32 e = 0; e < LANE_VALUES; e += 4) {
    float4 w = make_float4(-INFINITE, -INFINITE, -INFINITE, -INFINITE);
    const u32 at = place(segment, e);
    if (at < row.vocab) w = *reinterpret_cast<const float4*>(row.logits + at);
    x[e] = w.x, x[e + 1] = w.y, x[e + 2] = w.z, x[e + 3] = w.w;
  }
  if ((segment + 1) * SEGMENT > row.vocab) {
#pragma unroll
    for (u32 e = 0; e < LANE_VALUES; ++e) {
      if (place(segment, e) >= row.vocab) x[e] = -INFINITE;
    }
  }
}

/// Calls `f` for all values of this thread, in their order.
template <typename F>
__device__ __forceinline__ void each(const Row& row, F f) {
  for (u32 s = threadIdx.x / WARP; s * SEGMENT < row.vocab; s += WARPS) {
    f32 x[LANE_VALUES];
    load_segment(row, s, x);
#pragma unroll
    for (u32 e = 0; e < LANE_VALUES; ++e) f(x[e]);
  }
}

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
    if (lane == owner) shared.mine[warp * WARP + lane] = next;
    if (lane == warp) shared.best[lane] = of_warp;
    // Lanes read what others have written; the shuffles wait for all lanes, but do not order memory.
    __syncwarp();
  }
}

/// `e^x` for `x <= 0`, the bits of sampler/softmax.rs down to x = -87 and `e^-87` below it and for NaN.
__device__ __forceinline__ f32 exp_nonpositive(f32 x) {
  constexpr f32 ROUND = 12582912.0f;
  constexpr f32 LN_2_HI = 0.6933594f;
  constexpr f32 LN_2_LO = -2.1219444e-4f;
  constexpr f32 LOG2_E = 1.44269504088896340736f;
  const f32 clamped = x > -87.0f ? x : -87.0f;
  const f32 shifted = add_rn(mul_rn(clamped, LOG2_E), ROUND);
  const f32 n = add_rn(shifted, -ROUND);
  const f32 r = add_rn(fma_rn(n, -LN_2_HI, clamped), -mul_rn(n, LN_2_LO));
  f32 p = 1.0f / 5040.0f;
  p = add_rn(mul_rn(p, r), 1.0f / 720.0f);
  p = add_rn(mul_rn(p, r), 1.0f / 120.0f);
  p = add_rn(mul_rn(p, r), 1.0f / 24.0f);
  p = add_rn(mul_rn(p, r), 1.0f / 6.0f);
  p = add_rn(mul_rn(p, r), 0.5f);
  p = add_rn(mul_rn(p, r), 1.0f);
  p = add_rn(mul_rn(p, r), 1.0f);
  // times 2^n, which is in the low bits of `shifted`.
  return __uint_as_float(__float_as_uint(p) + (__float_as_uint(shifted) << 23));
}

/// Sums of weights in units of 2^-40, each rounded to the nearest: `high` counts 2^-20, `low` (signed) 2^-40. Those of
/// 1,024 weights fit.
struct Units {
  u32 high = 0, low = 0;

  __device__ __forceinline__ void add(const Row& row, f32 x) {
    constexpr f32 EIGHT = 8.0f, ROUND = 12582912.0f;
    const f32 weight = exp_nonpositive(mul_rn(add_rn(x, -row.max), row.inverse_temperature));
    if (weight < row.weight_min) return;
    // The last bit of a number from 8 on is 2^-20; what this rounds away is exact.
    const f32 rounded = add_rn(weight, EIGHT);
    const f32 rest = add_rn(weight, -add_rn(rounded, -EIGHT));
    high += __float_as_uint(rounded) - __float_as_uint(EIGHT);
    low += __float_as_uint(fma_rn(rest, 1099511627776.0f, ROUND)) - __float_as_uint(ROUND);
  }

  __device__ __forceinline__ u64 sum() const { return (u64(high) << 20) + static_cast<u64>(static_cast<long long>(static_cast<int>(low))); }
};

__device__ __forceinline__ u64 units(const Row& row, f32 x) {
  Units one;
  one.add(row, x);
  return one.sum();
}

/// Larger for larger values, equal for equal ones (the two zeros are equal).
__device__ __forceinline__ u32 key_of(f32 x) {
  const u32 bits = __float_as_uint(add_rn(x, 0.0f));
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ f32 value_of(u32 key) { return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key); }
/// Key of the lowest finite value. Minus infinity weighs nothing, so it does not matter whether it is kept.
constexpr u32 KEY_MIN = 0x00800000u;

/// By distance to the largest; it rises as the value falls.
__device__ __forceinline__ u32 linear_bin(const Row& row, f32 scale, f32 x) {
  const f32 bin = mul_rn(add_rn(row.max, -x), scale);
  return bin < f32(BINS - 1) ? u32(bin) : BINS - 1;
}

/// The smallest key whose bin is `bin` or one before it.
__device__ __forceinline__ u32 lowest_key(const Row& row, f32 scale, u32 bin) {
  u32 low = KEY_MIN, high = key_of(row.max);
  while (low < high) {
    const u32 middle = low + (high - low) / 2;
    if (linear_bin(row, scale, value_of(middle)) <= bin) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

/// Integers, so the sums do not depend on the order.
__device__ __forceinline__ void add_to_bin(Shared& shared, u32 bin, u64 amount) {
  const u32 low = static_cast<u32>(amount);
  u32 high = static_cast<u32>(amount >> 32);
  if (low != 0 && atomicAdd(&shared.bins_low[bin], low) > ~low) ++high;
  if (high != 0) atomicAdd(&shared.bins_high[bin], high);
}

/// Fills the bins with the values between `low` and `high` (FIRST: with all) and returns what this thread has seen. The
/// last bin stays empty: it is what remains of the sum.
template <bool BY_MASS, bool FIRST>
__device__ __forceinline__ u64 histogram(const Row& row, const Cut& outer, f32 scale, u32 low, u32 high, u32 shift, Shared& shared) {
  for (u32 b = threadIdx.x; b < BINS; b += THREADS) shared.bins_low[b] = shared.bins_high[b] = 0;
  __syncthreads();
  u64 seen = 0;
  const f32 lowest = value_of(low), highest = value_of(high);
  auto add = [&](f32 x, u32 n) {
    if (!FIRST && (x < lowest || x > highest)) return;
    const u32 bin = FIRST ? linear_bin(row, scale, x) : (high - key_of(x)) >> shift;
    if (!BY_MASS && bin == BINS - 1) return;
    const u64 amount = BY_MASS ? n * units(row, x) : n;
    if (BY_MASS) seen += amount;
    if (bin < BINS - 1) add_to_bin(shared, bin, amount);
  };
  each(row, [&](f32 x) {
    if (!BY_MASS || x > outer.value) add(x, 1);
  });
  if (BY_MASS && threadIdx.x == 0 && outer.n_ties > 0) add(outer.value, outer.n_ties);
  return seen;
}

/// The cut after which the largest values' sum of amounts is at least a goal: of ones (`top_k`), or of the units of what
/// `outer` keeps (`top_p` of their sum).
template <bool BY_MASS>
__device__ __forceinline__ Cut select(const Row& row, const Cut& outer, u32 top_k, u64 top_p, Shared& shared) {
  const f32 scale = BY_MASS ? mul_rn(BINS_PER_UNIT, row.inverse_temperature) : BINS_PER_UNIT;
  u32 low = KEY_MIN, high = key_of(row.max), shift = 0;
  u64 total = row.vocab, goal = top_k;
  for (bool first = true;; first = false) {
    if (first) {
      const u64 seen = histogram<BY_MASS, true>(row, outer, scale, low, high, shift, shared);
      if (BY_MASS) {
        block_sum_before(seen, total, shared);
        goal = high_product(total, top_p) + (total * top_p != 0);
        if (goal == 0) goal = 1;
      }
    } else {
      while ((high - low) >> shift >= BINS) ++shift;
      histogram<BY_MASS, false>(row, outer, scale, low, high, shift, shared);
    }
    __syncthreads();
    const u32 b = 2 * threadIdx.x;
    const u64 amount = u64(shared.bins_high[b]) << 32 | shared.bins_low[b];
    const u64 next_amount = u64(shared.bins_high[b + 1]) << 32 | shared.bins_low[b + 1];
    u64 in_bins;
    const u64 begin = block_sum_before(amount + next_amount, in_bins, shared);
    const u64 middle = begin + amount;
    const u64 end = threadIdx.x == THREADS - 1 ? total : middle + next_amount;
    if (begin < goal && goal <= end) {
      const u32 bin = goal <= middle ? b : b + 1;
      shared.needed = goal - (goal <= middle ? begin : middle);
      shared.amount = goal <= middle ? amount : end - middle;
      if (first) {
        shared.key_low = lowest_key(row, scale, bin);
        shared.key_high = bin == 0 ? high : lowest_key(row, scale, bin - 1) - 1;
      } else {
        const u32 top = high - (bin << shift);
        shared.key_high = top;
        shared.key_low = (top - low) >> shift == 0 ? low : top - ((1u << shift) - 1);
      }
    }
    __syncthreads();
    goal = shared.needed, total = shared.amount, low = shared.key_low, high = shared.key_high;
    shift = 0;
    if (goal == total) return BY_MASS && value_of(low) <= outer.value ? outer : Cut{low == KEY_MIN ? -INFINITE : value_of(low - 1), 0};
    if (low == high) {
      const u64 each_amount = BY_MASS ? units(row, value_of(low)) : 1;
      return Cut{value_of(low), static_cast<u32>((goal + each_amount - 1) / each_amount)};
    }
  }
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
  if (spec.top_k > 0 && spec.top_k < row.vocab) cut = select<false>(row, cut, spec.top_k, 0, shared);
  if (spec.top_p != ~0ull) cut = select<true>(row, cut, 0, spec.top_p, shared);
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
    const SampleSpec spec = p.specs[t];
    if (spec.forced == SKIP) continue;
    SampleResult* result = p.results + t;
    Row row = {p.logits + u64(t) * p.stride, p.vocab, 0.0f, spec.inverse_temperature, spec.weight_min};
    const bool forced = spec.forced != NONE;
    const bool wanted = forced || spec.n_top != NONE;
    const u32 n_edits = forced ? 0 : spec.edits_end - spec.edits_begin;
    LogitEdit* edits = p.edits + spec.edits_begin;
    bool chosen = !forced || spec.forced < p.vocab;
    u32 n_top = 0;
    f32 log_sum = 0.0f, raw_max = 0.0f;
    Best best = {0.0f, NONE}, mine;
    if (wanted || n_edits == 0) {
      best = largest(row, mine, shared);
      row.max = raw_max = best.value;
      chosen = chosen && is_finite(raw_max);
    }
    if (wanted && chosen) {
      f32 sum = 0.0f;
      each(row, [&](f32 x) { sum += expf(x - raw_max); });
      log_sum = logf(block_sum<THREADS>(sum, shared.float_sums));
      n_top = spec.n_top == NONE ? 0 : min(min(spec.n_top, TOP_MAX), p.vocab);
      if (n_top > 0) {
        shared.mine[threadIdx.x] = mine;
        // shared.best has the warps' since `largest`.
        __syncthreads();
        if (threadIdx.x < WARP) likeliest(row, n_top, log_sum, result, shared);
      }
    }
    if (chosen && n_edits > 0) {
      __syncthreads();
      for (u32 e = threadIdx.x; e < n_edits; e += THREADS) {
        f32& x = row.logits[edits[e].token];
        edits[e].original = x;
        x = edited(x, edits[e]);
      }
      __syncthreads();
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
      for (u32 e = threadIdx.x; e < n_edits; e += THREADS) row.logits[edits[e].token] = edits[e].original;
      __syncthreads();
    }
    if (threadIdx.x == 0) {
      result->token = chosen ? token : NONE;
      result->logprob = chosen && wanted ? (row.logits[token] - raw_max) - log_sum : 0.0f;
      result->n_top = chosen ? n_top : 0;
      result->_pad = 0;
    }
  }
}
