#include "gpm/score.h"

#include "cpu/dispatch.h"
#include "cpu/pairs.h"
#include "cpu/parallel.h"

namespace gpm::cpu {

GPM_KERNEL(score, Score)
GPM_KERNEL(score_backward, ScoreBackward)

void score(const Score& args, int threads) {
  parallel_for(score_kernel(), args, args.rows, 3.0 * args.width, threads,
               pair_scratch(args.width, false));
}

void score_backward(const ScoreBackward& args, int threads) {
  parallel_for(score_backward_kernel(), args, args.rows, 6.0 * args.width, threads,
               pair_scratch(args.width, true));
}

}  // namespace gpm::cpu
