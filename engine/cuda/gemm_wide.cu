#include "gemm.cuh"
#include "mma.cuh"
#include "wgmma.cuh"

/// Rows of x, tokens, of a CTA.
constexpr u32 TILE_ROWS = 128;
/// Units of x in shared memory, and how far ahead they are asked for: a stage is written while the unit before the last
/// may still be multiplied, hence two more than the distance.
constexpr u32 STAGES = 4;
constexpr u32 AHEAD = STAGES - 2;
/// Warpgroups of a CTA: each has a stripe.
constexpr u32 WARPGROUPS = 2;
constexpr u32 STAGE_BYTES = TILE_ROWS * SWIZZLED_ROW_BYTES;

#if HAS_WGMMA
/// A lane's part of one block as it lies in memory: asked for one unit before it is decoded.
template <Format FORMAT>
struct Packed {
  static constexpr CodeLayout L = pleach::code_layout(FORMAT);
  static constexpr u32 EXTRA = pleach::extra_lane_bytes(L) / 4;
  static constexpr u32 META = pleach::meta_entry_bytes(L) / 4;
  static constexpr u32 SUPERS = pleach::super_entry_bytes(L) / 4;
  u32 codes[4];
  u32 extra[EXTRA ? EXTRA : 1];
  u32 meta[META];
  u32 supers[SUPERS ? SUPERS : 1];
};

/// `N` words (1, 2 or 4) in one access.
template <u32 N>
__device__ __forceinline__ void load_words(u32* to, const u8* from) {
  if constexpr (N == 1) to[0] = *reinterpret_cast<const u32*>(from);
  if constexpr (N == 2) {
    const uint2 w = *reinterpret_cast<const uint2*>(from);
    to[0] = w.x, to[1] = w.y;
  }
  if constexpr (N == 4) {
    const uint4 w = *reinterpret_cast<const uint4*>(from);
    to[0] = w.x, to[1] = w.y, to[2] = w.z, to[3] = w.w;
  }
}

template <Format FORMAT>
__device__ __forceinline__ void load_packed(Packed<FORMAT>& to, const u8* stripe, u32 n_units, u32 unit) {
  using P = Packed<FORMAT>;
  const u32 lane = threadIdx.x % WARP, block = threadIdx.x / WARP % 4;
  unit = computed_here(unit);
  const u8* at = stripe + pleach::unit_offset(P::L, n_units, 0, unit);
  load_words<4>(to.codes, at + pleach::p4_offset(block, lane));
  load_words<P::EXTRA>(to.extra, at + pleach::extra_offset(P::L, block, lane));
  load_words<P::META>(to.meta, at + pleach::meta_offset(P::L, block, lane / 4));
  const u8* supers = stripe + pleach::super_offset(P::L, n_units, 0, unit);
  load_words<P::SUPERS>(to.supers, supers + pleach::super_scale_offset(P::L, block, lane / 4, 0, 0));
}

/// As `load_scales`, from words that are there already.
template <Format FORMAT>
__device__ __forceinline__ LaneScales unpack_scales(const Packed<FORMAT>& from) {
  constexpr CodeLayout L = Packed<FORMAT>::L;
  const u32 g = threadIdx.x % 4 * 16 / L.group;
  LaneScales out = {};
#pragma unroll
  for (u32 h = 0; h < 2; ++h) {
#pragma unroll
    for (u32 which = 0; which < 1 + L.has_min; ++which) {
      // Two groups are less than a word, so the group chooses the bits and not the word.
      const u32 bytes = pleach::meta_in_entry(L, which, h, 0);
      const u32 bits = from.meta[bytes / 4] >> (bytes % 4 * 8 + g * (L.super_block ? 8 : 16));
      u32 half = bits;
      if constexpr (L.super_block) {
        const f32 super = half_to_float(static_cast<u16>(from.supers[which] >> 16 * h));
        // A group's scale is a signed byte, its minimum an unsigned one that is subtracted.
        const f32 factor = which ? -static_cast<f32>(bits & 0xffu) : static_cast<f32>(static_cast<signed char>(bits & 0xffu));
        half = float_to_half(super * factor);
      }
      (which ? out.minimum : out.scale)[h] = twice(half);
    }
  }
  return out;
}

