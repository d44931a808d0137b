// Hopper's asynchronous matrix products, bulk copies and barriers (compute capability 9.0, PTX ISA 8.0).
//
// An operand in shared memory is made of blocks of 64 rows of 64 16-bit numbers (8 KiB, 1 KiB aligned), whose 16-byte pieces
// are swizzled: piece p of row r lies in place p ^ (r % 8). The same block serves as [rows, K] ("K-major") and, transposed, as
// [K, rows] ("MN-major").
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace lightning_nerf::hopper {

constexpr int kBlockRows = 64, kBlockColumns = 64;
constexpr uint32_t kBlockBytes = 2 * kBlockRows * kBlockColumns;

// Index of a 16-bit number in its block. The packing of weights (ops/wide_mlp_layout.py) has the same formula.
__host__ __device__ constexpr int place_in_block(int row, int column) {
  return row * kBlockColumns + ((column / 8) ^ (row % 8)) * 8 + column % 8;
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

__device__ inline uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// -- barriers -----------------------------------------------------------------------------------------------------------

__device__ inline void init_barrier(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}
__device__ inline void publish_barriers() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ inline void expect_bytes(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
__device__ inline void arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ inline void wait_for(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\nagain:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// A barrier of the `threads` threads that name it.
__device__ inline void sync_named(int name, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(name), "r"(threads) : "memory");
}

// Set the registers per thread of a warpgroup: fewer, or more from those that other warpgroups have given up.
template <int kLeft>
__device__ inline void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kLeft));
}
template <int kHeld>
__device__ inline void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kHeld));
}

// -- bulk copies --------------------------------------------------------------------------------------------------------

__device__ inline void load_bulk(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
               "l"(from), "r"(bytes), "r"(barrier)
               : "memory");
}
__device__ inline void store_bulk(void* to, uint32_t from, uint32_t bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(from), "r"(bytes) : "memory");
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
// Until this thread's bulk stores have read shared memory.
__device__ inline void wait_for_stores_to_read() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }
__device__ inline void wait_for_stores() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }
// Call between ordinary stores to shared memory and the matrix products or bulk copies that read them.
__device__ inline void show_to_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// -- matrix products ----------------------------------------------------------------------------------------------------

constexpr uint64_t kSwizzled = uint64_t(1) << 62;
constexpr uint64_t kEightRows = (8 * 128) >> 4;

// Rows and K as stored: eight rows lie 1 KiB further.
__device__ inline uint64_t k_major(uint32_t address) {
  return ((address & 0x3ffff) >> 4) | (uint64_t(1) << 16) | (kEightRows << 32) | kSwizzled;
}
// Transposed: K runs over the stored rows, blocks of 64 columns lie one block further.
__device__ inline uint64_t mn_major(uint32_t address) {
  return ((address & 0x3ffff) >> 4) | (uint64_t(kBlockBytes >> 4) << 16) | (kEightRows << 32) | kSwizzled;
}

__device__ inline void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kLeft>
__device__ inline void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory");
}

#define LN_R4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define LN_R16(i) LN_R4(i), LN_R4(i + 4), LN_R4(i + 8), LN_R4(i + 12)
#define LN_R32(i) LN_R16(i), LN_R16(i + 16)
#define LN_R64(i) LN_R32(i), LN_R32(i + 32)

#define LN_PRODUCT_8(TYPE)                                       \
  asm volatile(                                                  \
      "{\n.reg .pred add;\nsetp.ne.b32 add, 1, 0;\n"             \
      "wgmma.mma_async.sync.aligned.m64n8k16.f32." TYPE "." TYPE \
      " {"                                                       \
      "%0, %1, %2, %3"                                           \
      "}, %4, %5, add, 1, 1, %6, %6;\n}\n"                       \
      : LN_R4(0)                                                 \
      : "l"(a), "l"(b), "n"(kTransposed))

#define LN_PRODUCT_64(TYPE)                                                                                  \
  asm volatile(                                                                                              \
      "{\n.reg .pred add;\nsetp.ne.b32 add, 1, 0;\n"                                                         \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE "." TYPE                                            \
      " {"                                                                                                   \
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
      "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31"                                                     \
      "}, %32, %33, add, 1, 1, %34, %34;\n}\n"                                                               \
      : LN_R32(0)                                                                                            \
      : "l"(a), "l"(b), "n"(kTransposed))

#define LN_PRODUCT_128(TYPE)                                                                                 \
  asm volatile(                                                                                              \
      "{\n.reg .pred add;\nsetp.ne.b32 add, 1, 0;\n"                                                         \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE "." TYPE                                           \
      " {"                                                                                                   \
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
      "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, " \
      "%42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, " \
      "%62, %63"                                                                                             \
      "}, %64, %65, add, 1, 1, %66, %66;\n}\n"                                                               \
      : LN_R64(0)                                                                                            \
      : "l"(a), "l"(b), "n"(kTransposed))

#define LN_PRODUCT_256(TYPE)                                                                                   \
  asm volatile(                                                                                                \
      "{\n.reg .pred add;\nsetp.ne.b32 add, 1, 0;\n"                                                           \
      "wgmma.mma_async.sync.aligned.m64n256k16.f32." TYPE "." TYPE                                             \
      " {"                                                                                                     \
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "   \
      "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, "   \
      "%42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, "   \
      "%62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, "   \
      "%82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, " \
      "%102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, " \
      "%119, %120, %121, %122, %123, %124, %125, %126, %127"                                                   \
      "}, %128, %129, add, 1, 1, %130, %130;\n}\n"                                                             \
      : LN_R64(0), LN_R64(64)                                                                                  \
      : "l"(a), "l"(b), "n"(kTransposed))

// d [64, N] += A [64, 16] B [N, 16]^T, of one warpgroup. kTransposed: both operands are MN-major.
// Always adding, from zeros or a bias: results that begin undefined cost the compiler registers that it does not have.
template <int N, typename T, int kTransposed>
__device__ inline void multiply(float (&d)[N / 2], uint64_t a, uint64_t b) {
  static_assert(N == 8 || N == 64 || N == 128 || N == 256, "no such product");
  constexpr bool kBrain = std::is_same_v<T, __nv_bfloat16>;
  if constexpr (N == 8) {
    if constexpr (kBrain) LN_PRODUCT_8("bf16");
    else LN_PRODUCT_8("f16");
  } else if constexpr (N == 64) {
    if constexpr (kBrain) LN_PRODUCT_64("bf16");
    else LN_PRODUCT_64("f16");
  } else if constexpr (N == 128) {
    if constexpr (kBrain) LN_PRODUCT_128("bf16");
    else LN_PRODUCT_128("f16");
  } else if constexpr (N == 256) {
    if constexpr (kBrain) LN_PRODUCT_256("bf16");
    else LN_PRODUCT_256("f16");
  }
}

#undef LN_R4
#undef LN_R16
#undef LN_R32
#undef LN_R64
#undef LN_PRODUCT_8
#undef LN_PRODUCT_64
#undef LN_PRODUCT_128
#undef LN_PRODUCT_256

// Four 8 x 8 matrices of 16-bit numbers from registers, in the layout of a product's result, to rows in shared memory.
__device__ inline void store_matrices(uint32_t row, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(a), "r"(b), "r"(c), "r"(d)
               : "memory");
}

#endif  // sm_90a

}  // namespace lightning_nerf::hopper
