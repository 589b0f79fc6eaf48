// First half of the adapters: what a row's x is worth along each of its adapter's ranks.
//
//   v[s, t, part 512 + r] = sum_{k in split s} a[slot[t]][site[part]][r, k] x[t, k]       rows with no slot: untouched
//
// | buffer | shape                      | dtype | note                                                        |
// |--------|----------------------------|-------|-------------------------------------------------------------|
// | x      | [T][x_stride]              | f16   | stride a multiple of 8, zero beyond K                       |
// | a      | per slot and site [R][a_stride] | f16 | 16-byte aligned, stride a multiple of 8, zero beyond K    |
// | v      | [splits][T][3 * 512]       | f32   | ranks beyond R are not written; the reader masks them       |
// | slots  | [T]                        | u32   | NO_SLOT: no adapter                                         |
// | tiles  | [n_adapter_tiles]          | AdapterTile | rows in runs of one adapter; tiles of NO_SLOT are skipped |
//
// lora_shrink_1 takes rows one by one (decode). Grid (rows, parts x 4, splits), whatever the number of adapters: work is
// found by reading the slot table. A CTA of 8 warps takes 16 ranks at a time, two per warp; lanes split k. Memory-bound for
// distinct adapters: A is read once.
//
// lora_shrink_tiles takes tiles of rows (prefill) on tensor cores: ranks are M, in blocks of 16 of one part, rows are N. Grid
// (tiles, splits, 2). A CTA of 4 warps, each 16 rows, takes a tile and 4 blocks of ranks at a time, of whichever parts:
// parts share x, which so is read once by adapters of up to 64 ranks in all parts together. x and A come by cp.async,
// 64 columns a stage, up to 5 stages ahead. Rows beyond the tile and ranks beyond R spoil only their own sums, which are
// not stored, so anything may stand in for them; columns beyond K are zero in shared memory.
//
//   shared memory, a stage, halves:  x [64][64] | A [4 blocks][16][64]       6 stages, 96 KB
//   16-byte chunk c of row r lies at chunk c ^ (r & 7) of its row: ldmatrix meets no bank twice
//
// Limit of the tiles: L2 (x and A of a tile), memory where x does not stay in L2. Sums are f32 and of one order (k
// ascending within a split), so a row's bits do not depend on its neighbours; they do on the split, which the host chooses
// by the number of tiles, and on which of the two kernels it is.
// Source: the segmented form of Punica (arXiv 2310.18547).
#include "mma.cuh"
#include "step.cuh"

constexpr u32 WARPS = 8;
constexpr u32 RANKS = 2;
constexpr u32 RANK_GROUPS = 4;

constexpr u32 TILE_WARPS = 4;
constexpr u32 WARP_ROWS = ADAPTER_TILE_ROWS / TILE_WARPS;
static_assert(WARP_ROWS == 16, "two n8 of an MMA");
/// Ranks of a block: M of an MMA.
constexpr u32 BLOCK_RANKS = 16;
/// Blocks of ranks of a CTA at a time.
constexpr u32 BLOCKS = 4;
constexpr u32 STAGE_COLUMNS = 64;
constexpr u32 STAGES = 6;
constexpr u32 CHUNKS = STAGE_COLUMNS / 8;
constexpr u32 BLOCK_HALVES = BLOCK_RANKS * STAGE_COLUMNS;
constexpr u32 X_HALVES = ADAPTER_TILE_ROWS * STAGE_COLUMNS;
constexpr u32 STAGE_HALVES = X_HALVES + BLOCKS * BLOCK_HALVES;
static_assert(STAGES * STAGE_HALVES * 2 == 98304, "as in ops/lora.rs");

struct LoraShrinkParams {
  const StepHeader* step;
  const u16* x;
  const u32* slots;
  const AdapterTile* tiles;
  const LoraSite* sites;
  f32* v;
  u64 v_plane_stride;
  u32 x_stride;
  u32 a_stride;
  /// K rounded up to 8.
  u32 n_in;
  /// Columns of a split, a multiple of 8; of 64 for tiles.
  u32 split_columns;
  u32 n_sites;
  u32 n_parts;
  u32 site[PARTS_MAX];
  u32 _pad;
};
static_assert(sizeof(LoraShrinkParams) == 96, "as in ops/lora.rs");

