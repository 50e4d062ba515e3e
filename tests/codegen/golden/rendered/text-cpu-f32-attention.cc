// attention %a loads operands 0, 1, 2 (%x) through reshape, permute, slice, reshape
// attention %a stores %y through reshape, permute
// %a = attention(%q, %k, %v) {scale=0.177} : f32[B,2,37,32]
// 2 heads, 37 x 37, d 32
#include "vitc/cpu/attention.h"

namespace vitc {
inline namespace VITC_ISA {
namespace {

struct Shape {
  static constexpr int64_t kHeads = 2, kQueries = 37, kKeys = 37;
  static constexpr int64_t kDim = 32, kValueDim = 32;
  static constexpr float kScale = 0.177f;
  struct Query {
    static constexpr int64_t kHead = 32;
    static VITC_INLINE int64_t row([[maybe_unused]] int64_t b, [[maybe_unused]] int64_t n) {
      return b * 7104 + n * 192;
    }
  };
  using Key = Query;
  using Value = Query;
  struct Out {
    static constexpr int64_t kHead = 32;
    static VITC_INLINE int64_t row([[maybe_unused]] int64_t b, [[maybe_unused]] int64_t n) {
      return b * 2368 + n * 64;
    }
  };
  static constexpr bool kBias = false;
  static constexpr int64_t kBiasHead = 0, kBiasRow = 0;
  static VITC_INLINE int64_t bias_image([[maybe_unused]] int64_t b) { return 0; }
  static constexpr int64_t kWindows = 0;
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
  return Kernel::run(call, call.batch * 1, arg<const float>(call, 0), arg<const float>(call, 1) + 64, arg<const float>(call, 2) + 128, arg<float>(call, 3), nullptr, nullptr, nullptr);
}
extern "C" uint64_t VITC_SYMBOL(VITC_KERNEL_scratch)(int threads) {
  return vitc::Kernel::scratch(threads);
}

