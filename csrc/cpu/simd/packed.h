// A set of embeddings laid out for all-pairs work: column by column, padded to whole vectors.
#pragma once

#include "cpu/simd/blocks.h"
#include "cpu/simd/columns.h"
#include "cpu/simd/math.h"

namespace gpm::cpu::GPM_SIMD_NAMESPACE {

// Number c of row r is columns[c * padded + r]; rows past the last are zero.
template <class T>
struct Packed {
  T* columns;
  int64_t padded;

  GPM_INLINE const T* x(int64_t block) const { return columns + 2 * block * padded; }
  GPM_INLINE const T* y(int64_t block) const { return columns + (2 * block + 1) * padded; }
};

template <class S>
Packed<Accumulate<S>> pack(const Batch& v, int64_t batch, int64_t first, int64_t rows,
                           int64_t width, Accumulate<S>*& memory) {
  constexpr int W = kLanes<Accumulate<S>>;
  const int64_t padded = (rows + W - 1) / W * W;
  Packed<Accumulate<S>> packed{memory, padded};
  memory += padded * width;
  for (int64_t r = 0; r < rows; r += W)
    to_columns(row<S>(v, batch, first + r), v.row_stride, at_most(W, rows - r), width,
               packed.columns + r, padded);
  return packed;
}

// The batch entry's scale in the accumulation type, or null.
template <class S>
Accumulate<S>* pack_scale(const Rows& scale, int64_t batch, int64_t blocks,
                          Accumulate<S>*& memory) {
  if (!scale.data) return nullptr;
  Accumulate<S>* packed = memory;
  memory += blocks;
  for (int64_t l = 0; l < blocks; ++l) packed[l] = widen(row<S>(scale, batch)[l]);
  return packed;
}

// Scores of R rows of a from i against W rows of b from j: s(a_i > b_j). The order of the sum is
// the same in every operation, so that they all agree to the last bit.
template <class T, bool kScaled, int R>
GPM_INLINE void score_against(const Packed<T>& a, int64_t i, const Packed<T>& b, int64_t j,
                              const T* scale, int64_t blocks, Vector<T> (&sums)[R]) {
  for (int r = 0; r < R; ++r) sums[r] = Vector<T>{};
  for (int64_t l = 0; l < blocks; ++l) {
    const Vector<T> x = load(b.x(l) + j), y = load(b.y(l) + j);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vector<T> block = skew(broadcast(a.x(l)[i + r]), broadcast(a.y(l)[i + r]), x, y);
      sums[r] = kScaled ? multiply_add(broadcast(scale[l]), block, sums[r]) : sums[r] + block;
    }
  }
}

// What becomes of R vectors of scores: they are stored as they are ...
struct RawScore {
  template <class S>
  struct Of {
    using T = Accumulate<S>;
    template <class Args>
    explicit Of(const Args&) {}

    template <int R>
    GPM_INLINE void operator()(const Vector<T> (&s)[R], Vector<T>* forward,
                               Vector<T>* reverse) const {
      for (int r = 0; r < R; ++r) {
        forward[r] = s[r];
        reverse[r] = -s[r];
      }
    }
    static constexpr bool kConstantSlope = true;
  };
};

// 1 / tau, or the largest number where that is out of range: a score of zero times it is still
// zero.
template <class T>
GPM_INLINE T finite_inverse(double tau) {
  constexpr T kLargest = sizeof(T) == 4 ? T(__FLT_MAX__) : T(__DBL_MAX__);
  const double inverse = 1.0 / tau;
  return inverse < kLargest ? static_cast<T>(inverse) : kLargest;
}

// ... or as probabilities. The smaller one is rounded to storage first and the larger one is its
// complement, so that both add up to one exactly there.
struct Probability {
  template <class S>
  struct Of {
    using T = Accumulate<S>;
    template <class Args>
    explicit Of(const Args& args) : inverse_tau(finite_inverse<T>(args.tau)) {}

    template <int R>
    GPM_INLINE void operator()(const Vector<T> (&s)[R], Vector<T>* forward,
                               Vector<T>* reverse) const {
      Vector<T> small[R];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) small[r] = s[r] * inverse_tau;
      small_sigmoid<T>(small);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const Vector<T> rounded = round_to<S>(small[r]), large = T(1) - rounded;
        forward[r] = s[r] > 0 ? large : rounded;
        reverse[r] = s[r] > 0 ? rounded : large;
      }
    }
    // s = d sigmoid(s / tau) / ds, the same for s and -s.
    template <int R>
    GPM_INLINE void slope(Vector<T> (&s)[R]) const {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) s[r] = s[r] * inverse_tau;
      small_sigmoid<T>(s);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) s[r] = s[r] * (T(1) - s[r]) * inverse_tau;
    }
    static constexpr bool kConstantSlope = false;
    T inverse_tau;
  };
};

// Vectors of scores that are worked on at a time: as many as leave registers for everything else.
template <class T>
inline constexpr int kTogether = GPM_VECTOR_BYTES == 64 ? 8 : (kLanes<T> < 4 ? kLanes<T> : 4);

}  // namespace gpm::cpu::GPM_SIMD_NAMESPACE
