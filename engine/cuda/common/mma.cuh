// Tensor-core operations on warps, and 16-byte copies into shared memory that do not wait.
#pragma once

#include "base.cuh"

#if defined(__CUDACC__)
/// `d += a b` for a 16 x 16 (f16, row-major) and b 16 x 8 (f16, column-major), f32 sums. Lane 4 g + c holds
/// d[g][2c, 2c+1], d[g+8][2c, 2c+1]; a: rows g and g + 8 of columns 2c, 2c + 1, then the same of columns + 8;
/// b: rows 2c, 2c + 1 of column g, then rows + 8.
__device__ __forceinline__ void mma_m16n8k16(f32 (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// Four 8 x 8 matrices of halves; lane 8 i + j names row j (16 bytes) of matrix i; lane 4 g + c gets elements 2c, 2c + 1
/// of row g of each.
__device__ __forceinline__ void ldmatrix_x4(u32 (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

/// The same of the transposed matrices: lane 4 g + c gets column g of rows 2c, 2c + 1.
__device__ __forceinline__ void ldmatrix_x4_transposed(u32 (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

__device__ __forceinline__ void copy_async_16(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global) : "memory");
}

__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

/// Waits until at most `PENDING` of this thread's committed groups are still on their way.
template <int PENDING>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}
#endif
