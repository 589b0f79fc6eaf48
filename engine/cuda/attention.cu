// Causal attention of rows that attend one by one (decode), and of any row if nothing else fits.
//
//   out[t, h] = sum_j p[j] V[j],  p = softmax_j(q[t, h] . K[j]),  j = 0 ..= position[t];  q comes scaled by log2(e) / sqrt(D)
//
// | buffer      | shape                                         | dtype | note                                      |
// |-------------|-----------------------------------------------|-------|-------------------------------------------|
// | q, out      | [T][stride]                                   | f16   | D values a head; stride a multiple of 8   |
// | kv          | [block][kv_head][K, V][16 tokens][D]          | f16   | one layer; D a multiple of 16, 16 to 256  |
// | single_rows | [n_single_rows]                               | u32   | rows of the step                          |
// | partials    | [n_single_rows][heads][max_chunks][D + 2]     | f32   | sum p V, largest score, sum p of a chunk  |
//
// The context is cut into chunks of a fixed length, so that a row's bits depend on its own context alone. A CTA takes one
// (row, kv head) and every gridDim.z-th chunk. A context of one chunk is finished at once, else attention_merge adds
// the chunks up in their order.
//
// 8 warps walk over the tokens of a chunk. LANES lanes share a token (16 bytes of its K and V each), 32 / LANES tokens at a
// time, UNROLL of these in flight: K and V of 512 contiguous bytes a load. HEADS query heads use each K and V that was
// loaded; q is in registers as halves, sums in f32, softmax in base 2, online and separate for each group of LANES lanes
// until the end. Keys and values beyond the row's position are not read: a block may hold anything there.
// Limit: bytes of K and V. 64 rows of 320 tokens, 8 kv heads of 128: 84 MB, 28 us at 3.0 TB/s; not tuned.
// Source of the online softmax: arXiv 1805.02867, 2205.14135.
#include "attention.cuh"

constexpr u32 WARPS = 8;

