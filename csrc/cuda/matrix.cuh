// What the four all-pairs operations share: their arguments, and what becomes of a score.
#pragma once

#include "cuda/stage.cuh"
#include "gpm/cross_probability_matrix.h"
#include "gpm/probability_matrix.h"

namespace gpm::cuda {

// A square matrix is the rectangular one of a set with itself; raw scores have no use for tau.
using Matrix = CrossProbabilityMatrix;
using MatrixBackward = CrossProbabilityMatrixBackward;

inline Matrix as_matrix(const ScoreMatrix& m, double tau = 1) {
  return {{m.dtype, m.batch, m.rows, m.rows, m.width, m.v, m.v, m.scale, m.out, m.out_batch_stride,
           m.out_row_stride},
          tau};
}
inline Matrix as_matrix(const CrossScoreMatrix& m) { return {m, 1}; }

inline MatrixBackward as_matrix(const ScoreMatrixBackward& m, double tau = 1) {
  return {{m.dtype, m.batch, m.rows, m.rows, m.width, m.grad, m.v, m.v, m.scale, m.grad_v, nullptr,
           m.grad_scale, m.workspace},
          tau};
}
inline MatrixBackward as_matrix(const CrossScoreMatrixBackward& m) { return {m, 1}; }

// Both directions of a pair follow from one number: here the score ...
template <class S>
struct RawScore {
  using T = Wide<S>;
  static constexpr bool kConstantSlope = true;

  __device__ explicit RawScore(double) {}
  __device__ __forceinline__ T keep(T s) const { return s; }
  __device__ __forceinline__ T forward(T kept) const { return kept; }
  __device__ __forceinline__ T reverse(T kept) const { return -kept; }
  __device__ __forceinline__ T slope(T) const { return T(1); }
};

// ... and here the smaller probability as it is stored, negative where the first one wins. The
// larger is its complement, so that both add up to one exactly.
template <class S>
struct Probability {
  using T = Wide<S>;
  static constexpr bool kConstantSlope = false;
  DivideBy<T> by_tau;

  __device__ explicit Probability(double tau) : by_tau(tau) {}
  __device__ __forceinline__ T keep(T s) const {
    const T small = widen(narrow<S>(small_sigmoid(by_tau(s))));
    return s > 0 ? -small : small;
  }
  __device__ __forceinline__ T forward(T kept) const { return signbit(kept) ? T(1) + kept : kept; }
  __device__ __forceinline__ T reverse(T kept) const { return signbit(kept) ? -kept : T(1) - kept; }
  // d sigmoid(s / tau) / ds, the same for s and -s.
  __device__ __forceinline__ T slope(T s) const {
    const T small = small_sigmoid(by_tau(s));
    return by_tau(small * (T(1) - small));
  }
};

template <class S>
__device__ __forceinline__ bool is_aligned(const Batch& batch, int64_t b) {
  return is_aligned(row<S>(batch, b, 0), batch.row_stride);
}

}  // namespace gpm::cuda
