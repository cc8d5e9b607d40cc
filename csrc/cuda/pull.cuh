// Gradients of matrices cut into tiles: a block takes 64 rows of one set, goes over all rows of the
// other, computes scores again and sums in registers. Nothing of the size of the matrix is kept.
#pragma once

#include "cuda/tile.cuh"

namespace gpm::cuda {

// Whose gradient a block computes: rows of `mine`, which score against all rows of `others`.
template <class S>
struct Side {
  Batch mine, others;
  int64_t mine_rows, other_rows;
  bool first;  // mine are rows of the matrix, not columns
  S* grad;

  __device__ __forceinline__ Side(const MatrixBackward& args, bool is_first)
      : mine(is_first ? args.a : args.b),
        others(is_first ? args.b : args.a),
        mine_rows(is_first ? args.rows : args.columns),
        other_rows(is_first ? args.columns : args.rows),
        first(is_first),
        grad(static_cast<S*>(is_first ? args.grad_a : args.grad_b)) {}
};

// Numbers of shared memory that matrix_pull needs.
template <int kColumns>
constexpr int64_t kPullNumbers = kTile * kPitch + kColumns * kPitch + kTileNumbers;

// g[o * kPitch + m] = the gradient of my row m against other row o, zero outside of the matrix;
// with kSubtract it is subtracted. `rows_are_mine`: m counts rows of the gradient, o its columns.
template <class S, bool kSubtract>
__device__ __forceinline__ void load_gradient(const Batch& grad, const Tile& tile,
                                              bool rows_are_mine, Wide<S>* g) {
  constexpr int V = kVector<S>;
  const int64_t row0 = rows_are_mine ? tile.row : tile.column;
  const int64_t column0 = rows_are_mine ? tile.column : tile.row;
  const int rows = rows_are_mine ? tile.rows : tile.columns;
  const int columns = rows_are_mine ? tile.columns : tile.rows;
  const int row_step = rows_are_mine ? 1 : kPitch, column_step = rows_are_mine ? kPitch : 1;
  const auto put = [&](int r, int c, Wide<S> number) {
    Wide<S>& place = g[r * row_step + c * column_step];
    place = kSubtract ? place - number : number;
  };
  if (!is_aligned<S>(grad, tile.batch)) {
    // Number by number, so that neighbouring threads still read neighbouring numbers.
    for (int n = threadIdx.x; n < kTile * kTile; n += kTileThreads) {
      const int r = n / kTile, c = n % kTile;
      const bool inside = r < rows && c < columns;
      put(r, c, inside ? widen(read(row<S>(grad, tile.batch, row0 + r) + column0 + c)) : 0);
    }
    return;
  }
  for (int n = threadIdx.x; n < kTile * (kTile / V); n += kTileThreads) {
    const int r = n / (kTile / V), c = n % (kTile / V) * V;
    Wide<S> numbers[V] = {};
    if (r < rows && c < columns)
      load(row<S>(grad, tile.batch, row0 + r) + column0 + c, columns - c, true, numbers);
#pragma unroll
    for (int i = 0; i < V; ++i) put(r, c + i, numbers[i]);
  }
}

// Threads share the sums of 64 x kColumns numbers: 4 x 4 of them each, over a part of the others.
template <int kColumns>
struct PullWork {
  static constexpr int kParts = kTileThreads / (4 * kColumns);
  int row = threadIdx.x % kStep, column = threadIdx.x / kStep % (kColumns / kEach) * kEach,
      part = threadIdx.x / (4 * kColumns);

  template <class T>
  __device__ __forceinline__ void accumulate(const T* g, const T* others,
                                             T (&sums)[kEach][kEach]) const {
    constexpr int kOthers = kTile / kParts;
    for (int o = part * kOthers; o < (part + 1) * kOthers; ++o) {
      T v[kEach];
#pragma unroll
      for (int q = 0; q < kEach; ++q) v[q] = others[(column + q) * kPitch + o];
#pragma unroll
      for (int p = 0; p < kEach; ++p) {
        const T grad = g[o * kPitch + row + p * kStep];
#pragma unroll
        for (int q = 0; q < kEach; ++q) sums[p][q] = multiply_add(grad, v[q], sums[p][q]);
      }
    }
  }

  template <class T>
  __device__ __forceinline__ void leave(const T (&sums)[kEach][kEach], T* memory) const {
#pragma unroll
    for (int p = 0; p < kEach; ++p)
#pragma unroll
      for (int q = 0; q < kEach; ++q)
        memory[(part * kColumns + column + q) * kTile + row + p * kStep] = sums[p][q];
  }

