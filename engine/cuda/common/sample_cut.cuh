// The cut of top_k and of top_p, for sample.cu: by histograms, first over the distance to the largest value, then over the
// bits of the values in one bin.
#pragma once

#include "sample_row.cuh"

/// Of the first histogram, for a distance of 1 in the logits or in the exponent.
constexpr f32 BINS_PER_UNIT = 128.0f;

/// What is kept: all larger values, and the first `n_ties` of those that are equal.
struct Cut {
  f32 value;
  u32 n_ties;
};

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
__device__ __forceinline__ Cut select(const Row& row, const Cut& outer, const u32& top_k, const u64& top_p, Shared& shared) {
  const f32 scale = BY_MASS ? mul_rn(BINS_PER_UNIT, row.inverse_temperature) : BINS_PER_UNIT;
  for (bool first = true;; first = false) {
    u32 low = KEY_MIN, high = key_of(row.max), shift = 0;
    u64 total = row.vocab, goal = top_k;
    if (first) {
      const u64 seen = histogram<BY_MASS, true>(row, outer, scale, low, high, shift, shared);
      if (BY_MASS) {
        block_sum_before(seen, total, shared);
        goal = high_product(total, top_p) + (total * top_p != 0);
        if (goal == 0) goal = 1;
      }
    } else {
      low = shared.key_low, high = shared.key_high;
      while ((high - low) >> shift >= BINS) ++shift;
      histogram<BY_MASS, false>(row, outer, scale, low, high, shift, shared);
      // Of the round before; read only now, to spare registers.
      total = shared.amount, goal = shared.needed;
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
    if (goal == total) {
      // All of them.
      if (BY_MASS && value_of(low) <= outer.value) return outer;
      return Cut{low == KEY_MIN ? -INFINITE : value_of(low - 1), 0};
    }
    if (low == high) {
      const u64 each_amount = BY_MASS ? units(row, value_of(low)) : 1;
      return Cut{value_of(low), static_cast<u32>((goal + each_amount - 1) / each_amount)};
    }
  }
}
