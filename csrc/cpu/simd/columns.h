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

// n <= W columns of W rows at once. Inlined with n == W, all bounds are constants.
template <class S>
GPM_INLINE void tile_to_columns(const S* first, int64_t stride, int64_t n, Accumulate<S>* columns,
                                int64_t step) {
  using T = Accumulate<S>;
  constexpr int W = kLanes<T>;
  Vector<T> tile[W];
  for (int r = 0; r < W; ++r) tile[r] = load_partial(first + r * stride, n);
  transpose<T>(tile);
  for (int64_t i = 0; i < n; ++i) store(columns + i * step, tile[i]);
}

template <class S>
GPM_INLINE void tile_to_rows(const Accumulate<S>* columns, int64_t step, int64_t n, S* first,
                             int64_t stride) {
  using T = Accumulate<S>;
  constexpr int W = kLanes<T>;
  Vector<T> tile[W];
  for (int i = 0; i < W; ++i) tile[i] = load(columns + at_most(i, n - 1) * step);
  transpose<T>(tile);
  for (int r = 0; r < W; ++r) store_partial(first + r * stride, tile[r], n);
}

// columns[c * step + r] = rows[r][c] for r < count <= W; lanes from count to W are zero.
template <class S>
GPM_INLINE void to_columns(const S* first, int64_t stride, int64_t count, int64_t width,
                           Accumulate<S>* columns, int64_t step) {
  using T = Accumulate<S>;
  constexpr int W = kLanes<T>;
  int64_t c = 0;
  if (count == W) {
    for (; c + W <= width; c += W) tile_to_columns(first + c, stride, W, columns + c * step, step);
    if (width - c >= kWorthTransposing<T>) {
      tile_to_columns(first + c, stride, width - c, columns + c * step, step);
      c = width;
    }
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
  if (count == W) {
    for (; c + W <= width; c += W) tile_to_rows(columns + c * step, step, W, first + c, stride);
    if (width - c >= kWorthTransposing<T>) {
      tile_to_rows(columns + c * step, step, width - c, first + c, stride);
      c = width;
    }
  }
  for (int64_t r = 0; r < count; ++r)
    for (int64_t i = c; i < width; ++i) narrow(columns[i * step + r], first[r * stride + i]);
}

}  // namespace gpm::cpu::GPM_SIMD_NAMESPACE
