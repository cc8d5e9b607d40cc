// Stored numbers, written apart from the library's own conversions, and what rounding may do to
// them.
#pragma once

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "check.h"
#include "gpm/types.h"

namespace test {

using gpm::DType;

// More digits than any kernel has.
using Real = long double;

constexpr DType kDTypes[] = {DType::float64, DType::float32, DType::bfloat16, DType::float16};

inline const char* name(DType dtype) {
  constexpr const char* kNames[] = {"float64", "float32", "bfloat16", "float16"};
  return kNames[static_cast<int>(dtype)];
}

// The type that sums are taken in.
inline DType wide(DType dtype) { return dtype == DType::float64 ? dtype : DType::float32; }

// Binary digits of the significand, and exponent of the smallest normal number.
struct Format {
  int digits, least, bits;
};

inline Format format(DType dtype) {
  constexpr Format kFormats[] = {{53, -1022, 64}, {24, -126, 32}, {8, -126, 16}, {11, -14, 16}};
  return kFormats[static_cast<int>(dtype)];
}

inline Real epsilon(DType dtype) { return std::ldexp(Real(1), 1 - format(dtype).digits); }
inline Real smallest(DType dtype) {
  return std::ldexp(Real(1), format(dtype).least - format(dtype).digits + 1);
}
inline Real largest(DType dtype) { return std::ldexp(2 - epsilon(dtype), 1 - format(dtype).least); }

// The nearest number of the format, ties to the even one.
inline Real rounded(DType dtype, Real x) {
  if (x == 0 || !std::isfinite(x)) return x;
  int exponent;
  std::frexp(x, &exponent);
  const int unit =
      std::max(exponent - format(dtype).digits, format(dtype).least - format(dtype).digits + 1);
  const Real result = std::ldexp(std::nearbyint(std::ldexp(x, -unit)), unit);
  return std::fabs(result) > largest(dtype) ? std::copysign(Real(INFINITY), x) : result;
}

// Bits of a 16-bit format from sign, exponent and significand, by arithmetic only.
inline uint16_t encode(DType dtype, Real x) {
  const Format f = format(dtype);
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const int exponents = 16 - f.digits;  // bits of the exponent field
  const uint16_t infinity = static_cast<uint16_t>(((1 << exponents) - 1) << (f.digits - 1));
  if (std::isnan(x)) return infinity | 1;
  const Real magnitude = std::fabs(rounded(dtype, x));
  if (std::isinf(magnitude)) return sign | infinity;
  if (magnitude < std::ldexp(Real(1), f.least))
    return sign | static_cast<uint16_t>(magnitude / smallest(dtype));
  int exponent;
  const Real fraction = std::frexp(magnitude, &exponent) * 2 - 1;
  return sign | static_cast<uint16_t>((exponent - f.least) << (f.digits - 1)) |
         static_cast<uint16_t>(std::ldexp(fraction, f.digits - 1));
}

inline Real decode(DType dtype, uint16_t bits) {
  const Format f = format(dtype);
  const int exponents = (1 << (16 - f.digits)) - 1;
  const int exponent = (bits & 0x7fff) >> (f.digits - 1);
  const int significand = bits & ((1 << (f.digits - 1)) - 1);
  const Real sign = bits & 0x8000 ? -1 : 1;
  if (exponent == exponents) return significand ? Real(NAN) : sign * Real(INFINITY);
  const Real fraction = std::ldexp(Real(significand), 1 - f.digits);
  return exponent == 0 ? sign * std::ldexp(fraction, f.least)
                       : sign * std::ldexp(1 + fraction, f.least + exponent - 1);
}

inline void write(DType dtype, void* data, int64_t i, Real value) {
  char* at = static_cast<char*>(data) + i * gpm::item_size(dtype);
  const double d = static_cast<double>(value);
  const float f = static_cast<float>(value);
  const uint16_t h = gpm::item_size(dtype) == 2 ? encode(dtype, value) : 0;
  if (dtype == DType::float64) std::memcpy(at, &d, sizeof(d));
  if (dtype == DType::float32) std::memcpy(at, &f, sizeof(f));
  if (gpm::item_size(dtype) == 2) std::memcpy(at, &h, sizeof(h));
}

inline Real read(DType dtype, const void* data, int64_t i) {
  const char* at = static_cast<const char*>(data) + i * gpm::item_size(dtype);
  double d;
  float f;
  uint16_t h;
  if (dtype == DType::float64) return std::memcpy(&d, at, sizeof(d)), d;
  if (dtype == DType::float32) return std::memcpy(&f, at, sizeof(f)), f;
  return std::memcpy(&h, at, sizeof(h)), decode(dtype, h);
}

// A true value and how far from it a kernel may be.
struct Expected {
  Real value = 0, magnitude = 0, error = 0;
  int64_t terms = 0;

  // error: of the term itself, beside what summing costs.
  void add(Real term, Real term_error = 0) {
    value += term;
    magnitude += std::fabs(term);
    error += term_error;
    ++terms;
  }
  // What sums in the accumulation type of `dtype` may lose.
  Real slack(DType dtype) const {
    return error + magnitude * (terms + 8) * epsilon(wide(dtype)) + 2 * smallest(wide(dtype));
  }
  // A sum as one term of another.
  Expected times(Real factor, DType dtype) const {
    Expected product;
    product.add(value * factor, slack(dtype) * std::fabs(factor));
    return product;
  }
  // `got` is stored as `dtype`, and was computed in the accumulation type of it.
  bool accepts(DType dtype, Real got) const {
    const Real allowed = slack(dtype) + std::fabs(value) * epsilon(dtype) / 2 + smallest(dtype);
    if (std::fabs(value) + allowed > largest(dtype) && std::isinf(got)) return got * value > 0;
    return std::fabs(got - value) <= allowed;  // false for NaN
  }
};

#define CHECK_CLOSE(dtype, got, expected)                                                        \
  do {                                                                                           \
    const test::Real got_ = (got);                                                               \
    const test::Expected expected_ = (expected);                                                 \
    CHECK(expected_.accepts(dtype, got_),                                                        \
          "%s: got %.20Lg, expected %.20Lg, off by %.3Lg, slack %.3Lg", test::name(dtype), got_, \
          expected_.value, got_ - expected_.value, expected_.slack(dtype));                      \
  } while (false)

// Repeatable numbers, roughly normal.
class Random {
 public:
  explicit Random(uint64_t seed = 1) : state_(seed * 0x9e3779b97f4a7c15u + 1) {}
  Real uniform() {
    state_ ^= state_ << 13, state_ ^= state_ >> 7, state_ ^= state_ << 17;
    return static_cast<Real>(state_ >> 11) / static_cast<Real>(uint64_t(1) << 53);
  }
  Real normal() { return (uniform() + uniform() + uniform() - Real(1.5)) * 2; }

 private:
  uint64_t state_;
};

}  // namespace test
