// Warpgroup matrix multiply (wgmma): 128 threads compute D[64, N] (+)= A[64, 16] * B[N, 16]^T from
// two tiles in shared memory, into N / 2 floats of each thread.
//
// Thread t (warp w = t / 32 of the warpgroup, lane l) holds, at d[4 j + 2 h + e], the element of
// row 16 w + l / 4 + 8 h and column 8 j + 2 (l % 4) + e  (PTX ISA, "Register Fragments" of
// wgmma.m64nNk16).
//
// RegisterProduct takes A from registers, four per thread: what it holds at d[8 i] to d[8 i + 7] of
// an earlier product, rounded and packed in pairs, is its part of columns [16 i, 16 i + 16) of A.
// Its B lies transposed, as 16 rows of N elements.
//
// multiply_first() only writes D. It must be an instruction of its own: with a run-time choice
// between writing and adding, the accumulators count as live from tile to tile, which costs their
// registers twice.
#pragma once

#include "vitc/gpu/device.h"
#include "vitc/gpu/ptx.h"
#if defined(VITC_EMULATE)
#include "vitc/emu/sm90.h"
#endif

namespace vitc::gpu::sm90 {

#if !defined(VITC_EMULATE)  // else vitc/emu/sm90.h has them

// Register writes of this thread come before the products that follow.
VITC_DEVICE void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
VITC_DEVICE void products_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// All but the latest kPending commits are done: their tiles are free, their sums are there.
template <int kPending>
VITC_DEVICE void products_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// After the last wait: what is computed with a sum cannot be moved before it.
template <int kCount>
VITC_DEVICE void products_use(float (&d)[kCount]) {
  VITC_UNROLL
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// The value, of which the compiler then knows nothing.
VITC_DEVICE int opaque(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

#endif

// Describes a tile of 128-byte rows, 128-byte swizzled, at a multiple of 1024 bytes: start address,
// 1024 bytes from a group of eight rows to the next, swizzle mode 1 ("Matrix Descriptor" in the PTX
// ISA).
VITC_DEVICE uint64_t tile_descriptor(const void* tile) {
  const uint64_t address = shared_address(tile);
  return (address & 0x3ffff) >> 4 | uint64_t(1) << 16 | uint64_t(1024 >> 4) << 32 |
         uint64_t(1) << 62;
}
// The same for the transposed B of RegisterProduct: columns beyond 64 are `panel_bytes` further on.
VITC_DEVICE uint64_t transposed_descriptor(const void* tile, int panel_bytes) {
  const uint64_t address = shared_address(tile);
  return (address & 0x3ffff) >> 4 | uint64_t(panel_bytes >> 4) << 16 | uint64_t(1024 >> 4) << 32 |
         uint64_t(1) << 62;
}
// From a descriptor to that of the next 16 columns, or to the tile a row below.
constexpr uint64_t kNextColumns = 32 >> 4;
constexpr uint64_t kNextRow = 128 >> 4;

#if !defined(VITC_EMULATE)

template <class T, int kN>
struct Product;
template <class T, int kN>
struct RegisterProduct;

// clang-format off
// Registers and outputs of 16 columns each: %0 to %7 are d[0] to d[7].
#define VITC_OUT8(c, i) \
  c(d[i]), c(d[i + 1]), c(d[i + 2]), c(d[i + 3]), c(d[i + 4]), c(d[i + 5]), c(d[i + 6]), c(d[i + 7])
#define VITC_REGS16 "%0, %1, %2, %3, %4, %5, %6, %7"
#define VITC_REGS32 VITC_REGS16 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define VITC_REGS48 VITC_REGS32 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define VITC_REGS64 VITC_REGS48 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define VITC_REGS80 VITC_REGS64 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define VITC_REGS96 VITC_REGS80 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define VITC_REGS112 VITC_REGS96 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define VITC_REGS128 VITC_REGS112 ", %56, %57, %58, %59, %60, %61, %62, %63"
#define VITC_REGS144 VITC_REGS128 ", %64, %65, %66, %67, %68, %69, %70, %71"
#define VITC_REGS160 VITC_REGS144 ", %72, %73, %74, %75, %76, %77, %78, %79"
#define VITC_REGS176 VITC_REGS160 ", %80, %81, %82, %83, %84, %85, %86, %87"
#define VITC_REGS192 VITC_REGS176 ", %88, %89, %90, %91, %92, %93, %94, %95"
#define VITC_REGS208 VITC_REGS192 ", %96, %97, %98, %99, %100, %101, %102, %103"
#define VITC_REGS224 VITC_REGS208 ", %104, %105, %106, %107, %108, %109, %110, %111"
#define VITC_REGS240 VITC_REGS224 ", %112, %113, %114, %115, %116, %117, %118, %119"
#define VITC_REGS256 VITC_REGS240 ", %120, %121, %122, %123, %124, %125, %126, %127"
#define VITC_OUTS16(c) VITC_OUT8(c, 0)
#define VITC_OUTS32(c) VITC_OUTS16(c), VITC_OUT8(c, 8)
#define VITC_OUTS48(c) VITC_OUTS32(c), VITC_OUT8(c, 16)
#define VITC_OUTS64(c) VITC_OUTS48(c), VITC_OUT8(c, 24)
#define VITC_OUTS80(c) VITC_OUTS64(c), VITC_OUT8(c, 32)
#define VITC_OUTS96(c) VITC_OUTS80(c), VITC_OUT8(c, 40)
#define VITC_OUTS112(c) VITC_OUTS96(c), VITC_OUT8(c, 48)
#define VITC_OUTS128(c) VITC_OUTS112(c), VITC_OUT8(c, 56)
#define VITC_OUTS144(c) VITC_OUTS128(c), VITC_OUT8(c, 64)
#define VITC_OUTS160(c) VITC_OUTS144(c), VITC_OUT8(c, 72)
#define VITC_OUTS176(c) VITC_OUTS160(c), VITC_OUT8(c, 80)
#define VITC_OUTS192(c) VITC_OUTS176(c), VITC_OUT8(c, 88)
#define VITC_OUTS208(c) VITC_OUTS192(c), VITC_OUT8(c, 96)
#define VITC_OUTS224(c) VITC_OUTS208(c), VITC_OUT8(c, 104)
#define VITC_OUTS240(c) VITC_OUTS224(c), VITC_OUT8(c, 112)
#define VITC_OUTS256(c) VITC_OUTS240(c), VITC_OUT8(c, 120)

// One width for one element type; a and b, the numbers of their operands, follow the sums.
#define VITC_PRODUCT(T, type, n, a, b)                                                             \
  template <>                                                                                      \
  struct Product<T, n> {                                                                           \
    static VITC_DEVICE void multiply_first(float (&d)[n / 2], uint64_t da, uint64_t db) {          \
      asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, 0, 0;\n"                                  \
                   "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type                 \
                   " {" VITC_REGS##n "}, %" #a ", %" #b ", add, 1, 1, 0, 0;\n}"                    \
                   : VITC_OUTS##n("=f") : "l"(da), "l"(db));                                       \
    }                                                                                              \
    static VITC_DEVICE void multiply_add(float (&d)[n / 2], uint64_t da, uint64_t db) {            \
      asm volatile("{\n.reg .pred add;\nsetp.eq.b32 add, 0, 0;\n"                                  \
                   "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type                 \
                   " {" VITC_REGS##n "}, %" #a ", %" #b ", add, 1, 1, 0, 0;\n}"                    \
                   : VITC_OUTS##n("+f") : "l"(da), "l"(db));                                       \
    }                                                                                              \
  };
// a0 to a3 and b likewise.
#define VITC_REGISTER_PRODUCT(T, type, n, a0, a1, a2, a3, b)                                       \
  template <>                                                                                      \
  struct RegisterProduct<T, n> {                                                                   \
    static VITC_DEVICE void multiply_add(float (&d)[n / 2], const uint32_t (&a)[4], uint64_t db) { \
      asm volatile("{\n.reg .pred add;\nsetp.eq.b32 add, 0, 0;\n"                                  \
                   "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type                 \
                   " {" VITC_REGS##n "}, {%" #a0 ", %" #a1 ", %" #a2 ", %" #a3 "}, %" #b           \
                   ", add, 1, 1, 1;\n}"                                                            \
                   : VITC_OUTS##n("+f") : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(db));    \
    }                                                                                              \
  };
#define VITC_PRODUCTS(n, a, b)             \
  VITC_PRODUCT(half, "f16", n, a, b)       \
  VITC_PRODUCT(bfloat16, "bf16", n, a, b)
#define VITC_REGISTER_PRODUCTS(n, a0, a1, a2, a3, b)             \
  VITC_REGISTER_PRODUCT(half, "f16", n, a0, a1, a2, a3, b)       \
  VITC_REGISTER_PRODUCT(bfloat16, "bf16", n, a0, a1, a2, a3, b)

VITC_PRODUCTS(16, 8, 9)
VITC_PRODUCTS(32, 16, 17)
VITC_PRODUCTS(48, 24, 25)
VITC_PRODUCTS(64, 32, 33)
VITC_PRODUCTS(80, 40, 41)
VITC_PRODUCTS(96, 48, 49)
VITC_PRODUCTS(112, 56, 57)
VITC_PRODUCTS(128, 64, 65)
VITC_PRODUCTS(144, 72, 73)
VITC_PRODUCTS(160, 80, 81)
VITC_PRODUCTS(176, 88, 89)
VITC_PRODUCTS(192, 96, 97)
VITC_PRODUCTS(208, 104, 105)
VITC_PRODUCTS(224, 112, 113)
VITC_PRODUCTS(240, 120, 121)
VITC_PRODUCTS(256, 128, 129)
VITC_REGISTER_PRODUCTS(16, 8, 9, 10, 11, 12)
VITC_REGISTER_PRODUCTS(32, 16, 17, 18, 19, 20)
VITC_REGISTER_PRODUCTS(48, 24, 25, 26, 27, 28)
VITC_REGISTER_PRODUCTS(64, 32, 33, 34, 35, 36)
VITC_REGISTER_PRODUCTS(80, 40, 41, 42, 43, 44)
VITC_REGISTER_PRODUCTS(96, 48, 49, 50, 51, 52)
VITC_REGISTER_PRODUCTS(112, 56, 57, 58, 59, 60)
VITC_REGISTER_PRODUCTS(128, 64, 65, 66, 67, 68)
// clang-format on

#undef VITC_OUT8
#undef VITC_REGS16
#undef VITC_OUTS16
#undef VITC_REGS32
#undef VITC_OUTS32
#undef VITC_REGS48
#undef VITC_OUTS48
#undef VITC_REGS64
#undef VITC_OUTS64
#undef VITC_REGS80
#undef VITC_OUTS80
#undef VITC_REGS96
#undef VITC_OUTS96
#undef VITC_REGS112
#undef VITC_OUTS112
#undef VITC_REGS128
#undef VITC_OUTS128
#undef VITC_REGS144
#undef VITC_OUTS144
#undef VITC_REGS160
#undef VITC_OUTS160
#undef VITC_REGS176
#undef VITC_OUTS176
#undef VITC_REGS192
#undef VITC_OUTS192
#undef VITC_REGS208
#undef VITC_OUTS208
#undef VITC_REGS224
#undef VITC_OUTS224
#undef VITC_REGS240
#undef VITC_OUTS240
#undef VITC_REGS256
#undef VITC_OUTS256
#undef VITC_PRODUCT
#undef VITC_REGISTER_PRODUCT
#undef VITC_PRODUCTS
#undef VITC_REGISTER_PRODUCTS

#endif

}  // namespace vitc::gpu::sm90
