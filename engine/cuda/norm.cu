// From the residual stream to the input of a product.
//
//   rms_norm        out[t, i] = f16(weight[i] x[r, i] / sqrt(sum_j x[r, j]^2 / W + eps)),   r = rows ? rows[t] : t
//
// | buffer      | shape           | dtype | note                                                                     |
// |-------------|-----------------|-------|--------------------------------------------------------------------------|
// | x           | [T][x_stride]   | f32   | residual; strides and columns of f32 buffers are multiples of 4          |
// | weight      | [W]             | f32   |                                                                          |
// | out         | [T][out_stride] | f16   | stride a multiple of 8; columns from W on become zero                    |
// | saturations | [1]             | u32   | += values beyond the range of f16, which become the largest finite ones  |
//
// A CTA of 256 threads takes whole rows; each thread moves 16 bytes at a time. A row is read twice, the second time from
// L1. Rows beyond the step's are not touched. Limit: bytes. At 8,192 rows of 4,096 it moves 201 MB, 67 us at 3.0 TB/s;
// not tuned.
#include "step.cuh"

constexpr u32 THREADS = 256;

struct RmsNormParams {
  const StepHeader* step;
  const f32* x;
  /// Rows to take (their count is n_sample_rows), or null: all rows of the step.
  const u32* rows;
  const f32* weight;
  u16* out;
  u32* saturations;
  u32 x_stride;
  u32 out_stride;
  u32 width;
  f32 eps;
};
static_assert(sizeof(RmsNormParams) == 64, "as in ops/norm.rs");

/// Four values of a row from column `i` on; zero beyond `width`.
__device__ __forceinline__ float4 load4(const f32* row, u32 i, u32 width) {
  if (i + 4 <= width) return *reinterpret_cast<const float4*>(row + i);
  float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  if (i < width) v.x = row[i];
  if (i + 1 < width) v.y = row[i + 1];
  if (i + 2 < width) v.z = row[i + 2];
  return v;
}

__device__ __forceinline__ void store4(u16* out, u16 a, u16 b, u16 c, u16 d) {
  *reinterpret_cast<uint2*>(out) = make_uint2(pack_halves(a, b), pack_halves(c, d));
}

extern "C" __global__ void __launch_bounds__(THREADS) rms_norm(const __grid_constant__ RmsNormParams p) {
  __shared__ f32 scratch[THREADS / WARP];
  const u32 n_rows = p.rows ? p.step->n_sample_rows : p.step->n_rows;
  for (u32 t = blockIdx.x; t < n_rows; t += gridDim.x) {
    const f32* x = p.x + u64(p.rows ? p.rows[t] : t) * p.x_stride;
    u16* out = p.out + u64(t) * p.out_stride;
    f32 squares = 0.0f;
    for (u32 i = threadIdx.x * 4; i < p.width; i += THREADS * 4) {
      const float4 v = load4(x, i, p.width);
      squares = fmaf(v.x, v.x, squares);
      squares = fmaf(v.y, v.y, squares);
      squares = fmaf(v.z, v.z, squares);
      squares = fmaf(v.w, v.w, squares);
    }
    const f32 mean = block_sum<THREADS>(squares, scratch) / static_cast<f32>(p.width);
    const f32 inverse = 1.0f / sqrtf(mean + p.eps);
    u32 saturations = 0;
    for (u32 i = threadIdx.x * 4; i < p.out_stride; i += THREADS * 4) {
      const float4 v = load4(x, i, p.width);
      const float4 w = load4(p.weight, i, p.width);
      store4(out + i, float_to_half_saturated(w.x * (v.x * inverse), saturations),
             float_to_half_saturated(w.y * (v.y * inverse), saturations),
             float_to_half_saturated(w.z * (v.z * inverse), saturations),
             float_to_half_saturated(w.w * (v.w * inverse), saturations));
    }
    if (saturations != 0) atomicAdd(p.saturations, saturations);
    // The scratch is used again by the next row.
    __syncthreads();
  }
}
