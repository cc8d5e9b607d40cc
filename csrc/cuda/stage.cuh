// From rows in global memory to columns in shared memory.
//
// Threads of a warp load neighbouring vectors, whatever the width of a row, and then each reads the
// numbers of a row of its own: column by column, without conflicts of banks.
#pragma once

#include "cuda/math.cuh"

namespace gpm::cuda {

// columns[c * pitch + r] = number c of the row at `at(r)`, zero for r from `count` to `rows`. Every
// thread of the block takes part. `aligned`: whether all rows may be read 128 bits at a time.
template <class S, class At>
__device__ __forceinline__ void stage(const At& at, int count, int rows, int width, bool aligned,
                                      Wide<S>* columns, int pitch) {
  constexpr int V = kVector<S>;
  const int vectors = (width + V - 1) / V;
  for (int n = threadIdx.x; n < rows * vectors; n += blockDim.x) {
    const int r = n / vectors, c = n % vectors * V;
    Wide<S> numbers[V] = {};
    if (r < count) load(at(r) + c, width - c, aligned, numbers);
#pragma unroll
    for (int i = 0; i < V; ++i)
      if (c + i < width) columns[(c + i) * pitch + r] = numbers[i];
  }
}

__device__ __forceinline__ int at_most(int64_t n, int most) {
  return n < most ? static_cast<int>(n) : most;
}

}  // namespace gpm::cuda
