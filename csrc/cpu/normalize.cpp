#include "gpm/normalize.h"

#include "cpu/dispatch.h"
#include "cpu/parallel.h"

namespace gpm::cpu {

GPM_KERNEL(normalize, Normalize)
GPM_KERNEL(normalize_backward, NormalizeBackward)

void normalize(const Normalize& args, int threads) {
  parallel_for(normalize_kernel(), args, args.rows, 20.0 + 0.5 * args.width, threads);
}

void normalize_backward(const NormalizeBackward& args, int threads) {
  parallel_for(normalize_backward_kernel(), args, args.rows, 40.0 + 1.0 * args.width, threads);
}

}  // namespace gpm::cpu
