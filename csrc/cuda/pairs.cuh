// Scores of pairs of rows and their gradients.
#pragma once

#include "cuda/stage.cuh"

namespace gpm::cuda {

// Pairs of a block, and its threads.
constexpr int kPairs = 128;
constexpr int kPairPitch = kPairs + 1;
// Columns of embeddings in shared memory at a time, an even number.
constexpr int kChunk = 16;

// a, b (rows, width), scale (rows, width / 2) or absent.
template <class S>
struct Pairs {
  Rows a, b, scale;
  int64_t rows, width;

  __device__ __forceinline__ bool aligned(const Rows& rows) const {
    return is_aligned(static_cast<const S*>(rows.data), rows.stride);
  }
};

// Bytes of shared memory that score_pairs needs.
template <class S>
int64_t pairs_bytes(int64_t width, const Rows& scale) {
  const int64_t embeddings = width < kChunk ? width : kChunk;
  const int64_t columns = 2 * embeddings + (scale.data ? embeddings / 2 : 0);
  return columns * kPairPitch * int64_t(sizeof(Wide<S>));
}

// Score of the pair `first` + threadIdx.x, block by block in the order of the definition, so that
// all operations agree on it to the last bit. Every thread of the block takes part.
template <class S>
__device__ __forceinline__ Wide<S> score_pairs(const Pairs<S>& pairs, int64_t first) {
  using T = Wide<S>;
  T* a = shared_memory<T>();
  T* b = a + at_most(pairs.width, kChunk) * kPairPitch;
  T* scale = b + at_most(pairs.width, kChunk) * kPairPitch;
  const int count = at_most(pairs.rows - first, kPairs);
  const bool a_aligned = pairs.aligned(pairs.a), b_aligned = pairs.aligned(pairs.b);
  const bool scale_aligned = pairs.aligned(pairs.scale), scaled = pairs.scale.data != nullptr;
  T sum = 0;
  for (int64_t column = 0; column < pairs.width; column += kChunk) {
    const int width = at_most(pairs.width - column, kChunk);
    if (column > 0) __syncthreads();  // the last columns have been read
    const auto from = [&](const Rows& rows, int64_t c) {
      return [&rows, c, first](int r) { return row<S>(rows, first + r) + c; };
    };
    stage<S>(from(pairs.a, column), count, count, width, a_aligned, a, kPairPitch);
    stage<S>(from(pairs.b, column), count, count, width, b_aligned, b, kPairPitch);
    if (scaled)
      stage<S>(from(pairs.scale, column / 2), count, count, width / 2, scale_aligned, scale,
               kPairPitch);
    __syncthreads();
    if (int(threadIdx.x) < count)
      for (int l = 0; l < width / 2; ++l) {
        const int x = 2 * l * kPairPitch + threadIdx.x, y = x + kPairPitch;
        const T block = skew(a[x], a[y], b[x], b[y]);
        sum = scaled ? multiply_add(scale[l * kPairPitch + threadIdx.x], block, sum) : sum + block;
      }
  }
  return sum;
}

// Where gradients of a, b and scale go: (rows, width) and (rows, width / 2), contiguous.
struct PairGradients {
  void *a, *b, *scale;
};

// Gradients of V columns from c on of pair r, given that of its score.
template <class S>
__device__ __forceinline__ void pull_pair(const Pairs<S>& pairs, int64_t r, int64_t c, Wide<S> grad,
                                          const PairGradients& out) {
  using T = Wide<S>;
  constexpr int V = kVector<S>;
  const int64_t rest = pairs.width - c, place = r * pairs.width + c;
  S *out_a = static_cast<S*>(out.a) + place, *out_b = static_cast<S*>(out.b) + place;
  T a[V], b[V];
  load(row<S>(pairs.a, r) + c, rest, pairs.aligned(pairs.a), a);
  load(row<S>(pairs.b, r) + c, rest, pairs.aligned(pairs.b), b);
#pragma unroll
  for (int i = 0; i < V; i += 2) {
    const T xa = a[i], ya = a[i + 1], xb = b[i], yb = b[i + 1];
    T weighted = grad;
    if (pairs.scale.data && i < rest) {
      weighted = grad * widen(read(row<S>(pairs.scale, r) + (c + i) / 2));
      if (out.scale)
        write(static_cast<S*>(out.scale) + (place + i) / 2, narrow<S>(grad * skew(xa, ya, xb, yb)));
    }
    a[i] = weighted * yb, a[i + 1] = -weighted * xb;
    b[i] = -weighted * ya, b[i + 1] = weighted * xa;
  }
  store(out_a, rest, is_aligned(static_cast<S*>(out.a), pairs.width), a);
  store(out_b, rest, is_aligned(static_cast<S*>(out.b), pairs.width), b);
}

}  // namespace gpm::cuda
