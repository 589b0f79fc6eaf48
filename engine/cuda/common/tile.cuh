// Where everything lies in a repacked weight: the one definition for kernels, host tests and (as `tile.rs`) for Rust.
//
// Plain C++17 without CUDA types or headers, so that a host compiler takes it too. Letters: N out features, K in
// features, both padded to multiples of 64 with values of zero.
//
//   matrix  = stripes of 64 rows
//   stripe  = along K:  legacy      unit, unit, ...
//                       k-quants    super scales, 4 units, super scales, 4 units, ...
//   unit    = 64 rows x 64 k = 4 blocks (row blocks) of 16 rows:
//
//     | P4: 4 x 512 B | extra plane: 4 x 32 lanes x (0, 4, 8 or 16) B | metadata: 4 blocks x 8 entries |
//                       none | P1: 5 bits | P2: 6 bits | second P4: 8 bits
//
//   All of these begin at multiples of 128 bytes from the matrix's begin; a stripe is one contiguous stream.
//
// Bits of a block, for lane l = 4r + c (r = l / 4, c = l % 4). The A operand of mma.m16n8k16 has registers R0..R3, each
// of two fp16; element e of R_i in step j = 0..3 is row r + 8 (i & 1), k = 16 c + 4 j + 2 (i >> 1) + e. A product may
// take its k in any order if both operands do: here a lane owns 16 consecutive k of a unit, so that it loads its part of
// the other operand with two 16-byte loads, and needs the scales of one group only:
//
//   P4   16 B a lane: word j; code (i, e) at bits 4 (i + 4 e):
//           bit 31                                                           0
//           | R3 e1 | R2 e1 | R1 e1 | R0 e1 | R3 e0 | R2 e0 | R1 e0 | R0 e0 |
//        so `w & 0x000f000f` is R0, `w & 0x00f000f0` is 16 * R1, and after `w >> 8` R2 and 16 * R3.
//   P1   4 B a lane: bit 4 of code (j, i, e) at bit 16 e + 4 j + i
//   P2   8 B a lane: word j / 2; bits 4..5 of code (j, i, e) at bits 16 e + 2 (i + 4 (j % 2))
//   second P4: bits 4..7 of the code, exactly as P4
//
// Metadata of a block: entry r = 0..7 serves rows r and r + 8 (half h = 0, 1); groups g = 0..64 / group - 1 of the unit:
//
//   legacy    fp16:  d[h][g]    then m[h][g]    8 or 16 B an entry
//   k-quants  bytes: sc[h][g]   then mn[h][g]   4 or 8 B (groups of 32), 8 or 16 B (groups of 16)
//   super scales of 256 k, 4 blocks x 8 entries: fp16 d[h] then dmin[h]: 4 or 8 B an entry
#pragma once

#if defined(__CUDACC__)
#define PLEACH_HD __host__ __device__ __forceinline__
#else
#define PLEACH_HD inline
#endif