extern "C" __global__ void __launch_bounds__(WARPS* WARP) lora_shrink_1(const __grid_constant__ LoraShrinkParams p) {
  const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const u32 part = blockIdx.y / RANK_GROUPS, group = blockIdx.y % RANK_GROUPS;
  const u32 begin = blockIdx.z * p.split_columns;
  const u32 end = min(begin + p.split_columns, p.n_in);
  const u32 n_rows = p.step->n_rows;
  for (u32 t = blockIdx.x; t < n_rows; t += gridDim.x) {
    const u32 slot = p.slots[t];
    if (slot == NO_SLOT) continue;
    const LoraSite site = p.sites[u64(slot) * p.n_sites + p.site[part]];
    const u16* row = p.x + u64(t) * p.x_stride;
    f32* v = p.v + blockIdx.z * p.v_plane_stride + u64(t) * V_STRIDE + part * LORA_RANK_MAX;
    const u32 pass = RANK_GROUPS * WARPS * RANKS;
    for (u32 r = (group * WARPS + warp) * RANKS; r < site.rank; r += pass) {
      // The last rank may be alone: its partner repeats it and is not stored.
      const u32 other = min(r + 1, site.rank - 1);
      const u16* a0 = site.a + u64(r) * p.a_stride;
      const u16* a1 = site.a + u64(other) * p.a_stride;
      f32 sums[RANKS] = {};
#pragma unroll 2
      for (u32 k = begin + lane * 8; k < end; k += WARP * 8) {
        f32 w0[8], w1[8], x[8];
        unpack8(*reinterpret_cast<const uint4*>(a0 + k), w0);
        unpack8(*reinterpret_cast<const uint4*>(a1 + k), w1);
        unpack8(*reinterpret_cast<const uint4*>(row + k), x);
#pragma unroll
        for (u32 e = 0; e < 8; ++e) {
          sums[0] = fmaf(w0[e], x[e], sums[0]);
          sums[1] = fmaf(w1[e], x[e], sums[1]);
        }
      }
      const f32 s0 = warp_sum(sums[0]);
      const f32 s1 = warp_sum(sums[1]);
      if (lane == 0) v[r] = s0;
      if (lane == 0 && other > r) v[other] = s1;
    }
  }
}

/// Up to 16 ranks of one part; none: `n_ranks` is 0.
struct RankBlock {
  const u16* a;
  u32 n_ranks;
  /// Where they lie in a row of `v`.
  u32 v_column;
};

/// Block `index` of all parts of a slot, one part after the other.
__device__ __forceinline__ RankBlock rank_block(const LoraShrinkParams& p, const LoraSite* sites, u32 index) {
  u32 part = 0, n_ranks = 0;
  for (; part < p.n_parts; ++part) {
    n_ranks = sites[p.site[part]].rank;
    const u32 n_blocks = div_up(n_ranks, BLOCK_RANKS);
    if (index < n_blocks) break;
    index -= n_blocks;
  }
  if (part == p.n_parts) return {nullptr, 0, 0};
  const u32 first = index * BLOCK_RANKS;
  return {sites[p.site[part]].a + u64(first) * p.a_stride, min(n_ranks - first, BLOCK_RANKS), part * LORA_RANK_MAX + first};
}

/// Row `r`, halves from 8 `chunk` on.
__device__ __forceinline__ u16* stage_at(u16* rows, u32 r, u32 chunk) {
  return rows + r * STAGE_COLUMNS + ((chunk ^ r) & 7u) * 8;
}

/// Sums of a warp: 16 ranks by twice 8 rows for each block.
using BlockSums = f32[BLOCKS][2][4];

/// A stage's columns of the first `COUNT` blocks.
template <u32 COUNT>
__device__ __forceinline__ void multiply_stage(u16* stage, BlockSums& sums) {
  const u32 lane = threadIdx.x % WARP, first_row = threadIdx.x / WARP * WARP_ROWS;
#pragma unroll
  for (u32 k = 0; k < STAGE_COLUMNS / 16; ++k) {
    u32 b[4];
    ldmatrix_x4(b, stage_at(stage, first_row + lane % 8 + lane / 16 * 8, k * 2 + lane / 8 % 2));
#pragma unroll
    for (u32 m = 0; m < COUNT; ++m) {
      u32 a[4];
      ldmatrix_x4(a, stage_at(stage + X_HALVES + m * BLOCK_HALVES, lane % 16, k * 2 + lane / 16));
      mma_m16n8k16(sums[m][0], a, b[0], b[1]);
      mma_m16n8k16(sums[m][1], a, b[2], b[3]);
    }
  }
}

