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
  static constexpr int kTerms = 7;             // |r| <= ln(2)/2: r^8/8! < 2^-27
  static constexpr float kLowest = -104.0f;    // exp is below half of the smallest subnormal
  static constexpr float kRound = 0x1.8p23f;   // adding and subtracting it rounds to an integer
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

// exp(x) for x <= 0; subnormal results are rounded once, NaN stays NaN.
template <class T>
GPM_INLINE Vector<T> exp_nonpositive(Vector<T> x) {
  using C = ExpConstants<T>;
  x = x < C::kLowest ? broadcast(C::kLowest) : x;
  const Vector<T> n = (x * T(1.4426950408889634074) + C::kRound) - C::kRound;
  Vector<T> r = multiply_add(n, broadcast(-C::kLn2High), x);
  r = multiply_add(n, broadcast(-C::kLn2Low), r);
  Vector<T> sum = broadcast(T(1));  // Horner's scheme of sum_i r^i / i!
#pragma GCC unroll 16
  for (int i = C::kTerms; i > 0; --i) sum = multiply_add(sum, r * T(1.0 / i), broadcast(T(1)));
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4)
    return (Vector<T>)_mm512_scalef_ps((__m512)sum, (__m512)n);
  else
    return (Vector<T>)_mm512_scalef_pd((__m512d)sum, (__m512d)n);
#else
  // In two steps: 2^n itself is below the normal range where the result is.
  const Mask<T> exponent = __builtin_convertvector(n, Mask<T>);
  const Mask<T> half = exponent >> 1;
  return sum * power_of_two<T>(half) * power_of_two<T>(exponent - half);
#endif
}

// sigmoid(-|x|): the smaller of the two probabilities, with full relative accuracy.
template <class T>
GPM_INLINE Vector<T> small_sigmoid(Vector<T> x) {
  const Vector<T> e = exp_nonpositive<T>(-absolute<T>(x));
  return e / (e + T(1));
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

}  // namespace gpm::cpu::GPM_SIMD_NAMESPACE
