// L2 norms of rows, safe from overflow.
#pragma once

#include "cuda/reduce.cuh"

namespace gpm::cuda {

// Range in which a sum of squares neither overflows nor loses digits.
template <class T>
struct NormLimits;
template <>
struct NormLimits<float> {
  static constexpr float kSafeLow = 1e-24f, kSafeHigh = 1e30f;
  static constexpr int kLeastExponent = -126;
};
template <>
struct NormLimits<double> {
  static constexpr double kSafeLow = 1e-270, kSafeHigh = 1e290;
  static constexpr int kLeastExponent = -1022;
};

// A norm as unit * norm with unit a power of two; unit is 1 unless squares leave the range.
template <class T>
struct Norm {
  T unit, norm;

  // NaN is not clamped, it is passed on.
  __device__ __forceinline__ bool clamped(double eps) const {
    return !(double(unit) * double(norm) > eps) && norm == norm;
  }
};

// Norm of `size` numbers, of which `get(c, numbers)` gives V at a time (zeros past the end), by a
// team of threads.
template <class T, int V, class Team, class Get>
__device__ Norm<T> norm_of(int64_t size, const Team& team, const Get& get) {
  using Limits = NormLimits<T>;
  T numbers[V];
  T square = 0;
  for (int64_t c = int64_t(team.rank()) * V; c < size; c += int64_t(team.count) * V) {
    get(c, numbers);
#pragma unroll
    for (int i = 0; i < V; ++i) square = multiply_add(numbers[i], numbers[i], square);
  }
  square = team.reduce(square, Add());
  if (square >= Limits::kSafeLow && square <= Limits::kSafeHigh) return {T(1), square_root(square)};
  T largest = 0;
  for (int64_t c = int64_t(team.rank()) * V; c < size; c += int64_t(team.count) * V) {
    get(c, numbers);
#pragma unroll
    for (int i = 0; i < V; ++i) largest = Larger()(largest, magnitude(numbers[i]));
  }
  largest = team.reduce(largest, Larger());
  if (!(largest > 0) || isinf(largest)) return {T(1), square_root(square)};
  int exponent = ilogb(largest);
  // So that the inverse is in range too; squares of the rest of a row of subnormals still are.
  if (exponent < Limits::kLeastExponent) exponent = Limits::kLeastExponent;
  const T inverse = ldexp(T(1), -exponent);
  square = 0;
  for (int64_t c = int64_t(team.rank()) * V; c < size; c += int64_t(team.count) * V) {
    get(c, numbers);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const T scaled = numbers[i] * inverse;
      square = multiply_add(scaled, scaled, square);
    }
  }
  return {ldexp(T(1), exponent), square_root(team.reduce(square, Add()))};
}

}  // namespace gpm::cuda