/// Registers of k16 step `j`.
template <Format FORMAT>
__device__ __forceinline__ void decode(u32 (&a)[4], const Packed<FORMAT>& from, const LaneScales& scales, u32 j) {
#pragma unroll
  for (u32 i = 0; i < 4; ++i) {
    const u32 code = (from.codes[j] >> 4 * i & 0x000f000fu) | extra_bits<FORMAT>(from.extra, j, i);
    a[i] = to_values<FORMAT>(code, scales.scale[i % 2], scales.minimum[i % 2]);
  }
}

/// The tile of x, and this thread's share in bringing it to shared memory: word `lane` of every row that is the warp's.
template <u32 WARPS>
struct XTile {
  const u16* x;
  /// Halves from row to row.
  u32 stride;
  /// The last row that is there; rows beyond repeat it, and their products are not kept.
  u32 last_row;
  u32 n_units;
  /// Address in shared memory.
  u32 stages;

  __device__ __forceinline__ u32 stage(u32 unit) const { return stages + unit % STAGES * STAGE_BYTES; }

  /// Asks for a unit, if there is one.
  __device__ __forceinline__ void copy(u32 unit) const {
    if (unit < n_units) copy_rows(unit);
    copy_async_commit();
  }

  /// After this the next unit is there, and the stage of the one before the last may be written.
  __device__ __forceinline__ void turn() const {
    copy_async_wait<AHEAD - 1>();
    fence_proxy_async();
    __syncthreads();
  }

  __device__ __forceinline__ void copy_rows(u32 unit) const {
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    // Lane 8 c + 2 j + b holds k 16 c + 4 j + 2 b, which B wants at k16 step j, word 4 b + c.
    const u32 to = stage(unit) + swizzled_offset(warp, lane % 8) + lane / 8 * 4;
    const u16* from = x + unit * pleach::UNIT_K + lane * 2;
    const u32 last = computed_here(last_row);
#pragma unroll
    for (u32 i = 0; i < TILE_ROWS / WARPS; ++i) {
      const u32 row = min(warp + i * WARPS, last);
      copy_async_4(to + i * WARPS * SWIZZLED_ROW_BYTES, from + u64(row) * stride);
    }
  }
};

/// Two k16 steps of the stripe times the tile, from step `J` of a unit on.
template <u32 J>
__device__ __forceinline__ void multiply_half(f32 (&acc)[64], const u32 (&a)[2][4], u64 b) {
  wgmma_fence();
#pragma unroll
  for (u32 j = 0; j < 2; ++j) wgmma_m64n128k16(acc, a[j], b + 2 * (J + j));
  wgmma_commit();
}

/// The operands of two k16 steps, from step `J` of a unit on.
template <Format FORMAT, u32 J>
__device__ __forceinline__ void decode_half(u32 (&a)[2][4], const Packed<FORMAT>& from) {
  const LaneScales scales = unpack_scales<FORMAT>(from);
#pragma unroll
  for (u32 j = 0; j < 2; ++j) decode<FORMAT>(a[j], from, scales, J + j);
}

/// This warpgroup's stripe times the tile.
template <Format FORMAT, u32 WARPS>
__device__ __forceinline__ void multiply(const XTile<WARPS>& x, const u8* weights, u32 index, f32 (&acc)[64]) {
  const u8* stripe = weights + index * pleach::stripe_bytes(pleach::code_layout(FORMAT), x.n_units);
  u32 first[2][4], second[2][4];
  Packed<FORMAT> packed, next;
  load_packed<FORMAT>(packed, stripe, x.n_units, 0);
#pragma unroll
  for (u32 unit = 0; unit < AHEAD; ++unit) x.copy(unit);
  decode_half<FORMAT, 0>(first, packed);
  x.turn();
  for (u32 unit = 0; unit < x.n_units; ++unit) {
    load_packed<FORMAT>(next, stripe, x.n_units, min(unit + 1, x.n_units - 1));
    const u64 b = swizzled_descriptor(x.stage(unit));
    multiply_half<0>(acc, first, b);
    x.copy(unit + AHEAD);
    wgmma_wait<1>();
    decode_half<FORMAT, 2>(second, packed);
    multiply_half<2>(acc, second, b);
    packed = next;
    wgmma_wait<1>();
    decode_half<FORMAT, 0>(first, packed);
    x.turn();
  }
  wgmma_wait<0>();
}

