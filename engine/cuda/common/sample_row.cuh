// A row of logits in the hands of one CTA, for sample.cu: who reads what, weights as integers, and what threads tell each
// other.
#pragma once

#include "step.cuh"

constexpr u32 THREADS = 1024;
constexpr u32 WARPS = THREADS / WARP;
/// No token; in a spec: no forced token, no log-probabilities.
constexpr u32 NONE = 0xffffffffu;
/// 16-byte words that a lane has of a segment.
constexpr u32 LANE_LOADS = 4;
constexpr u32 LANE_VALUES = 4 * LANE_LOADS;
constexpr u32 SEGMENT = WARP * LANE_VALUES;
/// One for each thread: vocabularies of up to 524,288 tokens.
constexpr u32 SEGMENTS_MAX = THREADS;
/// Two for each thread.
constexpr u32 BINS = 2 * THREADS;
constexpr f32 FLOAT_MAX = 3.402823466e38f;
constexpr f32 INFINITE = __builtin_huge_valf();

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
  /// Of the row's logits before edits.
  f32 raw_max, log_sum;
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
