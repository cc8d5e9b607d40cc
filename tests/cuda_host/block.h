// One block of threads, and the errors that end it.
#pragma once

#include <string>

#include "cuda_host/runtime.h"

namespace gpm::cuda::cuda_host {

constexpr int kMostThreads = 1024, kWarp = 32;

// A stream of random numbers that a seed decides.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) { below(1); }
  // In [0, n).
  uint32_t below(uint32_t n) {
    state_ += 0x9e3779b97f4a7c15u;
    uint64_t mixed = (state_ ^ state_ >> 32) * 0xd6e8feb86659fd93u;
    mixed ^= mixed >> 32;
    return static_cast<uint32_t>((mixed & 0xffffffffu) * n >> 32);
  }

 private:
  uint64_t state_;
};

// Runs all threads of the block that `running` describes. Whether it got to its end.
bool run_block(const Kernel& kernel, Random& random);

// Who runs, and how often it has met others of the block and of the warp.
struct Moment {
  uint32_t block, thread, barriers, warp_barriers;
};
Moment moment();

// Leaves the block, of which `text` is what a thread did wrong.
[[noreturn]] void stop(cudaError_t status, int thread, const char* text);

// What the last launch of the calling thread came to.
void set_error(cudaError_t status, const std::string& text);

// Counts the accesses of one thread; only while they are watched.
unsigned next_access();

}  // namespace gpm::cuda::cuda_host
