// The sums of planes, bias and adapters of tiles of rows (prefill), adapters on tensor cores.
//
//   epilogue_tiles, epilogue_adapter_tiles                  formula and buffers as epilogue_1
//   epilogue_swiglu_tiles, epilogue_swiglu_adapter_tiles    the same as epilogue_swiglu_1
//
// The _tiles kernels take tiles of 64 rows of which none has an adapter, _adapter_tiles those of the step's list. A CTA of 4
// warps takes a tile and a strip of 64 to 256 columns of one part, a warp 16 rows, 32 columns at a time; no two
// warps share anything but caches. Planes and out are read and written 16 bytes a thread, all that a thread needs asked for
// before any of it is used. Lanes hold them as the sums of m16n8k16 lie, but for the order of columns and ranks, which
// the adapters' operands follow (both come from memory, so any order will do):
//
//   lane 4 g + c holds rows g and g + 8, columns 4 c .. 4 c + 3 of a group of 16: sums 2 c, 2 c + 1 of two n8
//   v is A: ranks 4 c .. 4 c + 3 of a block of 16, rows g and g + 8; b is B: the same ranks of its column
//
// v is f32, tensor cores take halves: a row's 16 ranks are scaled by the power of two that brings the largest to 2^14 .. 2^15
// and split in two halves, of which both are multiplied by b, exactly; sums are f32. So the error is that of f32 sums,
// whatever the range of v. A row's bits do not depend on its neighbours; without an adapter they are those of the _1
// kernels, with one they agree to the rounding of f32.
//
// Limit: memory (planes and out). v and b come from L2; for adapters of one block v is kept for the whole strip, and b comes
// from L1 for three warps of four.
#include "epilogue.cuh"
#include "mma.cuh"

constexpr u32 TILE_WARPS = 4;
constexpr u32 WARP_ROWS = ADAPTER_TILE_ROWS / TILE_WARPS;
static_assert(WARP_ROWS == 16, "M of an MMA");
/// Columns of two MMAs, four a lane.
constexpr u32 GROUP_COLUMNS = 16;
/// Groups that a warp has in its registers at a time, of each part.
constexpr u32 GROUPS = 2;
/// Ranks of an MMA.
constexpr u32 BLOCK_RANKS = 16;

/// What a lane holds of `N` groups of 16 columns: `[group][row g, g + 8][column]`.
template <u32 N>
using Values = f32[N][2][4];

/// A warp's rows of a tile.
struct WarpRows {
  u32 slot;
  /// This lane's first row, `g`, in the step; the other is 8 rows on.
  u32 row;
  bool live[2];
};

/// 16 ranks of v as an operand: `scale v = high + low`.
struct RankBlock {
  /// Which; NO_BLOCK: none yet.
  u32 index;
  u32 high[4], low[4];
  /// lora_scale / scale, by row.
  f32 factor[2];
};
constexpr u32 NO_BLOCK = 0xffffffffu;

template <bool ADAPTERS>
__device__ __forceinline__ u32 n_tiles_of(const EpilogueParams& p) {
  return ADAPTERS ? p.step->n_adapter_tiles : div_up(p.step->n_rows, ADAPTER_TILE_ROWS);
}

/// This warp's rows of tile `item`; false: none.
template <bool ADAPTERS>
__device__ __forceinline__ bool rows_of_tile(const EpilogueParams& p, u32 item, WarpRows& rows) {
  AdapterTile tile;
  if (ADAPTERS) {
    tile = p.tiles[item];
  } else {
    const u32 first = item * ADAPTER_TILE_ROWS;
    tile = {NO_SLOT, first, min(p.step->n_rows - first, ADAPTER_TILE_ROWS), 0};
  }
  const u32 warp_row = threadIdx.x / WARP * WARP_ROWS, row = warp_row + threadIdx.x % WARP / 4;
  rows.slot = tile.slot;
  rows.row = tile.first_row + row;
  rows.live[0] = row < tile.n_rows;
  rows.live[1] = row + 8 < tile.n_rows;
  return warp_row < tile.n_rows;
}

