// Causal attention of tiles of consecutive rows of a sequence (prefill), on tensor cores.
//
// Formula and buffers as in attention.cu; probabilities are rounded to f16 before they meet V, sums are f32.
//
// A CTA of 4 warps takes one tile and one kv head. Its 64 query vectors are the tile's rows times the query heads of the kv
// head (vector m = row m / G, head m % G), so each K and V is read once for all of them; a warp has 16 of them. It walks
// over 64 tokens at a time: scores by mma (K from shared memory), online softmax in base 2 in registers, their product
// with V by mma. While scores are computed V is on its way, and the next K while V is used (cp.async through the block
// table, one address per token). Tokens beyond the tile, and columns beyond D, are zero in shared memory and not read.
//
//   shared memory, halves:  Q [64][DIM] | K [64][DIM] | V [64][DIM]     DIM: 64, 128 or 256, the first that holds D
//   16-byte chunk c of row r lies at chunk c ^ (r & 7) of its row (within groups of 8): ldmatrix meets no bank twice
//
// Limit: tensor cores; the scheme reaches some 330 TFLOP/s on an H100 in its best form (FlashAttention-2). Not tuned.
// Source of the scheme: FlashAttention-2 (arXiv 2307.08691); rows times heads: FlashInfer, FlashAttention-3's pack_gqa.
#include "attention.cuh"
#include "mma.cuh"

constexpr u32 WARPS = 4;
constexpr u32 THREADS = WARPS * WARP;
constexpr u32 VECTORS = 64;
constexpr u32 TOKENS = 64;

template <u32 DIM>
struct Tile {
  static constexpr u32 CHUNKS = DIM / 8;
  u16* data;

  /// Row `r`, halves from 8 `chunk` on.
  __device__ __forceinline__ u16* at(u32 r, u32 chunk) const {
    return data + u64(r) * DIM + ((chunk & ~7u) | ((chunk ^ r) & 7u)) * 8;
  }

  __device__ __forceinline__ void zero(u32 r, u32 chunk) const {
    *reinterpret_cast<uint4*>(at(r, chunk)) = make_uint4(0, 0, 0, 0);
  }
};

/// Begins to copy keys (which = 0) or values of 64 tokens from `first` on.
template <u32 DIM>
__device__ __forceinline__ void load_tokens(const AttentionParams& p, const Tile<DIM>& tile, const u32* table, u32 kv_head,
                                            u32 which, u32 first, u32 n_tokens) {
  for (u32 i = threadIdx.x; i < TOKENS * Tile<DIM>::CHUNKS; i += THREADS) {
    const u32 r = i / Tile<DIM>::CHUNKS, chunk = i % Tile<DIM>::CHUNKS;
    const u32 t = first + r;
    if (t < n_tokens && chunk * 8 < p.head_dim) {
      const u32 block = table[t / KV_BLOCK_TOKENS];
      const u64 from = kv_offset(block, p.n_kv_heads, kv_head, which, t % KV_BLOCK_TOKENS, p.head_dim);
      copy_async_16(tile.at(r, chunk), p.kv + from + chunk * 8);
    } else {
      tile.zero(r, chunk);
    }
  }
  copy_async_commit();
}

