// Matrices cut into tiles of 64 x 64 pairs, a tile to a block.
#pragma once

#include "cuda/matrix.cuh"

namespace gpm::cuda {

constexpr int kTile = kGradientRows;
constexpr int kPitch = kTile + 1;  // so that neither rows nor columns of a tile share a bank
constexpr int kTileThreads = 256;
// A thread takes 4 x 4 pairs of a tile, `kStep` apart in both directions.
constexpr int kStep = 16;
constexpr int kEach = kTile / kStep;
// Columns of embeddings in shared memory at a time, an even number.
constexpr int kTileChunk = 8;
// Numbers of shared memory that score_tile needs.
constexpr int kTileNumbers = 2 * kTileChunk * kPitch;

// A tile's place: `rows` rows of a from `row` against `columns` rows of b from `column`.
struct Tile {
  int64_t batch, row, column;
  int rows, columns;
};

// sums = the scores of this thread's pairs, block by block in the order of the definition. Every
// thread of the block takes part. `memory` may be used again after a barrier.
template <class S>
__device__ __forceinline__ void score_tile(const Batch& a, const Batch& b, const Rows& scale,
                                           int64_t width, const Tile& tile, Wide<S>* memory,
                                           Wide<S> (&sums)[kEach][kEach]) {
  using T = Wide<S>;
  T *first = memory, *second = memory + kTileChunk * kPitch;
  const int ty = threadIdx.x / kStep, tx = threadIdx.x % kStep;
  const bool a_aligned = is_aligned<S>(a, tile.batch), b_aligned = is_aligned<S>(b, tile.batch);
#pragma unroll
  for (int p = 0; p < kEach; ++p)
#pragma unroll
    for (int q = 0; q < kEach; ++q) sums[p][q] = 0;
  for (int64_t column = 0; column < width; column += kTileChunk) {
    const int chunk = at_most(width - column, kTileChunk);
    __syncthreads();  // what was in this memory has been read
    stage<S>([&](int r) { return row<S>(a, tile.batch, tile.row + r) + column; }, tile.rows, kTile,
             chunk, a_aligned, first, kPitch);
    stage<S>([&](int r) { return row<S>(b, tile.batch, tile.column + r) + column; }, tile.columns,
             kTile, chunk, b_aligned, second, kPitch);
    __syncthreads();
    for (int c = 0; c < chunk; c += 2) {
      // One times a block, added without rounding in between, is the block added.
      const T weight =
          scale.data ? widen(read(row<S>(scale, tile.batch) + (column + c) / 2)) : T(1);
      const T *x = first + c * kPitch + ty, *other_x = second + c * kPitch + tx;
      T xb[kEach], yb[kEach];
#pragma unroll
      for (int q = 0; q < kEach; ++q)
        xb[q] = other_x[q * kStep], yb[q] = other_x[q * kStep + kPitch];
#pragma unroll
      for (int p = 0; p < kEach; ++p) {
        const T xa = x[p * kStep], ya = x[p * kStep + kPitch];
#pragma unroll
        for (int q = 0; q < kEach; ++q)
          sums[p][q] = multiply_add(weight, skew(xa, ya, xb[q], yb[q]), sums[p][q]);
      }
    }
  }
}

// Writes rows x columns numbers `get(r, c)` to out, neighbouring threads to neighbouring places.
template <class S, class Get>
__device__ __forceinline__ void write_tile(S* out, int64_t stride, int rows, int columns,
                                           const Get& get) {
  constexpr int V = kVector<S>;
  if (is_aligned(out, stride)) {
    for (int n = threadIdx.x; n < rows * (kTile / V); n += kTileThreads) {
      const int r = n / (kTile / V), c = n % (kTile / V) * V;
      if (c >= columns) continue;
      Wide<S> numbers[V];
#pragma unroll
      for (int i = 0; i < V; ++i) numbers[i] = get(r, c + i);
      store(out + r * stride + c, columns - c, true, numbers);
    }
    return;
  }
  for (int n = threadIdx.x; n < rows * kTile; n += kTileThreads) {
    const int r = n / kTile, c = n % kTile;
    if (c < columns) write(out + r * stride + c, narrow<S>(get(r, c)));
  }
}

// Tile number `n` of those on or above the diagonal of `side` x `side`, row by row.
__device__ __forceinline__ void upper_tile(int64_t n, int64_t side, int64_t& row, int64_t& column) {
  const double edge = 2.0 * static_cast<double>(side) + 1;
  row = static_cast<int64_t>((edge - sqrt(edge * edge - 8.0 * static_cast<double>(n))) / 2);
  const auto before = [side](int64_t r) { return r * side - r * (r - 1) / 2; };
  while (row > 0 && before(row) > n) --row;
  while (before(row + 1) <= n) ++row;
  column = row + (n - before(row));
}

template <bool kSquare>
__host__ __device__ int64_t tiles_of(int64_t rows, int64_t columns) {
  const int64_t tall = ceil_div(rows, kTile), wide = ceil_div(columns, kTile);
  return kSquare ? tall * (tall + 1) / 2 : tall * wide;
}

template <class S, template <class> class Output, bool kSquare>
__global__ void __launch_bounds__(kTileThreads) matrix_tiles(Matrix args) {
  using T = Wide<S>;
  T* kept = shared_memory<T>();
  int64_t n = blockIdx.x;
  Tile tile{};
  tile.batch = divide(n, tiles_of<kSquare>(args.rows, args.columns));
  if constexpr (kSquare) {
    upper_tile(n, ceil_div(args.rows, kTile), tile.row, tile.column);
  } else {
    tile.row = divide(n, ceil_div(args.columns, kTile));
    tile.column = n;
  }
  tile.row *= kTile, tile.column *= kTile;
  tile.rows = at_most(args.rows - tile.row, kTile);
  tile.columns = at_most(args.columns - tile.column, kTile);

  T sums[kEach][kEach];
  score_tile<S>(args.a, args.b, args.scale, args.width, tile, kept, sums);
  const Output<S> output(args.tau);
  __syncthreads();
#pragma unroll
  for (int p = 0; p < kEach; ++p)
#pragma unroll
    for (int q = 0; q < kEach; ++q)
      kept[(threadIdx.x / kStep + p * kStep) * kPitch + threadIdx.x % kStep + q * kStep] =
          output.keep(sums[p][q]);
  __syncthreads();
  S* out = static_cast<S*>(args.out) + tile.batch * args.out_batch_stride;
  write_tile(out + tile.row * args.out_row_stride + tile.column, args.out_row_stride, tile.rows,
             tile.columns, [&](int r, int c) { return output.forward(kept[r * kPitch + c]); });
  if (kSquare && tile.row != tile.column)
    write_tile(out + tile.column * args.out_row_stride + tile.row, args.out_row_stride,
               tile.columns, tile.rows,
               [&](int r, int c) { return output.reverse(kept[c * kPitch + r]); });
}

}  // namespace gpm::cuda
