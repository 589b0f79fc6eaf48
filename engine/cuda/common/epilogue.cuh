// What the kernels of epilogue.cu (rows one by one) and epilogue_tiles.cu (tiles of rows) have in common.
#pragma once

#include "step.cuh"

struct EpiloguePart {
  /// A multiple of 64, as `plane_row` is.
  u32 plane_column;
  /// A multiple of 4, as `out_stride` is.
  u32 out_column;
  u32 n_out;
  /// In the slot table.
  u32 site;
};

struct EpilogueParams {
  const StepHeader* step;
  const f32* planes;
  /// Null: no row has an adapter.
  const f32* v_planes;
  const u32* slots;
  const AdapterTile* tiles;
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
  /// Columns of a CTA of the kernels for tiles, a multiple of 64.
  u32 cta_columns;
};
static_assert(sizeof(EpilogueParams) == 184, "as in ops/epilogue.rs");

__device__ __forceinline__ f32 swiglu(f32 gate, f32 up) { return gate / (1.0f + expf(-gate)) * up; }

/// The part of this CTA, and the strip of `width` columns within it.
__device__ __forceinline__ u32 part_of(const EpilogueParams& p, u32 width, u32& strip) {
  u32 part = 0;
  strip = blockIdx.x;
  for (; part + 1 < p.n_parts && strip >= div_up(p.parts[part].n_out, width); ++part) {
    strip -= div_up(p.parts[part].n_out, width);
  }
  return part;
}
