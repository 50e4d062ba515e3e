// ldmatrix: reads 8x8 matrices of 16-bit elements from shared memory. Lane 8m + i gives the address
// of row i of matrix m; lane l receives, in register m, the elements (l/4, 2(l%4)) and (l/4, 2(l%4)
// + 1), or of the transposed matrix. Layout: PTX ISA, "Warp-level matrix load instruction:
// ldmatrix".
#pragma once

#include "vitc/emu/access.h"
#include "vitc/emu/warp.h"

namespace vitc::emu {

struct LdmatrixOperands {
  uint32_t* registers;
  const void* row;
};

// Rows of one matrix are read together; rows in the same 16-byte column of the 128-byte wide memory
// cost an extra pass each.
inline void count_conflicts(void* const* operands, unsigned matrix) {
  unsigned passes = 1;
  for (unsigned i = 0; i < 8; ++i) {
    auto address = [&](unsigned row) {
      return reinterpret_cast<uintptr_t>(
          static_cast<LdmatrixOperands*>(operands[matrix * 8 + row])->row);
    };
    unsigned same = 1;
    for (unsigned j = 0; j < i; ++j) {
      if (address(j) != address(i) && address(j) / 16 % 8 == address(i) / 16 % 8) ++same;
    }
    if (same > passes) passes = same;
  }
  ++machine->statistics.ldmatrix;
  machine->statistics.ldmatrix_conflicts += passes - 1;
}

template <unsigned kMatrices, bool kTransposed>
void ldmatrix(uint32_t* registers, const void* row, Site site) {
  static_assert(kMatrices == 1 || kMatrices == 2 || kMatrices == 4);
  if (machine->current->lane < 8 * kMatrices) {
    check_aligned("ldmatrix row", row, 16, site);
    check_shared("ldmatrix row", row, 16, site);
  }
  LdmatrixOperands self{registers, row};
  warp_collective(
      kTransposed ? "ldmatrix.trans" : "ldmatrix",
      [](void* const* operands) {
        for (unsigned matrix = 0; matrix < kMatrices; ++matrix) {
          uint16_t element[8][8];
          for (unsigned i = 0; i < 8; ++i) {
            std::memcpy(element[i], static_cast<LdmatrixOperands*>(operands[matrix * 8 + i])->row,
                        16);
          }
          for (unsigned lane = 0; lane < 32; ++lane) {
            unsigned i = lane / 4, j = lane % 4 * 2;
            uint32_t low = kTransposed ? element[j][i] : element[i][j];
            uint32_t high = kTransposed ? element[j + 1][i] : element[i][j + 1];
            static_cast<LdmatrixOperands*>(operands[lane])->registers[matrix] = low | high << 16;
          }
          count_conflicts(operands, matrix);
        }
      },
      &self, site);
}

}  // namespace vitc::emu