/// Sums, scales and splits the v of 16 ranks. All lanes call it together.
__device__ __forceinline__ void load_ranks(const EpilogueParams& p, u32 part, const WarpRows& rows, const LoraSite& site,
                                           u32 index, RankBlock& to) {
  const u32 r = index * BLOCK_RANKS + threadIdx.x % 4 * 4;
  const f32* from = p.v_planes + u64(rows.row) * V_STRIDE + part * LORA_RANK_MAX + r;
  f32 v[2][4] = {};
#pragma unroll 2
  for (u32 s = 0; s < p.n_v_planes; ++s) {
#pragma unroll
    for (u32 h = 0; h < 2; ++h) {
      if (!rows.live[h] || r >= site.rank) continue;
      const float4 w = *reinterpret_cast<const float4*>(from + s * p.v_plane_stride + h * 8 * V_STRIDE);
      v[h][0] += w.x, v[h][1] += w.y, v[h][2] += w.z, v[h][3] += w.w;
    }
  }
  to.index = index;
#pragma unroll
  for (u32 h = 0; h < 2; ++h) {
    f32 top = 0.0f;
#pragma unroll
    for (u32 e = 0; e < 4; ++e) {
      // Memory beyond the rank may hold NaN.
      if (r + e >= site.rank) v[h][e] = 0.0f;
      top = fmaxf(top, fabsf(v[h][e]));
    }
    top = fmaxf(top, shuffle_xor(top, 1));
    top = fmaxf(top, shuffle_xor(top, 2));
    // 2^(exponent - 127) <= top < twice that. The scale 2^(141 - exponent) and its inverse are normal numbers.
    const u32 exponent = max(__float_as_uint(top) >> 23, 15u);
    const f32 scale = __uint_as_float((268u - exponent) << 23);
    to.factor[h] = site.lora_scale * __uint_as_float((exponent - 14u) << 23);
    u16 high[4], low[4];
#pragma unroll
    for (u32 e = 0; e < 4; ++e) {
      const f32 x = v[h][e] * scale;
      high[e] = float_to_half(x);
      low[e] = float_to_half(x - half_to_float(high[e]));
    }
    to.high[h] = pack_halves(high[0], high[1]), to.high[2 + h] = pack_halves(high[2], high[3]);
    to.low[h] = pack_halves(low[0], low[1]), to.low[2 + h] = pack_halves(low[2], low[3]);
  }
}

/// Where an adapter acts on a part; rank 0: nowhere.
__device__ __forceinline__ LoraSite site_of(const EpilogueParams& p, u32 part, const WarpRows& rows) {
  LoraSite site = {};
  if (rows.slot != NO_SLOT) site = p.sites[u64(rows.slot) * p.n_sites + p.parts[part].site];
  return site;
}

/// The first plane, in groups from `column` on; anything beyond the width.
template <u32 N>
__device__ __forceinline__ void load_plane(const EpilogueParams& p, u32 part, u32 column, const WarpRows& rows, Values<N>& y) {
  const u32 lane_column = column + threadIdx.x % 4 * 4;
  const f32* from = p.planes + u64(rows.row) * p.plane_row + p.parts[part].plane_column + lane_column;
#pragma unroll
  for (u32 i = 0; i < N * 2; ++i) {
    float4 w = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (rows.live[i % 2] && lane_column + i / 2 * GROUP_COLUMNS < p.parts[part].n_out) {
      w = *reinterpret_cast<const float4*>(from + u64(i % 2 * 8) * p.plane_row + i / 2 * GROUP_COLUMNS);
    }
    f32 (&to)[4] = y[i / 2][i % 2];
    to[0] = w.x, to[1] = w.y, to[2] = w.z, to[3] = w.w;
  }
}

