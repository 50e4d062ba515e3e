#include "vitc/gpu/sm90/gather_gemm.cuh"
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
    visit(in2 + m % 16 * 96 + n);
  }
  VITC_DEVICE float row_scale([[maybe_unused]] int m) const { return 1.f; }
  // All steps but the last, which stores: kernels that have several rows at hand load for all first.
  template <int V>
  VITC_DEVICE void steps([[maybe_unused]] int m, [[maybe_unused]] int n, [[maybe_unused]] float (&v)[V],
                         [[maybe_unused]] float row_scale) const {
    add(v, in2 + m % 16 * 96 + n);
  }
  template <int V>
  VITC_DEVICE void store([[maybe_unused]] int m, int n, float (&v)[V], bool inside = true) const {
    write(out + m * 96 + n, v, inside);
  }
  template <int V>
  VITC_DEVICE void operator()(int m, int n, float (&v)[V], float row_scale) const {
    steps(m, n, v, row_scale);
    store(m, n, v);
  }
  VITC_DEVICE float* statistics_at(int m, int slice) const {
    return stats + (m * 3 + slice) * Statistics::kNumbers;
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
    int offset = (m % 16 + 4) % 5 * 16 + (m % 16 + 4) / 5 * 1280 + m / 16 * 11520 - 1280;
    if (!(m % 16 - 1 >= 0)) offset = -1;
    return {offset};
  }
  VITC_DEVICE int at(Row row, int k) const {
    if (row.offset < 0) return -1;
    return row.offset + k / 16 % 16 * 80 + k / 256 * 3840 + k % 16;
  }
  VITC_DEVICE const T* base() const { return data; }
};

using Tile0 = sm90::GatherTile<half, 64, 96, 10, true, 32>;
using Tile1 = GemmTile<Mma<half>, 32, 64, 64, 1, 2, 4, true>;

}  // namespace
}  // namespace vitc::gpu

extern "C" int VITC_SYMBOL(VITC_KERNEL)(const vitc::Call& call) {
  using namespace vitc;
  using gpu::bfloat16, gpu::half;
  [[maybe_unused]] const gpu::Stream stream = reinterpret_cast<gpu::Stream>(call.exec);
  const gpu::Source rows{arg<const half>(call, 0)};
  const gpu::Epilogue epilogue{arg<const float>(call, 2), arg<half>(call, 3), arg<float>(call, 4)};
  const auto* weight = arg<const gpu::Tile0::Storage>(call, 1);
  if (call.batch <= 8)
    return gpu::sm90::gather_gemm<gpu::Tile0, 96, 768>("gemm 96x768", stream, int(call.batch) * 16, rows, weight, epilogue);
  return gpu::gemm<gpu::Tile1, 96, 768>("gemm 96x768", stream, int(call.batch) * 16, rows, weight, epilogue);

}
extern "C" uint64_t VITC_SYMBOL(VITC_KERNEL_scratch)(int) { return 0; }
