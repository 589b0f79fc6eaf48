// Products of f16 activations with quantized weights, for any number of rows: plain first version of both the skinny
// and the wide GEMM.
//
//   planes[s, t, column + n] = sum over the k of split s of W[n, k] x[t, k]
//
// | buffer  | shape                 | dtype | note                                                               |
// |---------|-----------------------|-------|--------------------------------------------------------------------|
// | weights | per part, tiles       | codes | see common/tile.cuh; 1 to 3 parts share x, each of its own format  |
// | x       | [T][x_stride]         | f16   | row-major, zero beyond the width, x_stride a multiple of 64        |
// | planes  | [splits][T][plane_row]| f32   | part i begins at column parts[i].plane_column; summed by epilogue  |
//
// Weights are the A operand of mma.m16n8k16 (M = 16 features), rows of x the B operand (N = 8 rows): a row never
// depends on its neighbours, and a decode step of one row wastes nothing on the weight side. A CTA of 8 warps takes one
// stripe of 64 features, one split of K and a tile of 8 * TILES rows. Warp w multiplies blocks 2 (w / 4) and
// 2 (w / 4) + 1 of every fourth unit of the split, from unit w % 4 on; the four sums are added in order through shared
// memory. Codes are decoded in registers: 1024 + q by its bits, minus 1024 + offset exactly, times the scale in f16.
//
// gemm_1, _2, _4, _8: TILES = 1, 2, 4, 8. Grid: (stripes of all parts, splits, tiles of rows); tiles beyond the step's
// rows return at once, so a graph captured for a bucket serves any step that fits it. Assumes 16-byte aligned weights
// and x. Bound by memory up to about 32 rows.
#include "gemm.cuh"
#include "mma.cuh"

constexpr u32 THREADS = 256;
/// Warps that share the K of a split.
constexpr u32 K_WARPS = 4;
/// Floats between two rows of the sums in shared memory: 8 columns of a quad of lanes fall into 32 banks.
constexpr u32 SUM_STRIDE = 68;

/// This warp's part of a stripe's product: two blocks times all rows of the tile.
template <Format FORMAT, u32 TILES>
__device__ __forceinline__ void multiply(const GemmParams& p, const u8* weights, u32 stripe, u32 first_row, u32 n_rows,
                                         f32 (&acc)[2][TILES][4]) {
  constexpr CodeLayout L = pleach::code_layout(FORMAT);
  const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const u32 r = lane / 4, c = lane % 4;
  const u32 first_block = warp / K_WARPS * 2;
  const u32 begin = u64(p.n_units) * blockIdx.y / gridDim.y, end = u64(p.n_units) * (blockIdx.y + 1) / gridDim.y;
  for (u32 unit = begin + warp % K_WARPS; unit < end; unit += K_WARPS) {
    const u8* at = weights + pleach::unit_offset(L, p.n_units, stripe, unit);
    uint4 codes[2];
#pragma unroll
    for (u32 b = 0; b < 2; ++b) codes[b] = *reinterpret_cast<const uint4*>(at + pleach::p4_offset(first_block + b, lane));
    u32 a[2][4][4];
#pragma unroll
    for (u32 b = 0; b < 2; ++b) {
      const LaneScales scales = load_scales<FORMAT>(weights, p.n_units, stripe, unit, at, first_block + b, lane);
      const u32* extra = reinterpret_cast<const u32*>(at + pleach::extra_offset(L, first_block + b, lane));
#pragma unroll
      for (u32 j = 0; j < 4; ++j) {
        const u32 word = j == 0 ? codes[b].x : j == 1 ? codes[b].y : j == 2 ? codes[b].z : codes[b].w;
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
          const u32 code = (word >> 4 * i & 0x000f000fu) | extra_bits<FORMAT>(extra, j, i);
          a[b][j][i] = to_values<FORMAT>(code, scales.scale[i % 2], scales.minimum[i % 2]);
        }
      }
    }
#pragma unroll
    for (u32 tile = 0; tile < TILES; ++tile) {
      const u32 row = first_row + tile * 8 + r;
      uint4 low = {}, high = {};
      if (row < n_rows) {
        const uint4* from = reinterpret_cast<const uint4*>(p.x + u64(row) * p.x_stride + unit * pleach::UNIT_K + 16 * c);
        low = from[0], high = from[1];
      }
#pragma unroll
      for (u32 b = 0; b < 2; ++b) {
        mma_m16n8k16(acc[b][tile], a[b][0], low.x, low.y);
        mma_m16n8k16(acc[b][tile], a[b][1], low.z, low.w);
        mma_m16n8k16(acc[b][tile], a[b][2], high.x, high.y);
        mma_m16n8k16(acc[b][tile], a[b][3], high.z, high.w);
      }
    }
  }
}

