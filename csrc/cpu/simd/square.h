// All pairs of one set: half of them computed, both triangles written.
#pragma once

#include "cpu/matrices.h"
#include "cpu/simd/pull.h"

namespace gpm::cpu::GPM_SIMD_NAMESPACE {

// Which batch entry a thread has packed, so that its next unit need not do it again.
template <class T>
struct SquareState {
  int64_t batch = -1;
  Packed<T> v{};
  T* scale = nullptr;

  template <class S, class Args>
  void prepare(const Args& args, int64_t b, T* memory) {
    if (b == batch) return;
    batch = b;
    v = pack<S>(args.v, b, 0, args.rows, args.width, memory);
    scale = pack_scale<S>(args.scale, b, args.width / 2, memory);
  }
};

// Write W rows of a tile, each clipped to the matrix.
template <class S>
GPM_INLINE void write_tile(const Vector<Accumulate<S>> (&tile)[kLanes<Accumulate<S>>], S* out,
                           int64_t stride, int64_t rows, int64_t columns, bool streaming) {
  constexpr int W = kLanes<Accumulate<S>>;
  if (rows >= W && columns >= W) {
    if (streaming)
      for (int i = 0; i < W; ++i) store_streaming(out + i * stride, tile[i]);
    else
      for (int i = 0; i < W; ++i) store(out + i * stride, tile[i]);
    return;
  }
  for (int i = 0; i < at_most(W, rows); ++i) store_partial(out + i * stride, tile[i], columns);
}

// Tile (i, j) of the upper triangle and its mirror image.
template <class S, bool kScaled, class Output>
GPM_INLINE void square_tile(const ScoreMatrix& args, const Output& output,
                            const SquareState<Accumulate<S>>& state, int64_t i, int64_t j, S* out,
                            bool streaming) {
  using T = Accumulate<S>;
  constexpr int W = kLanes<T>;
  Vector<T> forward[W], reverse[W];
  for (int r = 0; r < W; ++r)
    output(score_against<T, kScaled>(state.v, i + r, state.v, j, state.scale, args.width / 2),
           forward[r], reverse[r]);
  const int64_t stride = args.out_row_stride;
  write_tile<S>(forward, out + i * stride + j, stride, args.rows - i, args.rows - j, streaming);
  if (i == j) return;
  transpose<T>(reverse);
  write_tile<S>(reverse, out + j * stride + i, stride, args.rows - j, args.rows - i, streaming);
}

template <class S, bool kScaled, class Output>
void square_units(const ScoreMatrix& args, const Output& output, int64_t begin, int64_t end,
                  void* scratch) {
  using T = Accumulate<S>;
  constexpr int W = kLanes<T>;
  const SquareUnits units(args.rows);
  SquareState<T> state;
  for (int64_t unit = begin; unit < end; ++unit) {
    const SquareUnits::Unit u = units[unit];
    state.template prepare<S>(args, u.batch, static_cast<T*>(scratch));
    S* out = static_cast<S*>(args.out) + u.batch * args.out_batch_stride;
    const bool streaming =
        may_stream(out, args.batch * args.rows, args.rows, args.out_row_stride, sizeof(S));
    const int64_t row_end = at_most(u.row + kSquareUnit, args.rows);
    const int64_t column_end = at_most(u.column + kSquareUnit, args.rows);
    for (int64_t i = u.row; i < row_end; i += W)
      for (int64_t j = u.row == u.column ? i : u.column; j < column_end; j += W)
        square_tile<S, kScaled>(args, output, state, i, j, out, streaming);
  }
}

template <class Output, class Args>
GPM_INLINE void square(const Args& args, int64_t begin, int64_t end, void* scratch) {
  with_storage(args.dtype, [&](auto s) {
    using S = decltype(s);
    const typename Output::template Of<S> output(args);
    if (args.scale.data)
      square_units<S, true>(args, output, begin, end, scratch);
    else
      square_units<S, false>(args, output, begin, end, scratch);
  });
}

// Gradient of W rows of v: s depends on v_i through row i and column i of the matrix, so the
// gradient that counts is skew, g[j, i] = G[i, j] - G[j, i], here with i in the lanes.
template <class S, bool kScaled, class Output>
void square_pull_units(const ScoreMatrixBackward& args, const Output& output, int64_t begin,
                       int64_t end, void* scratch, double* partial) {
  using T = Accumulate<S>;
  constexpr int W = kLanes<T>;
  const int64_t tiles = (args.rows + W - 1) / W, blocks = args.width / 2;
  T* sums = static_cast<T*>(scratch);
  SquareState<T> state;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t b = unit / tiles, i = unit % tiles * W;
    state.template prepare<S>(args, b, sums + args.width * W);
    std::memset(sums, 0, sizeof(T) * static_cast<size_t>(args.width * W));
    for (int64_t j = 0; j < args.rows; j += W) {
      Vector<T> mirrored[W], g[W];
      load_tile<S>(args.grad, b, i, j, args.rows, args.rows, mirrored);
      transpose<T>(mirrored);
      load_tile<S>(args.grad, b, j, i, args.rows, args.rows, g);
      for (int r = 0; r < W; ++r) g[r] = mirrored[r] - g[r];
      accumulate<T, kScaled>(g, output, state.v, i, state.v, j, state.scale, blocks, sums);
    }
    if (partial)
      for (int64_t l = 0; l < blocks; ++l)
        partial[unit * blocks + l] = sum_lanes<T>(load(state.v.x(l) + i) * load(sums + 2 * l * W));
    S* out = static_cast<S*>(args.grad_v) + (b * args.rows + i) * args.width;
    store_gradient<S>(sums, state.scale, blocks, T(1), at_most(W, args.rows - i), out);
  }
}

template <class Output, class Args>
GPM_INLINE void square_pull(const MatrixPull<Args>& args, int64_t begin, int64_t end,
                            void* scratch) {
  with_storage(args.dtype, [&](auto s) {
    using S = decltype(s);
    const typename Output::template Of<S> output(args);
    if (args.scale.data)
      square_pull_units<S, true>(args, output, begin, end, scratch, args.partial);
    else
      square_pull_units<S, false>(args, output, begin, end, scratch, args.partial);
  });
}

}  // namespace gpm::cpu::GPM_SIMD_NAMESPACE