/// Adds the other planes.
template <u32 N>
__device__ __forceinline__ void add_planes(const EpilogueParams& p, u32 part, u32 column, const WarpRows& rows, Values<N>& y) {
#pragma unroll 1
  for (u32 s = 1; s < p.n_planes; ++s) {
    const u32 lane_column = column + threadIdx.x % 4 * 4;
    const f32* from =
        p.planes + s * p.plane_stride + u64(rows.row) * p.plane_row + p.parts[part].plane_column + lane_column;
#pragma unroll
    for (u32 i = 0; i < N * 2; ++i) {
      f32 (&to)[4] = y[i / 2][i % 2];
      if (!rows.live[i % 2] || lane_column + i / 2 * GROUP_COLUMNS >= p.parts[part].n_out) continue;
      const float4 w = *reinterpret_cast<const float4*>(from + u64(i % 2 * 8) * p.plane_row + i / 2 * GROUP_COLUMNS);
      to[0] += w.x, to[1] += w.y, to[2] += w.z, to[3] += w.w;
    }
  }
}

/// Four values of a vector of the adapter's, from `n` on.
__device__ __forceinline__ void load_four(const f32* from, u32 n, f32 (&to)[4]) {
  const float4 w = *reinterpret_cast<const float4*>(from + n);
  to[0] = w.x, to[1] = w.y, to[2] = w.z, to[3] = w.w;
}

/// The bias, and what DoRA and lora_bias make of the sums.
template <bool ADAPTERS, u32 N>
__device__ __forceinline__ void finish(const EpilogueParams& p, u32 part, u32 column, const WarpRows& rows, Values<N>& y) {
  const f32* bias = p.bias[part];
  // Read anew for every strip: most adapters have neither, and registers are short.
  const f32 *gains = nullptr, *shifts = nullptr;
  if (ADAPTERS && rows.slot != NO_SLOT) {
    const LoraSite* site = p.sites + u64(rows.slot) * p.n_sites + p.parts[part].site;
    gains = site->gain, shifts = site->shift;
  }
  const u32 n_out = p.parts[part].n_out;
#pragma unroll
  for (u32 i = 0; i < N; ++i) {
    const u32 n = column + threadIdx.x % 4 * 4 + i * GROUP_COLUMNS;
    f32 add[4];
#pragma unroll
    for (u32 e = 0; e < 4; ++e) add[e] = bias && n + e < n_out ? bias[n + e] : 0.0f;
    f32 gain[4] = {1.0f, 1.0f, 1.0f, 1.0f}, shift[4] = {};
    if (ADAPTERS && gains && n < n_out) load_four(gains, n, gain);
    if (ADAPTERS && shifts && n < n_out) load_four(shifts, n, shift);
#pragma unroll
    for (u32 e = 0; e < 4; ++e) {
#pragma unroll
      for (u32 h = 0; h < 2; ++h) {
        f32& to = y[i][h][e];
        // Also where there is no bias: then -0 becomes 0, as in the _1 kernels.
        to = ADAPTERS ? fmaf(gain[e], to, add[e]) + shift[e] : to + add[e];
      }
    }
  }
}

/// B of block `index` of ranks, for groups from `column` on: `[group][n8]`.
template <u32 N>
__device__ __forceinline__ void load_b(const EpilogueParams& p, u32 part, u32 column, const LoraSite& site, u32 index,
                                       uint2 (&b)[N][2]) {
  const u32 b_stride = div_up(site.rank, 8) * 8;
  const u32 g = threadIdx.x % WARP / 4;
  const u32 first = column + g / 2 * 4 + g % 2;
  const u32 r = index * BLOCK_RANKS + threadIdx.x % 4 * 4;
  const u16* from = site.b + u64(first) * b_stride + r;
#pragma unroll
  for (u32 i = 0; i < N * 2; ++i) {
    const u32 more = i / 2 * GROUP_COLUMNS + i % 2 * 2;
    b[i / 2][i % 2] = make_uint2(0, 0);
    if (first + more < p.parts[part].n_out && r < b_stride) {
      b[i / 2][i % 2] = *reinterpret_cast<const uint2*>(from + more * b_stride);
    }
  }
}

