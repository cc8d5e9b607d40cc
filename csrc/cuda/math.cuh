// The functions that operations need, in the accumulation type.
#pragma once

#include <cmath>

#include "cuda/memory.cuh"

namespace gpm::cuda {

__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }
__device__ __forceinline__ float log_one_plus(float x) { return log1pf(x); }
__device__ __forceinline__ double log_one_plus(double x) { return log1p(x); }
__device__ __forceinline__ float hyperbolic_tangent(float x) { return tanhf(x); }
__device__ __forceinline__ double hyperbolic_tangent(double x) { return tanh(x); }
__device__ __forceinline__ float square_root(float x) { return sqrtf(x); }
__device__ __forceinline__ double square_root(double x) { return sqrt(x); }
__device__ __forceinline__ float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
__device__ __forceinline__ double multiply_add(double a, double b, double c) {
  return fma(a, b, c);
}
__device__ __forceinline__ float magnitude(float x) { return fabsf(x); }
__device__ __forceinline__ double magnitude(double x) { return fabs(x); }

// x_a y_b - y_a x_b with both products rounded alike, so that exchanging a and b gives exactly the
// negative. The library is compiled without contraction, which would fuse one of them.
template <class T>
__device__ __forceinline__ T skew(T xa, T ya, T xb, T yb) {
  return xa * yb - ya * xb;
}

// sigmoid(-|x|): the smaller of the two probabilities, with full relative accuracy.
template <class T>
__device__ __forceinline__ T small_sigmoid(T x) {
  const T e = exponential(-magnitude(x));
  return e / (e + T(1));
}

// Division by tau as two products: the rounding of 1 / tau alone would cost every probability a
// digit that plain division has. Where 1 / tau is out of range it is the largest number: a score of
// zero times it is still zero.
template <class T>
class DivideBy {
 public:
  __device__ __forceinline__ explicit DivideBy(double tau) {
    constexpr double kLargest =
        sizeof(T) == 4 ? 3.40282346638528859812e+38 : 1.79769313486231571e+308;
    const double inverse = 1.0 / tau;
    high_ = static_cast<T>(inverse < kLargest ? inverse : kLargest);
    low_ = inverse < kLargest ? static_cast<T>(inverse - static_cast<double>(high_)) : T(0);
  }
  __device__ __forceinline__ T operator()(T x) const { return multiply_add(x, low_, x * high_); }

 private:
  T high_, low_;
};

}  // namespace gpm::cuda
