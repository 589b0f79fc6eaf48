// What all products with weights in tiles share: their parameters, and how a lane decodes its codes.
#pragma once

#include "step.cuh"
#include "tile.cuh"

using pleach::CodeLayout;
using pleach::Format;

struct GemmPart {
  const u8* weights;
  /// ggml's number, `Format`.
  u32 format;
  /// First stripe of this part in the grid.
  u32 first_stripe;
  /// Where its features begin in a row of a plane.
  u32 plane_column;
  u32 _pad;
};

struct GemmParams {
  const StepHeader* step;
  const u16* x;
  f32* planes;
  u64 plane_stride;
  GemmPart parts[PARTS_MAX];
  u32 n_parts;
  /// Units of 64 k in a stripe.
  u32 n_units;
  u32 x_stride;
  u32 plane_row;
  /// Count rows whose logits are wanted instead of all rows.
  u32 sample_rows;
  /// Stripes of all parts, where the grid does not say (gemm_wide).
  u32 n_stripes;
};
static_assert(sizeof(GemmParams) == 128, "as in ops/gemm.rs");

/// Rows of this step.
__device__ __forceinline__ u32 rows_of(const GemmParams& p) {
  return p.sample_rows ? p.step->n_sample_rows : p.step->n_rows;
}

/// The part that a stripe of the grid belongs to.
__device__ __forceinline__ const GemmPart& part_of(const GemmParams& p, u32 stripe) {
  u32 part = 0;
  while (part + 1 < p.n_parts && stripe >= p.parts[part + 1].first_stripe) ++part;
  return p.parts[part];
}

/// One f16 in both halves of a word.
__device__ __forceinline__ u32 twice(u32 half) { return (half & 0xffffu) * 0x10001u; }

/// Scale and minimum of a lane's group in rows r and r + 8 of a block, each f16 twice.
struct LaneScales {
  u32 scale[2];
  u32 minimum[2];
};

template <Format FORMAT>
__device__ __forceinline__ LaneScales load_scales(const u8* matrix, u32 n_units, u32 stripe, u32 unit, const u8* at,
                                                  u32 block, u32 lane) {
  constexpr CodeLayout L = pleach::code_layout(FORMAT);
  const u32 r = lane / 4, g = lane % 4 * 16 / L.group;
  const u8* meta = at + pleach::meta_offset(L, block, r);
  LaneScales out = {};
#pragma unroll
  for (u32 h = 0; h < 2; ++h) {
    const u8* scale = meta + pleach::meta_in_entry(L, 0, h, 0) + g * (L.super_block ? 1 : 2);
    const u8* minimum = meta + pleach::meta_in_entry(L, L.has_min, h, 0) + g * (L.super_block ? 1 : 2);
    if constexpr (L.super_block) {
      const u8* supers = matrix + pleach::super_offset(L, n_units, stripe, unit);
      const u16 d = *reinterpret_cast<const u16*>(supers + pleach::super_scale_offset(L, block, r, 0, h));
      // A group's scale is a signed byte.
      out.scale[h] = twice(float_to_half(half_to_float(d) * static_cast<f32>(static_cast<signed char>(*scale))));
      if constexpr (L.has_min) {
        const u16 dmin = *reinterpret_cast<const u16*>(supers + pleach::super_scale_offset(L, block, r, 1, h));
        out.minimum[h] = twice(float_to_half(-half_to_float(dmin) * static_cast<f32>(*minimum)));
      }
    } else {
      out.scale[h] = twice(*reinterpret_cast<const u16*>(scale));
      if constexpr (L.has_min) out.minimum[h] = twice(*reinterpret_cast<const u16*>(minimum));
    }
  }
  return out;
}

/// Two codes (below 256) of one register as values: `code - offset` exactly, then times scale (plus minimum) in f16.
template <Format FORMAT>
__device__ __forceinline__ u32 to_values(u32 codes, u32 scale, u32 minimum) {
  constexpr CodeLayout L = pleach::code_layout(FORMAT);
  // 1024 + code: the bits of a code below 1024 are the lowest of a half's mantissa there.
  const u32 q = half2_sub(codes | 0x64006400u, (0x6400u + L.offset) * 0x10001u);
  if constexpr (L.has_min) return half2_fma(q, scale, minimum);
  return half2_mul(q, scale);
}

/// Bits 4 and up of the codes of register i in k16 step j, in place, from the words of a lane.
template <Format FORMAT>
__device__ __forceinline__ u32 extra_bits(const u32* words, u32 j, u32 i) {
  constexpr CodeLayout L = pleach::code_layout(FORMAT);
  if constexpr (L.bits == 5) return (words[0] >> (4 * j + i) & 0x00010001u) << 4;
  if constexpr (L.bits == 6) return (words[j / 2] >> 2 * (i + 4 * (j % 2)) & 0x00030003u) << 4;
  if constexpr (L.bits == 8) return (words[j] >> 4 * i & 0x000f000fu) << 4;
  return 0;
}
