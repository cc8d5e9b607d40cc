#pragma once

#include <mutex>

namespace gpm::cuda::cuda_host {

extern std::mutex turns;

// Nothing runs meanwhile, and nobody else changes what is asked of a launch.
struct Turn {
  std::lock_guard<std::mutex> lock{turns};
};

}  // namespace gpm::cuda::cuda_host
