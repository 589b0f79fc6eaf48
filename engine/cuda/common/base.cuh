// Types, conversions and warp operations that all kernels use.
//
// Nothing here needs a CUDA header: halves are 16-bit words, converted by one instruction each. With a host compiler the
// same kernels run on the CPU (emulator/emulator.hpp supplies what the device has), which is how they are tested where
// no GPU is.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef float f32;

#if defined(__CUDACC__)
#define DYNAMIC_SHARED(type, name) extern __shared__ __align__(16) type name[]
#else
#include "emulator.hpp"
#endif

/// A row without an adapter, in the slot of a row.
constexpr u32 NO_SLOT = 0xffffffffu;
constexpr u32 WARP = 32;
constexpr u32 ALL_LANES = 0xffffffffu;
/// Largest finite half.
constexpr f32 HALF_MAX = 65504.0f;

#if defined(__CUDACC__)
__device__ __forceinline__ f32 half_to_float(u16 h) {
  f32 x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(h));
  return x;
}

__device__ __forceinline__ u16 float_to_half(f32 x) {
  u16 h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(x));
  return h;
}

// Pairs of halves, each half rounded by itself.
__device__ __forceinline__ u32 half2_sub(u32 a, u32 b) {
  u32 d;
  asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}

__device__ __forceinline__ u32 half2_mul(u32 a, u32 b) {
  u32 d;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}

/// `a b + c`, rounded once.
__device__ __forceinline__ u32 half2_fma(u32 a, u32 b, u32 c) {
  u32 d;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}

template <typename T>
__device__ __forceinline__ T shuffle_xor(T x, int mask) {
  return __shfl_xor_sync(ALL_LANES, x, mask);
}

/// The address of shared memory as `cp.async` and `ldmatrix` take it.
__device__ __forceinline__ u32 shared_address(const void* p) { return static_cast<u32>(__cvta_generic_to_shared(p)); }
#endif

__device__ __forceinline__ f32 low_half(u32 w) { return half_to_float(static_cast<u16>(w & 0xffffu)); }
__device__ __forceinline__ f32 high_half(u32 w) { return half_to_float(static_cast<u16>(w >> 16)); }

__device__ __forceinline__ u32 pack_halves(u16 low, u16 high) { return u32(low) | u32(high) << 16; }
__device__ __forceinline__ u32 pack_floats(f32 low, f32 high) { return pack_halves(float_to_half(low), float_to_half(high)); }

/// Nearest half, the largest finite one for what is beyond it; NaN stays NaN, so that it is seen at the end.
__device__ __forceinline__ u16 float_to_half_saturated(f32 x, u32& saturations) {
  saturations += fabsf(x) > HALF_MAX;
  x = x > HALF_MAX ? HALF_MAX : x;
  x = x < -HALF_MAX ? -HALF_MAX : x;
  return float_to_half(x);
}

/// Eight halves of a 16-byte word, in memory order.
__device__ __forceinline__ void unpack8(const uint4& w, f32 (&x)[8]) {
  x[0] = low_half(w.x), x[1] = high_half(w.x), x[2] = low_half(w.y), x[3] = high_half(w.y);
  x[4] = low_half(w.z), x[5] = high_half(w.z), x[6] = low_half(w.w), x[7] = high_half(w.w);
}

/// Sum over the lanes of a warp, the same bits in all of them.
__device__ __forceinline__ f32 warp_sum(f32 x) {
#pragma unroll
  for (int mask = 16; mask > 0; mask >>= 1) x += shuffle_xor(x, mask);
  return x;
}

/// Sum over a CTA of `THREADS`, the same bits in all threads: lanes first, then warps in order. `scratch` has one value
/// per warp; a barrier must lie between two uses of it.
template <u32 THREADS>
__device__ __forceinline__ f32 block_sum(f32 x, f32* scratch) {
  x = warp_sum(x);
  if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = x;
  __syncthreads();
  f32 sum = 0.0f;
#pragma unroll
  for (u32 w = 0; w < THREADS / WARP; ++w) sum += scratch[w];
  return sum;
}

__device__ __forceinline__ u32 div_up(u32 a, u32 b) { return (a + b - 1) / b; }
