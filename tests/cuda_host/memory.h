// The memory that kernels see.
#pragma once

#include "cuda_host/control.h"

namespace gpm::cuda::cuda_host {

constexpr int64_t kMostShared = 48 << 10;

// Gives the block its shared memory: NaN all over, between guard zones.
void prepare_shared(int64_t bytes);
// Whether somebody wrote outside of the shared memory, and how many bytes from its beginning.
bool find_overrun(int64_t bytes, int64_t& offset);

// What the launch is to be watched for.
void prepare_watch(const Launch& launch);
// Counts what the block that has ended did.
void count_block();

}  // namespace gpm::cuda::cuda_host
