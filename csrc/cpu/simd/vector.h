// Vectors of the widest registers that this translation unit is compiled for.
//
// Kernels are compiled once per instruction set, each time into a namespace of its own
// (GPM_SIMD_NAMESPACE), and chosen at run time. Nothing from the standard library that is not a
// plain macro or constexpr may be used in them: an inline function compiled here for AVX-512 could
// be the copy that the linker keeps for the whole program.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>

#include "cpu/inline.h"
#include "gpm/types.h"

#if defined(__AVX512F__)
#define GPM_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define GPM_VECTOR_BYTES 32
#else
#define GPM_VECTOR_BYTES 16
#endif

namespace gpm::cpu::GPM_SIMD_NAMESPACE {

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

template <class T>
struct Traits;
template <>
struct Traits<float> {
  using Int = int32_t;
};
template <>
struct Traits<double> {
  using Int = int64_t;
};

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(GPM_VECTOR_BYTES)));
};
template <class T>
using Vector = typename VectorOf<T>::type;
template <class T>
using Mask = Vector<typename Traits<T>::Int>;

// Numbers of T in a vector.
template <class T>
inline constexpr int kLanes = GPM_VECTOR_BYTES / static_cast<int>(sizeof(T));

// The type that sums over stored numbers are taken in.
template <class S>
struct AccumulateOf {
  using type = float;
};
template <>
struct AccumulateOf<double> {
  using type = double;
};
template <class S>
using Accumulate = typename AccumulateOf<S>::type;

template <class To, class From>
GPM_INLINE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

template <class T>
GPM_INLINE Vector<T> broadcast(T value) {
  return value - Vector<T>{};  // unlike 0 + value, exact for -0 and so free
}

// fma(a, b, c), fused where the processor can. Products whose difference must be antisymmetric are
// kept apart from it: rounding one product and not the other would break s(a > b) = -s(b > a).
template <class V>
GPM_INLINE V multiply_add(V a, V b, V c) {
#if defined(__AVX512F__)
  if constexpr (sizeof(a[0]) == 4)
    return (V)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
  else
    return (V)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__FMA__)
  if constexpr (sizeof(a[0]) == 4)
    return (V)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
  else
    return (V)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#else
  return a * b + c;
#endif
}

GPM_INLINE float square_root(float x) { return __builtin_sqrtf(x); }
GPM_INLINE double square_root(double x) { return __builtin_sqrt(x); }

template <class T>
GPM_INLINE Vector<T> absolute(Vector<T> x) {
  using Int = typename Traits<T>::Int;
  constexpr Int kSign = Int(1) << (8 * sizeof(T) - 1);
  return bit_cast<Vector<T>>(bit_cast<Mask<T>>(x) & ~kSign);
}

// -|x|
template <class T>
GPM_INLINE Vector<T> negative_absolute(Vector<T> x) {
  using Int = typename Traits<T>::Int;
  constexpr Int kSign = Int(1) << (8 * sizeof(T) - 1);
  return bit_cast<Vector<T>>(bit_cast<Mask<T>>(x) | kSign);
}

// -- scalars in storage ---------------------------------------------------------------------------

GPM_INLINE float widen(float x) { return x; }
GPM_INLINE double widen(double x) { return x; }
GPM_INLINE float widen(bfloat16 x) { return bit_cast<float>(uint32_t(x.bits) << 16); }
GPM_INLINE float widen(float16 x) {
#if defined(__F16C__)
  return _cvtsh_ss(x.bits);
#else
  const uint32_t sign = uint32_t(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return bit_cast<float>(sign | 0x7f800000u | (magnitude << 13));
  // Shifting puts the exponent 112 too low; the product repairs it, subnormal numbers included.
  return bit_cast<float>(sign | bit_cast<uint32_t>(bit_cast<float>(magnitude << 13) * 0x1p112f));
#endif
}

GPM_INLINE void narrow(float x, float& out) { out = x; }
GPM_INLINE void narrow(double x, double& out) { out = x; }
GPM_INLINE void narrow(float x, bfloat16& out) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  out.bits = static_cast<uint16_t>(nan ? 0x7fc0u | (bits >> 31 << 15) : rounded);
}
GPM_INLINE void narrow(float x, float16& out) {
#if defined(__F16C__)
  out.bits = static_cast<uint16_t>(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT));
#else
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    out.bits = static_cast<uint16_t>(sign | 0x7e00u);
  } else if (magnitude >= 0x477ff000u) {  // 65520 and above round to infinity
    out.bits = static_cast<uint16_t>(sign | 0x7c00u);
  } else if (magnitude < 0x38800000u) {
    // Below 2^-14 a half counts units of 2^-24: adding 0.5 leaves that count in the low bits.
    const uint32_t count = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
    out.bits = static_cast<uint16_t>(sign | count);
  } else {
    const uint32_t rounded = magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u);
    out.bits = static_cast<uint16_t>(sign | rounded >> 13);
  }
