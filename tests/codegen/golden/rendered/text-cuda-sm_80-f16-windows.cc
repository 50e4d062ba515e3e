// attention %a loads operands 0, 1, 2 (%x) through roll, roll, reshape, permute, reshape, permute, slice, reshape
// attention %a stores %y through roll, roll, reshape, permute, reshape, permute
// %a = attention(%q, %k, %v, %bias, %regions) {scale=0.177, bias=true, regions=true} : f16[4B,2,12,32]
// Mma<half>, 12, 12, 32, 32, 16, 1, 4, 8, true
#include "vitc/gpu/attention.cuh"
#include "vitc/gpu/epilogue.cuh"
#include "vitc/gpu/symbol.h"
#include "vitc/kernel.h"

namespace vitc::gpu {
namespace {

using Tile = AttentionTile<Mma<half>, 12, 12, 32, 32, 16, 1, 4, 8, true>;
struct Query {
  using T = const half;
  static constexpr int kHead = 32;
  T* data;
  VITC_DEVICE int row([[maybe_unused]] int b, [[maybe_unused]] int n) const {
    return (b % 2 * 3 + n % 3 + 1) % 6 * 192 + (b / 2 % 2 * 4 + n / 3 + 2) % 8 * 1152 + b / 4 * 9216;
  }
};
struct Key {
  using T = const half;
  static constexpr int kHead = 32;
  T* data;
  VITC_DEVICE int row([[maybe_unused]] int b, [[maybe_unused]] int n) const {
    return (b % 2 * 3 + n % 3 + 1) % 6 * 192 + (b / 2 % 2 * 4 + n / 3 + 2) % 8 * 1152 + b / 4 * 9216 + 64;
  }
};
struct Value {
  using T = const half;
  static constexpr int kHead = 32;
  T* data;
  VITC_DEVICE int row([[maybe_unused]] int b, [[maybe_unused]] int n) const {
    return (b % 2 * 3 + n % 3 + 1) % 6 * 192 + (b / 2 % 2 * 4 + n / 3 + 2) % 8 * 1152 + b / 4 * 9216 + 128;
  }
};
struct Output {
  using T = half;
  static constexpr int kHead = 32;
  T* data;
  VITC_DEVICE int row([[maybe_unused]] int b, [[maybe_unused]] int n) const {
    return (b % 2 * 3 + n % 3 + 1) % 6 * 64 + (b / 2 % 2 * 4 + n / 3 + 2) % 8 * 384 + b / 4 * 3072;
  }
  template <int V>
  VITC_DEVICE void steps([[maybe_unused]] float (&v)[V]) const {
  }
};
using Terms = ScoreTerms<false, BiasTable<half, 2, 1, 1>, Regions<4, 12>, Absent>;

}  // namespace
}  // namespace vitc::gpu

extern "C" int VITC_SYMBOL(VITC_KERNEL)(const vitc::Call& call) {
  using namespace vitc;
  using gpu::bfloat16, gpu::half;
  [[maybe_unused]] const gpu::Stream stream = reinterpret_cast<gpu::Stream>(call.exec);
  const gpu::Query query{arg<const half>(call, 0)};
  const gpu::Key key{arg<const half>(call, 1)};
  const gpu::Value value{arg<const half>(call, 2)};
  const gpu::Output output{arg<half>(call, 5)};
  const gpu::Terms terms{0.2553570222373465f, 0.0f, {arg<const half>(call, 3)}, {arg<const int32_t>(call, 4), -144.26950408889633f}, {}};
  return gpu::attention<gpu::Tile, 2>("attention 12x12", stream, int(call.batch) * 4, query, key, value, terms, output);
}
extern "C" uint64_t VITC_SYMBOL(VITC_KERNEL_scratch)(int) { return 0; }
