// gemm %y loads operand 0 (%x) through reshape, permute, reshape, pad
// %y, %s = linear(%m, %w-2, %table) {steps=[add($2)], stats=64} : f16[B,7,64], f32[B,7,1]
// GemmTile<Mma<half>, 16, 64, 64, 1, 1, 4, true>
#include "vitc/gpu/gemm.cuh"
#include "vitc/gpu/symbol.h"
#include "vitc/kernel.h"

namespace vitc::gpu {
namespace {

struct Epilogue {
  const float* in2;
  half* out;
  float* stats;

  static constexpr bool kRowScale = false;
  using Statistics = Squares;
  // Calls visit with where each operand that goes with the row begins at columns n.
  static constexpr bool kOperands = true;
  template <class Visit>
  VITC_DEVICE void operands([[maybe_unused]] int m, [[maybe_unused]] int n, [[maybe_unused]] const Visit& visit) const {
    visit(in2 + m % 7 * 64 + n);
  }
  VITC_DEVICE float row_scale([[maybe_unused]] int m) const { return 1.f; }
  // All steps but the last, which stores: kernels that have several rows at hand load for all first.
  template <int V>
  VITC_DEVICE void steps([[maybe_unused]] int m, [[maybe_unused]] int n, [[maybe_unused]] float (&v)[V],
                         [[maybe_unused]] float row_scale) const {
    add(v, in2 + m % 7 * 64 + n);
  }
  template <int V>
  VITC_DEVICE void store([[maybe_unused]] int m, int n, float (&v)[V], bool inside = true) const {
    write(out + m * 64 + n, v, inside);
  }
  template <int V>
  VITC_DEVICE void operator()(int m, int n, float (&v)[V], float row_scale) const {
    steps(m, n, v, row_scale);
    store(m, n, v);
  }
  VITC_DEVICE float* statistics_at(int m, int slice) const {
    return stats + (m * 1 + slice) * Statistics::kNumbers;
  }
  VITC_DEVICE void statistics(int m, int slice, const Statistics& s) const {
    s.write(statistics_at(m, slice));
  }
};

struct Source {
  using T = half;
  static constexpr bool kVector = true;
  const T* data;

  struct Row {
    int offset;  // -1: zeros
  };
  VITC_DEVICE Row row([[maybe_unused]] int m) const {
    int offset = (m % 7 + 2) % 3 * 16 + (m % 7 + 2) / 3 * 768 + m / 7 * 4608 - 768;
    if (!(m % 7 - 1 >= 0)) offset = -1;
    return {offset};
  }
  VITC_DEVICE int at(Row row, int k) const {
    if (row.offset < 0) return -1;
    return row.offset + k / 16 % 16 * 48 + k / 256 * 1536 + k % 16;
  }
  VITC_DEVICE const T* base() const { return data; }
};

using Tile0 = GemmTile<Mma<half>, 16, 64, 64, 1, 1, 4, true>;

}  // namespace
}  // namespace vitc::gpu

extern "C" int VITC_SYMBOL(VITC_KERNEL)(const vitc::Call& call) {
  using namespace vitc;
  using gpu::bfloat16, gpu::half;
  [[maybe_unused]] const gpu::Stream stream = reinterpret_cast<gpu::Stream>(call.exec);
  const gpu::Source rows{arg<const half>(call, 0)};
  const gpu::Epilogue epilogue{arg<const float>(call, 2), arg<half>(call, 3), arg<float>(call, 4)};
  const auto* weight = arg<const gpu::Tile0::Storage>(call, 1);
  return gpu::gemm<gpu::Tile0, 64, 768>("gemm 64x768", stream, int(call.batch) * 7, rows, weight, epilogue);

}
extern "C" uint64_t VITC_SYMBOL(VITC_KERNEL_scratch)(int) { return 0; }

// %z = linear(%y, %v-2, %s, %b, %y) {steps=[row_rstd($2, 64.0, 1e-06), add($3), gelu, add($4)]} : f16[B,7,64]
// GemmTile<Mma<half>, 16, 64, 64, 1, 1, 4, true>
#include "vitc/gpu/gemm.cuh"
#include "vitc/gpu/symbol.h"
#include "vitc/kernel.h"

namespace vitc::gpu {
namespace {

struct Epilogue {
  const float* in2;
  const float* in3;
  const half* in4;
  half* out;

  static constexpr bool kRowScale = true;
  using Statistics = NoStatistics;
  // Calls visit with where each operand that goes with the row begins at columns n.
  static constexpr bool kOperands = true;
  template <class Visit>
  VITC_DEVICE void operands([[maybe_unused]] int m, [[maybe_unused]] int n, [[maybe_unused]] const Visit& visit) const {
    visit(in4 + m * 64 + n);
  }
  VITC_DEVICE float row_scale([[maybe_unused]] int m) const { return rstd<Squares, 1, 1, 1>(in2, [&]([[maybe_unused]] int k) { return k + m; }, 1.f / 64, 1e-06f); }
  // All steps but the last, which stores: kernels that have several rows at hand load for all first.
  template <int V>
  VITC_DEVICE void steps([[maybe_unused]] int m, [[maybe_unused]] int n, [[maybe_unused]] float (&v)[V],
                         [[maybe_unused]] float row_scale) const {
    scale(v, row_scale);
    add(v, constant(in3 + n));
    apply<GeluErfHalf>(v);
    add(v, in4 + m * 64 + n);
  }
  template <int V>
  VITC_DEVICE void store([[maybe_unused]] int m, int n, float (&v)[V], bool inside = true) const {
    write(out + m * 64 + n, v, inside);
  }
  template <int V>
  VITC_DEVICE void operator()(int m, int n, float (&v)[V], float row_scale) const {
    steps(m, n, v, row_scale);
    store(m, n, v);
  }
};

struct Source {
  using T = half;
  static constexpr bool kVector = true;
  const T* data;

  struct Row {
    int offset;  // -1: zeros
  };
  VITC_DEVICE Row row([[maybe_unused]] int m) const {
    int offset = m * 64;
    return {offset};
  }
  VITC_DEVICE int at(Row row, int k) const {
    return row.offset + k;
  }
  VITC_DEVICE const T* base() const { return data; }
};

using Tile0 = GemmTile<Mma<half>, 16, 64, 64, 1, 1, 4, true>;

}  // namespace
}  // namespace vitc::gpu

extern "C" int VITC_SYMBOL(VITC_KERNEL)(const vitc::Call& call) {
  using namespace vitc;
  using gpu::bfloat16, gpu::half;
  [[maybe_unused]] const gpu::Stream stream = reinterpret_cast<gpu::Stream>(call.exec);
  const gpu::Source rows{arg<const half>(call, 0)};
  const gpu::Epilogue epilogue{arg<const float>(call, 2), arg<const float>(call, 3), arg<const half>(call, 4), arg<half>(call, 5)};
  const auto* weight = arg<const gpu::Tile0::Storage>(call, 1);
  return gpu::gemm<gpu::Tile0, 64, 64>("gemm 64x64", stream, int(call.batch) * 7, rows, weight, epilogue);

}
extern "C" uint64_t VITC_SYMBOL(VITC_KERNEL_scratch)(int) { return 0; }
