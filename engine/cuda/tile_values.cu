// Decodes a repacked weight value by value: out[n, k] = W[n, k] in f32, padding included. For checks, not for serving.
//
//   matrix  bytes of `repack.rs`, at a multiple of 256
//   out     f32 [n_units * 64 columns] for each of n_rows rows, row-major
//
// One thread a value, grid-stride; no shared memory. Bit-equal to the CPU's `RepackedMatrix::value`.
#include "base.cuh"
#include "tile.cuh"

struct TileValuesParams {
  const u8* matrix;
  f32* out;
  /// Number of the format (pleach::Format).
  u32 format;
  /// Padded, a multiple of 64.
  u32 n_rows;
  /// Units of a stripe.
  u32 n_units;
  u32 _pad;
};
static_assert(sizeof(TileValuesParams) == 32, "as in src/cuda/tests/gpu.rs");

extern "C" __global__ void __launch_bounds__(256) tile_values(const __grid_constant__ TileValuesParams p) {
  const pleach::CodeLayout layout = pleach::code_layout(static_cast<pleach::Format>(p.format));
  const u64 columns = p.n_units * pleach::UNIT_K, n = p.n_rows * columns;
  for (u64 i = u64(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += u64(gridDim.x) * blockDim.x) {
    p.out[i] = pleach::value_at(layout, p.matrix, p.n_units, u32(i / columns), u32(i % columns));
  }
}
