// The operations that a test is about: the processor's, or CUDA's on the stand-in for a GPU.
#pragma once

#if defined(GPM_TEST_CUDA_HOST)
#include "tested_on_host.h"
#else

#include <stdexcept>

#include "gpm/gpm.h"

namespace gpm::tested {

using namespace cpu;
using BadPosition = std::out_of_range;
constexpr bool kChecksBeforeWriting = true;

}  // namespace gpm::tested

#endif
