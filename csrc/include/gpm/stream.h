// Where CUDA kernels run.
#pragma once

#include <cstdint>

namespace gpm::cuda {

// Operations only launch: they allocate nothing, wait for nothing, can be captured in a graph, and
// leave the calling thread's current device as it was. What cannot be launched throws
// std::runtime_error, which names the operation, its shapes and the device.
struct Stream {
  int device = 0;
  void* handle = nullptr;  // a cudaStream_t of that device; null is its default stream
};

// Rows of a set that the gradient of a scale is summed over at a time.
constexpr int64_t kGradientRows = 64;

}  // namespace gpm::cuda
