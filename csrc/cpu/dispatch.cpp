#include "cpu/dispatch.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "gpm/build_info.h"

namespace gpm::cpu {
namespace {

Simd best() {
#if defined(GPM_HAVE_X86_KERNELS)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  return avx512 ? Simd::avx512 : avx2 ? Simd::avx2 : Simd::baseline;
#else
  return Simd::baseline;
#endif
}

Simd choose() {
  const char* wanted = std::getenv("GPM_CORE_SIMD");
  if (wanted == nullptr || *wanted == '\0') return best();
  const std::string name = wanted;
  Simd level;
  if (name == "baseline") {
    level = Simd::baseline;
  } else if (name == "avx2") {
    level = Simd::avx2;
  } else if (name == "avx512") {
    level = Simd::avx512;
  } else {
    throw std::invalid_argument("GPM_CORE_SIMD must be baseline, avx2 or avx512; got " + name);
  }
  if (level > best())
    throw std::invalid_argument("GPM_CORE_SIMD=" + name + ", but this processor does not have it");
  return level;
}

}  // namespace

Simd simd() {
  static const Simd level = choose();
  return level;
}

int64_t vector_bytes() {
  switch (simd()) {
    case Simd::avx512:
      return 64;
    case Simd::avx2:
      return 32;
    default:
      return 16;
  }
}

const char* simd_level() {
  switch (simd()) {
    case Simd::avx512:
      return "avx512";
    case Simd::avx2:
      return "avx2";
    default:
      return "baseline";
  }
}

}  // namespace gpm::cpu
