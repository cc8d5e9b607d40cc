// What was built, and what this machine runs of it.
#pragma once

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

}  // namespace gpm
