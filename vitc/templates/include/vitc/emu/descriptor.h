// The 64-bit descriptor of a wgmma operand in shared memory (PTX ISA, "Matrix Descriptor Format"
// and "Canonical Layouts"), for elements of 16 bits. Rows are those of A or columns of B;
// "transposed" means that neighbours in memory are neighbouring rows (MN-major), else neighbours in
// k (K-major).
#pragma once

#include "vitc/emu/tensor_copy.h"

namespace vitc::emu {

struct Descriptor {
  uint32_t start, leading, stride;  // bytes
  uint32_t span;                    // of the swizzle; 16: none

  static bool decode(uint64_t bits, Descriptor* out) {
    constexpr uint32_t kSpan[4] = {16, 128, 64, 32};
    const auto field = [&](int low) { return uint32_t(bits >> low & 0x3fff) << 4; };
    *out = {field(0), field(16), field(32), kSpan[bits >> 62]};
    const bool based = (bits >> 49 & 7) != 0;  // tiles that begin inside a pattern: not emulated
    return !based;
  }
  // Shared address of 8 elements: those of k = 8 c to 8 c + 7 in a row.
  uint32_t row_chunk(unsigned row, unsigned c) const {
    uint32_t next = span == 16 ? leading : 16;
    return swizzled(start + row % 8 * span + row / 8 * stride + c * next, span);
  }
  // Of rows 8 c to 8 c + 7 at one k.
  uint32_t column_chunk(unsigned c, unsigned k) const {
    unsigned wide = span / 16;  // chunks side by side
    uint32_t across = span == 16 ? c * stride : c % wide * 16 + c / wide * leading;
    uint32_t down = span == 16 ? leading : stride;
    return swizzled(start + across + k % 8 * span + k / 8 * down, span);
  }
};

}  // namespace vitc::emu
