// Many small matrices: a block takes whole ones, a thread some of their pairs.
#pragma once

#include "cuda/matrix.cuh"

namespace gpm::cuda {

constexpr int kSmallThreads = 256;
constexpr int kSmallPairs = 1024;  // of a block
constexpr int kSmallEach = kSmallPairs / kSmallThreads;
constexpr int kSmallRows = 64;  // of a block, of each set
constexpr int kSmallPitch = kSmallRows + 1;
// Columns of embeddings in shared memory at a time, an even number.
constexpr int kSmallChunk = 16;

inline bool is_small(int64_t rows, int64_t columns) {
  return rows > 0 && columns > 0 && rows <= kSmallRows && columns <= kSmallRows &&
         rows * columns <= kSmallPairs;
}

// Matrices that a block takes together.
inline int64_t small_together(int64_t rows, int64_t columns) {
  const int64_t by_pairs = kSmallPairs / (rows * columns);
  const int64_t by_rows = kSmallRows / (rows > columns ? rows : columns);
  return by_pairs < by_rows ? by_pairs : by_rows;
}

template <class T>
constexpr int64_t small_bytes(bool backward) {
  const int64_t embeddings = (2 * kSmallChunk + kSmallChunk / 2) * kSmallPitch;
  if (!backward) return embeddings * int64_t(sizeof(T));
  return (embeddings + kSmallPairs) * int64_t(sizeof(T)) +
         kSmallRows * kSmallChunk / 2 * int64_t(sizeof(double));
}

// The matrices of a block, and their embeddings in shared memory.
template <class S>
struct SmallSets {
  using T = Wide<S>;
  int64_t first;  // batch entry
  int count, rows, columns;
  T *a, *b, *scale;

  template <class Args>
  __device__ __forceinline__ SmallSets(const Args& args, int together)
      : first(int64_t(blockIdx.x) * together),
        count(at_most(args.batch - first, together)),
        rows(static_cast<int>(args.rows)),
        columns(static_cast<int>(args.columns)),
        a(shared_memory<T>()),
        b(a + kSmallChunk * kSmallPitch),
        scale(b + kSmallChunk * kSmallPitch) {}

  __device__ __forceinline__ T* rest() const { return scale + kSmallChunk / 2 * kSmallPitch; }
  __device__ __forceinline__ int pairs() const { return count * rows * columns; }

  // Columns from `column` on to shared memory, with a barrier before and behind.
  template <class Args>
  __device__ __forceinline__ void stage_chunk(const Args& args, int64_t column, int chunk) const {
    const auto rows_of = [&](const Batch& batch, int each, T* columns_of) {
      const bool aligned =
          is_aligned<S>(batch, 0) && is_aligned(static_cast<const S*>(nullptr), batch.batch_stride);
      const int all = count * each;
      stage<S>([&](int r) { return row<S>(batch, first + r / each, r % each) + column; }, all, all,
               chunk, aligned, columns_of, kSmallPitch);
    };
    __syncthreads();
    rows_of(args.a, rows, a);
    rows_of(args.b, columns, b);
    if (args.scale.data)
      stage<S>([&](int r) { return row<S>(args.scale, first + r) + column / 2; }, count, count,
               chunk / 2, false, scale, kSmallPitch);
    __syncthreads();
  }

