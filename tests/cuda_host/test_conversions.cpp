// Conversions round to the nearest number, to the even one of two, as a GPU's do.
#include <cmath>
#include <cstring>
#include <random>

#include "check.h"
#include "cuda/memory.cuh"

using namespace gpm::cuda;

namespace {

uint16_t bits(__nv_bfloat16 x) { return __nv_bfloat16_raw(x).x; }
uint16_t bits(__half x) { return __half_raw(x).x; }

template <class S>
S number(uint16_t bits) {
  S x;
  std::memcpy(static_cast<void*>(&x), &bits, sizeof(x));
  return x;
}

// The value of the bits of a number with `fraction` bits of fraction and `exponent` of exponent.
double value(uint16_t bits, int fraction, int exponent) {
  const int bias = (1 << (exponent - 1)) - 1, e = bits >> fraction & ((1 << exponent) - 1);
  const int f = bits & ((1 << fraction) - 1);
  const double sign = bits >> 15 ? -1 : 1;
  if (e == (1 << exponent) - 1) return f ? NAN : sign * INFINITY;
  return sign * std::ldexp(e ? f + (1 << fraction) : f, (e ? e : 1) - bias - fraction);
}

// All numbers come back, and halfway between neighbours the even one of the two does.
template <class S>
void check_all(int fraction, int exponent) {
  for (int i = 0; i < 1 << 16; ++i) {
    const auto b = static_cast<uint16_t>(i);
    const float x = widen(number<S>(b));
    const double expected = value(b, fraction, exponent);
    if (std::isnan(expected)) {
      CHECK(std::isnan(x) && std::isnan(widen(narrow<S>(x))), "%04x", i);
      continue;
    }
    CHECK(double(x) == expected, "%04x", i);
    CHECK(bits(narrow<S>(x)) == b, "%04x", i);
    const int largest = (((1 << exponent) - 1) << fraction) - 1;
    if ((i & 0x7fff) >= largest) continue;
    const auto middle = static_cast<float>((expected + value(b + 1, fraction, exponent)) / 2);
    CHECK(bits(narrow<S>(middle)) == b + b % 2, "tie above %04x", i);
    CHECK(bits(narrow<S>(std::nextafterf(middle, x))) == b, "below the tie above %04x", i);
    const float beyond = std::nextafterf(middle, x < 0 || b == 0x8000 ? -INFINITY : INFINITY);
    CHECK(bits(narrow<S>(beyond)) == b + 1, "above the tie above %04x", i);
  }
}

float from_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

}  // namespace

TEST(bfloat16_rounds_to_nearest_even) { check_all<__nv_bfloat16>(7, 8); }
TEST(float16_rounds_to_nearest_even) { check_all<__half>(10, 5); }

TEST(known_bits) {
  CHECK(bits(__float2bfloat16_rn(1.0f)) == 0x3f80, "");
  CHECK(bits(__float2bfloat16_rn(from_bits(0x3f808000))) == 0x3f80, "tie to the even one below");
  CHECK(bits(__float2bfloat16_rn(from_bits(0x3f818000))) == 0x3f82, "tie to the even one above");
  CHECK(bits(__float2bfloat16_rn(from_bits(0x00018000))) == 0x0002, "subnormal");
  CHECK(bits(__float2bfloat16_rn(3.4e38f)) == 0x7f80, "overflow");
  CHECK(bits(__float2bfloat16_rn(-0.0f)) == 0x8000, "");
  CHECK(bits(__float2bfloat16_rn(NAN)) == 0x7fff, "");
  CHECK(bits(__float2half_rn(1.0f)) == 0x3c00, "");
  CHECK(bits(__float2half_rn(65519.0f)) == 0x7bff, "the largest");
  CHECK(bits(__float2half_rn(65520.0f)) == 0x7c00, "overflow");
  CHECK(bits(__float2half_rn(std::ldexp(1.0f, -25))) == 0x0000, "half of the smallest");
  CHECK(bits(__float2half_rn(std::ldexp(3.0f, -25))) == 0x0002, "tie of subnormals");
  CHECK(bits(__float2half_rn(-0.0f)) == 0x8000, "");
  CHECK(bits(__float2half_rn(NAN)) == 0x7fff, "");
}