template <u32 LANES, u32 HEADS, u32 UNROLL>
__device__ __forceinline__ void attend(const AttentionParams& p) {
  constexpr u32 TOKENS = WARP / LANES;
  constexpr u32 DIM = LANES * 8;
  __shared__ f32 merged[WARPS][DIM + 2];
  const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const u32 dim = lane % LANES * 8;
  const bool has_dim = dim < p.head_dim;
  const u32 per_kv = p.n_heads / p.n_kv_heads;
  const u32 head_groups = div_up(per_kv, HEADS);
  const u32 kv_head = blockIdx.y / head_groups;
  const u32 first_in_kv = blockIdx.y % head_groups * HEADS;
  const u32 n_here = min(HEADS, per_kv - first_in_kv);
  const u32 first_head = kv_head * per_kv + first_in_kv;
  const u32 n_single_rows = p.step->n_single_rows;
  for (u32 item = blockIdx.x; item < n_single_rows; item += gridDim.x) {
    const u32 row = p.single_rows[item];
    const u32 n_tokens = p.positions[row] + 1;
    const u32 n_chunks = div_up(n_tokens, p.chunk_tokens);
    if (blockIdx.z >= n_chunks) continue;
    const u32* table = p.block_tables + u64(p.row_sequence[row]) * p.max_blocks;
    uint4 q[HEADS];
#pragma unroll
    for (u32 g = 0; g < HEADS; ++g) {
      q[g] = make_uint4(0, 0, 0, 0);
      if (g < n_here && has_dim) {
        q[g] = *reinterpret_cast<const uint4*>(p.q + u64(row) * p.q_stride + (first_head + g) * p.head_dim + dim);
      }
    }
    for (u32 chunk = blockIdx.z; chunk < n_chunks; chunk += gridDim.z) {
      const u32 begin = chunk * p.chunk_tokens;
      const u32 end = min(begin + p.chunk_tokens, n_tokens);
      f32 largest[HEADS], total[HEADS], sums[HEADS][8];
#pragma unroll
      for (u32 g = 0; g < HEADS; ++g) {
        largest[g] = -INFINITY;
        total[g] = 0.0f;
#pragma unroll
        for (u32 e = 0; e < 8; ++e) sums[g][e] = 0.0f;
      }
      for (u32 t0 = begin + warp * UNROLL * TOKENS; t0 < end; t0 += WARPS * UNROLL * TOKENS) {
        uint4 k[UNROLL], v[UNROLL];
        f32 s[UNROLL][HEADS];
#pragma unroll
        for (u32 u = 0; u < UNROLL; ++u) {
          const u32 t = t0 + u * TOKENS + lane / LANES;
          k[u] = v[u] = make_uint4(0, 0, 0, 0);
          if (t < end && has_dim) {
            const u32 block = table[t / KV_BLOCK_TOKENS];
            const u16* at = p.kv + kv_offset(block, p.n_kv_heads, kv_head, 0, t % KV_BLOCK_TOKENS, p.head_dim) + dim;
            k[u] = *reinterpret_cast<const uint4*>(at);
            v[u] = *reinterpret_cast<const uint4*>(at + KV_BLOCK_TOKENS * p.head_dim);
          }
        }
#pragma unroll
        for (u32 u = 0; u < UNROLL; ++u) {
          f32 key[8];
          unpack8(k[u], key);
          const bool seen = t0 + u * TOKENS + lane / LANES < end;
#pragma unroll
          for (u32 g = 0; g < HEADS; ++g) {
            f32 query[8];
            unpack8(q[g], query);
            f32 score = 0.0f;
#pragma unroll
            for (u32 e = 0; e < 8; ++e) score = fmaf(query[e], key[e], score);
#pragma unroll
            for (int mask = LANES / 2; mask > 0; mask >>= 1) score += shuffle_xor(score, mask);
            s[u][g] = seen ? score : -INFINITY;
          }
        }
#pragma unroll
        for (u32 g = 0; g < HEADS; ++g) {
          f32 m = largest[g];
#pragma unroll
          for (u32 u = 0; u < UNROLL; ++u) m = fmaxf(m, s[u][g]);
          // A group of lanes may have seen no token yet: -inf - -inf is no number.
          const f32 base = m == -INFINITY ? 0.0f : m;
          const f32 factor = exp2f(largest[g] - base);
          largest[g] = m;
          total[g] *= factor;
#pragma unroll
          for (u32 e = 0; e < 8; ++e) sums[g][e] *= factor;
#pragma unroll
          for (u32 u = 0; u < UNROLL; ++u) {
            s[u][g] = exp2f(s[u][g] - base);
            total[g] += s[u][g];
          }
        }
#pragma unroll
        for (u32 u = 0; u < UNROLL; ++u) {
          f32 value[8];
          unpack8(v[u], value);
#pragma unroll
          for (u32 g = 0; g < HEADS; ++g) {
#pragma unroll
            for (u32 e = 0; e < 8; ++e) sums[g][e] = fmaf(s[u][g], value[e], sums[g][e]);
          }
        }
      }
#pragma unroll
      for (u32 g = 0; g < HEADS; ++g) {
#pragma unroll
        for (int mask = LANES; mask < static_cast<int>(WARP); mask <<= 1) {
          const f32 other = shuffle_xor(largest[g], mask);
          const f32 m = fmaxf(largest[g], other);
          const f32 base = m == -INFINITY ? 0.0f : m;
          const f32 mine = exp2f(largest[g] - base), theirs = exp2f(other - base);
          largest[g] = m;
          total[g] = total[g] * mine + shuffle_xor(total[g], mask) * theirs;
#pragma unroll
          for (u32 e = 0; e < 8; ++e) sums[g][e] = sums[g][e] * mine + shuffle_xor(sums[g][e], mask) * theirs;
        }
        // The previous head's sums have been read.
        __syncthreads();
        if (lane < LANES) {
#pragma unroll
          for (u32 e = 0; e < 8; ++e) merged[warp][dim + e] = sums[g][e];
        }
        if (lane == 0) {
          merged[warp][DIM] = largest[g];
          merged[warp][DIM + 1] = total[g];
        }
        __syncthreads();
        if (g >= n_here || threadIdx.x >= p.head_dim) continue;
        f32 m = merged[0][DIM];
#pragma unroll
        for (u32 w = 1; w < WARPS; ++w) m = fmaxf(m, merged[w][DIM]);
        f32 sum = 0.0f, weight = 0.0f;
#pragma unroll
        for (u32 w = 0; w < WARPS; ++w) {
          // Warps without a token have -inf here, and so a factor of zero.
          const f32 factor = exp2f(merged[w][DIM] - m);
          sum = fmaf(factor, merged[w][threadIdx.x], sum);
          weight = fmaf(factor, merged[w][DIM + 1], weight);
        }
        const u32 head = first_head + g;
        if (n_chunks == 1) {
          p.out[u64(row) * p.out_stride + head * p.head_dim + threadIdx.x] = float_to_half(sum / weight);
        } else {
          f32* partial = p.partials + ((u64(item) * p.n_heads + head) * p.max_chunks + chunk) * (p.head_dim + 2);
          partial[threadIdx.x] = sum;
          if (threadIdx.x == 0) {
            partial[p.head_dim] = m;
            partial[p.head_dim + 1] = weight;
          }
        }
      }
    }
    // The next item writes `merged` behind a barrier of its own, after every thread has left this one.
  }
}

