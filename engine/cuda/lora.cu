// First half of the adapters: what a row's x is worth along each of its adapter's ranks.
//
//   v[s, t, part 256 + r] = sum_{k in split s} a[slot[t]][site[part]][r, k] x[t, k]       rows with no slot: untouched
//
// | buffer | shape                      | dtype | note                                                        |
// |--------|----------------------------|-------|-------------------------------------------------------------|
// | x      | [T][x_stride]              | f16   | stride a multiple of 8, zero beyond K                       |
// | a      | per slot and site [R][a_stride] | f16 | stride a multiple of 8, zero beyond K                     |
// | v      | [splits][T][3 * 256]       | f32   | ranks beyond R are not written; the reader masks them       |
// | slots  | [T]                        | u32   | NO_SLOT: no adapter                                         |
//
// Grid (row tiles, parts x 4, splits), whatever the number of adapters: work is found by reading the slot table. A CTA
// of 8 warps takes 16 ranks at a time, two per warp, and ROWS rows, so that a word of A serves all rows of the tile
// that have its adapter; lanes split k. Every (row, rank) is summed in one order (lane: k ascending in steps of 256; then
// lanes), so its bits depend neither on its neighbours nor on ROWS. Memory-bound for distinct adapters: A is read once.
// Source: the segmented form of Punica (arXiv 2310.18547), without segments: runs are found in the tile.
#include "step.cuh"

constexpr u32 WARPS = 8;
constexpr u32 RANKS = 2;
constexpr u32 RANK_GROUPS = 4;

struct LoraShrinkParams {
  const StepHeader* step;
  const u16* x;
  const u32* slots;
  const LoraSite* sites;
  f32* v;
  u64 v_plane_stride;
  u32 x_stride;
  u32 a_stride;
  /// K rounded up to 8.
  u32 n_in;
  /// Columns of a split, a multiple of 8.
  u32 split_columns;
  u32 n_sites;
  u32 n_parts;
  u32 site[PARTS_MAX];
  u32 _pad;
};
static_assert(sizeof(LoraShrinkParams) == 88, "as in ops/lora.rs");

template <u32 ROWS>
__device__ __forceinline__ void shrink(const LoraShrinkParams& p) {
  const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const u32 part = blockIdx.y / RANK_GROUPS, group = blockIdx.y % RANK_GROUPS;
  const u32 begin = blockIdx.z * p.split_columns;
  const u32 end = min(begin + p.split_columns, p.n_in);
  const u32 n_rows = p.step->n_rows;
  for (u32 tile = blockIdx.x; tile * ROWS < n_rows; tile += gridDim.x) {
    const u32 first = tile * ROWS;
    const u32 count = min(ROWS, n_rows - first);
    for (u32 i0 = 0; i0 < count;) {
      const u32 slot = p.slots[first + i0];
      u32 i1 = i0 + 1;
      while (i1 < count && p.slots[first + i1] == slot) ++i1;
      const u32 run = i0;
      i0 = i1;
      if (slot == NO_SLOT) continue;
      const LoraSite site = p.sites[u64(slot) * p.n_sites + p.site[part]];
      const u32 pass = RANK_GROUPS * WARPS * RANKS;
      for (u32 r = (group * WARPS + warp) * RANKS; r < site.rank; r += pass) {
        // The last rank may be alone: its partner repeats it and is not stored.
        const u32 other = min(r + 1, site.rank - 1);
        const u16* a0 = site.a + u64(r) * p.a_stride;
        const u16* a1 = site.a + u64(other) * p.a_stride;
        f32 sums[ROWS][RANKS] = {};
#pragma unroll 2
        for (u32 k = begin + lane * 8; k < end; k += WARP * 8) {
          f32 w0[8], w1[8];
          unpack8(*reinterpret_cast<const uint4*>(a0 + k), w0);
          unpack8(*reinterpret_cast<const uint4*>(a1 + k), w1);
#pragma unroll
          for (u32 i = 0; i < ROWS; ++i) {
            if (i < run || i >= i1) continue;
            f32 x[8];
            unpack8(*reinterpret_cast<const uint4*>(p.x + u64(first + i) * p.x_stride + k), x);
#pragma unroll
            for (u32 e = 0; e < 8; ++e) {
              sums[i][0] = fmaf(w0[e], x[e], sums[i][0]);
              sums[i][1] = fmaf(w1[e], x[e], sums[i][1]);
            }
          }
        }
#pragma unroll
        for (u32 i = 0; i < ROWS; ++i) {
          if (i < run || i >= i1) continue;
          const f32 s0 = warp_sum(sums[i][0]);
          const f32 s1 = warp_sum(sums[i][1]);
          f32* v = p.v + blockIdx.z * p.v_plane_stride + u64(first + i) * V_STRIDE + part * LORA_RANK_MAX;
          if (lane == 0) v[r] = s0;
          if (lane == 0 && other > r) v[other] = s1;
        }
      }
    }
  }
}

extern "C" __global__ void __launch_bounds__(WARPS* WARP) lora_shrink_1(const __grid_constant__ LoraShrinkParams p) {
  shrink<1>(p);
}

extern "C" __global__ void __launch_bounds__(WARPS* WARP) lora_shrink_4(const __grid_constant__ LoraShrinkParams p) {
  shrink<4>(p);
}
