// attention %a loads operands 0, 1, 2 (%x) through roll, roll, reshape, permute, reshape, permute, slice, reshape
// attention %a stores %y through roll, roll, reshape, permute, reshape, permute
// %a = attention(%q, %k, %v, %bias, %regions) {scale=0.177, bias=true, regions=true} : f32[4B,2,12,32]
// 2 heads, 12 x 12, d 32
#include "vitc/cpu/attention.h"

namespace vitc {
inline namespace VITC_ISA {
namespace {

struct Shape {
  static constexpr int64_t kHeads = 2, kQueries = 12, kKeys = 12;
  static constexpr int64_t kDim = 32, kValueDim = 32;
  static constexpr float kScale = 0.177f;
  struct Query {
    static constexpr int64_t kHead = 32;
    static VITC_INLINE int64_t row([[maybe_unused]] int64_t b, [[maybe_unused]] int64_t n) {
      return (b % 2 * 3 + n % 3 + 1) % 6 * 192 + (b / 2 % 2 * 4 + n / 3 + 2) % 8 * 1152 + b / 4 * 9216;
    }
  };
  using Key = Query;
  using Value = Query;
  struct Out {
    static constexpr int64_t kHead = 32;
    static VITC_INLINE int64_t row([[maybe_unused]] int64_t b, [[maybe_unused]] int64_t n) {
      return (b % 2 * 3 + n % 3 + 1) % 6 * 64 + (b / 2 % 2 * 4 + n / 3 + 2) % 8 * 384 + b / 4 * 3072;
    }
  };
  static constexpr bool kBias = true;
  static constexpr int64_t kBiasHead = 144, kBiasRow = 12;
  static VITC_INLINE int64_t bias_image([[maybe_unused]] int64_t b) { return 0; }
  static constexpr int64_t kWindows = 4;
  static constexpr float kApart = -100.0f;
  static constexpr bool kFactors = false, kCosine = false;
  static constexpr float kEps = 0;
  static VITC_INLINE Vec finish(Vec x) {
    return x;
  }
};
using Kernel = Attention<float, Shape>;

}  // namespace
}  // namespace VITC_ISA
}  // namespace vitc

extern "C" int VITC_SYMBOL(VITC_KERNEL)(const vitc::Call& call) {
  using namespace vitc;
  return Kernel::run(call, call.batch * 4, arg<const float>(call, 0), arg<const float>(call, 1) + 64, arg<const float>(call, 2) + 128, arg<float>(call, 5), arg<const float>(call, 3), arg<const int32_t>(call, 4), nullptr);
}
extern "C" uint64_t VITC_SYMBOL(VITC_KERNEL_scratch)(int threads) {
  return vitc::Kernel::scratch(threads);
}

