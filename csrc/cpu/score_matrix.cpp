#include "gpm/score_matrix.h"

#include "cpu/square.h"

namespace gpm::cpu {

GPM_KERNEL(score_matrix, ScoreMatrix)
GPM_KERNEL(score_matrix_backward, MatrixPull<ScoreMatrixBackward>)

void score_matrix(const ScoreMatrix& args, int threads) {
  run_square(score_matrix_kernel(), args, 0.5 * args.width, threads);
}

void score_matrix_backward(const ScoreMatrixBackward& args, int threads) {
  run_square_backward(score_matrix_backward_kernel(), args, 0.5 * args.width, threads);
}

}  // namespace gpm::cpu
