#include "gpm/normalize.h"

#include "cpu/simd/columns.h"

namespace gpm::cpu::GPM_SIMD_NAMESPACE {
namespace {

// Exponent range in which the sum of squares of a row neither overflows nor loses digits.
template <class T>
inline constexpr T kSafeHigh = sizeof(T) == 4 ? T(1e30) : T(1e290);
template <class T>
inline constexpr T kSafeLow = sizeof(T) == 4 ? T(1e-24) : T(1e-270);
template <class T>
inline constexpr int kLeastExponent = sizeof(T) == 4 ? -125 : -1021;

template <class S>
Accumulate<S> sum_of_products(const S* a, const S* b, int64_t width) {
  using T = Accumulate<S>;
  constexpr int W = kLanes<T>;
  Vector<T> sum{};
  int64_t c = 0;
  for (; c + W <= width; c += W) sum = multiply_add(load(a + c), load(b + c), sum);
  if (c < width) {
    const int64_t rest = width - c;
    sum = multiply_add(load_partial(a + c, rest), load_partial(b + c, rest), sum);
  }
  return sum_lanes<T>(sum);
}

// Norm of a row as unit * norm with unit a power of two; unit is 1 unless squares leave the range.
template <class T>
struct Norm {
  T unit, norm;
};

template <class S>
Norm<Accumulate<S>> norm_of(const S* x, int64_t width) {
  using T = Accumulate<S>;
  const T square = sum_of_products(x, x, width);
  if (square >= kSafeLow<T> && square <= kSafeHigh<T>) return {T(1), square_root(square)};
  T largest = 0;
  for (int64_t c = 0; c < width; ++c) {
    const T value = widen(x[c]), magnitude = value < 0 ? -value : value;
    if (!(magnitude <= largest)) largest = magnitude;
  }
  if (!(largest > 0) || !__builtin_isfinite(largest)) return {T(1), square_root(square)};
  int exponent;
  __builtin_frexp(largest, &exponent);
  // So that the inverse is in range too; squares of the rest of a row of subnormals still are.
  if (exponent < kLeastExponent<T>) exponent = kLeastExponent<T>;
  const T unit = __builtin_ldexp(1.0, exponent - 1), inverse = __builtin_ldexp(1.0, 1 - exponent);
  T sum = 0;
  for (int64_t c = 0; c < width; ++c) {
    const T scaled = widen(x[c]) * inverse;
    sum += scaled * scaled;
  }
  return {unit, square_root(sum)};
}

template <class S>
void forward(const Normalize& args, int64_t begin, int64_t end) {
  using T = Accumulate<S>;
  constexpr int W = kLanes<T>;
  for (int64_t r = begin; r < end; ++r) {
    const S* x = row<S>(args.x, r);
    S* out = static_cast<S*>(args.out) + r * args.width;
    const auto [unit, norm] = norm_of(x, args.width);
    const T eps = args.eps;
    // Two factors: their product may leave the range where the result does not.
    const bool clamped = !(double(unit) * double(norm) > double(eps)) && norm == norm;
    const T first = clamped ? T(1) : T(1) / unit;
    const T second = clamped ? eps : norm;
    int64_t c = 0;
    for (; c + W <= args.width; c += W) store(out + c, load(x + c) * first / second);
    if (c < args.width)
      store_partial(out + c, load_partial(x + c, args.width - c) * first / second, args.width - c);
  }
}

// With u = x / ||x||: (g - u <u, g>) / ||x||, and g / eps where the norm is below eps.
template <class S>
void backward(const NormalizeBackward& args, int64_t begin, int64_t end) {
  using T = Accumulate<S>;
  constexpr int W = kLanes<T>;
  for (int64_t r = begin; r < end; ++r) {
    const S* x = row<S>(args.x, r);
    const S* grad = row<S>(args.grad, r);
    S* out = static_cast<S*>(args.out) + r * args.width;
    const auto [unit, norm] = norm_of(x, args.width);
    const bool clamped = !(double(unit) * double(norm) > double(args.eps)) && norm == norm;
    const T to_unit = clamped ? T(0) : T(1) / unit;
    const T divisor = clamped ? T(args.eps) : norm;
    Vector<T> sum{};
    for (int64_t c = 0; c < args.width; c += W) {
      const int64_t n = at_most(W, args.width - c);
      const Vector<T> u = load_partial(x + c, n) * to_unit / divisor;
      sum = multiply_add(u, load_partial(grad + c, n), sum);
    }
    const T radial = sum_lanes<T>(sum);
    const T scale = clamped ? T(1) : T(1) / unit;
    for (int64_t c = 0; c < args.width; c += W) {
      const int64_t n = at_most(W, args.width - c);
      const Vector<T> u = load_partial(x + c, n) * to_unit / divisor;
      store_partial(out + c, (load_partial(grad + c, n) - u * radial) / divisor * scale, n);
    }
  }
}

}  // namespace

void normalize(const Normalize& args, int64_t begin, int64_t end, void*) {
  with_storage(args.dtype, [&](auto s) { forward<decltype(s)>(args, begin, end); });
}

void normalize_backward(const NormalizeBackward& args, int64_t begin, int64_t end, void*) {
  with_storage(args.dtype, [&](auto s) { backward<decltype(s)>(args, begin, end); });
}

}  // namespace gpm::cpu::GPM_SIMD_NAMESPACE
