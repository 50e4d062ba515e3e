// 16-bit float types of the host emulation and the roundings that GPU conversions do.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace vitc::emu {

template <class To, class From>
inline To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// Storage only: no arithmetic is defined on these, so a kernel has to say where it rounds.
struct half {
  uint16_t bits;
};
struct bfloat16 {
  uint16_t bits;
};

inline float to_float(half value) {
#if defined(__F16C__)
  return _cvtsh_ss(value.bits);
#else
  uint32_t sign = uint32_t(value.bits & 0x8000) << 16, exponent = (value.bits >> 10) & 31,
           mantissa = value.bits & 0x3ff;
  if (exponent == 31) return bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent == 0) {
    float magnitude = std::ldexp(float(mantissa), -24);
    return sign ? -magnitude : magnitude;
  }
  return bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
#endif
}

// Round to nearest even, as cvt.rn.f16.f32 does.
inline half to_half(float value) {
#if defined(__F16C__)
  return half{uint16_t(_cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT))};
#else
  uint32_t bits = bit_cast<uint32_t>(value);
  uint16_t sign = uint16_t((bits >> 16) & 0x8000);
  float magnitude = std::fabs(value);
  if (magnitude != magnitude) return half{uint16_t(sign | 0x7e00)};
  if (magnitude >= 65520.f) return half{uint16_t(sign | 0x7c00)};
  if (magnitude < 6.103515625e-05f) {  // subnormal: units of 2^-24
    return half{uint16_t(sign | uint16_t(std::nearbyint(std::ldexp(magnitude, 24))))};
  }
  uint32_t rest = bit_cast<uint32_t>(magnitude) - (112u << 23);
  rest += 0xfffu + ((rest >> 13) & 1);
  return half{uint16_t(sign | uint16_t(rest >> 13))};
#endif
}

inline float to_float(bfloat16 value) { return bit_cast<float>(uint32_t(value.bits) << 16); }

// Round to nearest even, as cvt.rn.bf16.f32 does; a NaN becomes 0x7fff like there.
inline bfloat16 to_bfloat16(float value) {
  uint32_t bits = bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return bfloat16{0x7fff};
  bits += 0x7fffu + ((bits >> 16) & 1);
  return bfloat16{uint16_t(bits >> 16)};
}

// cvt.rna.tf32.f32: round to 10 mantissa bits, ties away from zero.
inline uint32_t round_tf32(float value) {
  uint32_t bits = bit_cast<uint32_t>(value);
  if ((bits & 0x7f800000u) == 0x7f800000u) return bits;
  return (bits + 0x1000u) & ~0x1fffu;
}

// What a tf32 operand is to the tensor core: it ignores the 13 low bits of a register.
inline float tf32_operand(uint32_t bits) { return bit_cast<float>(bits & ~0x1fffu); }

inline float round_toward_zero(double value) {
  float nearest = float(value);
  return std::fabs(double(nearest)) > std::fabs(value) ? std::nextafterf(nearest, 0.f) : nearest;
}

}  // namespace vitc::emu