/// Adds the second half of an adapter to groups from `column` on; `b` is that of block 0.
template <u32 N>
__device__ __forceinline__ void add_adapter(const EpilogueParams& p, u32 part, u32 column, const WarpRows& rows,
                                            const LoraSite& site, uint2 (&b)[N][2], RankBlock& block, Values<N>& y) {
  for (u32 index = 0; index * BLOCK_RANKS < site.rank; ++index) {
    if (index != 0) load_b<N>(p, part, column, site, index, b);
    // Adapters of one block keep it for all columns of the CTA.
    if (index != block.index) load_ranks(p, part, rows, site, index, block);
#pragma unroll
    for (u32 i = 0; i < N * 2; ++i) {
      const uint2 word = b[i / 2][i % 2];
      f32 sums[4] = {};
      mma_m16n8k16(sums, block.high, word.x, word.y);
      mma_m16n8k16(sums, block.low, word.x, word.y);
#pragma unroll
      for (u32 e = 0; e < 4; ++e) {
        f32& to = y[i / 2][e / 2][i % 2 * 2 + e % 2];
        to = fmaf(block.factor[e / 2], sums[e], to);
      }
    }
  }
}

template <bool ADAPTERS>
__device__ __forceinline__ void epilogue_tiles_of(const EpilogueParams& p) {
  u32 strip;
  const u32 part = part_of(p, p.cta_columns, strip);
  const EpiloguePart at = p.parts[part];
  const u32 end = min((strip + 1) * p.cta_columns, at.n_out);
  const u32 n_tiles = n_tiles_of<ADAPTERS>(p);
  for (u32 item = blockIdx.y; item < n_tiles; item += gridDim.y) {
    WarpRows rows;
    if (!rows_of_tile<ADAPTERS>(p, item, rows)) continue;
    const LoraSite site = site_of(p, part, rows);
    RankBlock block;
    block.index = NO_BLOCK;
    for (u32 column = strip * p.cta_columns; column < end; column += GROUPS * GROUP_COLUMNS) {
      const u32 lane_column = column + threadIdx.x % 4 * 4;
      f32* out = static_cast<f32*>(p.out) + u64(rows.row) * p.out_stride + at.out_column + lane_column;
      // Asked for before the planes, so that both are on their way.
      Values<GROUPS> old;
      if (p.accumulate) {
#pragma unroll
        for (u32 i = 0; i < GROUPS * 2; ++i) {
          if (!rows.live[i % 2] || lane_column + i / 2 * GROUP_COLUMNS >= at.n_out) continue;
          const float4 w = *reinterpret_cast<const float4*>(out + u64(i % 2 * 8) * p.out_stride + i / 2 * GROUP_COLUMNS);
          f32 (&to)[4] = old[i / 2][i % 2];
          to[0] = w.x, to[1] = w.y, to[2] = w.z, to[3] = w.w;
        }
      }
      Values<GROUPS> y;
      load_plane<GROUPS>(p, part, column, rows, y);
      uint2 b[GROUPS][2];
      if (ADAPTERS) load_b<GROUPS>(p, part, column, site, 0, b);
      add_planes<GROUPS>(p, part, column, rows, y);
      if (ADAPTERS) add_adapter<GROUPS>(p, part, column, rows, site, b, block, y);
      finish<ADAPTERS, GROUPS>(p, part, column, rows, y);
      if (p.accumulate) {
#pragma unroll
        for (u32 i = 0; i < GROUPS * 8; ++i) y[i / 8][i / 4 % 2][i % 4] = old[i / 8][i / 4 % 2][i % 4] + y[i / 8][i / 4 % 2][i % 4];
      }
#pragma unroll
      for (u32 i = 0; i < GROUPS * 2; ++i) {
        const f32 (&from)[4] = y[i / 2][i % 2];
        f32* to = out + u64(i % 2 * 8) * p.out_stride + i / 2 * GROUP_COLUMNS;
        const u32 n = lane_column + i / 2 * GROUP_COLUMNS;
        if (!rows.live[i % 2] || n >= at.n_out) continue;
        if (n + 4 <= at.n_out) {
          // As words: the compiler would find the three of the other branch in four floats, and store them one by one.
          *reinterpret_cast<uint4*>(to) = make_uint4(__float_as_uint(from[0]), __float_as_uint(from[1]),
                                                     __float_as_uint(from[2]), __float_as_uint(from[3]));
        } else {
#pragma unroll
          for (u32 e = 0; e < 3; ++e) {
            if (n + e < at.n_out) to[e] = from[e];
          }
        }
      }
    }
  }
}

