// After the q, k, v product: head norms, RoPE, scaling of q, keys and values into the paged pool.
//
//   q[t, h] = f16(q_scale rope(norm(qkv[t, q_column + h D ..])))       q_scale = softmax_scale log2(e)
//   K[slot(t), h] = f16(rope(norm(qkv[t, k_column + h D ..])))         V[slot(t), h] = f16(qkv[t, v_column + h D ..])
//
// rope rotates (x[i], x[i + D/2]) by the angle of pair i at the row's position (half-split, arXiv 2104.09864); norm is
// the RMS norm of Qwen3's heads, if there is one.
//
// | buffer      | shape                                | dtype | note                                           |
// |-------------|--------------------------------------|-------|------------------------------------------------|
// | qkv         | [T][in_stride]                       | f32   |                                                |
// | cos, sin    | [max positions][D / 2]               | f32   | rounded on the host                            |
// | q           | [T][q_stride]                        | f16   | columns from heads D on are not written        |
// | kv          | [block][kv_head][K, V][16 tokens][D] | f16   | one layer                                      |
// | block_tables| [S][max_blocks]                      | u32   |                                                |
//
// One warp per (row, head); lane i holds the pairs i, i + 32, ... (at most four, D <= 256). Memory-bound.
#include "step.cuh"

constexpr u32 WARPS = 8;
constexpr u32 HEAD_DIM_MAX = 256;
constexpr u32 PAIRS = HEAD_DIM_MAX / 2 / WARP;

struct RopeStoreParams {
  const StepHeader* step;
  const f32* qkv;
  const f32* q_norm;
  const f32* k_norm;
  const f32* cos;
  const f32* sin;
  const u32* positions;
  const u32* row_sequence;
  const u32* block_tables;
  u16* q;
  u16* kv;
  u32* saturations;
  u32 in_stride;
  u32 q_column;
  u32 k_column;
  u32 v_column;
  u32 q_stride;
  u32 n_heads;
  u32 n_kv_heads;
  u32 head_dim;
  u32 max_blocks;
  u32 max_positions;
  f32 eps;
  f32 q_scale;
};
static_assert(sizeof(RopeStoreParams) == 144, "as in ops/rope_kv.rs");

extern "C" __global__ void __launch_bounds__(WARPS* WARP) rope_store(const __grid_constant__ RopeStoreParams p) {
  const u32 lane = threadIdx.x % WARP;
  const u32 half = p.head_dim / 2;
  const u32 head = blockIdx.x * WARPS + threadIdx.x / WARP;
  if (head >= p.n_heads + 2 * p.n_kv_heads) return;
  const bool is_q = head < p.n_heads;
  const bool is_v = head >= p.n_heads + p.n_kv_heads;
  const u32 in_part = is_q ? head : (head - p.n_heads) % p.n_kv_heads;
  const u32 column = (is_q ? p.q_column : is_v ? p.v_column : p.k_column) + in_part * p.head_dim;
  const f32* weight = is_q ? p.q_norm : is_v ? nullptr : p.k_norm;
  const f32 scale = is_q ? p.q_scale : 1.0f;
  const u32 n_rows = p.step->n_rows;
  u32 saturations = 0;
  for (u32 t = blockIdx.y; t < n_rows; t += gridDim.y) {
    const u32 position = p.positions[t];
    const f32* x = p.qkv + u64(t) * p.in_stride + column;
    f32 low[PAIRS], high[PAIRS];
    f32 squares = 0.0f;
#pragma unroll
    for (u32 j = 0; j < PAIRS; ++j) {
      const u32 i = j * WARP + lane;
      low[j] = i < half ? x[i] : 0.0f;
      high[j] = i < half ? x[half + i] : 0.0f;
      squares = fmaf(low[j], low[j], squares);
      squares = fmaf(high[j], high[j], squares);
    }
    f32 inverse = 1.0f;
    if (weight) inverse = 1.0f / sqrtf(warp_sum(squares) / static_cast<f32>(p.head_dim) + p.eps);
    u16* out;
    if (is_q) {
      out = p.q + u64(t) * p.q_stride + in_part * p.head_dim;
    } else {
      const u32 block = p.block_tables[u64(p.row_sequence[t]) * p.max_blocks + position / KV_BLOCK_TOKENS];
      out = p.kv + kv_offset(block, p.n_kv_heads, in_part, is_v, position % KV_BLOCK_TOKENS, p.head_dim);
    }
#pragma unroll
    for (u32 j = 0; j < PAIRS; ++j) {
      const u32 i = j * WARP + lane;
      if (i >= half) continue;
      f32 a = low[j], b = high[j];
      if (weight) {
        a = weight[i] * (a * inverse);
        b = weight[half + i] * (b * inverse);
      }
      if (!is_v) {
        const u64 angle = u64(min(position, p.max_positions - 1)) * half + i;
        const f32 c = p.cos[angle], s = p.sin[angle];
        const f32 first = (a * c - b * s) * scale;
        b = (b * c + a * s) * scale;
        a = first;
      }
      out[i] = float_to_half_saturated(a, saturations);
      out[half + i] = float_to_half_saturated(b, saturations);
    }
  }
  if (saturations != 0) atomicAdd(p.saturations, saturations);
}