  // The sum of all parts, always in the same order.
  template <class T>
  __device__ static __forceinline__ T collect(const T* memory, int c, int m) {
    T sum = memory[c * kTile + m];
#pragma unroll
    for (int i = 1; i < kParts; ++i) sum += memory[(i * kColumns + c) * kTile + m];
    return sum;
  }
};

// Gradients of my rows from the sums in memory; and the tile's part of the scale's gradient, summed
// in double, since its terms cancel.
template <class S, int kColumns, bool kSquare>
__device__ __forceinline__ void write_pulled(const MatrixBackward& args, const Side<S>& side,
                                             const Tile& tile, int64_t column, int64_t number,
                                             const Wide<S>* memory, double* contributions) {
  using T = Wide<S>;
  const int blocks = at_most(args.width - column, kColumns) / 2;
  const bool scaled = args.scale.data != nullptr, wants_scale = side.first && args.grad_scale;
  for (int n = threadIdx.x; n < tile.rows * blocks; n += kTileThreads) {
    const int m = n / blocks, l = n % blocks;
    const T with_x = PullWork<kColumns>::collect(memory, 2 * l, m);
    const T with_y = PullWork<kColumns>::collect(memory, 2 * l + 1, m);
    const T weight = scaled ? widen(read(row<S>(args.scale, tile.batch) + column / 2 + l)) : T(1);
    const T sign = side.first ? weight : -weight;
    S* out = side.grad + (tile.batch * side.mine_rows + tile.row + m) * args.width + column + 2 * l;
    write(out, narrow<S>(sign * with_y));
    write(out + 1, narrow<S>(-sign * with_x));
    if (wants_scale) {
      const S* v = row<S>(side.mine, tile.batch, tile.row + m) + column + 2 * l;
      const double x = widen(read(v)), y = widen(read(v + 1));
      contributions[l * kTile + m] = kSquare ? x * with_y : x * with_y - y * with_x;
    }
  }
  if (!wants_scale) return;
  __syncthreads();
  for (int l = threadIdx.x; l < blocks; l += kTileThreads) {
    double sum = 0;
    for (int m = 0; m < tile.rows; ++m) sum += contributions[l * kTile + m];
    const int64_t tiles = ceil_div(args.rows, kTile);
    write(static_cast<double*>(args.workspace) + (tile.batch * tiles + number) * (args.width / 2) +
              column / 2 + l,
          sum);
  }
}

// Registers for two blocks at a time, where numbers take one each: without a limit the compiler
// sometimes aims at more blocks and spills.
template <class S>
constexpr int kPullBlocks = sizeof(S) == 8 ? 1 : 2;

template <class S, template <class> class Output, int kColumns, bool kSquare>
__global__ void __launch_bounds__(kTileThreads, kPullBlocks<S>) matrix_pull(MatrixBackward args) {
  using T = Wide<S>;
  T* g = shared_memory<T>();
  T *others = g + kTile * kPitch, *scratch = others + kColumns * kPitch;
  const int64_t chunks = ceil_div(args.width, kColumns), tall = ceil_div(args.rows, kTile);
  int64_t n = blockIdx.x;
  Tile tile{};
  tile.batch = divide(n, (tall + (kSquare ? 0 : ceil_div(args.columns, kTile))) * chunks);
  const int64_t number = divide(n, chunks), column = n * kColumns;
  const Side<S> side(args, number < tall);
  tile.row = (side.first ? number : number - tall) * kTile;
  tile.rows = at_most(side.mine_rows - tile.row, kTile);
  const int width = at_most(args.width - column, kColumns);
  const bool aligned = is_aligned<S>(side.others, tile.batch);
  const Output<S> output(args.tau);
  const PullWork<kColumns> work;
  T sums[kEach][kEach] = {};
  for (; tile.column < side.other_rows; tile.column += kTile) {
    tile.columns = at_most(side.other_rows - tile.column, kTile);
    __syncthreads();  // the last tile has been read
    load_gradient<S, false>(args.grad, tile, side.first, g);
    if (kSquare) {  // s(i > j) and s(j > i) are one number with two signs
      __syncthreads();
      load_gradient<S, true>(args.grad, tile, false, g);
    }
    stage<S>([&](int r) { return row<S>(side.others, tile.batch, tile.column + r) + column; },
             tile.columns, kTile, width, aligned, others, kPitch);
    if constexpr (!Output<S>::kConstantSlope) {
      T scores[kEach][kEach];
      score_tile<S>(side.mine, side.others, args.scale, args.width, tile, scratch, scores);
#pragma unroll
      for (int p = 0; p < kEach; ++p)
#pragma unroll
        for (int q = 0; q < kEach; ++q)
          g[(threadIdx.x % kStep + q * kStep) * kPitch + threadIdx.x / kStep + p * kStep] *=
              output.slope(scores[p][q]);
    }
    __syncthreads();
    work.accumulate(g, others, sums);
  }
  __syncthreads();
  work.leave(sums, g);
  __syncthreads();
  write_pulled<S, kColumns, kSquare>(args, side, tile, column, number, g,
                                     reinterpret_cast<double*>(others));
}

struct PartialSums {
  DType dtype;
  int64_t batch, tiles, blocks;
  const double* partial;  // (batch, tiles, blocks)
  void* out;              // (batch, blocks)
};

template <class S>
__global__ void __launch_bounds__(kTileThreads) sum_partial(PartialSums args) {
  int64_t l = int64_t(blockIdx.x) * kTileThreads + threadIdx.x;
  const int64_t b = divide(l, args.blocks);
  if (b >= args.batch) return;
  const double* partial = args.partial + b * args.tiles * args.blocks + l;
  double sum = 0;
  for (int64_t tile = 0; tile < args.tiles; ++tile) sum += read(partial + tile * args.blocks);
  write(static_cast<S*>(args.out) + b * args.blocks + l, narrow<S>(static_cast<Wide<S>>(sum)));
}

}  // namespace gpm::cuda
