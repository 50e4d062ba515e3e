// attention %a loads operand 0 (%x) through its map
// attention %a loads operand 1 (%x) through its map
// attention %a loads operand 2 (%x) through its map
// attention %a stores %y through its map
// %a = attention(%q, %k, %v) {scale=0.177} : f32[B,2,37,32]
// 2 heads, 37 x 37, d 32
#include "vitc/cpu/attention.h"

namespace vitc {
inline namespace VITC_ISA {
namespace {

using Kernel = Attention<float, /*heads*/ 2, /*queries*/ 37, /*keys*/ 37,
                         /*d*/ 32, /*dv*/ 32>;

}  // namespace
}  // namespace VITC_ISA
}  // namespace vitc

extern "C" int VITC_SYMBOL(VITC_KERNEL)(const vitc::Call& call) {
  using namespace vitc;
  return Kernel::run(call, {arg<const float>(call, 0), 7104, 32, 192}, {arg<const float>(call, 1) + 64, 7104, 32, 192}, {arg<const float>(call, 2) + 128, 7104, 32, 192}, {arg<float>(call, 3), 2368, 32, 64}, 0.177f, {});
}
extern "C" uint64_t VITC_SYMBOL(VITC_KERNEL_scratch)(int threads) {
  return vitc::Kernel::scratch(threads);
}

