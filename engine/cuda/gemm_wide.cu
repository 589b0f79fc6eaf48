// Products of f16 activations with quantized weights for many rows (prefill), on compute capability 9.0.
//
//   planes[t, column + n] = sum over k of W[n, k] x[t, k]            one split; parameters as gemm.cu's, but x in tiles
//
// | buffer  | shape                          | dtype | note                                                      |
// |---------|--------------------------------|-------|-----------------------------------------------------------|
// | weights | per part, tiles                | codes | see common/tile.cuh; parts of any format with codes       |
// | x       | [tiles of 128 rows][units]     | f16   | 16 KB each, as wgmma wants them in shared memory: x_tiles |
// | planes  | [T][plane_row]                 | f32   | part i begins at column parts[i].plane_column             |
//
// Weights are the A operand of wgmma.m64n128k16, from registers: a warpgroup owns a stripe of 64 features, each of its
// warps a block, whose fragments are those of gemm.cu. Rows of x are B, from shared memory. A CTA is two stripes by 128
// rows; two CTAs share an SM, so that one multiplies while the other begins or ends.
//
// Tensor cores must never wait: while two k16 steps of a unit are multiplied, the next two are decoded into the other
// half of A's registers, and codes are loaded a unit before they are decoded. Whole double units would not fit into the
// 128 registers that four warpgroups an SM leave.
//
// Lanes own consecutive k (common/tile.cuh), so a unit of a row of x lies in shared memory in another order of its words:
// halves 16 j + 8 b + 2 c + e are k 16 c + 4 j + 2 b + e. To permute words on the way into shared memory costs more than
// all the rest: measured 440 TFLOP/s so, 4-byte cp.async or registers alike, and 670 if x
// was there by magic (gate and up of an 8B model, 2048 rows, one H100; all without x_tiles). (Each word passes L1
// and shared memory, which already feed B at half their rate.) Hence x_tiles does it once for all features, one
// read and one write of x, and tiles arrive by bulk copies, which cost the threads nothing.
//
// Grid: (16 tiles of rows, pairs of stripes, groups of 16 tiles). CTAs that run together share few weights, which so come
// once from memory, and the same 16 tiles of x, of which L2 holds what is being multiplied: all walk along k in step.
// Tiles beyond the step's rows return at once. Rows beyond it within a tile are zero and not written. Shared memory: 6
// stages of 16 KB. Other targets than sm_90a get a kernel that traps.
#include "gemm.cuh"
#include "mma.cuh"
#include "wgmma.cuh"

/// Rows of x, tokens, of a CTA.
constexpr u32 TILE_ROWS = 128;
/// Warpgroups of a CTA: each has a stripe.
constexpr u32 WARPGROUPS = 2;
constexpr u32 STAGE_BYTES = TILE_ROWS * SWIZZLED_ROW_BYTES;

struct XTilesParams {
  const StepHeader* step;
  const u16* x;
  u16* tiles;
  u32 n_units;
  u32 x_stride;
  /// As in `GemmParams`.
  u32 sample_rows;
  u32 _pad;
};
static_assert(sizeof(XTilesParams) == 40, "as in ops/gemm_wide.rs");

/// x in the order of B's tiles. Grid: (units, tiles of rows).
extern "C" __global__ void __launch_bounds__(256) x_tiles(const __grid_constant__ XTilesParams p) {
  const u32 n_rows = p.sample_rows ? p.step->n_sample_rows : p.step->n_rows;
  const u32 first_row = blockIdx.y * TILE_ROWS, unit = blockIdx.x;
  if (first_row >= n_rows) return;
  u8* tile = reinterpret_cast<u8*>(p.tiles) + (u64(blockIdx.y) * p.n_units + unit) * STAGE_BYTES;
#pragma unroll
  for (u32 i = 0; i < TILE_ROWS / 32; ++i) {
    // Chunk 2 j + b of a row: word c is k 16 c + 4 j + 2 b, so eight threads read whole sectors.
    const u32 row = i * 32 + threadIdx.x / 8, chunk = threadIdx.x % 8;
    u32 words[4] = {};
    if (first_row + row < n_rows) {
      const u32* from = reinterpret_cast<const u32*>(p.x + u64(first_row + row) * p.x_stride + unit * pleach::UNIT_K) + chunk;
#pragma unroll
      for (u32 c = 0; c < 4; ++c) words[c] = from[8 * c];
    }
    *reinterpret_cast<uint4*>(tile + swizzled_offset(row, chunk)) = make_uint4(words[0], words[1], words[2], words[3]);
  }
}