namespace pleach {

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;

constexpr u32 STRIPE_ROWS = 64;  // rows of a unit
constexpr u32 UNIT_K = 64;       // k of a unit
constexpr u32 BLOCK_ROWS = 16;   // rows of a block
constexpr u32 BLOCKS = 4;        // blocks of a unit
constexpr u32 LANES = 32;
constexpr u32 SUPER_UNITS = 4;   // units under one set of super scales
constexpr u32 P4_BYTES = BLOCKS * LANES * 16;

// Numbers of formats as they travel to kernels: those of ggml.
enum class Format : u32 {
  F32 = 0, F16 = 1, Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8,
  Q2_K = 10, Q3_K = 11, Q4_K = 12, Q5_K = 13, Q6_K = 14, BF16 = 30,
};

// What codes and scales of a format mean; `bits` is 0 for dense rows. The twin of `quant::CodeLayout`.
struct CodeLayout {
  u32 bits;          // 4, 5, 6 or 8
  u32 offset;        // subtracted from a code
  u32 group;         // values that share a scale: 32 or 16
  bool has_min;
  bool super_block;  // k-quants
};

PLEACH_HD constexpr CodeLayout code_layout(Format format) {
  switch (format) {
    case Format::Q4_0: return {4, 8, 32, false, false};
    case Format::Q4_1: return {4, 0, 32, true, false};
    case Format::Q5_0: return {5, 16, 32, false, false};
    case Format::Q5_1: return {5, 0, 32, true, false};
    case Format::Q8_0: return {8, 128, 32, false, false};
    case Format::Q2_K: return {4, 0, 16, true, true};
    case Format::Q3_K: return {4, 4, 16, false, true};
    case Format::Q4_K: return {4, 0, 32, true, true};
    case Format::Q5_K: return {5, 0, 32, true, true};
    case Format::Q6_K: return {6, 32, 16, false, true};
    case Format::F32: case Format::F16: case Format::BF16: break;
  }
  return {0, 0, 0, false, false};
}

// Bytes of the extra plane for one lane of one block.
PLEACH_HD constexpr u32 extra_lane_bytes(CodeLayout l) {
  return l.bits == 5 ? 4 : l.bits == 6 ? 8 : l.bits == 8 ? 16 : 0;
}

PLEACH_HD constexpr u32 unit_groups(CodeLayout l) { return UNIT_K / l.group; }

// Bytes of one metadata entry: rows r and r + 8 of a block.
PLEACH_HD constexpr u32 meta_entry_bytes(CodeLayout l) {
  return 2 * unit_groups(l) * (l.super_block ? 1 : 2) * (l.has_min ? 2 : 1);
}

PLEACH_HD constexpr u32 super_entry_bytes(CodeLayout l) { return l.super_block ? (l.has_min ? 8 : 4) : 0; }

PLEACH_HD constexpr u32 meta_begin(CodeLayout l) { return P4_BYTES + BLOCKS * LANES * extra_lane_bytes(l); }

PLEACH_HD constexpr u32 unit_bytes(CodeLayout l) { return meta_begin(l) + BLOCKS * 8 * meta_entry_bytes(l); }

PLEACH_HD constexpr u32 super_bytes(CodeLayout l) { return BLOCKS * 8 * super_entry_bytes(l); }

// Bytes of a stripe of `n_units` units; a multiple of 4 units for k-quants.
PLEACH_HD constexpr u64 stripe_bytes(CodeLayout l, u32 n_units) {
  return u64(n_units) * unit_bytes(l) + u64(n_units / SUPER_UNITS) * super_bytes(l);
}

// Where unit `unit` of stripe `stripe` begins.
PLEACH_HD constexpr u64 unit_offset(CodeLayout l, u32 n_units, u32 stripe, u32 unit) {
  return stripe * stripe_bytes(l, n_units) + u64(unit) * unit_bytes(l) +
         (l.super_block ? u64(unit / SUPER_UNITS + 1) * super_bytes(l) : 0);
}

// Where the super scales of unit `unit` begin.
PLEACH_HD constexpr u64 super_offset(CodeLayout l, u32 n_units, u32 stripe, u32 unit) {
  return stripe * stripe_bytes(l, n_units) +
         u64(unit / SUPER_UNITS) * (super_bytes(l) + SUPER_UNITS * u64(unit_bytes(l)));
}

// Within a unit: a lane's 16 bytes of P4.
PLEACH_HD constexpr u32 p4_offset(u32 block, u32 lane) { return (block * LANES + lane) * 16; }

// Within a unit: a lane's bytes of the extra plane.
PLEACH_HD constexpr u32 extra_offset(CodeLayout l, u32 block, u32 lane) {
  return P4_BYTES + (block * LANES + lane) * extra_lane_bytes(l);
}

// Within a unit: the metadata of rows r and r + 8 of a block.
PLEACH_HD constexpr u32 meta_offset(CodeLayout l, u32 block, u32 r) {
  return meta_begin(l) + (block * 8 + r) * meta_entry_bytes(l);
}

// Within an entry: scale (which = 0) or minimum (which = 1) of a row half and a group.
PLEACH_HD constexpr u32 meta_in_entry(CodeLayout l, u32 which, u32 half, u32 group) {
  return ((which * 2 + half) * unit_groups(l) + group) * (l.super_block ? 1 : 2);
}

// Within super scales: d (which = 0) or dmin (which = 1) of a row half.
PLEACH_HD constexpr u32 super_scale_offset(CodeLayout l, u32 block, u32 r, u32 which, u32 half) {
  return (block * 8 + r) * super_entry_bytes(l) + (which * 2 + half) * 2;
}

// Where the code of a row of a unit (0..63) and a k of a unit (0..63) lies.
struct Place {
  u32 block, lane;
  u32 step;      // step of 16 k (4 of each lane), also the word of P4
  u32 reg;       // i of R_i
  u32 element;   // e
};

PLEACH_HD constexpr Place place(u32 row, u32 k) {
  u32 in_block = row % BLOCK_ROWS;
  return {row / BLOCK_ROWS, in_block % 8 * 4 + k / 16, k % 16 / 4, in_block / 8 + 2 * (k % 4 / 2), k % 2};
}

PLEACH_HD constexpr u32 p4_shift(Place p) { return 4 * (p.reg + 4 * p.element); }
PLEACH_HD constexpr u32 p1_shift(Place p) { return 16 * p.element + 4 * p.step + p.reg; }
PLEACH_HD constexpr u32 p2_word(Place p) { return p.step / 2; }
PLEACH_HD constexpr u32 p2_shift(Place p) { return 16 * p.element + 2 * (p.reg + 4 * (p.step % 2)); }

// ---- One value at a time: embedding rows and checks. GEMMs decode whole registers instead. ----

PLEACH_HD u32 read_u16(const u8* at) { return u32(at[0]) | u32(at[1]) << 8; }
PLEACH_HD u32 read_u32(const u8* at) { return read_u16(at) | read_u16(at + 2) << 16; }

PLEACH_HD float bits_to_float(u32 bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
#endif
}

// Products and sums are rounded one by one, as on the CPU: no contraction to fma.
PLEACH_HD float mul_rounded(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

PLEACH_HD float add_rounded(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}

// An fp16 given by its bits, exactly.
PLEACH_HD float half_value(u32 bits) {
  u32 sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 0x1fu, mantissa = bits & 0x3ffu;
  if (exponent == 0) {  // zero and subnormals: mantissa * 2^-24
    float value = mul_rounded(float(mantissa), 5.9604644775390625e-8f);
    return sign ? -value : value;
  }
  if (exponent == 31) return bits_to_float(sign | 0x7f800000u | mantissa << 13);
  return bits_to_float(sign | (exponent + 112) << 23 | mantissa << 13);
}

// The code of row `row` of a stripe and k `k` of a unit; `unit` points at the unit.
PLEACH_HD u32 code_at(CodeLayout l, const u8* unit, u32 row, u32 k) {
  Place p = place(row, k);
  const u8* lane = unit + p4_offset(p.block, p.lane) + 4 * p.step;
  u32 code = read_u32(lane) >> p4_shift(p) & 0xfu;
  const u8* extra = unit + extra_offset(l, p.block, p.lane);
  if (l.bits == 5) code |= (read_u32(extra) >> p1_shift(p) & 1u) << 4;
  if (l.bits == 6) code |= (read_u32(extra + 4 * p2_word(p)) >> p2_shift(p) & 3u) << 4;
  if (l.bits == 8) code |= (read_u32(extra + 4 * p.step) >> p4_shift(p) & 0xfu) << 4;
  return code;
}

// The value at row `n`, column `k` of a matrix of `n_units` units in a stripe: bit-equal to the CPU's.
PLEACH_HD float value_at(CodeLayout l, const u8* matrix, u32 n_units, u32 n, u32 k) {
  u32 stripe = n / STRIPE_ROWS, row = n % STRIPE_ROWS, unit = k / UNIT_K;
  u32 block = row / BLOCK_ROWS, r = row % 8, half = row % BLOCK_ROWS / 8, g = k % UNIT_K / l.group;
  const u8* at = matrix + unit_offset(l, n_units, stripe, unit);
  const u8* meta = at + meta_offset(l, block, r);
  float q = float(int(code_at(l, at, row, k % UNIT_K)) - int(l.offset));
  if (!l.super_block) {
    float product = mul_rounded(q, half_value(read_u16(meta + meta_in_entry(l, 0, half, g))));
    return l.has_min ? add_rounded(product, half_value(read_u16(meta + meta_in_entry(l, 1, half, g)))) : product;
  }
  const u8* supers = matrix + super_offset(l, n_units, stripe, unit);
  int sc = int(meta[meta_in_entry(l, 0, half, g)]);
  sc = sc > 127 ? sc - 256 : sc;
  float d = half_value(read_u16(supers + super_scale_offset(l, block, r, 0, half)));
  float product = mul_rounded(q, mul_rounded(d, float(sc)));
  if (!l.has_min) return product;
  float dmin = half_value(read_u16(supers + super_scale_offset(l, block, r, 1, half)));
  return add_rounded(product, -mul_rounded(dmin, float(meta[meta_in_entry(l, 1, half, g)])));
}

}  // namespace pleach
