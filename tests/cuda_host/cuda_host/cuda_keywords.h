// Included before every CUDA source that is compiled for the processor: the language and the
// built-in functions of a GPU.
#pragma once

#include <driver_types.h>
#include <vector_functions.h>
#include <vector_types.h>

#include <math.h>  // and not <cmath>: the functions are in the global namespace on a GPU

#include <cassert>
#include <cstdio>
#include <cstring>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda_host/runtime.h"

#undef __global__
#undef __device__
#undef __host__
#undef __constant__
#undef __shared__
#undef __grid_constant__
#undef __launch_bounds__
#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __launch_bounds__(...)
// All shared memory is asked for at the launch, where it can be watched.
#define __shared__ static_assert(false, "use gpm::cuda::shared_memory()");

// <cassert> may be included again, and would define assert() again.
#define __assert_fail ::gpm::cuda::cuda_host::fail_assert

[[maybe_unused]] static const uint3& threadIdx = gpm::cuda::cuda_host::running.thread;
[[maybe_unused]] static const uint3& blockIdx = gpm::cuda::cuda_host::running.block;
[[maybe_unused]] static const dim3& blockDim = gpm::cuda::cuda_host::running.threads;
[[maybe_unused]] static const dim3& gridDim = gpm::cuda::cuda_host::running.blocks;
constexpr int warpSize = 32;

#include "cuda_host/intrinsics.h"
