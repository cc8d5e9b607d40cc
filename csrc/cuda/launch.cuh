// The one place where a kernel is launched, and where the GPU differs from its stand-in: everything
// else in csrc/cuda is compiled for the processor too, and runs there in the tests.
#pragma once

#include <stdexcept>
#include <string>

#include "gpm/stream.h"
#include "gpm/types.h"

#if defined(GPM_CUDA_HOST)
#include "cuda_host/runtime.h"
#else
#include <cuda_runtime.h>
#endif

namespace gpm::cuda {

// A block's shared memory, all of it asked for at the launch.
template <class T>
__device__ __forceinline__ T* shared_memory() {
#if defined(GPM_CUDA_HOST)
  return static_cast<T*>(cuda_host::shared_memory());
#else
  extern __shared__ __align__(16) unsigned char memory[];
  return reinterpret_cast<T*>(memory);
#endif
}

// What an error says of a launch.
struct Call {
  struct Size {
    const char* name = nullptr;
    int64_t value = 0;
  };
  const char* op;
  Stream stream;
  DType dtype;
  Size sizes[4] = {};
};

inline std::string describe(const Call& call, const char* error) {
  constexpr const char* kNames[] = {"float64", "float32", "bfloat16", "float16"};
  std::string text = std::string("CUDA kernel of ") + call.op + " could not run on device " +
                     std::to_string(call.stream.device) + ": " + error + " (" +
                     kNames[static_cast<int>(call.dtype)];
  for (const auto& [name, value] : call.sizes)
    if (name) text += std::string(", ") + name + " " + std::to_string(value);
  return text + ")";
}

inline void check(const Call& call, cudaError_t status) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // so that the next caller does not find it
  throw std::runtime_error(describe(call, cudaGetErrorString(status)));
}

// Makes a device current for a scope.
class DeviceGuard {
 public:
  explicit DeviceGuard(const Call& call) : wanted_(call.stream.device) {
    check(call, cudaGetDevice(&before_));
    if (before_ != wanted_) check(call, cudaSetDevice(wanted_));
  }
  ~DeviceGuard() {
    if (before_ != wanted_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int wanted_, before_ = 0;
};

template <class Args>
void launch(const Call& call, void (*kernel)(Args), int64_t blocks, int threads,
            int64_t shared_bytes, Args args) {
  if (blocks <= 0) return;
  const DeviceGuard guard(call);
  constexpr int64_t kMostBlocks = (int64_t(1) << 31) - 1;
  if (blocks > kMostBlocks) check(call, cudaErrorInvalidConfiguration);
#if defined(GPM_CUDA_HOST)
  check(call, cuda_host::launch(kernel, blocks, threads, shared_bytes, args));
#else
  void* arguments[] = {&args};
  check(call,
        cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(static_cast<unsigned>(blocks)),
                         dim3(static_cast<unsigned>(threads)), arguments,
                         static_cast<size_t>(shared_bytes),
                         static_cast<cudaStream_t>(call.stream.handle)));
#endif
}

}  // namespace gpm::cuda
