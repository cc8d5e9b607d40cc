// A set of embeddings laid out for all-pairs work: column by column, padded to whole vectors.
#pragma once

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
    to_columns(row<S>(v, batch, first + r), v.row_stride, at_most(W, rows - r), width, packed.columns + r,
               padded);
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

// Scores of row i of a against W rows of b from j: s(a_i > b_j).
template <class T, bool kScaled>
GPM_INLINE Vector<T> score_against(const Packed<T>& a, int64_t i, const Packed<T>& b, int64_t j,
                                   const T* scale, int64_t blocks) {
  Vector<T> sum{};
  for (int64_t l = 0; l < blocks; ++l) {
    const Vector<T> block = broadcast(a.x(l)[i]) * load(b.y(l) + j) -
                            broadcast(a.y(l)[i]) * load(b.x(l) + j);
    sum = kScaled ? multiply_add(broadcast(scale[l]), block, sum) : sum + block;
  }
  return sum;
}

// What becomes of a score: it is stored as it is ...
struct RawScore {
  template <class S>
  struct Of {
    using T = Accumulate<S>;
    template <class Args>
    explicit Of(const Args&) {}
    GPM_INLINE void operator()(Vector<T> s, Vector<T>& forward, Vector<T>& reverse) const {
      forward = s;
      reverse = -s;
    }
    GPM_INLINE Vector<T> slope(Vector<T>) const { return broadcast(T(1)); }
    static constexpr bool kConstantSlope = true;
  };
};

// ... or as a probability. The smaller one is rounded to storage first and the larger one is its
// complement, so that both add up to one exactly there.
struct Probability {
  template <class S>
  struct Of {
    using T = Accumulate<S>;
    template <class Args>
    explicit Of(const Args& args) : inverse_tau(static_cast<T>(1.0 / args.tau)) {}
    GPM_INLINE void operator()(Vector<T> s, Vector<T>& forward, Vector<T>& reverse) const {
      const Vector<T> small = round_to<S>(small_sigmoid<T>(s * inverse_tau));
      const Vector<T> large = T(1) - small;
      forward = s > 0 ? large : small;
      reverse = s > 0 ? small : large;
    }
    // d sigmoid(s / tau) / ds, the same for s and -s.
    GPM_INLINE Vector<T> slope(Vector<T> s) const {
      const Vector<T> small = small_sigmoid<T>(s * inverse_tau);
      return small * (T(1) - small) * inverse_tau;
    }
    static constexpr bool kConstantSlope = false;
    T inverse_tau;
  };
};

}  // namespace gpm::cpu::GPM_SIMD_NAMESPACE
