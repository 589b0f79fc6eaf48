// Runs kernels on the CPU, for tests where no GPU is: the same .cu files, compiled as C++ with this in place of CUDA.
//
// CTAs run one after another, and so do a CTA's warps between two barriers. Threads are fibers on one host thread: each
// runs until it reaches a barrier or an operation of its warp, where it waits for the others. `__shared__` is a static variable, dynamic shared memory is one
// buffer, filled with NaN before every CTA. Warp operations (shuffles, mma, ldmatrix) exchange values through mailboxes
// and need all 32 lanes, as their full masks promise. What cannot go on (lanes at different operations, a barrier that
// some never reach) is reported and not waited for.
//
// Copies and products that do not wait are done as late as their waits allow, products in the reverse order at once, so
// that memory or registers that are reused too early show.
//
// A barrier that is missing between two warps shows as a wrong value when warps run in order or in reverse order (tests do
// both). What does not show: speed, and the last bits (the host neither fuses nor sums as tensor cores do).
// Compiled with -fsanitize=alignment,bounds, so that an access that a GPU refuses traps here too.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <utility>
#include <vector>

#if !defined(__x86_64__)
#error "fibers are switched by x86-64 code"
#endif

#define __global__
#define __device__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static
#define DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(emulator::dynamic_shared)

struct Index3 {
  u32 x, y, z;
};
struct alignas(8) uint2 {
  u32 x, y;
};
struct alignas(16) uint4 {
  u32 x, y, z, w;
};
struct alignas(16) float4 {
  f32 x, y, z, w;
};
inline uint2 make_uint2(u32 x, u32 y) { return {x, y}; }
inline uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) { return {x, y, z, w}; }
inline float4 make_float4(f32 x, f32 y, f32 z, f32 w) { return {x, y, z, w}; }
inline u32 min(u32 a, u32 b) { return a < b ? a : b; }
inline u32 max(u32 a, u32 b) { return a > b ? a : b; }
inline u32 atomicAdd(u32* at, u32 value) {
  const u32 old = *at;
  *at += value;
  return old;
}
inline f32 __uint_as_float(u32 bits) {
  f32 x;
  memcpy(&x, &bits, 4);
  return x;
}
inline u32 __float_as_uint(f32 x) {
  u32 bits;
  memcpy(&bits, &x, 4);
  return bits;
}
inline f32 half_to_float(u16 h) {
  _Float16 x;
  memcpy(&x, &h, 2);
  return static_cast<f32>(x);
}
inline u16 float_to_half(f32 x) {
  const _Float16 h = static_cast<_Float16>(x);
  u16 bits;
  memcpy(&bits, &h, 2);
  return bits;
}

/// Half `e` of a pair, and a pair of two.
inline u32 half2_of(f32 low, f32 high) { return u32(float_to_half(low)) | u32(float_to_half(high)) << 16; }
inline f32 half_of(u32 pair, u32 e) { return half_to_float(static_cast<u16>(pair >> 16 * e)); }
inline u32 half2_sub(u32 a, u32 b) { return half2_of(half_of(a, 0) - half_of(b, 0), half_of(a, 1) - half_of(b, 1)); }
inline u32 half2_mul(u32 a, u32 b) { return half2_of(half_of(a, 0) * half_of(b, 0), half_of(a, 1) * half_of(b, 1)); }
// The product of two halves is exact in f32; the sum is rounded twice here, which can differ in a half's last bit.
inline u32 half2_fma(u32 a, u32 b, u32 c) {
  return half2_of(half_of(a, 0) * half_of(b, 0) + half_of(c, 0), half_of(a, 1) * half_of(b, 1) + half_of(c, 1));
}

