// gemm %y stores %m through reshape, permute, reshape
// gemm %z loads operand 2 (%s) through reshape, permute, reshape
// %y, %s = linear(%x, %w-2) {stats=64, sums=true} : f16[B,4,6,64], f32[B,4,6,2]
// GemmTile<Mma<half>, 16, 64, 64, 1, 1, 4, true>
#include "vitc/gpu/gemm.cuh"
#include "vitc/gpu/symbol.h"
#include "vitc/kernel.h"

namespace vitc::gpu {
namespace {

struct Epilogue {
  half* out;
  float* stats;

  static constexpr bool kRowScale = false;
  using Statistics = SquaresAndSum;
  // Calls visit with where each operand that goes with the row begins at columns n.
  static constexpr bool kOperands = false;
  template <class Visit>
  VITC_DEVICE void operands([[maybe_unused]] int m, [[maybe_unused]] int n, [[maybe_unused]] const Visit& visit) const {
  }
  VITC_DEVICE float row_scale([[maybe_unused]] int m) const { return 1.f; }
  // All steps but the last, which stores: kernels that have several rows at hand load for all first.
  template <int V>
  VITC_DEVICE void steps([[maybe_unused]] int m, [[maybe_unused]] int n, [[maybe_unused]] float (&v)[V],
                         [[maybe_unused]] float row_scale) const {
  }
  template <int V>
  VITC_DEVICE void store([[maybe_unused]] int m, int n, float (&v)[V], bool inside = true) const {
    write(out + m % 2 * 128 + m % 6 / 2 * 256 + m / 24 * 1536 + m / 6 % 2 * 64 + m / 6 % 4 / 2 * 768 + n, v, inside);
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
  const gpu::Epilogue epilogue{arg<half>(call, 2), arg<float>(call, 3)};
  const auto* weight = arg<const gpu::Tile0::Storage>(call, 1);
  return gpu::gemm<gpu::Tile0, 64, 64>("gemm 64x64", stream, int(call.batch) * 24, rows, weight, epilogue);

}
extern "C" uint64_t VITC_SYMBOL(VITC_KERNEL_scratch)(int) { return 0; }

// %z = linear(%m, %v-2, %ms) {steps=[layer_rstd($2, 256.0, 1e-05)]} : f16[B,2,3,32]
// GemmTile<Mma<half>, 16, 64, 64, 1, 1, 4, true>
#include "vitc/gpu/gemm.cuh"
#include "vitc/gpu/symbol.h"
#include "vitc/kernel.h"

namespace vitc::gpu {
namespace {

struct Epilogue {
  const float* in2;
  half* out;

  static constexpr bool kRowScale = true;
  using Statistics = NoStatistics;
  // Calls visit with where each operand that goes with the row begins at columns n.
  static constexpr bool kOperands = false;
  template <class Visit>
  VITC_DEVICE void operands([[maybe_unused]] int m, [[maybe_unused]] int n, [[maybe_unused]] const Visit& visit) const {
  }
  VITC_DEVICE float row_scale([[maybe_unused]] int m) const { return rstd<SquaresAndSum, 8, 2, 2>(in2, [&]([[maybe_unused]] int k) { return k / 2 % 2 * 12 + k / 4 * 2 + m % 3 * 4 + m / 3 * 24; }, 1.f / 256, 1e-05f); }
  // All steps but the last, which stores: kernels that have several rows at hand load for all first.
  template <int V>
  VITC_DEVICE void steps([[maybe_unused]] int m, [[maybe_unused]] int n, [[maybe_unused]] float (&v)[V],
                         [[maybe_unused]] float row_scale) const {
    scale(v, row_scale);
  }
  template <int V>
  VITC_DEVICE void store([[maybe_unused]] int m, int n, float (&v)[V], bool inside = true) const {
    write(out + m * 32 + n, v, inside);
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
    int offset = m * 256;
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
  const gpu::Epilogue epilogue{arg<const float>(call, 2), arg<half>(call, 3)};
  const auto* weight = arg<const gpu::Tile0::Storage>(call, 1);
  return gpu::gemm<gpu::Tile0, 32, 256>("gemm 32x256", stream, int(call.batch) * 6, rows, weight, epilogue);

}
extern "C" uint64_t VITC_SYMBOL(VITC_KERNEL_scratch)(int) { return 0; }
