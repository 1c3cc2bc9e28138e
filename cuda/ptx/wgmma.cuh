#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/ptx/address.cuh"

// Hopper's tensor cores (wgmma, sm_90a): products of 64 rows by a warpgroup, asynchronous, of operands in registers and
// in shared memory.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define CHATGLM_WGMMA 1  // compiled for sm_90a
#endif

namespace chatglm::cuda {

constexpr int kMatrixAlignment = 1024;  // bytes: of matrices in shared memory, for their swizzle

#if defined(CHATGLM_WGMMA)

/// The first aligned address from `shared` on.
__device__ __forceinline__ uint8_t* align_matrix(uint8_t* shared) {
  return shared + (kMatrixAlignment - shared_address(shared) % kMatrixAlignment) % kMatrixAlignment;
}

/// Before the first wgmma, and whenever registers that the next one uses were written otherwise.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/// Waits until at most `pending` of the groups that this warp committed are under way.
template <int pending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}
/// The compiler must not move accesses to what a wgmma under way writes across its fence and its wait: called before
/// the fence and after the wait.
template <int kOctets>
__device__ __forceinline__ void pin(float (&d)[kOctets][4]) {
#pragma unroll
  for (int n = 0; n < kOctets; ++n) {
    asm volatile("" : "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])::"memory");
  }
}

/// Describes a matrix in shared memory: rows of 128 bytes of the dimension that is summed over, in groups of eight rows
/// (1,024 bytes), the pieces of 16 bytes swapped about by row % 8. PTX ISA, "Matrix descriptor": 128-byte swizzle,
/// stride 1,024 bytes. `matrix` is a multiple of kMatrixAlignment.
__device__ __forceinline__ uint64_t matrix_descriptor(const void* matrix) {
  return static_cast<uint64_t>(shared_address(matrix) >> 4) | uint64_t{1} << 16 | uint64_t{1024 >> 4} << 32 |
         uint64_t{1} << 62;
}
/// The matrix so many bytes further: a multiple of kMatrixAlignment, plus 32 for each 16 columns.
__device__ __forceinline__ uint64_t advance(uint64_t descriptor, int bytes) {
  return descriptor + static_cast<uint64_t>(bytes / 16);
}

/// d (64 x 8 kOctets) = a (64 x 16, registers) * b (16 x 8 kOctets, shared memory) + (add ? d : 0), asynchronously. A
/// warp has 16 of the rows; its fragments are those of mma.m16n8k16.
template <int kOctets>
__device__ __forceinline__ void wgmma(float (&d)[kOctets][4], const uint32_t (&a)[4], uint64_t b, int add);

#define CHATGLM_REGISTERS_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define CHATGLM_REGISTERS_16 CHATGLM_REGISTERS_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define CHATGLM_REGISTERS_32 \
  CHATGLM_REGISTERS_16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define CHATGLM_REGISTERS_64                                                               \
  CHATGLM_REGISTERS_32                                                                     \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48," \
  " %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define CHATGLM_OCTET(n) "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])
#define CHATGLM_OCTETS_2 CHATGLM_OCTET(0), CHATGLM_OCTET(1)
#define CHATGLM_OCTETS_4 CHATGLM_OCTETS_2, CHATGLM_OCTET(2), CHATGLM_OCTET(3)
#define CHATGLM_OCTETS_8 CHATGLM_OCTETS_4, CHATGLM_OCTET(4), CHATGLM_OCTET(5), CHATGLM_OCTET(6), CHATGLM_OCTET(7)
#define CHATGLM_OCTETS_16                                                                                        \
  CHATGLM_OCTETS_8, CHATGLM_OCTET(8), CHATGLM_OCTET(9), CHATGLM_OCTET(10), CHATGLM_OCTET(11), CHATGLM_OCTET(12), \
      CHATGLM_OCTET(13), CHATGLM_OCTET(14), CHATGLM_OCTET(15)

// The operands behind the accumulators, of which there are 8, 16, 32 or 64, have other numbers for each width.
#define CHATGLM_WGMMA_REGISTERS(octets, columns, registers, results, a, b, add_operand)                               \
  template <>                                                                                                         \
  __device__ __forceinline__ void wgmma<octets>(float(&d)[octets][4], const uint32_t(&a_)[4], uint64_t b_, int add) { \
    asm volatile(                                                                                                     \
        "{\n"                                                                                                         \
        ".reg .pred add;\n"                                                                                           \
        "setp.ne.b32 add, " add_operand                                                                               \
        ", 0;\n"                                                                                                      \
        "wgmma.mma_async.sync.aligned.m64n" columns "k16.f32.f16.f16 {" registers "}, {" a "}, " b                    \
        ", add, 1, 1, 0;\n"                                                                                           \
        "}\n"                                                                                                         \
        : results                                                                                                     \
        : "r"(a_[0]), "r"(a_[1]), "r"(a_[2]), "r"(a_[3]), "l"(b_), "r"(add));                                         \
  }
CHATGLM_WGMMA_REGISTERS(2, "16", CHATGLM_REGISTERS_8, CHATGLM_OCTETS_2, "%8, %9, %10, %11", "%12", "%13")
CHATGLM_WGMMA_REGISTERS(4, "32", CHATGLM_REGISTERS_16, CHATGLM_OCTETS_4, "%16, %17, %18, %19", "%20", "%21")
CHATGLM_WGMMA_REGISTERS(8, "64", CHATGLM_REGISTERS_32, CHATGLM_OCTETS_8, "%32, %33, %34, %35", "%36", "%37")
CHATGLM_WGMMA_REGISTERS(16, "128", CHATGLM_REGISTERS_64, CHATGLM_OCTETS_16, "%64, %65, %66, %67", "%68", "%69")
#undef CHATGLM_WGMMA_REGISTERS

/// d (64 x 128) = a (64 x 16) * b (16 x 128) + (add ? d : 0), both from shared memory.
__device__ __forceinline__ void wgmma(float (&d)[16][4], uint64_t a, uint64_t b, int add) {
  asm volatile(
      "{\n"
      ".reg .pred add;\n"
      "setp.ne.b32 add, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" CHATGLM_REGISTERS_64
      "}, %64, %65, add, 1, 1, 0, 0;\n"
      "}\n"
      : CHATGLM_OCTETS_16
      : "l"(a), "l"(b), "r"(add));
}

#undef CHATGLM_OCTETS_16
#undef CHATGLM_OCTETS_8
#undef CHATGLM_OCTETS_4
#undef CHATGLM_OCTETS_2
#undef CHATGLM_OCTET
#undef CHATGLM_REGISTERS_64
#undef CHATGLM_REGISTERS_32
#undef CHATGLM_REGISTERS_16
#undef CHATGLM_REGISTERS_8

#endif

}  // namespace chatglm::cuda
