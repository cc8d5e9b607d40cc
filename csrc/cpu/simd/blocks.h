// Score of a tile of pairs and its gradients, column by column.
#pragma once

#include "cpu/simd/columns.h"

namespace gpm::cpu::GPM_SIMD_NAMESPACE {

// x_a y_b - y_a x_b with both products rounded alike: exchanging a and b gives exactly the
// negative.
template <class V>
GPM_INLINE V skew(V xa, V ya, V xb, V yb) {
  return xa * yb - ya * xb;
}

// Columns of W rows of a, b and scale: column c of a is a + c * W. scale is null where absent.
template <class T>
struct PairTile {
  T *a, *b, *scale;
};

// Bytes that a PairTile of this width needs, gradients of the three included.
template <class T>
GPM_INLINE void place(PairTile<T>& tile, T*& memory, int64_t width, bool scaled) {
  constexpr int W = kLanes<T>;
  tile.a = memory;
  tile.b = tile.a + width * W;
  tile.scale = scaled ? tile.b + width * W : nullptr;
  memory = tile.b + width * W + (scaled ? width / 2 * W : 0);
}

template <class S>
GPM_INLINE void load_pairs(const Rows& a, const Rows& b, const Rows& scale, int64_t first,
                           int64_t count, int64_t width, const PairTile<Accumulate<S>>& tile) {
  constexpr int W = kLanes<Accumulate<S>>;
  to_columns(row<S>(a, first), a.stride, count, width, tile.a, W);
  to_columns(row<S>(b, first), b.stride, count, width, tile.b, W);
  if (tile.scale) to_columns(row<S>(scale, first), scale.stride, count, width / 2, tile.scale, W);
}

template <class T>
GPM_INLINE Vector<T> score_pairs(const PairTile<T>& tile, int64_t width) {
  constexpr int W = kLanes<T>;
  Vector<T> sum{};
  for (int64_t c = 0; c < width; c += 2) {
    const Vector<T> block = skew<Vector<T>>(load(tile.a + c * W), load(tile.a + (c + 1) * W),
                                            load(tile.b + c * W), load(tile.b + (c + 1) * W));
    sum = tile.scale ? multiply_add(load(tile.scale + c / 2 * W), block, sum) : sum + block;
  }
  return sum;
}

// Columns of the gradients of a, b and scale for the gradient of each pair's score.
template <class T>
GPM_INLINE void pull_pairs(const PairTile<T>& tile, int64_t width, Vector<T> grad,
                           const PairTile<T>& out) {
  constexpr int W = kLanes<T>;
  for (int64_t c = 0; c < width; c += 2) {
    const Vector<T> xa = load(tile.a + c * W), ya = load(tile.a + (c + 1) * W);
    const Vector<T> xb = load(tile.b + c * W), yb = load(tile.b + (c + 1) * W);
    Vector<T> weighted = grad;
    if (tile.scale) {
      weighted = grad * load(tile.scale + c / 2 * W);
      store(out.scale + c / 2 * W, grad * skew<Vector<T>>(xa, ya, xb, yb));
    }
    store(out.a + c * W, weighted * yb);
    store(out.a + (c + 1) * W, -weighted * xb);
    store(out.b + c * W, -weighted * ya);
    store(out.b + (c + 1) * W, weighted * xa);
  }
}

template <class S>
GPM_INLINE void store_pairs(const PairTile<Accumulate<S>>& out, int64_t first, int64_t count,
                            int64_t width, void* grad_a, void* grad_b, void* grad_scale) {
  constexpr int W = kLanes<Accumulate<S>>;
  to_rows(out.a, W, count, width, static_cast<S*>(grad_a) + first * width, width);
  to_rows(out.b, W, count, width, static_cast<S*>(grad_b) + first * width, width);
  if (out.scale)
    to_rows(out.scale, W, count, width / 2, static_cast<S*>(grad_scale) + first * (width / 2),
            width / 2);
}

}  // namespace gpm::cpu::GPM_SIMD_NAMESPACE
