// All pairs between two sets.
#pragma once

#include "cpu/matrices.h"
#include "cpu/simd/pull.h"
#include "gpm/cross_score_matrix.h"

namespace gpm::cpu::GPM_SIMD_NAMESPACE {

// R rows of a unit from row i of it.
template <class S, bool kScaled, int R, class Output>
GPM_INLINE void cross_rows(const CrossScoreMatrix& args, const Output& output,
                           const Packed<Accumulate<S>>& a, int64_t i,
                           const Packed<Accumulate<S>>& b, const Accumulate<S>* scale,
                           const CrossUnits::Unit& unit, int64_t columns, bool streaming) {
  using T = Accumulate<S>;
  constexpr int W = kLanes<T>;
  S* out = static_cast<S*>(args.out) + unit.batch * args.out_batch_stride +
           (unit.row + i) * args.out_row_stride + unit.column;
  for (int64_t j = 0; j < columns; j += W) {
    Vector<T> s[R], forward[R], reverse[R];
    score_against<T, kScaled>(a, i, b, j, scale, args.width / 2, s);
    output(s, forward, reverse);
    for (int r = 0; r < R; ++r) {
      S* p = out + r * args.out_row_stride + j;
      if (columns - j < W)
        store_partial(p, forward[r], columns - j);
      else if (streaming)
        store_streaming(p, forward[r]);
      else
        store(p, forward[r]);
    }
  }
}

template <class S, bool kScaled, class Output>
void cross_units(const CrossScoreMatrix& args, const Output& output, int64_t begin, int64_t end,
                 void* scratch) {
  using T = Accumulate<S>;
  const CrossUnits units(args.rows, args.columns);
  Packed<T> a{}, b{};
  const T* scale = nullptr;
  T* memory = static_cast<T*>(scratch);
  CrossUnits::Unit packed{-1, 0, 0};
  for (int64_t unit = begin; unit < end; ++unit) {
    const CrossUnits::Unit u = units[unit];
    const int64_t rows = at_most(kCrossRows, args.rows - u.row);
    const int64_t columns = at_most(kCrossColumns, args.columns - u.column);
    if (u.batch != packed.batch || u.column != packed.column) {
      memory = static_cast<T*>(scratch);
      b = pack<S>(args.b, u.batch, u.column, columns, args.width, memory);
      scale = pack_scale<S>(args.scale, u.batch, args.width / 2, memory);
      packed = u;
    }
    T* rest = memory;
    a = pack<S>(args.a, u.batch, u.row, rows, args.width, rest);
    const S* out = static_cast<S*>(args.out) + u.batch * args.out_batch_stride;
    const bool streaming =
        may_stream(out, args.batch * args.rows, args.columns, args.out_row_stride, sizeof(S));
    int64_t i = 0;
    for (; i + kTogether<T> <= rows; i += kTogether<T>)
      cross_rows<S, kScaled, kTogether<T>>(args, output, a, i, b, scale, u, columns, streaming);
    for (; i < rows; ++i)
      cross_rows<S, kScaled, 1>(args, output, a, i, b, scale, u, columns, streaming);
    if (streaming) finish_streaming();
  }
}

template <class Output, class Args>
GPM_INLINE void cross(const Args& args, int64_t begin, int64_t end, void* scratch) {
  with_storage(args.dtype, [&](auto s) {
    using S = decltype(s);
    const typename Output::template Of<S> output(args);
    if (args.scale.data)
      cross_units<S, true>(args, output, begin, end, scratch);
    else
      cross_units<S, false>(args, output, begin, end, scratch);
  });
}

// Gradient of W rows of a (kFirst) or of b against all of the other set. A unit is one such tile.
template <class S, bool kScaled, bool kFirst, class Output>
void cross_pull_units(const CrossScoreMatrixBackward& args, const Output& output, int64_t begin,
                      int64_t end, void* scratch, double* partial) {
  using T = Accumulate<S>;
  constexpr int W = kLanes<T>;
  const int64_t blocks = args.width / 2;
  const int64_t own = kFirst ? args.rows : args.columns;
  const int64_t other = kFirst ? args.columns : args.rows;
  const int64_t tiles = (own + W - 1) / W;
  T* sums = static_cast<T*>(scratch);
  T* memory = nullptr;
  Packed<T> others{};
  const T* scale = nullptr;
  int64_t packed = -1;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t b = unit / tiles, i = unit % tiles * W;
    if (b != packed) {
      memory = sums + args.width * W;
      others = pack<S>(kFirst ? args.b : args.a, b, 0, other, args.width, memory);
      scale = pack_scale<S>(args.scale, b, blocks, memory);
      packed = b;
    }
    T* rest = memory;
    const Packed<T> lanes =
        pack<S>(kFirst ? args.a : args.b, b, i, at_most(W, own - i), args.width, rest);
    std::memset(sums, 0, sizeof(T) * static_cast<size_t>(args.width * W));
    for (int64_t j = 0; j < other; j += W) {
      Vector<T> g[W];
      if constexpr (kFirst) {
        load_tile<S>(args.grad, b, i, j, args.rows, args.columns, g);
        transpose<T>(g);
      } else {
        load_tile<S>(args.grad, b, j, i, args.rows, args.columns, g);
      }
      accumulate<T, kScaled>(g, output, lanes, 0, others, j, scale, blocks, sums);
    }
    if (kFirst && partial)
      for (int64_t l = 0; l < blocks; ++l)
        partial[unit * blocks + l] = sum_lanes<T>(load(lanes.x(l)) * load(sums + 2 * l * W) -
                                                  load(lanes.y(l)) * load(sums + (2 * l + 1) * W));
    S* out = static_cast<S*>(kFirst ? args.grad_a : args.grad_b) + (b * own + i) * args.width;
    store_gradient<S>(sums, scale, blocks, kFirst ? T(1) : T(-1), at_most(W, own - i), out);
  }
}

template <class Output, bool kFirst, class Args>
GPM_INLINE void cross_pull(const MatrixPull<Args>& args, int64_t begin, int64_t end,
                           void* scratch) {
  with_storage(args.dtype, [&](auto s) {
    using S = decltype(s);
    const typename Output::template Of<S> output(args);
    if (args.scale.data)
      cross_pull_units<S, true, kFirst>(args, output, begin, end, scratch, args.partial);
    else
      cross_pull_units<S, false, kFirst>(args, output, begin, end, scratch, args.partial);
  });
}

}  // namespace gpm::cpu::GPM_SIMD_NAMESPACE
