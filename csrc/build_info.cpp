#include "gpm/build_info.h"

#define GPM_STRING_(x) #x
#define GPM_STRING(x) GPM_STRING_(x)

namespace gpm {

const char* version() { return GPM_STRING(GPM_VERSION); }

const char* compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#else
  return "gcc " __VERSION__;
#endif
}

const char* openmp() {
#if defined(_OPENMP)
  return GPM_STRING(_OPENMP);
#else
  return "none";
#endif
}

namespace cuda {

#if defined(GPM_CUDA_TOOLKIT)
const char* toolkit() { return GPM_STRING(GPM_CUDA_TOOLKIT); }
const char* architectures() { return GPM_CUDA_ARCHITECTURES; }
#else
const char* toolkit() { return nullptr; }
const char* architectures() { return ""; }
#endif

}  // namespace cuda

}  // namespace gpm
