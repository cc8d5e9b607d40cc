// The built-in functions of a GPU, with the values that they have there.
#pragma once

#include <math.h>

#include <cstring>
#include <type_traits>

#include "cuda_host/runtime.h"

namespace gpm::cuda::cuda_host {

template <class To, class From>
To bits_of(From from) {
  To to = {};
  std::memcpy(&to, &from, sizeof(from));
  return to;
}

template <class T>
T shuffle(Operation operation, unsigned mask, T value, int argument, int width) {
  static_assert(std::is_arithmetic<T>::value && (sizeof(T) == 4 || sizeof(T) == 8),
                "a GPU shuffles 32 or 64 bits");
  const uint64_t received =
      meet({operation, mask, sizeof(T), bits_of<uint64_t>(value), argument, width});
  T result;
  std::memcpy(&result, &received, sizeof(T));
  return result;
}

// One thread runs at a time, so that any operation is atomic.
template <class T, class Update>
T update(T* p, Update next) {
  note_atomic(p, sizeof(T));
  const T before = *p;
  *p = next(before);
  return before;
}

}  // namespace gpm::cuda::cuda_host

inline void __syncthreads() { gpm::cuda::cuda_host::barrier(); }
inline void __syncwarp(unsigned mask = ~0u) {
  gpm::cuda::cuda_host::meet({gpm::cuda::cuda_host::Operation::sync, mask, 0});
}

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
  using namespace gpm::cuda::cuda_host;
  return shuffle(Operation::shuffle, mask, value, lane, width);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  using namespace gpm::cuda::cuda_host;
  return shuffle(Operation::shuffle_up, mask, value, static_cast<int>(delta), width);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  using namespace gpm::cuda::cuda_host;
  return shuffle(Operation::shuffle_down, mask, value, static_cast<int>(delta), width);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
  using namespace gpm::cuda::cuda_host;
  return shuffle(Operation::shuffle_xor, mask, value, lanes, width);
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  using namespace gpm::cuda::cuda_host;
  return static_cast<unsigned>(meet({Operation::ballot, mask, 0, predicate != 0}));
}
inline int __any_sync(unsigned mask, int predicate) {
  using namespace gpm::cuda::cuda_host;
  return static_cast<int>(meet({Operation::any, mask, 0, predicate != 0}));
}
inline int __all_sync(unsigned mask, int predicate) {
  using namespace gpm::cuda::cuda_host;
  return static_cast<int>(meet({Operation::all, mask, 0, predicate != 0}));
}

// The types that a GPU has the function for; a literal converts to them.
#define GPM_ATOMIC(name, T, next)                                                \
  inline T name(T* p, T value) {                                                 \
    return gpm::cuda::cuda_host::update(p, [&](T before) -> T { return next; }); \
  }
GPM_ATOMIC(atomicAdd, int, static_cast<int>(static_cast<unsigned>(before) + value))
GPM_ATOMIC(atomicAdd, unsigned, before + value)
GPM_ATOMIC(atomicAdd, unsigned long long, before + value)
GPM_ATOMIC(atomicAdd, float, before + value)
GPM_ATOMIC(atomicAdd, double, before + value)
GPM_ATOMIC(atomicExch, int, (static_cast<void>(before), value))
GPM_ATOMIC(atomicExch, unsigned, (static_cast<void>(before), value))
GPM_ATOMIC(atomicExch, unsigned long long, (static_cast<void>(before), value))
GPM_ATOMIC(atomicExch, float, (static_cast<void>(before), value))
#undef GPM_ATOMIC

#define GPM_ATOMIC_CAS(T)                                                                         \
  inline T atomicCAS(T* p, T expected, T value) {                                                 \
    return gpm::cuda::cuda_host::update(p, [&](T old) { return old == expected ? value : old; }); \
  }
GPM_ATOMIC_CAS(int)
GPM_ATOMIC_CAS(unsigned)
GPM_ATOMIC_CAS(unsigned long long)
#undef GPM_ATOMIC_CAS

inline void __threadfence() {}
inline void __threadfence_block() {}
[[noreturn]] inline void __trap() {
  gpm::cuda::cuda_host::fault(cudaErrorLaunchFailure, "__trap() was called");
}

template <class T>
T __ldg(const T* p) {
  gpm::cuda::cuda_host::note_read(p, sizeof(T));
  return *p;
}

// Compiled without contraction, so that each operation rounds once.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __frcp_rn(float a) { return 1 / a; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
inline float rsqrtf(float a) { return 1 / sqrtf(a); }
inline double rsqrt(double a) { return 1 / sqrt(a); }

inline int __popc(unsigned a) { return __builtin_popcount(a); }
inline int __clz(int a) { return a ? __builtin_clz(static_cast<unsigned>(a)) : 32; }
inline int __ffs(int a) { return __builtin_ffs(a); }
inline unsigned __float_as_uint(float a) { return gpm::cuda::cuda_host::bits_of<unsigned>(a); }
inline int __float_as_int(float a) { return gpm::cuda::cuda_host::bits_of<int>(a); }
inline float __uint_as_float(unsigned a) { return gpm::cuda::cuda_host::bits_of<float>(a); }
inline float __int_as_float(int a) { return gpm::cuda::cuda_host::bits_of<float>(a); }
inline long long __double_as_longlong(double a) {
  return gpm::cuda::cuda_host::bits_of<long long>(a);
}
inline double __longlong_as_double(long long a) { return gpm::cuda::cuda_host::bits_of<double>(a); }

#define GPM_MIN_MAX(T)                                \
  constexpr T min(T a, T b) { return b < a ? b : a; } \
  constexpr T max(T a, T b) { return a < b ? b : a; }
GPM_MIN_MAX(int)
GPM_MIN_MAX(unsigned)
GPM_MIN_MAX(long)
GPM_MIN_MAX(unsigned long)
GPM_MIN_MAX(long long)
GPM_MIN_MAX(unsigned long long)
#undef GPM_MIN_MAX
// As on a GPU, not NaN where one of the two is a number.
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