#if HAS_WGMMA
/// Units of x in shared memory, and how far ahead they are asked for: this one and the last are still multiplied then.
constexpr u32 STAGES = 6;
constexpr u32 AHEAD = STAGES - 2;

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
  const u8* at = stripe + pleach::unit_offset(P::L, n_units, 0, unit);
  load_words<4>(to.codes, at + pleach::p4_offset(block, lane));
  load_words<P::EXTRA>(to.extra, at + pleach::extra_offset(P::L, block, lane));
  load_words<P::META>(to.meta, at + pleach::meta_offset(P::L, block, lane / 4));
  const u8* supers = stripe + pleach::super_offset(P::L, n_units, 0, unit);
  load_words<P::SUPERS>(to.supers, supers + pleach::super_scale_offset(P::L, block, lane / 4, 0, 0));
}

/// As `load_scales`, the same bits, from words that are there already: rows r and r + 8 at once.
template <Format FORMAT>
__device__ __forceinline__ LaneScales unpack_scales(const Packed<FORMAT>& from) {
  constexpr CodeLayout L = Packed<FORMAT>::L;
  const u32 g = threadIdx.x % 4 * 16 / L.group;
  LaneScales out = {};
#pragma unroll
  for (u32 which = 0; which < 1 + L.has_min; ++which) {
    u32 (&to)[2] = which ? out.minimum : out.scale;
    if constexpr (L.super_block) {
      // Bytes of both rows in the low bits of two halves.
      u32 bytes;
      if constexpr (L.group == 32) {
        bytes = from.meta[which] >> 8 * g & 0x00ff00ffu;
      } else {
        bytes = (from.meta[2 * which] >> 8 * g & 0xffu) | (from.meta[2 * which + 1] >> 8 * g & 0xffu) << 16;
      }
      // A scale is a signed byte, a minimum an unsigned one that is subtracted. Both are exact in f16, as in f32, so that
      // the product is rounded once.
      const u32 both = which ? half2_mul(half2_sub(bytes | 0x64006400u, 0x64006400u), from.supers[which] ^ 0x80008000u)
                             : half2_mul(half2_sub(bytes ^ 0x64806480u, 0x64806480u), from.supers[which]);
      to[0] = twice(both), to[1] = twice(both >> 16);
    } else {
      to[0] = twice(from.meta[2 * which] >> 16 * g), to[1] = twice(from.meta[2 * which + 1] >> 16 * g);
    }
  }
  return out;
}

/// Operands of two k16 steps of a unit, from step `J` on.
template <Format FORMAT, u32 J>
__device__ __forceinline__ void decode_half(u32 (&a)[2][4], const Packed<FORMAT>& from, const LaneScales& scales) {
#pragma unroll
  for (u32 j = 0; j < 2; ++j) {
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
      const u32 code = (from.codes[J + j] >> 4 * i & 0x000f000fu) | extra_bits<FORMAT>(from.extra, J + j, i);
      a[j][i] = to_values<FORMAT>(code, scales.scale[i % 2], scales.minimum[i % 2]);
    }
  }
}

/// Two k16 steps of the stripe times the tile, from step `J` of a unit on.
template <u32 J>
__device__ __forceinline__ void multiply_half(f32 (&acc)[64], const u32 (&a)[2][4], u64 b) {
  wgmma_fence();
#pragma unroll
  for (u32 j = 0; j < 2; ++j) wgmma_m64n128k16(acc, a[j], b + 2 * (J + j));
  wgmma_commit();
}

