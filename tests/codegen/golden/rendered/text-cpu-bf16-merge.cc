// gemm %y stores %m through reshape, permute, reshape
// gemm %z loads operand 2 (%s) through reshape, permute, reshape
// %y, %s = linear(%x, %w-2) {stats=64, sums=true} : bf16[B,4,6,64], f32[B,4,6,2]
// panel 32, DenseRows<bf16, 64, 64>
#include "vitc/cpu/gemm.h"

namespace vitc {
inline namespace VITC_ISA {
namespace {

struct Epilogue {
  bf16* out;
  float* stats;

  static constexpr int64_t kSlice = 64;
  struct Row {
    bf16* out;
    Vec squares;
    Vec sums;
  };
  VITC_INLINE Row begin([[maybe_unused]] int64_t m) const {
    return {out + (m % 2 * 128 + m % 6 / 2 * 256 + m / 24 * 1536 + m / 6 % 2 * 64 + m / 6 % 4 / 2 * 768), Vec{}, Vec{}};
  }
  template <class Lanes>
  VITC_INLINE void apply(Vec x, Row& row, int64_t n, Lanes lanes) const {
    x = store(row.out + n, x, lanes);
    row.squares = row.squares + x * x;
    row.sums = row.sums + x;
  }
  VITC_INLINE void end_slice(Row& row, int64_t m, int64_t slice) const {
    float* pair = stats + m * 2 + 2 * slice;
    pair[0] = sum(row.squares);
    pair[1] = sum(row.sums);
    row.sums = Vec{};
    row.squares = Vec{};
  }
};


using Rows = DenseRows<bf16, 64, 64>;
using Kernel = Gemm<64, 64, Rows, bf16, Epilogue>;

}  // namespace
}  // namespace VITC_ISA
}  // namespace vitc

extern "C" int VITC_SYMBOL(VITC_KERNEL)(const vitc::Call& call) {
  using namespace vitc;
  return Kernel::run(call, call.batch * 24, {arg<const bf16>(call, 0)}, arg<const bf16>(call, 1), {arg<bf16>(call, 2), arg<float>(call, 3)});
}
extern "C" uint64_t VITC_SYMBOL(VITC_KERNEL_scratch)(int threads) {
  return vitc::Kernel::scratch(threads);
}


// %z = linear(%m, %v-2, %ms) {steps=[layer_rstd($2, 256.0, 1e-05)]} : bf16[B,2,3,32]
// panel 32, DenseRows<bf16, 256, 256>
#include "vitc/cpu/gemm.h"

namespace vitc {
inline namespace VITC_ISA {
namespace {

struct Epilogue {
  const float* in2;
  bf16* out;

  static constexpr int64_t kSlice = 0;
  struct Row {
    float v0;
    bf16* out;
  };
  VITC_INLINE Row begin([[maybe_unused]] int64_t m) const {
    return {layer_rstd<8, 2>(in2, [&](int64_t k) { return k / 2 % 2 * 12 + k / 4 * 2 + m % 3 * 4 + m / 3 * 24; }, 256, 1e-05f), out + (m * 32)};
  }
  template <class Lanes>
  VITC_INLINE void apply(Vec x, Row& row, int64_t n, Lanes lanes) const {
    x = x * row.v0;
    store(row.out + n, x, lanes);
  }
};


using Rows = DenseRows<bf16, 256, 256>;
using Kernel = Gemm<32, 256, Rows, bf16, Epilogue>;

}  // namespace
}  // namespace VITC_ISA
}  // namespace vitc

extern "C" int VITC_SYMBOL(VITC_KERNEL)(const vitc::Call& call) {
  using namespace vitc;
  return Kernel::run(call, call.batch * 6, {arg<const bf16>(call, 0)}, arg<const bf16>(call, 1), {arg<const float>(call, 2), arg<bf16>(call, 3)});
}
extern "C" uint64_t VITC_SYMBOL(VITC_KERNEL_scratch)(int threads) {
  return vitc::Kernel::scratch(threads);
}

