// Which of the instruction sets that kernels are compiled for this processor has.
#pragma once
#include <cpuid.h>

#include <cstdint>
#include <cstring>

namespace vitc::host {

struct CpuFeatures {
  bool avx2 = false;        // AVX2, FMA, F16C
  bool avx512 = false;      // and AVX-512 F, BW, DQ, VL
  bool avx512bf16 = false;  // and AVX-512 BF16

  // Bit positions: Intel SDM volume 2A, CPUID; volume 1, 13.3 for XCR0 (which registers the
  // operating system saves; without that the instructions fault although the processor has them).
  static CpuFeatures probe() {
    CpuFeatures have;
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return have;
    const auto all = [](uint32_t word, uint32_t mask) { return (word & mask) == mask; };
    const uint32_t fma = 1u << 12, osxsave = 1u << 27, avx = 1u << 28, f16c = 1u << 29;
    if (!all(c, fma | osxsave | avx | f16c)) return have;
    uint32_t xcr0, high;
    __asm__("xgetbv" : "=a"(xcr0), "=d"(high) : "c"(0));
    if (!all(xcr0, 0x06)) return have;

    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return have;
    const uint32_t avx2_bit = 1u << 5;
    const uint32_t f = 1u << 16, dq = 1u << 17, bw = 1u << 30, vl = 1u << 31;
    const uint32_t leaves = a;
    have.avx2 = all(b, avx2_bit);
    have.avx512 = have.avx2 && all(xcr0, 0xe6) && all(b, f | dq | bw | vl);
    if (have.avx512 && leaves >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) {
      have.avx512bf16 = all(a, 1u << 5);
    }
    return have;
  }

  bool has(const char* isa) const {
    return (avx2 && std::strcmp(isa, "avx2") == 0) || (avx512 && std::strcmp(isa, "avx512") == 0) ||
           (avx512bf16 && std::strcmp(isa, "avx512bf16") == 0);
  }
};

}  // namespace vitc::host
