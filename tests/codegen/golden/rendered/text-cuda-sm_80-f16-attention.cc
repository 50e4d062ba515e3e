// attention %a loads operand 0 (%x) through its map
// attention %a loads operand 1 (%x) through its map
// attention %a loads operand 2 (%x) through its map
// attention %a stores %y through its map
// %a = attention(%q, %k, %v) {scale=0.177} : f16[B,2,37,32]
// Mma<half>, 37, 37, 32, 32, 48, 4, true
#include "vitc/gpu/attention.cuh"
#include "vitc/gpu/symbol.h"
#include "vitc/kernel.h"

namespace vitc::gpu {
namespace {

using Tile = AttentionTile<Mma<half>, 37, 37, 32, 32, 48, 4, true>;
using Query = StridedHeads<const half, 7104, 192, 32>;
using Key = StridedHeads<const half, 7104, 192, 32>;
using Value = StridedHeads<const half, 7104, 192, 32>;
using Output = HeadsOutput<StridedHeads<half, 2368, 64, 32>>;
using Bias = NoBias;

}  // namespace
}  // namespace vitc::gpu

extern "C" int VITC_SYMBOL(VITC_KERNEL)(const vitc::Call& call) {
  using namespace vitc;
  using gpu::bfloat16, gpu::half;
  [[maybe_unused]] const gpu::Stream stream = reinterpret_cast<gpu::Stream>(call.exec);
  const gpu::Query query{arg<const half>(call, 0)};
  const gpu::Key key{arg<const half>(call, 1) + 64};
  const gpu::Value value{arg<const half>(call, 2) + 128};
  const gpu::Output output{ {arg<half>(call, 3)} };
  const gpu::Bias bias{};
  return gpu::attention<gpu::Tile>("attention 37x37", stream, int(call.batch), 2, query, key, value, bias,
                                   output, 0.177f);
}
extern "C" uint64_t VITC_SYMBOL(VITC_KERNEL_scratch)(int) { return 0; }
