// Which of the compiled instruction sets runs.
#pragma once

#include <cstdint>

namespace gpm::cpu {

enum class Simd { baseline, avx2, avx512 };

// Chosen once; see simd_level() in gpm/build_info.h.
Simd simd();

// Bytes of a vector in the chosen instruction set.
int64_t vector_bytes();

// The serial kernel `name(args, begin, end, scratch)` of each instruction set, for units of work
// begin to end. Scratch is memory of the calling thread alone, aligned to a cache line.
#if defined(GPM_HAVE_X86_KERNELS)
#define GPM_KERNEL(name, Args)                                       \
  namespace baseline {                                               \
  void name(const Args&, int64_t begin, int64_t end, void* scratch); \
  }                                                                  \
  namespace avx2 {                                                   \
  void name(const Args&, int64_t begin, int64_t end, void* scratch); \
  }                                                                  \
  namespace avx512 {                                                 \
  void name(const Args&, int64_t begin, int64_t end, void* scratch); \
  }                                                                  \
  inline auto* name##_kernel() {                                     \
    switch (simd()) {                                                \
      case Simd::avx512:                                             \
        return &avx512::name;                                        \
      case Simd::avx2:                                               \
        return &avx2::name;                                          \
      default:                                                       \
        return &baseline::name;                                      \
    }                                                                \
  }
#else
#define GPM_KERNEL(name, Args)                                       \
  namespace baseline {                                               \
  void name(const Args&, int64_t begin, int64_t end, void* scratch); \
  }                                                                  \
  inline auto* name##_kernel() { return &baseline::name; }
#endif

}  // namespace gpm::cpu