namespace emulator {

constexpr u32 LANES = 32;
constexpr u32 THREADS_MAX = 1024;
constexpr size_t STACK_BYTES = 128 << 10;
constexpr size_t SHARED_BYTES_MAX = 227 << 10;

enum class State { Ready, AtWarp, AtBlock, AtArrival, Done };

/// 16 bytes on their way into shared memory.
struct Copy {
  void* shared;
  const void* global;
  u32 group;
};

/// A block of bytes on its way, and where it arrives.
struct BulkCopy {
  u32 shared;
  const void* global;
  u32 bytes;
  u32 barrier;
};

/// A product of a warpgroup: this lane's sums and operand, which it must not touch, and where B is.
struct Product {
  f32* d;
  const u32* a;
  u64 b;
  u32 n_columns;
  u32 group;
};

struct Fiber {
  void* stack_pointer;
  State state;
  Index3 thread;
  /// Warp operations so far. Mail of two operations is kept: a lane may post its next before another has read this one's.
  u32 n_ops;
  alignas(16) unsigned char mail[2][64];
  /// Copies that have not arrived, and groups committed so far.
  std::vector<Copy> copies;
  u32 n_groups;
  /// The same of products.
  std::vector<Product> products;
  u32 n_product_groups;
};

static std::vector<Fiber> fibers;
static Fiber* current;
static void* scheduler;
static Index3 block_index, grid_size, block_size;
static u32 block_threads;
static const void* kernel_params;
static void (*kernel_call)(const void*, const void*);
static const void* kernel;
alignas(1024) static unsigned char dynamic_shared[SHARED_BYTES_MAX];
/// Of the running CTA.
static std::vector<BulkCopy> bulk_copies;
static size_t bulk_copies_asked;
/// Products are done at once, and not as late as they may.
static bool eager_products;

extern "C" void emulator_switch(void** save, void* load);
asm(R"(
.text
.local emulator_switch
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");

inline void wait(State state) {
  current->state = state;
  emulator_switch(&current->stack_pointer, scheduler);
}

/// Posts this lane's value and waits for the other lanes'.
inline void exchange(const void* value, size_t bytes) {
  memcpy(current->mail[current->n_ops & 1], value, bytes);
  wait(State::AtWarp);
  ++current->n_ops;
}

/// What a lane of this warp posted in the exchange that just ended.
template <typename T>
inline T mail_of(u32 lane) {
  Fiber& fiber = fibers[(current - fibers.data()) / LANES * LANES + lane];
  T value;
  memcpy(&value, fiber.mail[(current->n_ops - 1) & 1], sizeof value);
  return value;
}

inline void enter() {
  kernel_call(kernel, kernel_params);
  wait(State::Done);
}

/// Runs a warp until all of its lanes are at a barrier or at their end, or cannot go on. No other warp runs meanwhile: the
/// largest distance that barriers allow, so that one that is missing shows.
inline void run_warp(u32 first, bool reversed) {
  const u32 n_lanes = std::min(LANES, block_threads - first);
  for (;;) {
    for (u32 n = 0; n < n_lanes; ++n) {
      Fiber& fiber = fibers[first + (reversed ? n_lanes - 1 - n : n)];
      if (fiber.state != State::Ready) continue;
      current = &fiber;
      emulator_switch(&scheduler, fiber.stack_pointer);
    }
    u32 at_warp = 0;
    for (u32 n = 0; n < n_lanes; ++n) {
      const Fiber& fiber = fibers[first + n];
      at_warp += fiber.state == State::AtWarp && fiber.n_ops == fibers[first].n_ops;
    }
    if (at_warp != LANES) return;
    for (u32 n = 0; n < n_lanes; ++n) fibers[first + n].state = State::Ready;
  }
}

/// Runs all threads of a CTA to their end; false if they cannot get there.
inline bool run_cta(bool reversed) {
  memset(dynamic_shared, 0xff, sizeof dynamic_shared);
  bulk_copies.clear();
  static std::vector<unsigned char> stacks(THREADS_MAX * STACK_BYTES);
  fibers.assign(block_threads, Fiber{});
  for (u32 i = 0; i < block_threads; ++i) {
    // As if `enter` had been called: six saved registers, its address, and a return address that is never used.
    auto top = reinterpret_cast<size_t>(stacks.data() + (i + 1) * STACK_BYTES) & ~size_t(63);
    void** stack = reinterpret_cast<void**>(top) - 8;
    memset(stack, 0, 64);
    stack[6] = reinterpret_cast<void*>(&enter);
    fibers[i] = Fiber{stack, State::Ready, {i, 0, 0}, 0, {}, {}, 0, {}, 0};
  }
  const u32 n_warps = (block_threads + LANES - 1) / LANES;
  size_t n_copies = bulk_copies_asked;
  for (;;) {
    for (u32 n = 0; n < n_warps; ++n) run_warp((reversed ? n_warps - 1 - n : n) * LANES, reversed);
    u32 at_block = 0, at_arrival = 0, done = 0;
    for (Fiber& fiber : fibers) {
      at_block += fiber.state == State::AtBlock;
      at_arrival += fiber.state == State::AtArrival;
      done += fiber.state == State::Done;
    }
    if (done == block_threads) return true;
    if (at_arrival > 0 && bulk_copies_asked > n_copies) {
      // Others have asked meanwhile for what these threads wait for.
      n_copies = bulk_copies_asked;
      for (Fiber& fiber : fibers) {
        if (fiber.state == State::AtArrival) fiber.state = State::Ready;
      }
      continue;
    }
    if (at_block + done != block_threads) {
      fprintf(stderr, "emulator: block %u,%u,%u cannot go on: %u of %u threads at a barrier, %u at their end\n", block_index.x,
              block_index.y, block_index.z, at_block, block_threads, done);
      return false;
    }
    for (Fiber& fiber : fibers) {
      if (fiber.state == State::AtBlock) fiber.state = State::Ready;
    }
  }
}

/// Parameters of N bytes, passed by value as the kernel's own struct is: both are copied to the stack.
template <size_t N>
struct Blob {
  alignas(8) unsigned char bytes[N];
};

template <size_t N>
void call(const void* function, const void* params) {
  Blob<N> blob;
  memcpy(&blob, params, N);
  reinterpret_cast<void (*)(Blob<N>)>(const_cast<void*>(function))(blob);
}

using Call = void (*)(const void*, const void*);

/// `call` of a size, a multiple of 8 from 24 (smaller structs travel in registers) to 512.
template <size_t... I>
inline Call call_of(size_t bytes, std::index_sequence<I...>) {
  static const Call calls[] = {&call<(I + 3) * 8>...};
  return bytes % 8 == 0 && bytes >= 24 && bytes <= 512 ? calls[bytes / 8 - 3] : nullptr;
}

}  // namespace emulator

#define threadIdx (emulator::current->thread)
#define blockIdx (emulator::block_index)
#define gridDim (emulator::grid_size)
#define blockDim (emulator::block_size)

inline void __syncthreads() { emulator::wait(emulator::State::AtBlock); }

template <typename T>
inline T shuffle_xor(T x, int mask) {
  emulator::exchange(&x, sizeof x);
  return emulator::mail_of<T>(threadIdx.x % 32 ^ mask);
}

// Copies arrive as late as they may: when they are waited for.
inline void copy_async_16(void* shared, const void* global) {
  emulator::current->copies.push_back({shared, global, emulator::current->n_groups});
}
/// Shared memory by its address: 0 is where dynamic shared memory begins.
inline u32 shared_address(const void* p) {
  return static_cast<u32>(static_cast<const unsigned char*>(p) - emulator::dynamic_shared);
}
inline void copy_async_commit() { ++emulator::current->n_groups; }
template <int PENDING>
inline void copy_async_wait() {
  std::vector<emulator::Copy> later;
  for (const emulator::Copy& copy : emulator::current->copies) {
    if (copy.group + PENDING < emulator::current->n_groups) {
      *static_cast<uint4*>(copy.shared) = *static_cast<const uint4*>(copy.global);
    } else {
      later.push_back(copy);
    }
  }
  emulator::current->copies.swap(later);
}

inline void mma_m16n8k16(f32 (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  struct Operands {
    u32 a[4], b[2];
  };
  const Operands mine = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
  emulator::exchange(&mine, sizeof mine);
  const u32 lane = threadIdx.x % 32;
  for (u32 i = 0; i < 4; ++i) {
    const u32 row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    for (u32 k = 0; k < 16; ++k) {
      const auto left = emulator::mail_of<Operands>(row % 8 * 4 + k % 8 / 2);
      const auto right = emulator::mail_of<Operands>(column * 4 + k % 8 / 2);
      d[i] += half_of(left.a[row / 8 + k / 8 * 2], k % 2) * half_of(right.b[k / 8], k % 2);
    }
  }
}

inline void ldmatrix_x4(u32 (&r)[4], const void* row) {
  emulator::exchange(&row, sizeof row);
  const u32 lane = threadIdx.x % 32;
  for (u32 i = 0; i < 4; ++i) r[i] = emulator::mail_of<const u32*>(i * 8 + lane / 4)[lane % 4];
}

inline void ldmatrix_x4_transposed(u32 (&r)[4], const void* row) {
  emulator::exchange(&row, sizeof row);
  const u32 lane = threadIdx.x % 32;
  for (u32 i = 0; i < 4; ++i) {
    const u16* first = emulator::mail_of<const u16*>(i * 8 + lane % 4 * 2);
    const u16* second = emulator::mail_of<const u16*>(i * 8 + lane % 4 * 2 + 1);
    r[i] = u32(first[lane / 4]) | u32(second[lane / 4]) << 16;
  }
}

namespace emulator {

/// A product for this lane: B is read through the fields of its descriptor.
inline void multiply(const Product& product) {
  struct Operand {
    u32 a[4];
  };
  exchange(product.a, sizeof(Operand));
  const u32 lane = current->thread.x % LANES;
  f32 a[2][16];
  for (u32 k = 0; k < 16; ++k) {
    const auto from = mail_of<Operand>(lane / 4 * 4 + k % 8 / 2);
    for (u32 h = 0; h < 2; ++h) a[h][k] = half_of(from.a[h + k / 8 * 2], k % 2);
  }
  const u32 begin = static_cast<u32>(product.b & 0x3fff) << 4, eight_rows = static_cast<u32>(product.b >> 32 & 0x3fff) << 4;
  // Nothing but 128-byte swizzle is known here, whose pattern begins at multiples of 1024 bytes.
  if (product.b >> 62 != 1 || (product.b >> 49 & 7) != 0) __builtin_trap();
  for (u32 i = 0; i < product.n_columns / 4; ++i) {
    const u32 column = i / 2 * 8 + lane % 4 * 2 + i % 2;
    f32 sum[2] = {};
    for (u32 k = 0; k < 16; ++k) {
      u32 at = begin + column / 8 * eight_rows + column % 8 * 128 + k * 2;
      at ^= (at >> 7 & 7) << 4;
      if (at > SHARED_BYTES_MAX - 2) __builtin_trap();
      const f32 b = half_to_float(*reinterpret_cast<const u16*>(dynamic_shared + at));
      for (u32 h = 0; h < 2; ++h) sum[h] += a[h][k] * b;
    }
    for (u32 h = 0; h < 2; ++h) product.d[i / 2 * 4 + h * 2 + i % 2] += sum[h];
  }
}

}  // namespace emulator

// A barrier's word counts its phases: 2 n while phase n is open and nothing is on its way, 2 n + 1 while a copy is, which has
// arrived when it is first waited for. Another copy in the same phase traps.
inline u64& arrival_of(u32 barrier) {
  if (barrier % 8 != 0 || barrier > emulator::SHARED_BYTES_MAX - 8) __builtin_trap();
  return *reinterpret_cast<u64*>(emulator::dynamic_shared + barrier);
}
inline void arrival_init(u32 barrier) { arrival_of(barrier) = 0; }
inline void bulk_copy(u32 shared, const void* global, u32 bytes, u32 barrier) {
  if (shared % 16 != 0 || bytes % 16 != 0 || reinterpret_cast<size_t>(global) % 16 != 0) __builtin_trap();
  if (u64(shared) + bytes > emulator::SHARED_BYTES_MAX || arrival_of(barrier)++ % 2 != 0) __builtin_trap();
  ++emulator::bulk_copies_asked;
  // Products come late when copies come at once, and the other way round: a stage that is overwritten too early shows in
  // one order, one that is read too early in the other.
  if (!emulator::eager_products) memcpy(emulator::dynamic_shared + shared, global, bytes);
  emulator::bulk_copies.push_back({shared, global, emulator::eager_products ? bytes : 0, barrier});
}
inline void arrive(u32 barrier) {
  std::vector<emulator::BulkCopy> later;
  for (const emulator::BulkCopy& copy : emulator::bulk_copies) {
    if (copy.barrier == barrier) {
      memcpy(emulator::dynamic_shared + copy.shared, copy.global, copy.bytes);
      ++arrival_of(barrier);
    } else {
      later.push_back(copy);
    }
  }
  emulator::bulk_copies.swap(later);
}
inline void arrival_wait(u32 barrier, u32 parity) {
  // Parity p's phase is over while the open one is of the other parity.
  for (arrive(barrier); arrival_of(barrier) / 2 % 2 == parity; arrive(barrier)) emulator::wait(emulator::State::AtArrival);
}

inline void wgmma_fence() {}
inline void wgmma_commit() { ++emulator::current->n_product_groups; }
inline void wgmma_m64n128k16(f32 (&d)[64], const u32 (&a)[4], u64 b) {
  const emulator::Product product = {d, a, b, 128, emulator::current->n_product_groups};
  if (emulator::eager_products) return emulator::multiply(product);
  emulator::current->products.push_back(product);
}
template <int PENDING>
inline void wgmma_wait() {
  std::vector<emulator::Product> later;
  for (const emulator::Product& product : emulator::current->products) {
    if (product.group + PENDING < emulator::current->n_product_groups) {
      emulator::multiply(product);
    } else {
      later.push_back(product);
    }
  }
  emulator::current->products.swap(later);
}

/// Runs a kernel of this library. 0: done; 1: parameters of a size that cannot be passed; 2: threads that cannot go on.
extern "C" int emulator_run(const void* kernel, const u32* grid, u32 block, u32 shared,
                                                                        const void* params, size_t params_bytes, int reversed) {
  using namespace emulator;
  kernel_call = call_of(params_bytes, std::make_index_sequence<62>());
  if (!kernel_call || block == 0 || block > THREADS_MAX || shared > SHARED_BYTES_MAX) return 1;
  emulator::kernel = kernel;
  kernel_params = params;
  block_threads = block;
  block_size = {block, 1, 1};
  grid_size = {grid[0], grid[1], grid[2]};
  eager_products = reversed != 0;
  for (u32 z = 0; z < grid[2]; ++z) {
    for (u32 y = 0; y < grid[1]; ++y) {
      for (u32 x = 0; x < grid[0]; ++x) {
        block_index = {x, y, z};
        if (!run_cta(reversed != 0)) return 2;
      }
    }
  }
  return 0;
}
