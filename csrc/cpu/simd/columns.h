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

// columns[c * step + r] = rows[r][c] for r < count; lanes from count to W are zero.
template <class S>
GPM_INLINE void to_columns(const S* first, int64_t stride, int64_t count, int64_t width,
                           Accumulate<S>* columns, int64_t step) {
  constexpr int W = kLanes<Accumulate<S>>;
  for (int64_t r = 0; r < count; ++r)
    for (int64_t c = 0; c < width; ++c) columns[c * step + r] = widen(first[r * stride + c]);
  if (count < W)
    for (int64_t c = 0; c < width; ++c)
      for (int64_t r = count; r < W; ++r) columns[c * step + r] = 0;
}

// rows[r][c] = columns[c * step + r] for r < count.
template <class S>
GPM_INLINE void to_rows(const Accumulate<S>* columns, int64_t step, int64_t count, int64_t width,
                        S* first, int64_t stride) {
  for (int64_t r = 0; r < count; ++r)
    for (int64_t c = 0; c < width; ++c) narrow(columns[c * step + r], first[r * stride + c]);
}

}  // namespace gpm::cpu::GPM_SIMD_NAMESPACE
