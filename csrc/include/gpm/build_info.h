// What was built, and what this machine runs of it.
#pragma once

#include <string>

namespace gpm {

const char* version();
const char* compiler();
const char* openmp();  // the OpenMP version date, or "none"

namespace cpu {
// Vector instructions in use: "baseline", "avx2" or "avx512". Chosen once, at the first call, as
// the best that the processor has; GPM_CORE_SIMD names a lower one. Throws std::invalid_argument if
// GPM_CORE_SIMD names one that is unknown or that the processor lacks.
const char* simd_level();
}  // namespace cpu

namespace cuda {
const char* toolkit();  // version of the CUDA toolkit, such as "13.0"; null if not built with it
const char*
architectures();  // separated by blanks: sm_* run as they are, compute_* is compiled for others

// Where built with CUDA: why kernels cannot run on this machine, or an empty string. Asks for the
// driver and all devices, and leaves no error behind.
std::string why_not();
}  // namespace cuda

}  // namespace gpm
