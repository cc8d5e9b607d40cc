// What tests ask of the stand-in for the GPU.
#pragma once

#include <vector>

#include "cuda_host/runtime.h"

namespace gpm::cuda::cuda_host {

// Decides the order of blocks and threads, the same one for every launch of the same size.
// GPM_CUDA_HOST_SEED is the one to begin with.
void set_seed(uint64_t seed);

int64_t launches();                         // how many there were, of any thread
void fail_next_launch(cudaError_t status);  // without running it

// While any object lives, kernels may read and write global memory only where one was told so.
class Buffers {
 public:
  Buffers();
  ~Buffers();
  Buffers(const Buffers&) = delete;
  Buffers& operator=(const Buffers&) = delete;

  Buffers& readable(const void* begin, int64_t bytes);
  Buffers& writable(void* begin, int64_t bytes);
};

// Whether kernels fail that access the same global memory from two threads, one of them to write,
// in an order that no barrier decides. What atomic operations decide is not known.
void find_races(bool wanted);

struct Count {
  int64_t bytes = 0;             // asked for by threads
  int64_t sectors = 0;           // of 32 bytes, each counted once in a block
  int64_t distinct_sectors = 0;  // each counted once in all blocks and launches
  int64_t requests = 0;          // of warps: the n-th accesses of their threads are one
  int64_t request_sectors = 0;   // in all requests together
};
struct Launch {
  int64_t blocks, shared_bytes;
  int threads;
};
struct Traffic {
  Count read, written;
  std::vector<Launch> launches;
};
void start_traffic();
Traffic stop_traffic();

}  // namespace gpm::cuda::cuda_host