#endif
}

// -- vectors in storage ---------------------------------------------------------------------------

GPM_INLINE Vector<float> load(const float* p) {
  Vector<float> v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
GPM_INLINE Vector<double> load(const double* p) {
  Vector<double> v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
GPM_INLINE Vector<float> load(const bfloat16* p) {
  typedef uint16_t Half __attribute__((vector_size(GPM_VECTOR_BYTES / 2)));
  Half half;
  std::memcpy(&half, p, sizeof(half));
  return bit_cast<Vector<float>>(__builtin_convertvector(half, Vector<uint32_t>) << 16);
}
GPM_INLINE Vector<float> load(const float16* p) {
#if defined(__AVX512F__)
  return (Vector<float>)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__F16C__)
  return (Vector<float>)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  Vector<float> v;
  for (int i = 0; i < kLanes<float>; ++i) v[i] = widen(p[i]);
  return v;
#endif
}

GPM_INLINE void store(float* p, Vector<float> v) { std::memcpy(p, &v, sizeof(v)); }
GPM_INLINE void store(double* p, Vector<double> v) { std::memcpy(p, &v, sizeof(v)); }
GPM_INLINE void store(bfloat16* p, Vector<float> v) {
  typedef uint16_t Half __attribute__((vector_size(GPM_VECTOR_BYTES / 2)));
  const Vector<uint32_t> bits = bit_cast<Vector<uint32_t>>(v);
  const Vector<uint32_t> rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const Vector<uint32_t> quiet = 0x7fc0u | (bits >> 31 << 15);
  const Half half = __builtin_convertvector(v != v ? quiet : rounded, Half);
  std::memcpy(p, &half, sizeof(half));
}
GPM_INLINE void store(float16* p, Vector<float> v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(__F16C__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < kLanes<float>; ++i) narrow(v[i], p[i]);
#endif
}

// The first n lanes only, 0 <= n; the others load as zero and are not stored.
#if defined(__AVX512F__)
GPM_INLINE Vector<float> load_partial(const float* p, int64_t n) {
  const __mmask16 mask = n >= 16 ? 0xffff : (1u << n) - 1;
  return (Vector<float>)_mm512_maskz_loadu_ps(mask, p);
}
GPM_INLINE Vector<double> load_partial(const double* p, int64_t n) {
  const __mmask8 mask = n >= 8 ? 0xff : (1u << n) - 1;
  return (Vector<double>)_mm512_maskz_loadu_pd(mask, p);
}
GPM_INLINE void store_partial(float* p, Vector<float> v, int64_t n) {
  const __mmask16 mask = n >= 16 ? 0xffff : (1u << n) - 1;
  _mm512_mask_storeu_ps(p, mask, (__m512)v);
}
GPM_INLINE void store_partial(double* p, Vector<double> v, int64_t n) {
  const __mmask8 mask = n >= 8 ? 0xff : (1u << n) - 1;
  _mm512_mask_storeu_pd(p, mask, (__m512d)v);
}
#endif
template <class S>
GPM_INLINE Vector<Accumulate<S>> load_partial(const S* p, int64_t n) {
  if (n >= kLanes<Accumulate<S>>) return load(p);
  S buffer[kLanes<Accumulate<S>>] = {};
  for (int64_t i = 0; i < n; ++i) buffer[i] = p[i];
  return load(buffer);
}
template <class S>
GPM_INLINE void store_partial(S* p, Vector<Accumulate<S>> v, int64_t n) {
  if (n >= kLanes<Accumulate<S>>) return store(p, v);
  S buffer[kLanes<Accumulate<S>>];
  store(buffer, v);
  for (int64_t i = 0; i < n; ++i) p[i] = buffer[i];
}

// As store, past the caches: for outputs that do not fit them. p is aligned to the vector.
template <class S>
GPM_INLINE void store_streaming(S* p, Vector<Accumulate<S>> v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(S) == 4) return _mm512_stream_ps(p, (__m512)v);
  if constexpr (sizeof(S) == 8) return _mm512_stream_pd(p, (__m512d)v);
#elif defined(__AVX2__)
  if constexpr (sizeof(S) == 4) return _mm256_stream_ps(p, (__m256)v);
  if constexpr (sizeof(S) == 8) return _mm256_stream_pd(p, (__m256d)v);
#endif
  store(p, v);
}

