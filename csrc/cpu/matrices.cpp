// Single numbers are rounded here, far from any loop that matters, with instructions that every
// processor has.
#define GPM_SIMD_NAMESPACE portable

#include "cpu/matrices.h"

#include "cpu/simd/vector.h"

namespace gpm::cpu {

void sum_partial(const double* partial, int64_t batch, int64_t units, int64_t blocks, DType dtype,
                 void* dst) {
  portable::with_storage(dtype, [&](auto storage) {
    using S = decltype(storage);
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t l = 0; l < blocks; ++l) {
        double sum = 0;
        for (int64_t u = 0; u < units; ++u) sum += partial[(b * units + u) * blocks + l];
        portable::narrow(static_cast<portable::Accumulate<S>>(sum),
                         static_cast<S*>(dst)[b * blocks + l]);
      }
  });
}

}  // namespace gpm::cpu