template <u32 TILES>
__device__ __forceinline__ void gemm(const GemmParams& p) {
  // Sums of so many tiles of rows pass through shared memory at a time.
  constexpr u32 ROUND = TILES < 4 ? TILES : 4;
  __shared__ f32 sums[K_WARPS][8 * ROUND][SUM_STRIDE];
  const u32 n_rows = rows_of(p);
  const u32 first_row = blockIdx.z * 8 * TILES;
  if (first_row >= n_rows) return;
  const GemmPart& at = part_of(p, blockIdx.x);
  const u32 stripe = blockIdx.x - at.first_stripe;
  f32 acc[2][TILES][4] = {};
  switch (static_cast<Format>(at.format)) {
    case Format::Q4_0: multiply<Format::Q4_0, TILES>(p, at.weights, stripe, first_row, n_rows, acc); break;
    case Format::Q4_1: multiply<Format::Q4_1, TILES>(p, at.weights, stripe, first_row, n_rows, acc); break;
    case Format::Q5_0: multiply<Format::Q5_0, TILES>(p, at.weights, stripe, first_row, n_rows, acc); break;
    case Format::Q5_1: multiply<Format::Q5_1, TILES>(p, at.weights, stripe, first_row, n_rows, acc); break;
    case Format::Q8_0: multiply<Format::Q8_0, TILES>(p, at.weights, stripe, first_row, n_rows, acc); break;
    case Format::Q2_K: multiply<Format::Q2_K, TILES>(p, at.weights, stripe, first_row, n_rows, acc); break;
    case Format::Q3_K: multiply<Format::Q3_K, TILES>(p, at.weights, stripe, first_row, n_rows, acc); break;
    case Format::Q4_K: multiply<Format::Q4_K, TILES>(p, at.weights, stripe, first_row, n_rows, acc); break;
    case Format::Q5_K: multiply<Format::Q5_K, TILES>(p, at.weights, stripe, first_row, n_rows, acc); break;
    case Format::Q6_K: multiply<Format::Q6_K, TILES>(p, at.weights, stripe, first_row, n_rows, acc); break;
    case Format::F32: case Format::F16: case Format::BF16: return;  // gemm_dense
  }
  const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  f32* plane = p.planes + u64(blockIdx.y) * p.plane_stride;
#pragma unroll
  for (u32 first_tile = 0; first_tile < TILES; first_tile += ROUND) {
    if (first_tile > 0) __syncthreads();
#pragma unroll
    for (u32 b = 0; b < 2; ++b) {
#pragma unroll
      for (u32 tile = 0; tile < ROUND; ++tile) {
#pragma unroll
        for (u32 e = 0; e < 4; ++e) {
          const u32 feature = (warp / K_WARPS * 2 + b) * 16 + lane / 4 + e / 2 * 8;
          sums[warp % K_WARPS][tile * 8 + lane % 4 * 2 + e % 2][feature] = acc[b][first_tile + tile][e];
        }
      }
    }
    __syncthreads();
    for (u32 i = threadIdx.x; i < 8 * ROUND * pleach::STRIPE_ROWS; i += THREADS) {
      const u32 in_round = i / pleach::STRIPE_ROWS, feature = i % pleach::STRIPE_ROWS;
      const u32 row = first_row + first_tile * 8 + in_round;
      if (row >= n_rows) break;
      f32 sum = sums[0][in_round][feature];
#pragma unroll
      for (u32 k = 1; k < K_WARPS; ++k) sum += sums[k][in_round][feature];
      plane[u64(row) * p.plane_row + at.plane_column + stripe * pleach::STRIPE_ROWS + feature] = sum;
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS) gemm_1(const __grid_constant__ GemmParams p) { gemm<1>(p); }
extern "C" __global__ void __launch_bounds__(THREADS) gemm_2(const __grid_constant__ GemmParams p) { gemm<2>(p); }
extern "C" __global__ void __launch_bounds__(THREADS, 1) gemm_4(const __grid_constant__ GemmParams p) { gemm<4>(p); }
extern "C" __global__ void __launch_bounds__(THREADS, 1) gemm_8(const __grid_constant__ GemmParams p) { gemm<8>(p); }

/// The same for dense weights (F32, F16 or BF16 rows): one warp a feature, plain sums in f32. For small models and
/// checks. Grid: (stripes of all parts, 1, tiles of 8 rows).
extern "C" __global__ void __launch_bounds__(THREADS) gemm_dense(const __grid_constant__ GemmParams p) {
  const u32 n_rows = rows_of(p);
  const u32 first_row = blockIdx.z * 8;
  if (first_row >= n_rows || blockIdx.y > 0) return;
  const GemmPart& at = part_of(p, blockIdx.x);
  const u32 stripe = blockIdx.x - at.first_stripe, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const Format format = static_cast<Format>(at.format);
  if (format != Format::F32 && format != Format::F16 && format != Format::BF16) return;  // gemm_1, _2, _4
  const u32 width = p.n_units * pleach::UNIT_K;
  for (u32 feature = warp; feature < pleach::STRIPE_ROWS; feature += THREADS / WARP) {
    const u64 row_of_w = u64(stripe * pleach::STRIPE_ROWS + feature) * width;
    f32 sums[8] = {};
    for (u32 k = lane; k < width; k += WARP) {
      f32 w;
      if (format == Format::F32) {
        w = reinterpret_cast<const f32*>(at.weights)[row_of_w + k];
      } else {
        const u16 bits = reinterpret_cast<const u16*>(at.weights)[row_of_w + k];
        w = format == Format::F16 ? half_to_float(bits) : __uint_as_float(u32(bits) << 16);
      }
#pragma unroll
      for (u32 row = 0; row < 8; ++row) {
        if (first_row + row < n_rows) sums[row] += w * half_to_float(p.x[u64(first_row + row) * p.x_stride + k]);
      }
    }
#pragma unroll
    for (u32 row = 0; row < 8; ++row) {
      const f32 sum = warp_sum(sums[row]);
      if (lane == 0 && first_row + row < n_rows) {
        p.planes[u64(first_row + row) * p.plane_row + at.plane_column + stripe * pleach::STRIPE_ROWS + feature] = sum;
      }
    }
  }
}