/// A tile of x on its way through shared memory. One thread asks for units, all wait for them.
struct XTile {
  const u8* units;
  u32 n_units;
  /// Addresses in shared memory.
  u32 stages, barriers;

  __device__ __forceinline__ u32 stage(u32 unit) const { return stages + unit % STAGES * STAGE_BYTES; }

  __device__ __forceinline__ void ask(u32 unit) const {
    if (threadIdx.x > 0 || unit >= n_units) return;
    bulk_copy(stage(unit), units + u64(unit) * STAGE_BYTES, STAGE_BYTES, barriers + unit % STAGES * 8);
  }

  __device__ __forceinline__ void wait(u32 unit) const {
    arrival_wait(barriers + unit % STAGES * 8, unit / STAGES % 2);
  }
};

/// This warpgroup's stripe times the tile: while two k16 steps are multiplied, the next two are decoded.
template <Format FORMAT>
__device__ __forceinline__ void multiply(const XTile& x, const u8* weights, u32 index, f32 (&acc)[64]) {
  const u8* stripe = weights + index * pleach::stripe_bytes(pleach::code_layout(FORMAT), x.n_units);
  u32 first[2][4], second[2][4];
  Packed<FORMAT> packed, next;
  load_packed<FORMAT>(packed, stripe, x.n_units, 0);
  LaneScales scales = unpack_scales<FORMAT>(packed);
  decode_half<FORMAT, 0>(first, packed, scales);
  for (u32 unit = 0; unit < x.n_units; ++unit) {
    load_packed<FORMAT>(next, stripe, x.n_units, min(unit + 1, x.n_units - 1));
    x.ask(unit + AHEAD);
    x.wait(unit);
    const u64 b = swizzled_descriptor(x.stage(unit));
    multiply_half<0>(acc, first, b);
    wgmma_wait<1>();
    decode_half<FORMAT, 2>(second, packed, scales);
    multiply_half<2>(acc, second, b);
    packed = next;
    scales = unpack_scales<FORMAT>(packed);
    wgmma_wait<1>();
    decode_half<FORMAT, 0>(first, packed, scales);
    __syncthreads();
  }
  wgmma_wait<0>();
}

/// A warpgroup without a stripe does its share for the others.
__device__ __forceinline__ void only_ask(const XTile& x) {
  for (u32 unit = 0; unit < x.n_units; ++unit) {
    x.ask(unit + AHEAD);
    // What is on its way must arrive before the CTA ends.
    x.wait(unit);
    __syncthreads();
  }
}

__device__ __forceinline__ void wide(const GemmParams& p) {
  DYNAMIC_SHARED(u8, shared);
  const u32 n_rows = rows_of(p);
  const u32 tile = blockIdx.z * gridDim.x + blockIdx.x, first_row = tile * TILE_ROWS;
  if (first_row >= n_rows) return;
  const u32 in_grid = blockIdx.y * WARPGROUPS + threadIdx.x / WARPGROUP;
  const GemmPart& at = part_of(p, in_grid);
  const u32 stripe = in_grid - at.first_stripe;
  // Swizzling goes by bits of the address.
  const u32 stages = (shared_address(shared) + 1023) / 1024 * 1024;
  const XTile x = {reinterpret_cast<const u8*>(p.x) + u64(tile) * p.n_units * STAGE_BYTES, p.n_units, stages,
                   stages + STAGES * STAGE_BYTES};
  if (threadIdx.x == 0) {
    for (u32 i = 0; i < STAGES; ++i) arrival_init(x.barriers + i * 8);
  }
  __syncthreads();
  for (u32 unit = 0; unit < AHEAD; ++unit) x.ask(unit);
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
    case Format::F32: case Format::F16: case Format::BF16: only_ask(x); return;
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
  wide(p);
#else
  asm volatile("trap;");
#endif
}