template <bool ADAPTERS>
__device__ __forceinline__ void epilogue_swiglu_tiles_of(const EpilogueParams& p) {
  const u32 n_out = p.parts[0].n_out;
  const u32 end = min((blockIdx.x + 1) * p.cta_columns, p.out_stride);
  const u32 n_tiles = n_tiles_of<ADAPTERS>(p);
  u32 saturations = 0;
  for (u32 item = blockIdx.y; item < n_tiles; item += gridDim.y) {
    WarpRows rows;
    if (!rows_of_tile<ADAPTERS>(p, item, rows)) continue;
    const LoraSite gate_site = site_of(p, 0, rows), up_site = site_of(p, 1, rows);
    RankBlock gate_block, up_block;
    gate_block.index = up_block.index = NO_BLOCK;
    for (u32 column = blockIdx.x * p.cta_columns; column < end; column += GROUPS * GROUP_COLUMNS) {
      Values<GROUPS> gate, up;
      load_plane<GROUPS>(p, 0, column, rows, gate);
      load_plane<GROUPS>(p, 1, column, rows, up);
      uint2 gate_b[GROUPS][2], up_b[GROUPS][2];
      if (ADAPTERS) load_b<GROUPS>(p, 0, column, gate_site, 0, gate_b);
      if (ADAPTERS) load_b<GROUPS>(p, 1, column, up_site, 0, up_b);
      add_planes<GROUPS>(p, 0, column, rows, gate);
      add_planes<GROUPS>(p, 1, column, rows, up);
      if (ADAPTERS) add_adapter<GROUPS>(p, 0, column, rows, gate_site, gate_b, gate_block, gate);
      if (ADAPTERS) add_adapter<GROUPS>(p, 1, column, rows, up_site, up_b, up_block, up);
      finish<ADAPTERS, GROUPS>(p, 0, column, rows, gate);
      finish<ADAPTERS, GROUPS>(p, 1, column, rows, up);
      const u32 lane_column = column + threadIdx.x % 4 * 4;
      u16* out = static_cast<u16*>(p.out) + u64(rows.row) * p.out_stride + lane_column;
#pragma unroll
      for (u32 i = 0; i < GROUPS * 2; ++i) {
        const u32 n = lane_column + i / 2 * GROUP_COLUMNS;
        if (!rows.live[i % 2] || n >= p.out_stride) continue;
        u16 h[4];
#pragma unroll
        for (u32 e = 0; e < 4; ++e) {
          const f32 product = swiglu(gate[i / 2][i % 2][e], up[i / 2][i % 2][e]);
          // Planes hold anything beyond the width.
          h[e] = n + e < n_out ? float_to_half_saturated(product, saturations) : u16(0);
        }
        *reinterpret_cast<uint2*>(out + u64(i % 2 * 8) * p.out_stride + i / 2 * GROUP_COLUMNS) =
            make_uint2(pack_halves(h[0], h[1]), pack_halves(h[2], h[3]));
      }
    }
  }
  if (saturations != 0) atomicAdd(p.saturations, saturations);
}

// CTAs of an SM, and so registers: enough bytes on their way, and no spills.
#define TILE_KERNELS(suffix, adapters, ctas)                                                    \
  extern "C" __global__ void __launch_bounds__(TILE_WARPS* WARP, ctas)                          \
      epilogue_##suffix(const __grid_constant__ EpilogueParams p) {                             \
    epilogue_tiles_of<adapters>(p);                                                             \
  }                                                                                             \
  extern "C" __global__ void __launch_bounds__(TILE_WARPS* WARP, ctas)                          \
      epilogue_swiglu_##suffix(const __grid_constant__ EpilogueParams p) {                      \
    epilogue_swiglu_tiles_of<adapters>(p);                                                      \
  }
TILE_KERNELS(tiles, false, 6)
TILE_KERNELS(adapter_tiles, true, 4)
