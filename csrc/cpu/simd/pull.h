// Gradients of all-pairs scores: the part that square and rectangular matrices share.
#pragma once

#include "cpu/simd/packed.h"

namespace gpm::cpu::GPM_SIMD_NAMESPACE {

// W x W numbers of the incoming gradient with one row of `out` for each of W rows of it from r,
// lanes its columns from c; zero outside of (rows, columns).
template <class S>
GPM_INLINE void load_tile(const Batch& grad, int64_t b, int64_t r, int64_t c, int64_t rows,
                          int64_t columns, Vector<Accumulate<S>> (&out)[kLanes<Accumulate<S>>]) {
  constexpr int W = kLanes<Accumulate<S>>;
  for (int i = 0; i < W; ++i)
    out[i] = r + i < rows ? load_partial(row<S>(grad, b, r + i) + c, at_most(W, columns - c))
                          : Vector<Accumulate<S>>{};
}

// For W lanes of one set and W rows of the other: add sum_r g_r y_r and sum_r g_r x_r, block by
// block, to sums[2l] and sums[2l + 1] (W numbers each). g_r is turned into the gradient of the raw
// score first, which needs only the score's magnitude.
template <class T, bool kScaled, class Output>
GPM_INLINE void accumulate(Vector<T> (&g)[kLanes<T>], const Output& output, const Packed<T>& lanes,
                           int64_t lane, const Packed<T>& others, int64_t other, const T* scale,
                           int64_t blocks, T* sums) {
  constexpr int W = kLanes<T>;
  if constexpr (!Output::kConstantSlope)
    for (int r = 0; r < W; r += kTogether<T>) {
      Vector<T> s[kTogether<T>];
      score_against<T, kScaled>(others, other + r, lanes, lane, scale, blocks, s);
      output.slope(s);
      for (int q = 0; q < kTogether<T>; ++q) g[r + q] *= s[q];
    }
  for (int64_t l = 0; l < blocks; ++l) {
    Vector<T> with_y = load(sums + 2 * l * W), with_x = load(sums + (2 * l + 1) * W);
#pragma GCC unroll 16
    for (int r = 0; r < W; ++r) {
      with_y = multiply_add(g[r], broadcast(others.y(l)[other + r]), with_y);
      with_x = multiply_add(g[r], broadcast(others.x(l)[other + r]), with_x);
    }
    store(sums + 2 * l * W, with_y);
    store(sums + (2 * l + 1) * W, with_x);
  }
}

// The sums above as gradients of `count` embeddings, rows of out. sign is +1 where the lanes are
// the first argument of the score, -1 where they are the second. Turns sums into gradient columns.
template <class S>
GPM_INLINE void store_gradient(Accumulate<S>* sums, const Accumulate<S>* scale, int64_t blocks,
                               Accumulate<S> sign, int64_t count, S* out) {
  using T = Accumulate<S>;
  constexpr int W = kLanes<T>;
  for (int64_t l = 0; l < blocks; ++l) {
    const T factor = sign * (scale ? scale[l] : T(1));
    store(sums + 2 * l * W, load(sums + 2 * l * W) * factor);
    store(sums + (2 * l + 1) * W, load(sums + (2 * l + 1) * W) * -factor);
  }
  to_rows(sums, W, count, 2 * blocks, out, 2 * blocks);
}

}  // namespace gpm::cpu::GPM_SIMD_NAMESPACE