constexpr u32 MERGE_THREADS = 128;

/// One CTA a (row, head): the chunks of contexts longer than one, in their order.
extern "C" __global__ void __launch_bounds__(MERGE_THREADS) attention_merge(const __grid_constant__ AttentionParams p) {
  const u32 n_single_rows = p.step->n_single_rows;
  const u32 head = blockIdx.y;
  for (u32 item = blockIdx.x; item < n_single_rows; item += gridDim.x) {
    const u32 row = p.single_rows[item];
    const u32 n_chunks = div_up(p.positions[row] + 1, p.chunk_tokens);
    if (n_chunks == 1) continue;
    const u32 step = p.head_dim + 2;
    const f32* partials = p.partials + (u64(item) * p.n_heads + head) * p.max_chunks * step;
    f32 m = partials[p.head_dim];
    for (u32 c = 1; c < n_chunks; ++c) m = fmaxf(m, partials[u64(c) * step + p.head_dim]);
    for (u32 d = threadIdx.x; d < p.head_dim; d += MERGE_THREADS) {
      f32 sum = 0.0f, weight = 0.0f;
      for (u32 c = 0; c < n_chunks; ++c) {
        const f32* partial = partials + u64(c) * step;
        const f32 factor = exp2f(partial[p.head_dim] - m);
        sum = fmaf(factor, partial[d], sum);
        weight = fmaf(factor, partial[p.head_dim + 1], weight);
      }
      p.out[u64(row) * p.out_stride + head * p.head_dim + d] = float_to_half(sum / weight);
    }
  }
}

// Lanes a token: D / 8 rounded up to a power of two, at least 8 (narrow heads leave lanes idle). Heads a CTA: query heads
// per kv head, likewise, at most 8. The bounds leave room for two CTAs on a multiprocessor where that spills nothing.
#define ATTENTION(LANES, HEADS, UNROLL)                                                 \
  extern "C" __global__ void __launch_bounds__(WARPS* WARP, HEADS < 8 && HEADS * LANES <= 64 ? 2 : 1) \
      attention_l##LANES##_h##HEADS(const __grid_constant__ AttentionParams p) {        \
    attend<LANES, HEADS, UNROLL>(p);                                                    \
  }
#define ATTENTIONS(LANES) \
  ATTENTION(LANES, 1, 4)  \
  ATTENTION(LANES, 2, 4)  \
  ATTENTION(LANES, 4, 2)  \
  ATTENTION(LANES, 8, 2)
ATTENTIONS(8)
ATTENTIONS(16)
ATTENTIONS(32)
