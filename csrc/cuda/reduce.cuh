// Sums over threads that work together, the same bits whatever the launch.
#pragma once

#include "cuda/math.cuh"

namespace gpm::cuda {

constexpr int kWarp = 32;

struct Add {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Larger {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return b > a ? b : a;
  }
};

// Neighbouring lanes of a warp, a power of two of them. All get a reduction's result, the same
// bits, since each step adds the same two numbers on both sides.
struct Lanes {
  int count;

  __device__ __forceinline__ int rank() const { return threadIdx.x & (count - 1); }
  // Lanes of other groups may be elsewhere, or gone.
  __device__ __forceinline__ unsigned mask() const {
    return count == kWarp ? ~0u : ((1u << count) - 1) << (threadIdx.x & (kWarp - count));
  }
  template <class T, class Combine>
  __device__ __forceinline__ T reduce(T x, Combine combine) const {
    for (int offset = count / 2; offset > 0; offset /= 2)
      x = combine(x, __shfl_xor_sync(mask(), x, offset));
    return x;
  }
};

// All threads of a block. Needs shared memory for a number of each warp.
struct Block {
  int count;

  __device__ __forceinline__ int rank() const { return threadIdx.x; }
  template <class T, class Combine>
  __device__ __forceinline__ T reduce(T x, Combine combine) const {
    T* parts = shared_memory<T>();
    x = Lanes{kWarp}.reduce(x, combine);
    __syncthreads();  // the parts of the last reduction have been read
    if (threadIdx.x % kWarp == 0) parts[threadIdx.x / kWarp] = x;
    __syncthreads();
    x = parts[0];
    for (int warp = 1; warp < count / kWarp; ++warp) x = combine(x, parts[warp]);
    return x;
  }
};

}  // namespace gpm::cuda