// Streamed stores overtake all others: ends them before anybody is told that the results are there.
GPM_INLINE void finish_streaming() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

// v as it reads back after being stored as S.
template <class S>
GPM_INLINE Vector<Accumulate<S>> round_to(Vector<Accumulate<S>> v) {
  if constexpr (sizeof(S) == sizeof(Accumulate<S>)) return v;
  S buffer[kLanes<Accumulate<S>>];
  store(buffer, v);
  return load(buffer);
}

// -- across lanes ---------------------------------------------------------------------------------

// Sum of all lanes, in one fixed order.
template <class T>
GPM_INLINE T sum_lanes(Vector<T> v) {
  T lanes[kLanes<T>];
  std::memcpy(lanes, &v, sizeof(v));
  for (int half = kLanes<T> / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

template <class T, int Offset>
GPM_INLINE Vector<T> interleave(Vector<T> a, Vector<T> b) {
  constexpr int W = kLanes<T>;
  Mask<T> order{};
  for (int i = 0; i < W; ++i) order[i] = (i % 2) * W + Offset + i / 2;
#if defined(__clang__)
  Vector<T> out;
  for (int i = 0; i < W; ++i) out[i] = order[i] < W ? a[order[i]] : b[order[i] - W];
  return out;
#else
  return __builtin_shuffle(a, b, order);
#endif
}

// Transpose a square of vectors: log2(W) perfect shuffles of the rows.
template <class T>
GPM_INLINE void transpose(Vector<T> (&rows)[kLanes<T>]) {
  constexpr int W = kLanes<T>;
#pragma GCC unroll 8
  for (int step = 1; step < W; step *= 2) {
    Vector<T> next[W];
#pragma GCC unroll 16
    for (int i = 0; i < W / 2; ++i) {
      next[2 * i] = interleave<T, 0>(rows[i], rows[i + W / 2]);
      next[2 * i + 1] = interleave<T, W / 2>(rows[i], rows[i + W / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) rows[i] = next[i];
  }
}

#if defined(__AVX512F__)
// The same for 16 floats with shuffles that stay within 128 bits or move whole ones: twice as many
// of them run in a cycle.
template <>
GPM_INLINE void transpose<float>(Vector<float> (&rows)[16]) {
  __m512 quarter[16];
#pragma GCC unroll 4
  for (int g = 0; g < 16; g += 4) {
    const __m512 low01 = _mm512_unpacklo_ps((__m512)rows[g], (__m512)rows[g + 1]);
    const __m512 high01 = _mm512_unpackhi_ps((__m512)rows[g], (__m512)rows[g + 1]);
    const __m512 low23 = _mm512_unpacklo_ps((__m512)rows[g + 2], (__m512)rows[g + 3]);
    const __m512 high23 = _mm512_unpackhi_ps((__m512)rows[g + 2], (__m512)rows[g + 3]);
    // 128 bits number L of quarter[g + c] are now column 4 L + c of rows g to g + 3.
    quarter[g] = _mm512_shuffle_ps(low01, low23, 0x44);
    quarter[g + 1] = _mm512_shuffle_ps(low01, low23, 0xee);
    quarter[g + 2] = _mm512_shuffle_ps(high01, high23, 0x44);
    quarter[g + 3] = _mm512_shuffle_ps(high01, high23, 0xee);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const __m512 even01 = _mm512_shuffle_f32x4(quarter[c], quarter[4 + c], 0x88);
    const __m512 odd01 = _mm512_shuffle_f32x4(quarter[c], quarter[4 + c], 0xdd);
    const __m512 even23 = _mm512_shuffle_f32x4(quarter[8 + c], quarter[12 + c], 0x88);
    const __m512 odd23 = _mm512_shuffle_f32x4(quarter[8 + c], quarter[12 + c], 0xdd);
    rows[c] = (Vector<float>)_mm512_shuffle_f32x4(even01, even23, 0x88);
    rows[4 + c] = (Vector<float>)_mm512_shuffle_f32x4(odd01, odd23, 0x88);
    rows[8 + c] = (Vector<float>)_mm512_shuffle_f32x4(even01, even23, 0xdd);
    rows[12 + c] = (Vector<float>)_mm512_shuffle_f32x4(odd01, odd23, 0xdd);
  }
}
#endif

// Call f with a value of the stored type.
template <class F>
GPM_INLINE void with_storage(DType dtype, F&& f) {
  switch (dtype) {
    case DType::float64:
      return f(double{});
    case DType::float32:
      return f(float{});
    case DType::bfloat16:
      return f(bfloat16{});
    case DType::float16:
      return f(float16{});
  }
}

}  // namespace gpm::cpu::GPM_SIMD_NAMESPACE