template <u32 DIM>
__device__ __forceinline__ void attend_tile(const AttentionParams& p) {
  DYNAMIC_SHARED(u16, shared);
  const Tile<DIM> queries = {shared}, keys = {shared + VECTORS * DIM}, values = {shared + (VECTORS + TOKENS) * DIM};
  const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const u32 kv_head = blockIdx.y;
  const u32 per_kv = p.n_heads / p.n_kv_heads;
  const u32 n_tiles = p.step->n_tiles;
  for (u32 item = blockIdx.x; item < n_tiles; item += gridDim.x) {
    const AttentionTile tile = p.tiles[item];
    const u32* table = p.block_tables + u64(tile.sequence) * p.max_blocks;
    const u32 n_tokens = tile.first_position + tile.n_rows;
    // No barrier: queries and keys of the previous tile were last read before its last one, and values are written
    // behind the next one.
    for (u32 i = threadIdx.x; i < VECTORS * Tile<DIM>::CHUNKS; i += THREADS) {
      const u32 m = i / Tile<DIM>::CHUNKS, chunk = i % Tile<DIM>::CHUNKS;
      if (m < tile.n_rows * per_kv && chunk * 8 < p.head_dim) {
        const u32 head = kv_head * per_kv + m % per_kv;
        const u64 from = u64(tile.first_row + m / per_kv) * p.q_stride + head * p.head_dim + chunk * 8;
        copy_async_16(queries.at(m, chunk), p.q + from);
      } else {
        queries.zero(m, chunk);
      }
    }
    load_tokens<DIM>(p, keys, table, kv_head, 0, 0, n_tokens);

    // This lane's two vectors: m and m + 8.
    const u32 m = warp * 16 + lane / 4;
    const u32 position[2] = {tile.first_position + m / per_kv, tile.first_position + (m + 8) / per_kv};
    f32 sums[DIM / 8][4] = {};
    f32 largest[2] = {-INFINITY, -INFINITY}, total[2] = {0.0f, 0.0f};

    for (u32 first = 0; first < n_tokens; first += TOKENS) {
      copy_async_wait<0>();
      __syncthreads();
      load_tokens<DIM>(p, values, table, kv_head, 1, first, n_tokens);

      f32 scores[TOKENS / 8][4] = {};
#pragma unroll
      for (u32 k = 0; k < DIM / 16; ++k) {
        u32 a[4];
        ldmatrix_x4(a, queries.at(warp * 16 + lane % 16, k * 2 + lane / 16));
#pragma unroll
        for (u32 n = 0; n < TOKENS / 16; ++n) {
          u32 b[4];
          ldmatrix_x4(b, keys.at(n * 16 + lane % 8 + lane / 16 * 8, k * 2 + lane / 8 % 2));
          mma_m16n8k16(scores[2 * n], a, b[0], b[1]);
          mma_m16n8k16(scores[2 * n + 1], a, b[2], b[3]);
        }
      }
      // Everyone is done with these keys.
      __syncthreads();
      if (first + TOKENS < n_tokens) {
        load_tokens<DIM>(p, keys, table, kv_head, 0, first + TOKENS, n_tokens);
      } else {
        copy_async_commit();
      }

#pragma unroll
      for (u32 i = 0; i < 2; ++i) {
        f32 top = largest[i];
#pragma unroll
        for (u32 n = 0; n < TOKENS / 8; ++n) {
#pragma unroll
          for (u32 j = 0; j < 2; ++j) {
            f32& score = scores[n][2 * i + j];
            // Later positions of the sequence, and tokens that are not there: the last row's position is the last.
            if (first + n * 8 + lane % 4 * 2 + j > position[i]) score = -INFINITY;
            top = fmaxf(top, score);
          }
        }
        // The four lanes of a row.
        top = fmaxf(top, shuffle_xor(top, 1));
        top = fmaxf(top, shuffle_xor(top, 2));
        const f32 base = top == -INFINITY ? 0.0f : top;
        const f32 factor = exp2f(largest[i] - base);
        largest[i] = top;
        f32 sum = 0.0f;
#pragma unroll
        for (u32 n = 0; n < TOKENS / 8; ++n) {
#pragma unroll
          for (u32 j = 0; j < 2; ++j) {
            f32& score = scores[n][2 * i + j];
            score = exp2f(score - base);
            sum += score;
          }
        }
        total[i] = total[i] * factor + sum;
#pragma unroll
        for (u32 n = 0; n < DIM / 8; ++n) {
          sums[n][2 * i] *= factor;
          sums[n][2 * i + 1] *= factor;
        }
      }

      copy_async_wait<1>();
      __syncthreads();
#pragma unroll
      for (u32 k = 0; k < TOKENS / 16; ++k) {
        const u32 a[4] = {
            pack_floats(scores[2 * k][0], scores[2 * k][1]), pack_floats(scores[2 * k][2], scores[2 * k][3]),
            pack_floats(scores[2 * k + 1][0], scores[2 * k + 1][1]), pack_floats(scores[2 * k + 1][2], scores[2 * k + 1][3])};
#pragma unroll
        for (u32 n = 0; n < DIM / 16; ++n) {
          u32 b[4];
          ldmatrix_x4_transposed(b, values.at(k * 16 + lane % 16, n * 2 + lane / 16));
          mma_m16n8k16(sums[2 * n], a, b[0], b[1]);
          mma_m16n8k16(sums[2 * n + 1], a, b[2], b[3]);
        }
      }
    }

#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
      total[i] += shuffle_xor(total[i], 1);
      total[i] += shuffle_xor(total[i], 2);
      const u32 vector = m + 8 * i;
      if (vector >= tile.n_rows * per_kv) continue;
      const f32 inverse = 1.0f / total[i];
      const u32 head = kv_head * per_kv + vector % per_kv;
      u16* out = p.out + u64(tile.first_row + vector / per_kv) * p.out_stride + head * p.head_dim;
#pragma unroll
      for (u32 n = 0; n < DIM / 8; ++n) {
        const u32 d = n * 8 + lane % 4 * 2;
        if (d < p.head_dim) {
          *reinterpret_cast<u32*>(out + d) = pack_floats(sums[n][2 * i] * inverse, sums[n][2 * i + 1] * inverse);
        }
      }
    }
  }
}

#define ATTENTION_TILES(DIM)                                                                                          \
  extern "C" __global__ void __launch_bounds__(THREADS) attention_tiles_##DIM(const __grid_constant__ AttentionParams p) { \
    attend_tile<DIM>(p);                                                                                              \
  }
ATTENTION_TILES(64)
ATTENTION_TILES(128)
ATTENTION_TILES(256)