/// A warpgroup without a stripe does its share for the others.
template <u32 WARPS>
__device__ __forceinline__ void only_copy(const XTile<WARPS>& x) {
  for (u32 unit = 0; unit < AHEAD; ++unit) x.copy(unit);
  x.turn();
  for (u32 unit = 0; unit < x.n_units; ++unit) {
    x.copy(unit + AHEAD);
    x.turn();
  }
}

template <u32 WARPGROUPS>
__device__ __forceinline__ void wide(const GemmParams& p) {
  constexpr u32 WARPS = WARPGROUPS * 4;
  DYNAMIC_SHARED(u8, shared);
  const u32 n_rows = rows_of(p);
  const u32 first_row = (blockIdx.z * gridDim.x + blockIdx.x) * TILE_ROWS;
  if (first_row >= n_rows) return;
  const u32 in_grid = blockIdx.y * WARPGROUPS + threadIdx.x / WARPGROUP;
  const GemmPart& at = part_of(p, in_grid);
  const u32 stripe = in_grid - at.first_stripe;
  // Swizzling goes by bits of the address.
  const XTile<WARPS> x = {p.x + u64(first_row) * p.x_stride, p.x_stride, n_rows - 1 - first_row,
                          p.n_units, (shared_address(shared) + 1023u) & ~1023u};
  f32 acc[64] = {};
  const Format format = in_grid < p.n_stripes ? static_cast<Format>(at.format) : Format::F32;
  switch (format) {
    case Format::Q4_0: multiply<Format::Q4_0>(x, at.weights, stripe, acc); break;
    case Format::Q4_1: multiply<Format::Q4_1>(x, at.weights, stripe, acc); break;
    case Format::Q5_0: multiply<Format::Q5_0>(x, at.weights, stripe, acc); break;
    case Format::Q5_1: multiply<Format::Q5_1>(x, at.weights, stripe, acc); break;
    case Format::Q8_0: multiply<Format::Q8_0>(x, at.weights, stripe, acc); break;
    case Format::Q2_K: multiply<Format::Q2_K>(x, at.weights, stripe, acc); break;
    case Format::Q3_K: multiply<Format::Q3_K>(x, at.weights, stripe, acc); break;
    case Format::Q4_K: multiply<Format::Q4_K>(x, at.weights, stripe, acc); break;
    case Format::Q5_K: multiply<Format::Q5_K>(x, at.weights, stripe, acc); break;
    case Format::Q6_K: multiply<Format::Q6_K>(x, at.weights, stripe, acc); break;
    // Beyond the last stripe, or gemm_dense's.
    case Format::F32: case Format::F16: case Format::BF16: only_copy(x); return;
  }
  const u32 lane = threadIdx.x % WARP, block = threadIdx.x / WARP % 4;
  f32* plane = p.planes + at.plane_column + stripe * pleach::STRIPE_ROWS + block * pleach::BLOCK_ROWS + lane / 4;
#pragma unroll
  for (u32 i = 0; i < TILE_ROWS / 8; ++i) {
#pragma unroll
    for (u32 e = 0; e < 2; ++e) {
      const u32 row = first_row + i * 8 + lane % 4 * 2 + e;
      if (row < n_rows) {
        plane[u64(row) * p.plane_row] = acc[4 * i + e];
        plane[u64(row) * p.plane_row + 8] = acc[4 * i + 2 + e];
      }
    }
  }
}
#endif

extern "C" __global__ void __launch_bounds__(WARPGROUPS * WARPGROUP, 2) gemm_wide(const __grid_constant__ GemmParams p) {
#if HAS_WGMMA
  wide<WARPGROUPS>(p);
#else
  asm volatile("trap;");
#endif
}
