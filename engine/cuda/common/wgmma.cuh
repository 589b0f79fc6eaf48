// Tensor-core products of warpgroups (compute capability 9.0): A in registers, B in shared memory, run beside the threads.
//
// B is K-major with 128-byte swizzle: row n holds 64 k, 128 bytes; the 16-byte chunk i of row n lies at chunk i ^ (n % 8)
// of the row. Tiles begin at multiples of 1024 bytes. Between issue and wait neither the sums nor A may be touched. What
// bulk copies bring is seen after `arrival_wait`; what ordinary stores write would need a fence that is not here.
#pragma once

#include "base.cuh"

// Where these operations are: other targets of the same file get kernels that trap, and the host never launches them.
#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HAS_WGMMA 1
#else
#define HAS_WGMMA 0
#endif

/// Threads of a warpgroup.
constexpr u32 WARPGROUP = 128;
/// Bytes of a row of B in shared memory.
constexpr u32 SWIZZLED_ROW_BYTES = 128;

/// Where the 16-byte chunk `chunk` of row `row` lies in a tile of B.
__device__ __forceinline__ u32 swizzled_offset(u32 row, u32 chunk) {
  return row * SWIZZLED_ROW_BYTES + (chunk ^ row % 8) * 16;
}

/// What tells a product where B is: 16 k from `address` on (a tile's begin plus 32 bytes a step). Bits 0..13 address / 16,
/// 16..29 unused for one swizzled row of 64 k, 32..45 bytes / 16 from 8 rows to the next 8, 62..63 swizzle: 1 = 128 bytes.
__device__ __forceinline__ u64 swizzled_descriptor(u32 address) {
  return u64(address >> 4 & 0x3fffu) | u64(1) << 16 | u64(8 * SWIZZLED_ROW_BYTES >> 4) << 32 | u64(1) << 62;
}

#if defined(__CUDACC__)
#if HAS_WGMMA
/// Orders this thread's accesses to A and the sums before the products that follow.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

/// Waits until at most `PENDING` committed groups of products are not done.
template <int PENDING>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

#define PLEACH_SUMS_8(d, i) \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])

/// `d += a b` for a 64 x 16, b 16 x 128, f32 sums. Warp w of the warpgroup holds rows 16 w.. of a and d, as
/// `mma_m16n8k16` does; d[4 i..] are its columns 8 i..
__device__ __forceinline__ void wgmma_m64n128k16(f32 (&d)[64], const u32 (&a)[4], u64 b) {
  asm volatile(
      "{ .reg .pred add; setp.ne.b32 add, %69, 0; wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
      "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,"
      "%61,%62,%63}, {%64,%65,%66,%67}, %68, add, 1, 1, 0; }"
      : PLEACH_SUMS_8(d, 0), PLEACH_SUMS_8(d, 8), PLEACH_SUMS_8(d, 16), PLEACH_SUMS_8(d, 24), PLEACH_SUMS_8(d, 32),
        PLEACH_SUMS_8(d, 40), PLEACH_SUMS_8(d, 48), PLEACH_SUMS_8(d, 56)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1)
      : "memory");
}
#undef PLEACH_SUMS_8
#endif

#if HAS_WGMMA
// Barriers that copies arrive at: 8 bytes of shared memory, by address. Phases alternate between parity 0 and 1.

/// One arrival a phase; before the CTA's barrier, by one thread.
__device__ __forceinline__ void arrival_init(u32 barrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1; fence.mbarrier_init.release.cluster;" ::"r"(barrier) : "memory");
}

/// Copies `bytes`, a multiple of 16 at addresses that are too, and ends the barrier's phase when they are there. One thread.
__device__ __forceinline__ void bulk_copy(u32 shared, const void* global, u32 bytes, u32 barrier) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%3], %2; "
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared),
      "l"(global), "r"(bytes), "r"(barrier)
      : "memory");
}

/// Waits for the end of the phase of this parity.
__device__ __forceinline__ void arrival_wait(u32 barrier, u32 parity) {
  asm volatile(
      "{ .reg .pred there; again%=: mbarrier.try_wait.parity.shared::cta.b64 there, [%0], %1; @!there bra again%=; }" ::"r"(barrier),
      "r"(parity)
      : "memory");
}
#endif
#endif