  // sums = the scores of pairs threadIdx.x, + kSmallThreads, ...
  template <class Args>
  __device__ __forceinline__ void scores(const Args& args, T (&sums)[kSmallEach]) const {
#pragma unroll
    for (int e = 0; e < kSmallEach; ++e) sums[e] = 0;
    for (int64_t column = 0; column < args.width; column += kSmallChunk) {
      const int chunk = at_most(args.width - column, kSmallChunk);
      stage_chunk(args, column, chunk);
#pragma unroll
      for (int e = 0; e < kSmallEach; ++e) {
        const int n = threadIdx.x + e * kSmallThreads;
        if (n >= pairs()) break;
        const int m = n / (rows * columns), i = n / columns, j = m * columns + n % columns;
        for (int c = 0; c < chunk; c += 2) {
          const int x = c * kSmallPitch, y = x + kSmallPitch;
          const T weight = args.scale.data ? scale[c / 2 * kSmallPitch + m] : T(1);
          sums[e] = multiply_add(weight, skew(a[x + i], a[y + i], b[x + j], b[y + j]), sums[e]);
        }
      }
    }
  }
};

template <class Args>
struct Together : Args {
  int together;
};

template <class S, template <class> class Output>
__global__ void __launch_bounds__(kSmallThreads) small_matrices(Together<Matrix> args) {
  using T = Wide<S>;
  const SmallSets<S> sets(args, args.together);
  T sums[kSmallEach];
  sets.scores(args, sums);
  const Output<S> output(args.tau);
#pragma unroll
  for (int e = 0; e < kSmallEach; ++e) {
    const int n = threadIdx.x + e * kSmallThreads;
    if (n >= sets.pairs()) break;
    const int m = n / (sets.rows * sets.columns), i = n / sets.columns - m * sets.rows;
    S* out = static_cast<S*>(args.out) + (sets.first + m) * args.out_batch_stride +
             i * args.out_row_stride + n % sets.columns;
    write(out, narrow<S>(output.forward(output.keep(sums[e]))));
  }
}

// g = the gradients of this thread's pairs; of square matrices less that of the pair exchanged,
// since s(i > j) and s(j > i) are one number with two signs.
template <class S, bool kSquare>
__device__ __forceinline__ void load_small_gradient(const MatrixBackward& args,
                                                    const SmallSets<S>& sets, Wide<S>* g) {
  using T = Wide<S>;
  T exchanged[kSmallEach];
#pragma unroll
  for (int e = 0; e < kSmallEach; ++e) {
    const int n = threadIdx.x + e * kSmallThreads;
    if (n >= sets.pairs()) break;
    const int m = n / (sets.rows * sets.columns), i = n / sets.columns - m * sets.rows;
    g[n] = widen(read(row<S>(args.grad, sets.first + m, i) + n % sets.columns));
  }
  if constexpr (!kSquare) return;
  __syncthreads();
#pragma unroll
  for (int e = 0; e < kSmallEach; ++e) {
    const int n = threadIdx.x + e * kSmallThreads;
    if (n >= sets.pairs()) break;
    const int i = n / sets.columns % sets.rows, j = n % sets.columns;
    exchanged[e] = g[n - n % (sets.rows * sets.columns) + j * sets.columns + i];
  }
  __syncthreads();
#pragma unroll
  for (int e = 0; e < kSmallEach; ++e) {
    const int n = threadIdx.x + e * kSmallThreads;
    if (n < sets.pairs()) g[n] -= exchanged[e];
  }
}

// Gradients of block l of row r of one set: sums over the other set's rows.
template <class S, bool kSquare>
__device__ __forceinline__ void small_pull(const Together<MatrixBackward>& args,
                                           const SmallSets<S>& sets, const Wide<S>* g, bool first,
                                           int r, int c, int64_t column, double* contributions) {
  using T = Wide<S>;
  const int mine = first ? sets.rows : sets.columns, others = first ? sets.columns : sets.rows;
  const int m = r / mine, step = first ? 1 : sets.columns;
  const T* gradients = g + m * sets.rows * sets.columns + r % mine * (first ? sets.columns : 1);
  const T* x = (first ? sets.b : sets.a) + c * kSmallPitch + m * others;
  T with_x = 0, with_y = 0;
  for (int o = 0; o < others; ++o) {
    with_x = multiply_add(gradients[o * step], x[o], with_x);
    with_y = multiply_add(gradients[o * step], x[o + kSmallPitch], with_y);
  }
  const T weight = args.scale.data ? sets.scale[c / 2 * kSmallPitch + m] : T(1);
  const T sign = first ? weight : -weight;
  S* out = static_cast<S*>(first ? args.grad_a : args.grad_b) +
           (sets.first * mine + r) * args.width + column + c;
  write(out, narrow<S>(sign * with_y));
  write(out + 1, narrow<S>(-sign * with_x));
  if (first && args.grad_scale) {
    const double xa = sets.a[c * kSmallPitch + r], ya = sets.a[(c + 1) * kSmallPitch + r];
    contributions[c / 2 * kSmallRows + r] = kSquare ? xa * with_y : xa * with_y - ya * with_x;
  }
}

template <class S, template <class> class Output, bool kSquare>
__global__ void __launch_bounds__(kSmallThreads)
    small_matrices_backward(Together<MatrixBackward> args) {
  using T = Wide<S>;
  const SmallSets<S> sets(args, args.together);
  T* g = sets.rest();
  // The terms of the scale's gradient, in double since they cancel.
  double* contributions = reinterpret_cast<double*>(g + kSmallPairs);
  const Output<S> output(args.tau);
  T sums[kSmallEach];
  if constexpr (!Output<S>::kConstantSlope) sets.scores(args, sums);
  load_small_gradient<S, kSquare>(args, sets, g);
  if constexpr (!Output<S>::kConstantSlope)
#pragma unroll
    for (int e = 0; e < kSmallEach; ++e) {
      const int n = threadIdx.x + e * kSmallThreads;
      if (n < sets.pairs()) g[n] *= output.slope(sums[e]);
    }
  for (int64_t column = 0; column < args.width; column += kSmallChunk) {
    const int chunk = at_most(args.width - column, kSmallChunk), blocks = chunk / 2;
    sets.stage_chunk(args, column, chunk);
    const int firsts = sets.count * sets.rows, seconds = kSquare ? 0 : sets.count * sets.columns;
    for (int n = threadIdx.x; n < (firsts + seconds) * blocks; n += kSmallThreads) {
      const int r = n / blocks, c = n % blocks * 2;
      small_pull<S, kSquare>(args, sets, g, r < firsts, r < firsts ? r : r - firsts, c, column,
                             contributions);
    }
    if (args.grad_scale == nullptr) continue;
    __syncthreads();
    for (int n = threadIdx.x; n < sets.count * blocks; n += kSmallThreads) {
      const int m = n / blocks, l = n % blocks;
      double sum = 0;
      for (int i = 0; i < sets.rows; ++i) sum += contributions[l * kSmallRows + m * sets.rows + i];
      write(static_cast<S*>(args.grad_scale) + (sets.first + m) * (args.width / 2) + column / 2 + l,
            narrow<S>(static_cast<T>(sum)));
    }
  }
}

}  // namespace gpm::cuda
