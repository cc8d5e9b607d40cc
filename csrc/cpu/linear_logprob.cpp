#include "gpm/linear_logprob.h"

#include "cpu/dispatch.h"
#include "cpu/parallel.h"

namespace gpm::cpu {

GPM_KERNEL(linear_logprob, LinearLogprob)
GPM_KERNEL(linear_logprob_backward, LinearLogprobBackward)

void linear_logprob(const LinearLogprob& args, int threads) {
  parallel_for(linear_logprob_kernel(), args, args.rows, 20.0 + 3.0 * args.columns, threads);
}

void linear_logprob_backward(const LinearLogprobBackward& args, int threads) {
  parallel_for(linear_logprob_backward_kernel(), args, args.rows, 20.0 + 3.0 * args.columns,
               threads);
}

}  // namespace gpm::cpu
