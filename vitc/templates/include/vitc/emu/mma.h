// mma.sync: D (16x8, float) += A (16xK) * B (Kx8). Lane l = 4g + t holds
//   D  d0, d1: row g, columns 2t, 2t + 1; d2, d3: the same columns of row g + 8
//   16-bit, K = 16   A a[0], a[1]: rows g, g + 8 at k = 2t, 2t + 1; a[2], a[3]: the same at k + 8
//                    B b[0]: column g at k = 2t, 2t + 1; b[1]: at k + 8
//   16-bit, K = 8    A a[0], a[1] and B b[0] of the above
//   tf32, K = 8      A a[0], a[1]: rows g, g + 8 at k = t; a[2], a[3]: at k = t + 4; B b[0], b[1]:
//   k = t, t + 4 tf32, K = 4      A a[0], a[1] and B b[0] of the above
// (PTX ISA, "Matrix fragments for mma.m16n8k16 / k8 / k4".) AMD's MFMA belongs in a file beside
// this one: a function over 64 lanes' operands with the closed formulas of its own layout.
#pragma once

#include "vitc/emu/numeric.h"
#include "vitc/emu/warp.h"

namespace vitc::emu {

struct MmaOperands {
  float* d;
  const uint32_t *a, *b;
};

// How a 32-bit register maps to matrix elements: `kPacked` of them, at consecutive k; and whether
// the sum's rounding matters. Tensor cores round a sum toward zero (Ootomo and Yokota, "Recovering
// single precision accuracy from Tensor Cores", 2022), a bias that grows with the number of mma in
// a row: below what 16-bit operands lose anyway, but decisive where tf32 products stand for float
// ones.
struct MmaF16 {
  static constexpr unsigned kPacked = 2;
  static constexpr bool kTruncates = false;
  static void unpack(uint32_t bits, float* out) {
    out[0] = to_float(half{uint16_t(bits)});
    out[1] = to_float(half{uint16_t(bits >> 16)});
  }
};
struct MmaBf16 {
  static constexpr unsigned kPacked = 2;
  static constexpr bool kTruncates = false;
  static void unpack(uint32_t bits, float* out) {
    out[0] = bit_cast<float>(bits << 16);
    out[1] = bit_cast<float>(bits & 0xffff0000u);
  }
};
struct MmaTf32 {
  static constexpr unsigned kPacked = 1;
  static constexpr bool kTruncates = true;
  static void unpack(uint32_t bits, float* out) { out[0] = tf32_operand(bits); }
};

typedef float MmaRow __attribute__((vector_size(32)));  // the 8 columns of a row of D or B

template <class Type, unsigned kK>
void execute_mma(void* const* operands) {
  constexpr unsigned kPacked = Type::kPacked,
                     kHalfK = 4 * kPacked;  // k covered by registers a[0], b[0]
  float a[16][kK];
  alignas(32) float b[kK][8], d[16][8];
  for (unsigned lane = 0; lane < 32; ++lane) {
    auto* self = static_cast<MmaOperands*>(operands[lane]);
    unsigned g = lane / 4, t = lane % 4;
    for (unsigned r = 0; r < kK / kHalfK; ++r) {
      unsigned k = r * kHalfK + t * kPacked;
      Type::unpack(self->a[2 * r], &a[g][k]);
      Type::unpack(self->a[2 * r + 1], &a[g + 8][k]);
      float column[kPacked];
      Type::unpack(self->b[r], column);
      for (unsigned e = 0; e < kPacked; ++e) b[k + e][g] = column[e];
    }
    std::memcpy(&d[g][2 * t], self->d, 8);
    std::memcpy(&d[g + 8][2 * t], self->d + 2, 8);
  }
  for (unsigned i = 0; i < 16; ++i) {
    if constexpr (Type::kTruncates) {
      for (unsigned j = 0; j < 8; ++j) {
        double sum = d[i][j];
        for (unsigned k = 0; k < kK; ++k) sum += double(a[i][k]) * b[k][j];
        d[i][j] = round_toward_zero(sum);
      }
    } else {
      MmaRow row;
      std::memcpy(&row, d[i], sizeof row);
      for (unsigned k = 0; k < kK; ++k) {
        MmaRow other;
        std::memcpy(&other, b[k], sizeof other);
        row += a[i][k] * other;
      }
      std::memcpy(d[i], &row, sizeof row);
    }
  }
  for (unsigned lane = 0; lane < 32; ++lane) {
    auto* self = static_cast<MmaOperands*>(operands[lane]);
    unsigned g = lane / 4, t = lane % 4;
    std::memcpy(self->d, &d[g][2 * t], 8);
    std::memcpy(self->d + 2, &d[g + 8][2 * t], 8);
  }
  ++machine->statistics.mma;
}

template <class Type, unsigned kK>
void mma(float* d, const uint32_t* a, const uint32_t* b, Site site) {
  MmaOperands self{d, a, b};
  warp_collective("mma", execute_mma<Type, kK>, &self, site);
}

}  // namespace vitc::emu
