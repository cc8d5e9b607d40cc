// From rows in memory to columns in registers and back.
//
// A tile of W rows (W the lanes of a vector) is held column by column: one vector holds the same
// coordinate of W rows, so that each lane computes one pair.
#pragma once

#include "cpu/simd/vector.h"

namespace gpm::cpu::GPM_SIMD_NAMESPACE {

GPM_INLINE int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }

template <class S>
GPM_INLINE const S* row(const Rows& rows, int64_t r) {
  return static_cast<const S*>(rows.data) + r * rows.stride;
}

template <class S>
GPM_INLINE const S* row(const Batch& batch, int64_t b, int64_t r) {
  return static_cast<const S*>(batch.data) + b * batch.batch_stride + r * batch.row_stride;
}

// Runs of fewer columns than this are moved number by number: a transposition moves W of them.
template <class T>
inline constexpr int kWorthTransposing = kLanes<T> / 2;

// columns[c * step + r] = rows[r][c] for r < count <= W; lanes from count to W are zero.
template <class S>
GPM_INLINE void to_columns(const S* first, int64_t stride, int64_t count, int64_t width,
                           Accumulate<S>* columns, int64_t step) {
  using T = Accumulate<S>;
  constexpr int W = kLanes<T>;
  int64_t c = 0;
  while (count == W && width - c >= kWorthTransposing<T>) {
    const int64_t n = at_most(W, width - c);
    Vector<T> tile[W];
    for (int r = 0; r < W; ++r) tile[r] = load_partial(first + r * stride + c, n);
    transpose<T>(tile);
    for (int64_t i = 0; i < n; ++i) store(columns + (c + i) * step, tile[i]);
    c += n;
  }
  if (c == width) return;
  for (int64_t r = 0; r < count; ++r)
    for (int64_t i = c; i < width; ++i) columns[i * step + r] = widen(first[r * stride + i]);
  if (count < W)
    for (int64_t i = c; i < width; ++i)
      for (int64_t r = count; r < W; ++r) columns[i * step + r] = 0;
}

// rows[r][c] = columns[c * step + r] for r < count <= W.
template <class S>
GPM_INLINE void to_rows(const Accumulate<S>* columns, int64_t step, int64_t count, int64_t width,
                        S* first, int64_t stride) {
  using T = Accumulate<S>;
  constexpr int W = kLanes<T>;
  int64_t c = 0;
  while (count == W && width - c >= kWorthTransposing<T>) {
    const int64_t n = at_most(W, width - c);
    Vector<T> tile[W] = {};
    for (int64_t i = 0; i < n; ++i) tile[i] = load(columns + (c + i) * step);
    transpose<T>(tile);
    for (int r = 0; r < W; ++r) store_partial(first + r * stride + c, tile[r], n);
    c += n;
  }
  for (int64_t r = 0; r < count; ++r)
    for (int64_t i = c; i < width; ++i) narrow(columns[i * step + r], first[r * stride + i]);
}

}  // namespace gpm::cpu::GPM_SIMD_NAMESPACE
