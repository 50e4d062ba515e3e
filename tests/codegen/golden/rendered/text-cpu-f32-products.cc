// gemm %y loads operand 0 (%x) through reshape, permute, reshape, pad
// %y, %s = linear(%m, %w, %table) {steps=[add($2)], stats=64} : f32[B,7,64], f32[B,7,1]
// panel 32, GatherRows<float, 768, 16, Map>
#include "vitc/cpu/gemm.h"

namespace vitc {
inline namespace VITC_ISA {
namespace {

struct Epilogue {
  const float* in2;
  float* out;
  float* stats;

  static constexpr int64_t kSlice = 64;
  struct Row {
    const float* p0;
    float* out;
    Vec squares;
  };
  VITC_INLINE Row begin([[maybe_unused]] int64_t m) const {
    return {in2 + (m % 7 * 64), out + (m * 64), Vec{}};
  }
  template <class Lanes>
  VITC_INLINE void apply(Vec x, Row& row, int64_t n, Lanes lanes) const {
    x = x + load(row.p0 + n, lanes);
    x = store(row.out + n, x, lanes);
    row.squares = row.squares + x * x;
  }
  VITC_INLINE void end_slice(Row& row, int64_t m, int64_t slice) const {
    stats[m * 1 + slice] = sum(row.squares);
    row.squares = Vec{};
  }
};

struct Map {
  VITC_INLINE int64_t operator()([[maybe_unused]] int64_t m, [[maybe_unused]] int64_t k) const {
    if (!(m % 7 - 1 >= 0)) return -1;
    return (m % 7 + 2) % 3 * 16 + (m % 7 + 2) / 3 * 768 + k / 16 % 16 * 48 + k / 256 * 1536 + m / 7 * 4608 - 768;
  }
};

using Rows = GatherRows<float, 768, 16, Map>;
using Kernel = Gemm<64, 768, Rows, float, Epilogue>;

}  // namespace
}  // namespace VITC_ISA
}  // namespace vitc

extern "C" int VITC_SYMBOL(VITC_KERNEL)(const vitc::Call& call) {
  using namespace vitc;
  return Kernel::run(call, call.batch * 7, {arg<const float>(call, 0), Map{}}, arg<const float>(call, 1), {arg<const float>(call, 2), arg<float>(call, 3), arg<float>(call, 4)});
}
extern "C" uint64_t VITC_SYMBOL(VITC_KERNEL_scratch)(int threads) {
  return vitc::Kernel::scratch(threads);
}


// %z = linear(%y, %v, %s, %b, %y) {steps=[row_rstd($2, 64.0, 1e-06), add($3), gelu, add($4)]} : f32[B,7,64]
// panel 32, DenseRows<float, 64, 64>
#include "vitc/cpu/gemm.h"

namespace vitc {
inline namespace VITC_ISA {
namespace {

struct Epilogue {
  const float* in2;
  const float* in3;
  const float* in4;
  float* out;

  static constexpr int64_t kSlice = 0;
  struct Row {
    float v0;
    const float* p3;
    float* out;
  };
  VITC_INLINE Row begin([[maybe_unused]] int64_t m) const {
    return {rstd<1>(in2 + (m), 64, 1e-06f), in4 + (m * 64), out + (m * 64)};
  }
  template <class Lanes>
  VITC_INLINE void apply(Vec x, Row& row, int64_t n, Lanes lanes) const {
    x = x * row.v0;
    x = x + load(in3 + n, lanes);
    x = gelu_erf(x);
    x = x + load(row.p3 + n, lanes);
    store(row.out + n, x, lanes);
  }
};


using Rows = DenseRows<float, 64, 64>;
using Kernel = Gemm<64, 64, Rows, float, Epilogue>;

}  // namespace
}  // namespace VITC_ISA
}  // namespace vitc

extern "C" int VITC_SYMBOL(VITC_KERNEL)(const vitc::Call& call) {
  using namespace vitc;
  return Kernel::run(call, call.batch * 7, {arg<const float>(call, 0)}, arg<const float>(call, 1), {arg<const float>(call, 2), arg<const float>(call, 3), arg<const float>(call, 4), arg<float>(call, 5)});
}
extern "C" uint64_t VITC_SYMBOL(VITC_KERNEL_scratch)(int threads) {
  return vitc::Kernel::scratch(threads);
}

