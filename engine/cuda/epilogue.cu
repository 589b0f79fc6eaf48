// What happens to a product when its split-K planes are there: their sum, the second half of the adapters, the bias.
//
//   y[t, n] = gain[n] (sum_s planes[s, t, n] + lora_scale sum_r b[slot[t]][site][n, r] v[t, r]) + bias[n] + shift[n],
//   v = sum_s v_planes[s]; gain is 1 but for DoRA, shift 0 but for lora_bias
//
//   epilogue_1            out[t, n] = y, or += y (the residual stream)
//   epilogue_swiglu_1     h[t, n] = f16(y_gate / (1 + e^-y_gate) y_up), parts 0 and 1 of one product
//   epilogue_in_place_1   planes[t, n] = y, of one plane; rows with no slot stay as they are (logits)
//
// | buffer   | shape                       | dtype | note                                                       |
// |----------|-----------------------------|-------|------------------------------------------------------------|
// | planes   | [n_planes][T][plane_row]    | f32   | part i begins at column parts[i].plane_column              |
// | bias     | per part [N]                | f32   | or null                                                    |
// | v_planes | [n_v_planes][T][3 * 512]    | f32   | of lora_shrink; ranks beyond R are never used              |
// | b        | per slot and site [N][R up to 8] | f16 | 16-byte aligned, zero beyond R                          |
// | gain, shift | per slot and site [N]    | f32   | or null                                                    |
// | tiles    | [n_adapter_tiles]           | AdapterTile | read by epilogue_adapter_tiles alone                 |
// | out      | [T][out_stride]             | f32   | part i begins at parts[i].out_column                       |
// | h        | [T][out_stride]             | f16   | zero beyond N                                              |
//
// For steps of few rows, one by one: a CTA of 256 threads takes 256 columns of one part, one column a thread; v of the row lies
// in shared memory. Sums run in one order (planes, ranks ascending, bias), so a row's bits do not depend on its neighbours.
// Memory-bound.
#include "epilogue.cuh"

constexpr u32 THREADS = 256;

/// `y` of one row and column. All threads of the CTA call it together.
__device__ __forceinline__ f32 finish_one(const EpilogueParams& p, u32 part, u32 column, u32 t, f32 (&v)[LORA_RANK_MAX]) {
  const EpiloguePart at = p.parts[part];
  LoraSite site = {};
  if (p.v_planes) {
    const u32 slot = p.slots[t];
    if (slot != NO_SLOT) site = p.sites[u64(slot) * p.n_sites + at.site];
    // The previous use of v is over.
    __syncthreads();
    for (u32 r = threadIdx.x; r < div_up(site.rank, 8) * 8; r += THREADS) {
      const f32* from = p.v_planes + u64(t) * V_STRIDE + part * LORA_RANK_MAX + r;
      f32 sum = 0.0f;
      // Beyond the rank B is zero, but memory may hold NaN.
      for (u32 s = 0; r < site.rank && s < p.n_v_planes; ++s) sum += from[s * p.v_plane_stride];
      v[r] = sum;
    }
    __syncthreads();
  }
  if (column >= at.n_out) return 0.0f;
  const f32* from = p.planes + u64(t) * p.plane_row + at.plane_column + column;
  f32 y = 0.0f;
  for (u32 s = 0; s < p.n_planes; ++s) y += from[s * p.plane_stride];
  const f32 bias = p.bias[part] ? p.bias[part][column] : 0.0f;
  if (site.rank == 0) return y + bias;
  const u32 n_words = div_up(site.rank, 8);
  const uint4* b = reinterpret_cast<const uint4*>(site.b) + u64(column) * n_words;
  f32 delta = 0.0f;
#pragma unroll 1
  for (u32 word = 0; word < n_words; ++word) {
    f32 w[8];
    unpack8(b[word], w);
#pragma unroll
    for (u32 e = 0; e < 8; ++e) delta = fmaf(w[e], v[word * 8 + e], delta);
  }
  y = fmaf(site.lora_scale, delta, y);
  // DoRA scales what the weights give, not the bias.
  y = site.gain ? fmaf(site.gain[column], y, bias) : y + bias;
  return site.shift ? y + site.shift[column] : y;
}

extern "C" __global__ void __launch_bounds__(THREADS) epilogue_1(const __grid_constant__ EpilogueParams p) {
  __shared__ f32 v[LORA_RANK_MAX];
  u32 strip;
  const u32 part = part_of(p, THREADS, strip);
  const u32 column = strip * THREADS + threadIdx.x;
  const u32 n_rows = p.step->n_rows;
  for (u32 t = blockIdx.y; t < n_rows; t += gridDim.y) {
    const f32 y = finish_one(p, part, column, t, v);
    if (column >= p.parts[part].n_out) continue;
    f32* out = static_cast<f32*>(p.out) + u64(t) * p.out_stride + p.parts[part].out_column + column;
    *out = p.accumulate ? *out + y : y;
  }
}

extern "C" __global__ void __launch_bounds__(THREADS) epilogue_in_place_1(const __grid_constant__ EpilogueParams p) {
  __shared__ f32 v[LORA_RANK_MAX];
  u32 strip;
  const u32 part = part_of(p, THREADS, strip);
  const u32 column = strip * THREADS + threadIdx.x;
  const u32 n_rows = p.step->n_rows;
  for (u32 t = blockIdx.y; t < n_rows; t += gridDim.y) {
    if (p.slots[t] == NO_SLOT) continue;
    const f32 y = finish_one(p, part, column, t, v);
    // Read by this thread alone, and just now.
    if (column < p.parts[part].n_out) {
      static_cast<f32*>(p.out)[u64(t) * p.out_stride + p.parts[part].out_column + column] = y;
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS) epilogue_swiglu_1(const __grid_constant__ EpilogueParams p) {
  __shared__ f32 v[LORA_RANK_MAX];
  const u32 column = blockIdx.x * THREADS + threadIdx.x;
  const u32 n_rows = p.step->n_rows;
  u32 saturations = 0;
  for (u32 t = blockIdx.y; t < n_rows; t += gridDim.y) {
    const f32 gate = finish_one(p, 0, column, t, v);
    const f32 up = finish_one(p, 1, column, t, v);
    if (column >= p.out_stride) continue;
    // Beyond the width both are zero, and so is their product.
    static_cast<u16*>(p.out)[u64(t) * p.out_stride + column] = float_to_half_saturated(swiglu(gate, up), saturations);
  }
  if (saturations != 0) atomicAdd(p.saturations, saturations);
}
