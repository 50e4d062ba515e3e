// Arithmetic policies: what elements are stored as and how 16x8 tiles are multiplied.
//
//   Mma<half>, Mma<bfloat16>   tensor cores, float accumulation; kInstructionK = 8 is sm_75's form
//   Tf32                       float storage, rounded to tf32 (10 mantissa bits) at the tensor core
//   Tf32x3                     float storage; a = big + small, three tf32 products: float accuracy
//   Simt                       float storage, fused multiply-adds; the form without tensor cores
//
// float32 has two forms because neither wins everywhere. Tf32x3 runs at a third of the tf32 rate:
// 52 of A100's 156 TFLOP/s and 165 of H100's 495, where FMA gives 19.5 and 67. On sm_86, sm_89 and
// sm_120 tf32 is no faster than FMA, so three products lose, and sm_75 has no tf32: Simt is their
// form.
//
// An operand is read in steps of two 16-byte chunks of k; ldmatrix gives the fragments of every
// tensor core form alike, since a row of four floats is as long as one of eight halves.
#pragma once

#include "vitc/gpu/ptx.h"

namespace vitc::gpu {

template <class T, int kInstructionK = 16>
struct Mma {
  using Storage = T;
  static constexpr bool kTensorCore = true;
  struct A {
    uint32_t r[4];
  };
  struct B {
    uint32_t r[2];
  };
  static VITC_DEVICE A make_a(const uint32_t (&r)[4]) { return A{{r[0], r[1], r[2], r[3]}}; }
  static VITC_DEVICE B make_b(uint32_t r0, uint32_t r1) { return B{{r0, r1}}; }
  static VITC_DEVICE void multiply(float (&d)[4], const A& a, const B& b);
};
template <>
VITC_DEVICE void Mma<half, 16>::multiply(float (&d)[4], const A& a, const B& b) {
  mma_f16_k16(d, a.r, b.r);
}
template <>
VITC_DEVICE void Mma<bfloat16, 16>::multiply(float (&d)[4], const A& a, const B& b) {
  mma_bf16_k16(d, a.r, b.r);
}
template <>
VITC_DEVICE void Mma<half, 8>::multiply(float (&d)[4], const A& a, const B& b) {
  VITC_UNROLL
  for (int k = 0; k < 2; ++k) {
    const uint32_t half_a[2] = {a.r[2 * k], a.r[2 * k + 1]}, half_b[1] = {b.r[k]};
    mma_f16_k8(d, half_a, half_b);
  }
}

VITC_DEVICE float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
VITC_DEVICE uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

struct Tf32 {
  using Storage = float;
  static constexpr bool kTensorCore = true;
  struct A {
    uint32_t r[4];
  };
  struct B {
    uint32_t r[2];
  };
  static VITC_DEVICE A make_a(const uint32_t (&r)[4]) {
    A a;
    VITC_UNROLL
    for (int i = 0; i < 4; ++i) a.r[i] = round_tf32(float_of(r[i]));
    return a;
  }
  static VITC_DEVICE B make_b(uint32_t r0, uint32_t r1) {
    return B{{round_tf32(float_of(r0)), round_tf32(float_of(r1))}};
  }
  static VITC_DEVICE void multiply(float (&d)[4], const A& a, const B& b) {
    mma_tf32_k8(d, a.r, b.r);
  }
};

// x = big + small with both in tf32; what is left out is below 2^-22 of x.
struct Tf32x3 {
  using Storage = float;
  static constexpr bool kTensorCore = true;
  struct A {
    uint32_t big[4], small[4];
  };
  struct B {
    uint32_t big[2], small[2];
  };
  static VITC_DEVICE void split(uint32_t bits, uint32_t& big, uint32_t& small) {
    big = round_tf32(float_of(bits));
    small = round_tf32(float_of(bits) - float_of(big));
  }
  static VITC_DEVICE A make_a(const uint32_t (&r)[4]) {
    A a;
    VITC_UNROLL
    for (int i = 0; i < 4; ++i) split(r[i], a.big[i], a.small[i]);
    return a;
  }
  static VITC_DEVICE B make_b(uint32_t r0, uint32_t r1) {
    B b;
    split(r0, b.big[0], b.small[0]);
    split(r1, b.big[1], b.small[1]);
    return b;
  }
  // The small terms first: they would be lost beside a large sum. The sum over k is taken outside,
  // since the tensor core rounds toward zero: over K = 3072 that alone would cost 1e-5.
  static VITC_DEVICE void multiply(float (&d)[4], const A& a, const B& b) {
    float product[4] = {0, 0, 0, 0};
    mma_tf32_k8(product, a.small, b.big);
    mma_tf32_k8(product, a.big, b.small);
    mma_tf32_k8(product, a.big, b.big);
    VITC_UNROLL
    for (int i = 0; i < 4; ++i) d[i] += product[i];
  }
};

struct Simt {
  using Storage = float;
  static constexpr bool kTensorCore = false;
};

}  // namespace vitc::gpu
