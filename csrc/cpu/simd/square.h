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
  for (int r = 0; r < W; r += kTogether<T>) {
    Vector<T> s[kTogether<T>];
    score_against<T, kScaled>(state.v, i + r, state.v, j, state.scale, args.width / 2, s);
    output(s, forward + r, reverse + r);
  }
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
    if (streaming) finish_streaming();
  }
}

// Pairs (i, j) to (i, j + R - 1) of W matrices, one in each lane.
template <class T, bool kScaled, int R, class Output>
GPM_INLINE void small_square_pairs(const Output& output, const T* v, const T* scale, int64_t rows,
                                   int64_t width, int64_t i, int64_t j, T* result) {
  constexpr int W = kLanes<T>;
  Vector<T> s[R] = {}, forward[R], reverse[R];
  for (int64_t c = 0; c < width; c += 2) {
    const T* first = v + (i * width + c) * W;
    const Vector<T> x = load(first), y = load(first + W);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const T* second = v + ((j + r) * width + c) * W;
      const Vector<T> block = skew(x, y, load(second), load(second + W));
      s[r] = kScaled ? multiply_add(load(scale + c / 2 * W), block, s[r]) : s[r] + block;
    }
  }
  output(s, forward, reverse);
  for (int r = 0; r < R; ++r) {
    store(result + (i * rows + j + r) * W, forward[r]);
    store(result + ((j + r) * rows + i) * W, reverse[r]);
  }
}

// Small matrices, W of them at a time: a lane is a batch entry, so every pair is computed just once
// and no lane is idle, however few rows there are. A unit is W batch entries.
template <class S, bool kScaled, class Output>
void small_square_units(const ScoreMatrix& args, const Output& output, int64_t begin, int64_t end,
                        void* scratch) {
  using T = Accumulate<S>;
  constexpr int W = kLanes<T>;
  const int64_t rows = args.rows, width = args.width, blocks = width / 2;
  T* v = static_cast<T*>(scratch);
  T* result = v + rows * width * W;
  T* scale = result + rows * rows * W;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t first = unit * W, count = at_most(W, args.batch - first);
    // Rows that follow each other in memory are one long row: wider runs transpose better.
    const int64_t runs = args.v.row_stride == width ? 1 : rows, run = rows * width / runs;
    for (int64_t r = 0; r < runs; ++r)
      to_columns(row<S>(args.v, first, r), args.v.batch_stride, count, run, v + r * run * W, W);
    if (kScaled) to_columns(row<S>(args.scale, first), args.scale.stride, count, blocks, scale, W);
    for (int64_t i = 0; i < rows; ++i) {
      int64_t j = i;
      for (; j + kTogether<T> <= rows; j += kTogether<T>)
        small_square_pairs<T, kScaled, kTogether<T>>(output, v, scale, rows, width, i, j, result);
      for (; j + 2 <= rows; j += 2)
        small_square_pairs<T, kScaled, 2>(output, v, scale, rows, width, i, j, result);
      if (j < rows) small_square_pairs<T, kScaled, 1>(output, v, scale, rows, width, i, j, result);
    }
    S* out = static_cast<S*>(args.out) + first * args.out_batch_stride;
    if (args.out_row_stride == rows)
      to_rows(result, W, count, rows * rows, out, args.out_batch_stride);
    else
      for (int64_t r = 0; r < rows; ++r)
        to_rows(result + r * rows * W, W, count, rows, out + r * args.out_row_stride,
                args.out_batch_stride);
  }
}

template <class Output, class Args>
GPM_INLINE void square(const Args& args, int64_t begin, int64_t end, void* scratch) {
  with_storage(args.dtype, [&](auto s) {
    using S = decltype(s);
    const typename Output::template Of<S> output(args);
    if (is_small_square(args.batch, args.rows)) {
      if (args.scale.data)
        small_square_units<S, true>(args, output, begin, end, scratch);
      else
        small_square_units<S, false>(args, output, begin, end, scratch);
      return;
    }
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
