// exp, log1p and the sigmoid on vectors, accurate to a few units in the last place.
//
// Series, not tables of fitted coefficients: every constant can be checked by hand.
#pragma once

#include "cpu/simd/vector.h"

namespace gpm::cpu::GPM_SIMD_NAMESPACE {

template <class T>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  static constexpr int kTerms = 7;                 // |r| <= ln(2)/2: r^8/8! < 2^-27
  static constexpr float kLowest = -104.0f;        // exp is below half of the smallest subnormal
  static constexpr float kRound = 0x1.8p23f;       // adding and subtracting it rounds to an integer
  static constexpr float kLn2High = 0x1.62e4p-1f;  // few bits, so that n * high is exact
  static constexpr float kLn2Low = 0x1.7f7d1cp-20f;
  static constexpr int kMantissa = 23, kBias = 127;
};
template <>
struct ExpConstants<double> {
  static constexpr int kTerms = 13;  // r^14/14! < 2^-57
  static constexpr double kLowest = -746.0;
  static constexpr double kRound = 0x1.8p52;
  static constexpr double kLn2High = 0x1.62e42fee00000p-1;
  static constexpr double kLn2Low = 0x1.a39ef35793c76p-33;
  static constexpr int kMantissa = 52, kBias = 1023;
};

// 2^n for integer n in the range of normal exponents.
template <class T>
GPM_INLINE Vector<T> power_of_two(Mask<T> n) {
  return bit_cast<Vector<T>>((n + ExpConstants<T>::kBias) << ExpConstants<T>::kMantissa);
}

template <class T>
GPM_INLINE Vector<T> round_to_integer(Vector<T> x) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4)
    return (Vector<T>)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT);
  else
    return (Vector<T>)_mm512_roundscale_pd((__m512d)x, _MM_FROUND_TO_NEAREST_INT);
#else
  return (x + ExpConstants<T>::kRound) - ExpConstants<T>::kRound;
#endif
}

// The larger of x and `least`; NaN stays NaN.
template <class T>
GPM_INLINE Vector<T> at_least(Vector<T> x, T least) {
#if defined(__AVX512F__)
  // The instruction gives its second operand where one is NaN.
  if constexpr (sizeof(T) == 4)
    return (Vector<T>)_mm512_max_ps((__m512)broadcast(least), (__m512)x);
  else
    return (Vector<T>)_mm512_max_pd((__m512d)broadcast(least), (__m512d)x);
#else
  return x < least ? broadcast(least) : x;
#endif
}

// sum = sum * r + 1 / i! for i from First down to 0: Horner's scheme of the exponential series, R
// sums side by side so that one does not wait for the latency of the other.
template <class T, int I, int R>
GPM_INLINE void exp_series(const Vector<T> (&r)[R], Vector<T> (&sum)[R], T coefficient) {
  if constexpr (I == ExpConstants<T>::kTerms) {
    for (int q = 0; q < R; ++q) sum[q] = broadcast(coefficient);
  } else {
    exp_series<T, I + 1>(r, sum, coefficient / (I + 1));
#pragma GCC unroll 8
    for (int q = 0; q < R; ++q) sum[q] = multiply_add(sum[q], r[q], broadcast(coefficient));
  }
}

template <class T>
GPM_INLINE Vector<T> scale_by_power_of_two(Vector<T> x, Vector<T> n) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4)
    return (Vector<T>)_mm512_scalef_ps((__m512)x, (__m512)n);
  else
    return (Vector<T>)_mm512_scalef_pd((__m512d)x, (__m512d)n);
#else
  // In two steps: 2^n itself is below the normal range where the result is.
  const Mask<T> exponent = __builtin_convertvector(n, Mask<T>);
  const Mask<T> half = exponent >> 1;
  return x * power_of_two<T>(half) * power_of_two<T>(exponent - half);
#endif
}

// x = exp(x) for x <= 0; subnormal results are rounded once, NaN stays NaN.
template <class T, int R>
GPM_INLINE void exp_nonpositive(Vector<T> (&x)[R]) {
  using C = ExpConstants<T>;
  Vector<T> n[R], r[R];
#pragma GCC unroll 8
  for (int q = 0; q < R; ++q) {
    x[q] = at_least<T>(x[q], C::kLowest);
    n[q] = round_to_integer<T>(x[q] * T(1.4426950408889634074));
    r[q] = multiply_add(n[q], broadcast(-C::kLn2High), x[q]);
    r[q] = multiply_add(n[q], broadcast(-C::kLn2Low), r[q]);
  }
  exp_series<T, 0>(r, x, T(1));
#pragma GCC unroll 8
  for (int q = 0; q < R; ++q) x[q] = scale_by_power_of_two<T>(x[q], n[q]);
}

// x = sigmoid(-|x|): the smaller of the two probabilities, with full relative accuracy.
template <class T, int R>
GPM_INLINE void small_sigmoid(Vector<T> (&x)[R]) {
#pragma GCC unroll 8
  for (int q = 0; q < R; ++q) x[q] = negative_absolute<T>(x[q]);
  exp_nonpositive<T>(x);
#pragma GCC unroll 8
  for (int q = 0; q < R; ++q) x[q] = x[q] / (x[q] + T(1));
}

// log(1 + e) for e in [0, 1]: 2 atanh(z) with z = e / (2 + e) <= 1/3.
template <class T>
GPM_INLINE Vector<T> log1p_unit(Vector<T> e) {
  constexpr int kTerms = sizeof(T) == 4 ? 8 : 17;  // z^(2n)/(2n+1) below the rounding error
  const Vector<T> z = e / (e + T(2));
  const Vector<T> square = z * z;
  Vector<T> sum = broadcast(T(1.0 / (2 * kTerms + 1)));
#pragma GCC unroll 20
  for (int i = kTerms - 1; i >= 0; --i)
    sum = multiply_add(sum, square, broadcast(T(1.0 / (2 * i + 1))));
  return T(2) * z * sum;
}

// exp(x) - 1 for x <= 0, with full relative accuracy.
template <class T>
GPM_INLINE Vector<T> expm1_nonpositive(Vector<T> x) {
  using C = ExpConstants<T>;
  x = at_least<T>(x, C::kLowest);
  const Vector<T> n = round_to_integer<T>(x * T(1.4426950408889634074));
  Vector<T> r[1] = {multiply_add(n, broadcast(-C::kLn2High), x)}, series[1];
  r[0] = multiply_add(n, broadcast(-C::kLn2Low), r[0]);
  exp_series<T, 1>(r, series, T(1));  // (exp(r) - 1) / r
  const Vector<T> power = scale_by_power_of_two<T>(broadcast(T(1)), n);
  return multiply_add(power, r[0] * series[0], power - T(1));
}

// tanh(x) = (1 - e) / (1 + e) with e = exp(-2 |x|), without the cancellation of small x.
template <class T>
GPM_INLINE Vector<T> hyperbolic_tangent(Vector<T> x) {
  const Vector<T> m = expm1_nonpositive<T>(T(2) * negative_absolute<T>(x));
  const Vector<T> magnitude = -m / (m + T(2));
  return x < 0 ? -magnitude : magnitude;
}

}  // namespace gpm::cpu::GPM_SIMD_NAMESPACE
