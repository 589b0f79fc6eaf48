// What happens to a product when its split-K planes are there: their sum, the bias, the second half of the adapters.
//
//   y[t, n] = sum_s planes[s, t, n] + bias[n] + lora_scale sum_r b[slot[t]][site][n, r] v[t, r],   v = sum_s v_planes[s]
//
//   epilogue_1, _8          out[t, n] = y, or += y (the residual stream)
//   epilogue_swiglu_1, _8   h[t, n] = f16(y_gate / (1 + e^-y_gate) y_up), parts 0 and 1 of one product
//
// | buffer   | shape                       | dtype | note                                                       |
// |----------|-----------------------------|-------|------------------------------------------------------------|
// | planes   | [n_planes][T][plane_row]    | f32   | part i begins at column parts[i].plane_column              |
// | bias     | per part [N]                | f32   | or null                                                    |
// | v_planes | [n_v_planes][T][3 * 256]    | f32   | of lora_shrink; ranks beyond R are never read              |
// | b        | per slot and site [N][R up to 8] | f16 | 16-byte aligned, zero beyond R                          |
// | out      | [T][out_stride]             | f32   | part i begins at parts[i].out_column                       |
// | h        | [T][out_stride]             | f16   | zero beyond N                                              |
//
// A CTA of 256 threads takes 256 columns of one part and ROWS rows, one column a thread; v of the rows lies in shared
// memory. B rows are read 16 bytes a thread, once for all rows of the tile that have the same adapter. Sums run in one
// order (planes, then ranks ascending), so a row's bits depend neither on its neighbours nor on ROWS. Memory-bound.
#include "step.cuh"

constexpr u32 THREADS = 256;

struct EpiloguePart {
  u32 plane_column;
  u32 out_column;
  u32 n_out;
  /// layer * 7 + module, in the slot table.
  u32 site;
};

struct EpilogueParams {
  const StepHeader* step;
  const f32* planes;
  /// Null: no row has an adapter.
  const f32* v_planes;
  const u32* slots;
  const LoraSite* sites;
  void* out;
  u32* saturations;
  const f32* bias[PARTS_MAX];
  u64 plane_stride;
  u64 v_plane_stride;
  EpiloguePart parts[PARTS_MAX];
  u32 n_parts;
  u32 n_planes;
  u32 plane_row;
  u32 n_v_planes;
  u32 n_sites;
  u32 out_stride;
  u32 accumulate;
  u32 _pad;
};
static_assert(sizeof(EpilogueParams) == 176, "as in ops/epilogue.rs");

/// `y` of one column for the rows `first .. first + count` of a tile. All threads of the CTA call it together.
template <u32 ROWS>
__device__ __forceinline__ void finish(const EpilogueParams& p, u32 part, u32 column, u32 first, u32 count,
                                       f32 (&v)[ROWS][LORA_RANK_MAX], f32 (&y)[ROWS]) {
  const EpiloguePart at = p.parts[part];
  const bool live = column < at.n_out;
  if (p.v_planes) {
    // The previous use of v is over.
    __syncthreads();
    for (u32 i = 0; i < count; ++i) {
      const u32 slot = p.slots[first + i];
      if (slot == NO_SLOT) continue;
      const u32 rank = p.sites[u64(slot) * p.n_sites + at.site].rank;
      const u32 r = threadIdx.x;
      if (r >= div_up(rank, 8) * 8) continue;
      const f32* from = p.v_planes + u64(first + i) * V_STRIDE + part * LORA_RANK_MAX + r;
      f32 sum = 0.0f;
      // Beyond the rank B is zero, but memory may hold NaN.
      for (u32 s = 0; r < rank && s < p.n_v_planes; ++s) sum += from[s * p.v_plane_stride];
      v[i][r] = sum;
    }
    __syncthreads();
  }
  const f32 bias = live && p.bias[part] ? p.bias[part][column] : 0.0f;
#pragma unroll
  for (u32 i = 0; i < ROWS; ++i) {
    y[i] = 0.0f;
    if (!live || i >= count) continue;
    const f32* from = p.planes + u64(first + i) * p.plane_row + at.plane_column + column;
    for (u32 s = 0; s < p.n_planes; ++s) y[i] += from[s * p.plane_stride];
    y[i] += bias;
  }
  if (!p.v_planes || !live) return;
  for (u32 i0 = 0; i0 < count;) {
    const u32 slot = p.slots[first + i0];
    u32 i1 = i0 + 1;
    while (i1 < count && p.slots[first + i1] == slot) ++i1;
    const u32 run = i0;
    i0 = i1;
    if (slot == NO_SLOT) continue;
    const LoraSite site = p.sites[u64(slot) * p.n_sites + at.site];
    if (site.rank == 0) continue;
    const u32 n_words = div_up(site.rank, 8);
    const uint4* b = reinterpret_cast<const uint4*>(site.b) + u64(column) * n_words;
    f32 delta[ROWS] = {};
#pragma unroll 1
    for (u32 word = 0; word < n_words; ++word) {
      f32 w[8];
      unpack8(b[word], w);
#pragma unroll
      for (u32 i = 0; i < ROWS; ++i) {
        if (i < run || i >= i1) continue;
#pragma unroll
        for (u32 e = 0; e < 8; ++e) delta[i] = fmaf(w[e], v[i][word * 8 + e], delta[i]);
      }
    }
#pragma unroll
    for (u32 i = 0; i < ROWS; ++i) {
      if (i >= run && i < i1) y[i] = fmaf(site.lora_scale, delta[i], y[i]);
    }
  }
}

