// Warpgroup matrix multiply (wgmma): 128 threads compute D[64, N] (+)= A[64, 16] * B[N, 16]^T from
// two tiles in shared memory, into N / 2 floats of each thread.
//
// Thread t (warp w = t / 32 of the warpgroup, lane l) holds, at d[4 j + 2 h + e], the element of
// row 16 w + l / 4 + 8 h and column 8 j + 2 (l % 4) + e  (PTX ISA, "Register Fragments" of
// wgmma.m64nNk16).
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
// From a descriptor to that of the next 16 columns, or to the tile a row below.
constexpr uint64_t kNextColumns = 32 >> 4;
constexpr uint64_t kNextRow = 128 >> 4;

#if !defined(VITC_EMULATE)

template <class T, int kN>
struct Product;

// clang-format off
#define VITC_OUT4(c, i) c(d[i]), c(d[i + 1]), c(d[i + 2]), c(d[i + 3])
#define VITC_OUT16(c, i) VITC_OUT4(c, i), VITC_OUT4(c, i + 4), VITC_OUT4(c, i + 8), VITC_OUT4(c, i + 12)
#define VITC_OUT32(c, i) VITC_OUT16(c, i), VITC_OUT16(c, i + 16)
#define VITC_OUT64(c, i) VITC_OUT32(c, i), VITC_OUT32(c, i + 32)
#define VITC_REGS0 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define VITC_REGS16 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define VITC_REGS32 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define VITC_REGS48 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define VITC_REGS64 "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define VITC_REGS80 "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define VITC_REGS96 "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"
#define VITC_REGS112 "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

// One width for one element type; a, b and the number of the predicate's operand follow the sums.
#define VITC_PRODUCT(T, type, n, registers, outputs, a, b)                                              \
  template <>                                                                                           \
  struct Product<T, n> {                                                                                \
    static VITC_DEVICE void multiply_first(float (&d)[n / 2], uint64_t da, uint64_t db) {               \
      asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, 0, 0;\n"                                       \
                   "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type                      \
                   " {" registers "}, " a ", " b ", add, 1, 1, 0, 0;\n}"                                \
                   : outputs("=f", 0) : "l"(da), "l"(db));                                              \
    }                                                                                                   \
    static VITC_DEVICE void multiply_add(float (&d)[n / 2], uint64_t da, uint64_t db) {                 \
      asm volatile("{\n.reg .pred add;\nsetp.eq.b32 add, 0, 0;\n"                                       \
                   "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type                      \
                   " {" registers "}, " a ", " b ", add, 1, 1, 0, 0;\n}"                                \
                   : outputs("+f", 0) : "l"(da), "l"(db));                                              \
    }                                                                                                   \
  };
#define VITC_PRODUCTS(n, registers, outputs, a, b)             \
  VITC_PRODUCT(half, "f16", n, registers, outputs, a, b)       \
  VITC_PRODUCT(bfloat16, "bf16", n, registers, outputs, a, b)
#define VITC_OUT48(c, i) VITC_OUT32(c, i), VITC_OUT16(c, i + 32)
#define VITC_OUT96(c, i) VITC_OUT64(c, i), VITC_OUT32(c, i + 64)
#define VITC_OUT128(c, i) VITC_OUT64(c, i), VITC_OUT64(c, i + 64)

VITC_PRODUCTS(32, VITC_REGS0, VITC_OUT16, "%16", "%17")
VITC_PRODUCTS(64, VITC_REGS0 ", " VITC_REGS16, VITC_OUT32, "%32", "%33")
VITC_PRODUCTS(96, VITC_REGS0 ", " VITC_REGS16 ", " VITC_REGS32, VITC_OUT48, "%48", "%49")
VITC_PRODUCTS(128, VITC_REGS0 ", " VITC_REGS16 ", " VITC_REGS32 ", " VITC_REGS48, VITC_OUT64, "%64", "%65")
VITC_PRODUCTS(192, VITC_REGS0 ", " VITC_REGS16 ", " VITC_REGS32 ", " VITC_REGS48 ", " VITC_REGS64 ", " VITC_REGS80, VITC_OUT96, "%96", "%97")
VITC_PRODUCTS(256, VITC_REGS0 ", " VITC_REGS16 ", " VITC_REGS32 ", " VITC_REGS48 ", " VITC_REGS64 ", " VITC_REGS80 ", " VITC_REGS96 ", " VITC_REGS112, VITC_OUT128, "%128", "%129")
// clang-format on

#undef VITC_OUT4
#undef VITC_OUT16
#undef VITC_OUT32
#undef VITC_OUT64
#undef VITC_OUT48
#undef VITC_OUT96
#undef VITC_OUT128
#undef VITC_REGS0
#undef VITC_REGS16
#undef VITC_REGS32
#undef VITC_REGS48
#undef VITC_REGS64
#undef VITC_REGS80
#undef VITC_REGS96
#undef VITC_REGS112
#undef VITC_PRODUCT
#undef VITC_PRODUCTS

#endif

}  // namespace vitc::gpu::sm90
