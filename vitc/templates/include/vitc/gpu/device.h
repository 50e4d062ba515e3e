// Every difference between CUDA, HIP and the host emulation. Kernels use only what this header,
// ptx.h and the C++ language give, so one text builds for all three.
//
//   VITC_EMULATE defined   g++ or clang++, threads are fibres (vitc/emu)
//   hipcc                  AMD; a warp has 64 lanes
//   nvcc                   NVIDIA; a warp has 32 lanes
//
// Collectives (sync_*, shuffle*, ballot) must be reached by every thread of the block or warp, from
// the same line: clamp what a thread reads and mask what it writes instead of returning early.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(VITC_EMULATE)
#include "vitc/emu/access.h"
#include "vitc/emu/barrier.h"
#include "vitc/emu/launch.h"
#include "vitc/emu/numeric.h"
#include "vitc/emu/proxy.h"
#include "vitc/emu/warp.h"
#elif defined(__HIP__)
#include <hip/hip_bfloat16.h>
#include <hip/hip_fp16.h>
#include <hip/hip_runtime.h>
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

// ---- how functions, kernels, loops and shared variables are written
// -----------------------------------
#if defined(VITC_EMULATE)
#define VITC_DEVICE inline __attribute__((always_inline))
#define VITC_HOST_DEVICE inline
#define VITC_KERNEL(threads, blocks) void
#define VITC_UNROLL
#define VITC_NO_UNROLL
#define VITC_UNROLL_BY(n) static_assert((n) > 0);
// A __shared__ array `name` of `count` elements.
#define VITC_SHARED(T, name, count) \
  static const char name##_key = 0; \
  T(&name)[count] = ::vitc::emu::shared_variable<T[count]>(&name##_key, ::vitc::emu::Site::here())
#else
#define VITC_DEVICE __device__ __forceinline__
#define VITC_HOST_DEVICE __host__ __device__ __forceinline__
// Return type and bounds of a kernel: threads a block, blocks a multiprocessor that registers must
// allow.
#define VITC_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
#define VITC_UNROLL _Pragma("unroll")
#define VITC_NO_UNROLL _Pragma("unroll 1")
#define VITC_PRAGMA(text) _Pragma(#text)
#define VITC_UNROLL_BY(n) VITC_PRAGMA(unroll(n))
#define VITC_SHARED(T, name, count) __shared__ T name[count]
#endif

namespace vitc::gpu {

// ---- threads, collectives, 16-bit types
// ----------------------------------------------------------------
#if defined(VITC_EMULATE)

using emu::ballot;
using emu::bfloat16;
using emu::half;
using emu::shuffle;
using emu::shuffle_down;
using emu::shuffle_up;
using emu::shuffle_xor;
using emu::sync_block;
using emu::sync_named;
using emu::sync_warp;
using emu::to_float;
using Dim3 = emu::Dim3;
constexpr int kWarp = int(emu::kWarp);

inline Dim3 thread_index() { return emu::machine->current->index; }
inline Dim3 block_index() { return emu::machine->here->index; }
inline Dim3 block_size() { return emu::machine->block; }
inline Dim3 grid_size() { return emu::machine->grid; }

template <class T>
T* dynamic_shared() {
  return reinterpret_cast<T*>(emu::machine->here->shared.dynamic());
}

inline half to_half(float value) { return emu::to_half(value); }
inline bfloat16 to_bfloat16(float value) { return emu::to_bfloat16(value); }

inline float fast_exp2(float x) { return std::exp2(x); }
inline float fast_tanh(float x) { return std::tanh(x); }
inline float fast_divide(float a, float b) { return a / b; }
inline float fast_rsqrt(float x) { return 1.f / std::sqrt(x); }

inline void atomic_add(float* address, float value) { *address += value; }  // fibres do not preempt
inline void atomic_add(int* address, int value) { *address += value; }

template <class T>
void check_access(const char* what, const T* address, size_t bytes, emu::Site site) {
  emu::check_vector(what, address, bytes, site);
}
#define VITC_SITE_PARAMETER , ::vitc::emu::Site site = ::vitc::emu::Site::here()
#define VITC_SITE_ARGUMENT , site
#define VITC_CHECK_ACCESS(what, address, bytes) check_access(what, address, bytes, site)
#define VITC_NOTE_WRITE(address, bytes) \
  emu::note_write(*emu::machine->current, address, bytes, site)

#else

#define VITC_SITE_PARAMETER
#define VITC_SITE_ARGUMENT
#define VITC_CHECK_ACCESS(what, address, bytes)
#define VITC_NOTE_WRITE(address, bytes)

using Dim3 = dim3;
using half = __half;

VITC_DEVICE uint3 thread_index() { return make_uint3(threadIdx.x, threadIdx.y, threadIdx.z); }
VITC_DEVICE uint3 block_index() { return make_uint3(blockIdx.x, blockIdx.y, blockIdx.z); }
VITC_DEVICE uint3 block_size() { return make_uint3(blockDim.x, blockDim.y, blockDim.z); }
VITC_DEVICE uint3 grid_size() { return make_uint3(gridDim.x, gridDim.y, gridDim.z); }

VITC_DEVICE void sync_block() { __syncthreads(); }

template <class T>
VITC_DEVICE T* dynamic_shared() {
  extern __shared__ __align__(1024) unsigned char vitc_dynamic_shared[];
  return reinterpret_cast<T*>(vitc_dynamic_shared);
}

VITC_DEVICE float to_float(half value) { return __half2float(value); }
VITC_DEVICE half to_half(float value) { return __float2half_rn(value); }
VITC_DEVICE float fast_divide(float a, float b) { return __fdividef(a, b); }
VITC_DEVICE float fast_rsqrt(float x) { return rsqrtf(x); }
VITC_DEVICE void atomic_add(float* address, float value) { atomicAdd(address, value); }
VITC_DEVICE void atomic_add(int* address, int value) { atomicAdd(address, value); }

#if defined(__HIP__)

using bfloat16 = hip_bfloat16;
constexpr int kWarp = 64;  // CDNA; a target with 32 lanes (RDNA) would say so in its flags

VITC_DEVICE float to_float(bfloat16 value) { return static_cast<float>(value); }
VITC_DEVICE bfloat16 to_bfloat16(float value) { return bfloat16(value); }
VITC_DEVICE float fast_exp2(float x) { return exp2f(x); }
VITC_DEVICE float fast_tanh(float x) { return tanhf(x); }
VITC_DEVICE void sync_warp() { __builtin_amdgcn_wave_barrier(); }

template <class T>
VITC_DEVICE T shuffle(T value, unsigned source, unsigned width = kWarp) {
  return __shfl(value, source, width);
}
template <class T>
VITC_DEVICE T shuffle_xor(T value, unsigned mask, unsigned width = kWarp) {
  return __shfl_xor(value, mask, width);
}
template <class T>
VITC_DEVICE T shuffle_down(T value, unsigned delta, unsigned width = kWarp) {
  return __shfl_down(value, delta, width);
}
template <class T>
VITC_DEVICE T shuffle_up(T value, unsigned delta, unsigned width = kWarp) {
  return __shfl_up(value, delta, width);
}
VITC_DEVICE uint64_t ballot(bool predicate) { return __ballot(predicate); }

#else

using bfloat16 = __nv_bfloat16;
constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

VITC_DEVICE float to_float(bfloat16 value) { return __bfloat162float(value); }
VITC_DEVICE bfloat16 to_bfloat16(float value) { return __float2bfloat16_rn(value); }

VITC_DEVICE float fast_exp2(float x) {  // 2 ulp; ex2.approx
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
VITC_DEVICE float fast_tanh(float x) {  // about 2^-11 relative; sm_75 and later
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

VITC_DEVICE void sync_warp() { __syncwarp(); }
VITC_DEVICE void sync_named(unsigned id, unsigned threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

template <class T>
VITC_DEVICE T shuffle(T value, unsigned source, unsigned width = kWarp) {
  return __shfl_sync(kAllLanes, value, int(source), int(width));
}
template <class T>
VITC_DEVICE T shuffle_xor(T value, unsigned mask, unsigned width = kWarp) {
  return __shfl_xor_sync(kAllLanes, value, int(mask), int(width));
}
template <class T>
VITC_DEVICE T shuffle_down(T value, unsigned delta, unsigned width = kWarp) {
  return __shfl_down_sync(kAllLanes, value, delta, int(width));
}
template <class T>
VITC_DEVICE T shuffle_up(T value, unsigned delta, unsigned width = kWarp) {
  return __shfl_up_sync(kAllLanes, value, delta, int(width));
}
VITC_DEVICE uint64_t ballot(bool predicate) { return __ballot_sync(kAllLanes, predicate); }

#endif
#endif

// ---- one-dimensional blocks
// ----------------------------------------------------------------------------
VITC_DEVICE int thread() { return int(thread_index().x); }
VITC_DEVICE int lane() { return int(thread_index().x) % kWarp; }
VITC_DEVICE int warp() { return int(thread_index().x) / kWarp; }
VITC_DEVICE int block() { return int(block_index().x); }

// The value, as if the compiler did not know it: what follows from it is computed where it is
// written, instead of being held in registers around a loop.
VITC_DEVICE int fresh(int value) {
#if !defined(VITC_EMULATE) && !defined(__HIP__)
  asm volatile("" : "+r"(value));
#endif
  return value;
}

// ---- conversions
// ---------------------------------------------------------------------------------------
VITC_DEVICE float to_float(float value) { return value; }
VITC_DEVICE float to_float(int value) { return float(value); }
VITC_DEVICE float to_float(uint8_t value) { return float(value); }

template <class T>
struct FromFloat;
template <>
struct FromFloat<float> {
  static VITC_DEVICE float convert(float value) { return value; }
};
template <>
struct FromFloat<half> {
  static VITC_DEVICE half convert(float value) { return to_half(value); }
};
template <>
struct FromFloat<bfloat16> {
  static VITC_DEVICE bfloat16 convert(float value) { return to_bfloat16(value); }
};
// Round to nearest even.
template <class T>
VITC_DEVICE T from_float(float value) {
  return FromFloat<T>::convert(value);
}

// ---- vectors
// ------------------------------------------------------------------------------------------- N
// elements that are read or written by one instruction where N * sizeof(T) is 2, 4, 8 or 16 bytes.
template <class T, int N>
struct alignas(N * sizeof(T)) Vector {
  T v[N];
};

// Rounds two neighbours: one instruction for CUDA's 16-bit types, which the compiler does not make
// of two.
template <class T>
VITC_DEVICE Vector<T, 2> round_pair(float first, float second) {
  return {{from_float<T>(first), from_float<T>(second)}};
}
#if !defined(VITC_EMULATE) && !defined(__HIP__)
template <>
VITC_DEVICE Vector<half, 2> round_pair<half>(float first, float second) {
  const half2 pair = __floats2half2_rn(first, second);
  return {{__low2half(pair), __high2half(pair)}};
}
template <>
VITC_DEVICE Vector<bfloat16, 2> round_pair<bfloat16>(float first, float second) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
  return {{__low2bfloat16(pair), __high2bfloat16(pair)}};
}
#endif

// Vectors of more than 16 bytes are moved in pieces of 16. `address` must be aligned to the piece.
template <int N, class T>
VITC_DEVICE void load(T (&v)[N], const T* address VITC_SITE_PARAMETER) {
  constexpr int kPiece = N * sizeof(T) <= 16 ? N : 16 / int(sizeof(T));
  static_assert(N % kPiece == 0);
  VITC_CHECK_ACCESS("load", address, kPiece * sizeof(T));
  VITC_UNROLL
  for (int i = 0; i < N; i += kPiece) {
    auto piece = *reinterpret_cast<const Vector<T, kPiece>*>(address + i);
    VITC_UNROLL
    for (int j = 0; j < kPiece; ++j) v[i + j] = piece.v[j];
  }
}

template <int N, class T>
VITC_DEVICE void store(T* address, const T (&v)[N] VITC_SITE_PARAMETER) {
  constexpr int kPiece = N * sizeof(T) <= 16 ? N : 16 / int(sizeof(T));
  static_assert(N % kPiece == 0);
  VITC_CHECK_ACCESS("store", address, kPiece * sizeof(T));
  VITC_NOTE_WRITE(address, N * sizeof(T));
  VITC_UNROLL
  for (int i = 0; i < N; i += kPiece) {
    Vector<T, kPiece> piece;
    VITC_UNROLL
    for (int j = 0; j < kPiece; ++j) piece.v[j] = v[i + j];
    *reinterpret_cast<Vector<T, kPiece>*>(address + i) = piece;
  }
}

// Where a constant of the model lies, which no kernel writes: so loads of 16 bytes may be moved
// past stores and waits, which nvcc does.
template <class T>
struct Constant {
  const T* address;
};
template <class T>
VITC_DEVICE Constant<T> constant(const T* address) {
  return {address};
}
template <int N, class T>
VITC_DEVICE void load(T (&v)[N], Constant<T> from VITC_SITE_PARAMETER) {
#if !defined(VITC_EMULATE) && !defined(__HIP__)
  if constexpr (N * sizeof(T) == 16) {
    const uint4 words = __ldg(reinterpret_cast<const uint4*>(from.address));
    memcpy(v, &words, sizeof(v));
    return;
  }
#endif
  load<N>(v, from.address VITC_SITE_ARGUMENT);
}

// The same with conversion: N elements of T as floats.
template <class T>
T element_of(const T*);
template <class T>
T element_of(Constant<T>);
template <int N, class From>
VITC_DEVICE void load_floats(float (&v)[N], From from VITC_SITE_PARAMETER) {
  decltype(element_of(from)) stored[N];
  load<N>(stored, from VITC_SITE_ARGUMENT);
  VITC_UNROLL
  for (int i = 0; i < N; ++i) v[i] = to_float(stored[i]);
}

template <int N, class T>
VITC_DEVICE void store_floats(T* address, const float (&v)[N] VITC_SITE_PARAMETER) {
  T stored[N];
  VITC_UNROLL
  for (int i = 0; i < N; ++i) stored[i] = from_float<T>(v[i]);
  store<N>(address, stored VITC_SITE_ARGUMENT);
}

template <class T>
VITC_DEVICE T minimum(T a, T b) {
  return a < b ? a : b;
}
template <class T>
VITC_DEVICE T maximum(T a, T b) {
  return a < b ? b : a;
}
constexpr VITC_HOST_DEVICE int divide_up(int a, int b) { return (a + b - 1) / b; }

// A number as a type, for arguments of generic lambdas.
template <int kValue>
struct Int {
  static constexpr int value = kValue;
};

// Sum or maximum over groups of `width` lanes; every lane receives it.
template <int kWidth = kWarp>
VITC_DEVICE float warp_sum(float value) {
  VITC_UNROLL
  for (int mask = kWidth / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask, kWidth);
  return value;
}
template <int kWidth = kWarp>
VITC_DEVICE float warp_max(float value) {
  VITC_UNROLL
  for (int mask = kWidth / 2; mask > 0; mask /= 2) {
    value = fmaxf(value, shuffle_xor(value, mask, kWidth));
  }
  return value;
}

}  // namespace vitc::gpu