template <u32 ROWS>
__device__ __forceinline__ void epilogue(const EpilogueParams& p) {
  __shared__ f32 v[ROWS][LORA_RANK_MAX];
  u32 chunk = blockIdx.x, part = 0;
  for (; part + 1 < p.n_parts && chunk >= div_up(p.parts[part].n_out, THREADS); ++part) {
    chunk -= div_up(p.parts[part].n_out, THREADS);
  }
  const u32 column = chunk * THREADS + threadIdx.x;
  const u32 n_rows = p.step->n_rows;
  for (u32 tile = blockIdx.y; tile * ROWS < n_rows; tile += gridDim.y) {
    const u32 first = tile * ROWS;
    const u32 count = min(ROWS, n_rows - first);
    f32 y[ROWS];
    finish<ROWS>(p, part, column, first, count, v, y);
    if (column >= p.parts[part].n_out) continue;
    f32* out = static_cast<f32*>(p.out) + p.parts[part].out_column + column;
#pragma unroll
    for (u32 i = 0; i < ROWS; ++i) {
      if (i >= count) continue;
      f32* at = out + u64(first + i) * p.out_stride;
      *at = p.accumulate ? *at + y[i] : y[i];
    }
  }
}

template <u32 ROWS>
__device__ __forceinline__ void epilogue_swiglu(const EpilogueParams& p) {
  __shared__ f32 v[ROWS][LORA_RANK_MAX];
  const u32 column = blockIdx.x * THREADS + threadIdx.x;
  const u32 n_rows = p.step->n_rows;
  u32 saturations = 0;
  for (u32 tile = blockIdx.y; tile * ROWS < n_rows; tile += gridDim.y) {
    const u32 first = tile * ROWS;
    const u32 count = min(ROWS, n_rows - first);
    f32 gate[ROWS], up[ROWS];
    finish<ROWS>(p, 0, column, first, count, v, gate);
    finish<ROWS>(p, 1, column, first, count, v, up);
    if (column >= p.out_stride) continue;
    u16* out = static_cast<u16*>(p.out) + column;
#pragma unroll
    for (u32 i = 0; i < ROWS; ++i) {
      // Beyond the width both are zero, and so is their product.
      if (i < count) {
        const f32 h = gate[i] / (1.0f + expf(-gate[i])) * up[i];
        out[u64(first + i) * p.out_stride] = float_to_half_saturated(h, saturations);
      }
    }
  }
  if (saturations != 0) atomicAdd(p.saturations, saturations);
}

#define KERNELS(ROWS)                                                                                          \
  extern "C" __global__ void __launch_bounds__(THREADS) epilogue_##ROWS(const __grid_constant__ EpilogueParams p) { \
    epilogue<ROWS>(p);                                                                                         \
  }                                                                                                            \
  extern "C" __global__ void __launch_bounds__(THREADS)                                                        \
      epilogue_swiglu_##ROWS(const __grid_constant__ EpilogueParams p) {                                       \
    epilogue_swiglu<ROWS>(p);                                                                                  \
  }
KERNELS(1)
KERNELS(8)
