// Logits of rows whose adapter has a head of its own, over those of the base's head.
//
//   logits[rows[i], n] = sum_k own[slot of i][n, k] x[rows[i], k]        all other rows: untouched
//
// | buffer | shape               | dtype       | note                                                                |
// |--------|---------------------|-------------|---------------------------------------------------------------------|
// | x      | [T][x_stride]       | f16         | rows whose logits are wanted; zero beyond K, stride a multiple of 64 |
// | tiles  | [n_adapter_tiles]   | AdapterTile | of the head's header; first_row and n_rows count entries of `rows`  |
// | rows   | entries of all tiles | u32        | rows of x and logits, those of one adapter side by side             |
// | own    | by slot [V][K up to 64] | f16     | `OwnMatrices`, zero beyond K                                        |
// | logits | [T][stride]         | f32         | columns from V on are not written                                   |
//
// A tile is up to 32 rows of one adapter: its head is read once for them. A CTA of 4 warps takes 64 features of a tile, a
// warp 16 of them and all of K, k ascending: a row's bits depend on nothing else. Weights are the A operand of
// mma.m16n8k16, straight from memory: lane 4 g + c owns k 16 c .. 16 c + 15 of every 64, of features g and g + 8, and the
// same of row g of each 8 rows. Grid: (features / 64, tiles, at most 4); the kernel loops over what is beyond, and a step
// without such rows returns at once. Bound by memory for few rows; x comes from L1 and L2. Not tuned beyond that.
#include "mma.cuh"
#include "step.cuh"

constexpr u32 WARPS = 4;
/// M of an MMA.
constexpr u32 WARP_FEATURES = 16;
/// Rows of a tile in groups of 8, N of an MMA.
constexpr u32 ROW_GROUPS = 4;
constexpr u32 UNIT_K = 64;

struct OwnHeadParams {
  const StepHeader* step;
  const u16* x;
  const AdapterTile* tiles;
  const u32* rows;
  const OwnMatrices* own;
  f32* logits;
  u32 x_stride;
  /// Units of 64 k.
  u32 n_units;
  u32 n_out;
  u32 stride;
};
static_assert(sizeof(OwnHeadParams) == 64, "as in ops/own_head.rs");

/// 64 k of 16 features (`a`: rows g and g + 8) times 8 rows.
__device__ __forceinline__ void multiply_unit(f32 (&acc)[4], const uint4 (&a)[2][2], const u16* x) {
#pragma unroll
  for (u32 half = 0; half < 2; ++half) {
    const uint4 b = reinterpret_cast<const uint4*>(x)[half];
    const uint4 low = a[0][half], high = a[1][half];
    mma_m16n8k16(acc, {low.x, high.x, low.y, high.y}, b.x, b.y);
    mma_m16n8k16(acc, {low.z, high.z, low.w, high.w}, b.z, b.w);
  }
}

extern "C" __global__ void __launch_bounds__(WARPS* WARP) own_head(const __grid_constant__ OwnHeadParams p) {
  const u32 lane = threadIdx.x % WARP, g = lane / 4, c = lane % 4;
  const u32 first = (blockIdx.x * WARPS + threadIdx.x / WARP) * WARP_FEATURES;
  if (first >= p.n_out) return;
  const u32 n_tiles = p.step->n_adapter_tiles;
  for (u32 item = blockIdx.y; item < n_tiles; item += gridDim.y) {
    const AdapterTile tile = p.tiles[item];
    const u32* rows = p.rows + tile.first_row;
    // Features and rows that are not there are the last ones once more: their sums are not stored.
    const u16* weights[2];
#pragma unroll
    for (u32 h = 0; h < 2; ++h) {
      weights[h] = p.own[tile.slot].head + u64(min(first + g + 8 * h, p.n_out - 1)) * p.n_units * UNIT_K + 16 * c;
    }
    const u16* x[ROW_GROUPS];
#pragma unroll
    for (u32 n = 0; n < ROW_GROUPS; ++n) {
      x[n] = p.x + u64(rows[min(n * 8 + g, tile.n_rows - 1)]) * p.x_stride + 16 * c;
    }
    f32 acc[ROW_GROUPS][4] = {};
#pragma unroll 2
    for (u32 unit = 0; unit < p.n_units; ++unit) {
      uint4 a[2][2];
#pragma unroll
      for (u32 i = 0; i < 4; ++i) a[i / 2][i % 2] = reinterpret_cast<const uint4*>(weights[i / 2] + unit * UNIT_K)[i % 2];
#pragma unroll
      for (u32 n = 0; n < ROW_GROUPS; ++n) {
        if (n * 8 < tile.n_rows) multiply_unit(acc[n], a, x[n] + unit * UNIT_K);
      }
    }
#pragma unroll
    for (u32 i = 0; i < ROW_GROUPS * 4; ++i) {
      const u32 row = i / 4 * 8 + 2 * c + i % 2, feature = first + g + i % 4 / 2 * 8;
      if (row < tile.n_rows && feature < p.n_out) p.logits[u64(rows[row]) * p.stride + feature] = acc[i / 4][i % 4];
    }
  }
}
