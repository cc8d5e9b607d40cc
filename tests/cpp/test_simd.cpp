// The building blocks of the kernels, compiled here for one instruction set as kernels are
// (GPM_SIMD_NAMESPACE): conversions of all 16-bit numbers, exp, expm1, log1p, tanh and the
// sigmoid.
#include "cpu/simd/math.h"
#include "memory.h"

using namespace test;

namespace simd = gpm::cpu::GPM_SIMD_NAMESPACE;

namespace {

template <class S>
constexpr DType kDType = sizeof(S) == 8   ? DType::float64
                         : sizeof(S) == 4 ? DType::float32
                                          : DType::bfloat16;
template <>
constexpr DType kDType<simd::float16> = DType::float16;

template <class S>
S from_bits(int bits) {
  S s;
  s.bits = static_cast<uint16_t>(bits);
  return s;
}

bool same(Real a, Real b) {
  return std::isnan(a) ? std::isnan(b) : a == b && std::signbit(a) == std::signbit(b);
}

// All 65536 numbers, one by one and by the vector, there and back.
template <class S>
void round_trip() {
  constexpr int W = simd::kLanes<float>;
  at_case("%s", name(kDType<S>));
  for (int first = 0; first < 65536; first += W) {
    S stored[W], back[W];
    float values[W];
    for (int i = 0; i < W; ++i) stored[i] = from_bits<S>(first + i);
    const simd::Vector<float> vector = simd::load(stored);
    simd::store(back, vector);
    std::memcpy(values, &vector, sizeof(values));
    for (int i = 0; i < W; ++i) {
      const Real expected = decode(kDType<S>, static_cast<uint16_t>(first + i));
      CHECK(same(expected, simd::widen(stored[i])), "%04x: %Lg", first + i, expected);
      CHECK(same(expected, values[i]), "%04x: %Lg in a vector", first + i, expected);
      S narrowed;
      simd::narrow(simd::widen(stored[i]), narrowed);
      if (std::isnan(expected)) {
        CHECK(std::isnan(decode(kDType<S>, narrowed.bits)), "%04x", first + i);
        CHECK(std::isnan(decode(kDType<S>, back[i].bits)), "%04x in a vector", first + i);
      } else {
        CHECK(narrowed.bits == first + i, "%04x: back as %04x", first + i, narrowed.bits);
        CHECK(back[i].bits == first + i, "%04x: back as %04x in a vector", first + i, back[i].bits);
      }
    }
  }
}

// Floats around every number of the format and around the middle between it and the next.
template <class S>
void nearest_even() {
  constexpr int W = simd::kLanes<float>;
  at_case("%s", name(kDType<S>));
  std::vector<float> inputs;
  const auto add_around = [&](Real middle) {
    const float x = static_cast<float>(middle);
    for (const float y : {std::nextafterf(x, -INFINITY), x, std::nextafterf(x, INFINITY)})
      inputs.push_back(y), inputs.push_back(-y);
  };
  for (int bits = 0; bits < 0x7fff; ++bits) {
    const Real low = decode(kDType<S>, static_cast<uint16_t>(bits));
    if (!std::isfinite(low)) break;
    Real high = decode(kDType<S>, static_cast<uint16_t>(bits + 1));
    if (std::isinf(high)) high = 2 * low - decode(kDType<S>, static_cast<uint16_t>(bits - 1));
    add_around(low);
    add_around(low / 2 + high / 2);
  }
  for (const float x : {FLT_MAX, INFINITY, FLT_MIN, FLT_TRUE_MIN, 1e-30f}) add_around(x);
  inputs.resize((inputs.size() + W - 1) / W * W);
  for (size_t first = 0; first < inputs.size(); first += W) {
    S stored[W];
    simd::store(stored, simd::load(&inputs[first]));
    for (int i = 0; i < W; ++i) {
      const float x = inputs[first + static_cast<size_t>(i)];
      if (std::isnan(x)) continue;
      const uint16_t expected = encode(kDType<S>, x);
      S single;
      simd::narrow(x, single);
      CHECK(single.bits == expected, "%a: %04x, expected %04x", x, single.bits, expected);
      CHECK(stored[i].bits == expected, "%a: %04x in a vector, expected %04x", x, stored[i].bits,
            expected);
    }
  }
}

// Units in the last place of T between a result and the truth; subnormals have a unit too.
template <class T>
Real ulps(T got, Real truth) {
  int exponent;
  std::frexp(truth, &exponent);
  const Format f = format(kDType<T>);
  const int unit =
      truth == 0 ? f.least - f.digits + 1 : std::max(exponent - f.digits, f.least - f.digits + 1);
  return std::fabs(got - truth) / std::ldexp(Real(1), unit);
}

// The largest error of f over a grid of [low, high], in units of the last place.
template <class T, class F, class Truth>
Real worst(Real low, Real high, F f, Truth truth) {
  constexpr int W = simd::kLanes<T>, kPoints = 1 << 18;
  Real most = 0;
  for (int first = 0; first < kPoints; first += W) {
    T x[W], y[W];
    for (int i = 0; i < W; ++i)
      x[i] = static_cast<T>(low + (high - low) * (first + i) / (kPoints - 1));
    simd::store(y, f(simd::load(x)));
    for (int i = 0; i < W; ++i) {
      const Real error = ulps(y[i], truth(x[i]));
      if (!(error <= most)) most = error;
    }
  }
  return most;
}

template <class T>
simd::Vector<T> exp_of(simd::Vector<T> x) {
  simd::Vector<T> v[1] = {x};
  simd::exp_nonpositive<T>(v);
  return v[0];
}

template <class T>
simd::Vector<T> sigmoid_of(simd::Vector<T> x) {
  simd::Vector<T> v[1] = {x};
  simd::small_sigmoid<T>(v);
  return v[0];
}

template <class T>
simd::Vector<T> log1p_of(simd::Vector<T> x) {
  return simd::log1p_unit<T>(x);
}

template <class T>
simd::Vector<T> expm1_of(simd::Vector<T> x) {
  return simd::expm1_nonpositive<T>(x);
}

template <class T>
simd::Vector<T> tanh_of(simd::Vector<T> x) {
  return simd::hyperbolic_tangent<T>(x);
}

// Both lose no digits near zero, where they are differences of numbers near one.
template <class T>
void accuracy_near_zero() {
  at_case("%s", name(kDType<T>));
  for (const Real low : {Real(-1e-6), Real(-0.4), Real(-3), Real(-110)}) {
    const Real m = worst<T>(low, 0, expm1_of<T>, [](Real x) { return std::expm1(x); });
    const Real t = worst<T>(low, -low, tanh_of<T>, [](Real x) { return std::tanh(x); });
    std::printf("       %s from %Lg: expm1 %.2Lf ulps, tanh %.2Lf ulps\n", check::context.c_str(),
                low, m, t);
    CHECK(m <= 3, "expm1 is off by %Lg ulps", m);
    CHECK(t <= 4, "tanh is off by %Lg ulps", t);
  }
  const T nan = static_cast<T>(NAN), infinity = static_cast<T>(INFINITY);
  CHECK(std::isnan(tanh_of<T>(simd::broadcast(nan))[0]), "tanh(NaN) is a number");
  CHECK(tanh_of<T>(simd::broadcast(infinity))[0] == 1, "tanh(inf) is not 1");
  CHECK(tanh_of<T>(simd::broadcast(-infinity))[0] == -1, "tanh(-inf) is not -1");
}

template <class T>
void accuracy(Real lowest) {
  at_case("%s", name(kDType<T>));
  const auto exponential = [](Real x) { return std::exp(x); };
  const auto small = [](Real x) { return std::exp(-std::fabs(x)) / (1 + std::exp(-std::fabs(x))); };
  for (const Real low : {Real(-1), lowest / 8, lowest}) {
    const Real e = worst<T>(low, 0, exp_of<T>, exponential);
    const Real s = worst<T>(low, -low, sigmoid_of<T>, small);
    std::printf("       %s from %Lg: exp %.2Lf ulps, sigmoid %.2Lf ulps\n", check::context.c_str(),
                low, e, s);
    CHECK(e <= 1.5L, "exp is off by %Lg ulps", e);
    CHECK(s <= 3, "the sigmoid is off by %Lg ulps", s);
  }
  const Real l = worst<T>(0, 1, log1p_of<T>, [](Real x) { return std::log1p(x); });
  std::printf("       %s: log1p %.2Lf ulps\n", check::context.c_str(), l);
  CHECK(l <= 4, "log1p is off by %Lg ulps", l);

  const T nan = static_cast<T>(NAN), infinity = static_cast<T>(INFINITY);
  CHECK(std::isnan(exp_of<T>(simd::broadcast(nan))[0]), "exp(NaN) is a number");
  CHECK(std::isnan(sigmoid_of<T>(simd::broadcast(nan))[0]), "sigmoid(NaN) is a number");
  CHECK(exp_of<T>(simd::broadcast(-infinity))[0] == 0, "exp(-inf) is not 0");
  CHECK(exp_of<T>(simd::broadcast(T(0)))[0] == 1, "exp(0) is not 1");
  CHECK(sigmoid_of<T>(simd::broadcast(T(0)))[0] == T(0.5), "sigmoid(0) is not 0.5");
  CHECK(sigmoid_of<T>(simd::broadcast(infinity))[0] == 0, "sigmoid(-inf) is not 0");
}

template <class T>
void transposes() {
  constexpr int W = simd::kLanes<T>;
  simd::Vector<T> rows[W];
  for (int r = 0; r < W; ++r)
    for (int c = 0; c < W; ++c) rows[r][c] = static_cast<T>(r * W + c);
  simd::transpose<T>(rows);
  for (int r = 0; r < W; ++r)
    for (int c = 0; c < W; ++c) CHECK(rows[r][c] == c * W + r, "(%d, %d)", r, c);
}

}  // namespace

TEST(bfloat16_round_trip) { round_trip<simd::bfloat16>(); }
TEST(float16_round_trip) { round_trip<simd::float16>(); }
TEST(bfloat16_nearest_even) { nearest_even<simd::bfloat16>(); }
TEST(float16_nearest_even) { nearest_even<simd::float16>(); }
TEST(float_accuracy) { accuracy<float>(-106); }
TEST(double_accuracy) { accuracy<double>(-747); }
TEST(float_accuracy_near_zero) { accuracy_near_zero<float>(); }
TEST(double_accuracy_near_zero) { accuracy_near_zero<double>(); }
TEST(transpose) { transposes<float>(), transposes<double>(); }