extern "C" __global__ void __launch_bounds__(TILE_WARPS* WARP, 2) lora_shrink_tiles(const __grid_constant__ LoraShrinkParams p) {
  DYNAMIC_SHARED(u16, shared);
  const u32 lane = threadIdx.x % WARP, first_row = threadIdx.x / WARP * WARP_ROWS;
  // What this thread copies: one chunk of a row of each block, and of every 16th row of x.
  const u32 row = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
  static_assert(TILE_WARPS * WARP / CHUNKS == BLOCK_RANKS, "a chunk of a row for each thread");
  const u32 begin = blockIdx.y * p.split_columns;
  const u32 end = min(begin + p.split_columns, p.n_in);
  const u32 n_stages = div_up(end - begin, STAGE_COLUMNS);
  const u32 n_tiles = p.step->n_adapter_tiles;
  for (u32 item = blockIdx.x; item < n_tiles; item += gridDim.x) {
    const AdapterTile tile = p.tiles[item];
    if (tile.slot == NO_SLOT) continue;
    const LoraSite* sites = p.sites + u64(tile.slot) * p.n_sites;
    // Rows and ranks that are not there are those before them once more: their sums are not stored, and nobody waits for
    // a branch.
    const u16* x[TILE_WARPS];
#pragma unroll
    for (u32 i = 0; i < TILE_WARPS; ++i) {
      x[i] = p.x + u64(tile.first_row + min(row + i * WARP_ROWS, tile.n_rows - 1)) * p.x_stride + chunk * 8;
    }
    for (u32 first = blockIdx.z * BLOCKS;; first += gridDim.z * BLOCKS) {
      RankBlock blocks[BLOCKS];
      const u16* a[BLOCKS];
      u32 count = 0;
#pragma unroll
      for (u32 m = 0; m < BLOCKS; ++m) {
        blocks[m] = rank_block(p, sites, first + m);
        if (blocks[m].n_ranks == 0) continue;
        a[m] = blocks[m].a + u64(min(row, blocks[m].n_ranks - 1)) * p.a_stride + chunk * 8;
        ++count;
      }
      if (count == 0) break;

      const auto load = [&](u32 index) {
        const u32 first_column = begin + index * STAGE_COLUMNS;
        const auto copy_all = [&](auto copy) {
          u16* to = stage_at(shared + index % STAGES * STAGE_HALVES, row, chunk);
#pragma unroll
          for (u32 i = 0; i < TILE_WARPS; ++i) {
            if (i * WARP_ROWS < tile.n_rows) copy(to + i * WARP_ROWS * STAGE_COLUMNS, x[i] + first_column);
          }
#pragma unroll
          for (u32 m = 0; m < BLOCKS; ++m) {
            if (m < count) copy(to + X_HALVES + m * BLOCK_HALVES, a[m] + first_column);
          }
        };
        if (first_column + STAGE_COLUMNS <= end) {
          copy_all([](u16* to, const u16* from) { copy_async_16(to, from); });
        } else if (first_column < end) {
          copy_all([&](u16* to, const u16* from) {
            if (first_column + chunk * 8 < end) {
              copy_async_16(to, from);
            } else {
              *reinterpret_cast<uint4*>(to) = make_uint4(0, 0, 0, 0);
            }
          });
        }
        copy_async_commit();
      };

      // The stages' previous use is over.
      __syncthreads();
#pragma unroll 1
      for (u32 i = 0; i < STAGES - 1; ++i) load(i);
      BlockSums sums = {};
      for (u32 i = 0; i < n_stages; ++i) {
        copy_async_wait<STAGES - 2>();
        // This stage is there, and everyone is done with the one before, which is next to be written.
        __syncthreads();
        load(i + STAGES - 1);
        if (first_row >= tile.n_rows) continue;
        u16* stage = shared + i % STAGES * STAGE_HALVES;
        switch (count) {
          case 1: multiply_stage<1>(stage, sums); break;
          case 2: multiply_stage<2>(stage, sums); break;
          case 3: multiply_stage<3>(stage, sums); break;
          default: multiply_stage<4>(stage, sums); break;
        }
      }

#pragma unroll
      for (u32 m = 0; m < BLOCKS; ++m) {
#pragma unroll
        for (u32 i = 0; i < 8; ++i) {
          // Sum i % 4 of n8 i / 4.
          const u32 t = first_row + i / 4 * 8 + lane % 4 * 2 + i % 2;
          const u32 r = lane / 4 + i % 4 / 2 * 8;
          if (t < tile.n_rows && r < blocks[m].n_ranks) {
            p.v[blockIdx.y * p.v_plane_stride + u64(tile.first_row + t) * V_STRIDE + blocks[m].v_column + r] = sums[m][i / 4][i % 4];
          }
        }
      }
    }
  }
}
