// How numbers are read, written and converted.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/launch.cuh"

#if !defined(GPM_CUDA_HOST)
// What assert() calls on a device; a release build would leave assert() itself out.
extern "C" __device__ void __assertfail(const void* message, const void* file, unsigned line,
                                        const void* function, size_t character_size);
#endif

namespace gpm::cuda {

template <class S>
struct WideOf {
  using type = float;
};
template <>
struct WideOf<double> {
  using type = double;
};
// What sums are taken in.
template <class S>
using Wide = typename WideOf<S>::type;

__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }

// Rounded to the nearest S.
template <class S>
__device__ __forceinline__ S narrow(Wide<S> x) {
  return x;
}
template <>
__device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ __forceinline__ __half narrow<__half>(float x) {
  return __float2half_rn(x);
}

// Every access to global memory is one of these two, so that the tests can watch them.
template <class V>
__device__ __forceinline__ V read(const V* p) {
#if defined(GPM_CUDA_HOST)
  cuda_host::note_read(p, sizeof(V));
#endif
  return *p;
}

template <class V>
__device__ __forceinline__ void write(V* p, V value) {
#if defined(GPM_CUDA_HOST)
  cuda_host::note_write(p, sizeof(V));
#endif
  *p = value;
}

// Stops the kernel with a message where what it was given cannot be: the launch is over by the time
// that this is known, so it cannot be an exception of the call.
__device__ __forceinline__ void require(bool condition, const char* what) {
#if defined(GPM_CUDA_HOST)
  if (!condition) cuda_host::fail(what);
#else
  if (!condition) __assertfail(what, __FILE__, __LINE__, __func__, 1);
#endif
}

// Numbers in 128 bits, the most that a thread reads or writes at once.
template <class S>
inline constexpr int kVector = 16 / sizeof(S);

template <class S>
union Packed {
  __device__ __forceinline__ Packed() {}
  uint4 bits;
  S numbers[kVector<S>];
};

// Whether rows that begin at p, `stride` numbers apart, may be accessed 128 bits at a time.
template <class S>
__device__ __forceinline__ bool is_aligned(const S* p, int64_t stride) {
  return (reinterpret_cast<uintptr_t>(p) | static_cast<uintptr_t>(stride * int64_t(sizeof(S)))) %
             16 ==
         0;
}

// out = the numbers at p, zeros past `count` of them.
template <class S>
__device__ __forceinline__ void load(const S* p, int64_t count, bool aligned,
                                     Wide<S> (&out)[kVector<S>]) {
  constexpr int V = kVector<S>;
  if (aligned && count >= V) {
    Packed<S> packed;
    packed.bits = read(reinterpret_cast<const uint4*>(p));
#pragma unroll
    for (int i = 0; i < V; ++i) out[i] = widen(packed.numbers[i]);
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i) out[i] = i < count ? widen(read(p + i)) : Wide<S>(0);
  }
}

// The first `count` numbers of `values`, rounded, to p.
template <class S>
__device__ __forceinline__ void store(S* p, int64_t count, bool aligned,
                                      const Wide<S> (&values)[kVector<S>]) {
  constexpr int V = kVector<S>;
  if (aligned && count >= V) {
    Packed<S> packed;
#pragma unroll
    for (int i = 0; i < V; ++i) packed.numbers[i] = narrow<S>(values[i]);
    write(reinterpret_cast<uint4*>(p), packed.bits);
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i)
      if (i < count) write(p + i, narrow<S>(values[i]));
  }
}

template <class S>
__device__ __forceinline__ const S* row(const Rows& rows, int64_t r) {
  return static_cast<const S*>(rows.data) + r * rows.stride;
}

template <class S>
__device__ __forceinline__ const S* row(const Batch& batch, int64_t b, int64_t r) {
  return static_cast<const S*>(batch.data) + b * batch.batch_stride + r * batch.row_stride;
}

// The quotient, with the remainder in n; 32-bit division, where it will do, is several times
// faster.
__device__ __forceinline__ int64_t divide(int64_t& n, int64_t by) {
  if (n >> 32 == 0 && by >> 32 == 0) {
    const auto dividend = static_cast<unsigned>(n), divisor = static_cast<unsigned>(by);
    n = dividend % divisor;
    return dividend / divisor;
  }
  const int64_t quotient = n / by;
  n -= quotient * by;
  return quotient;
}

__host__ __device__ constexpr int64_t ceil_div(int64_t n, int64_t by) { return (n + by - 1) / by; }

// Call run(S()) with the type that a dtype names.
template <class Run>
void with_storage(DType dtype, Run run) {
  switch (dtype) {
    case DType::float64:
      return run(double());
    case DType::float32:
      return run(float());
    case DType::bfloat16:
      return run(__nv_bfloat16());
    case DType::float16:
      return run(__half());
  }
}

}  // namespace gpm::cuda
