#include "gpm/cross_score_matrix.h"

#include "cpu/cross.h"

namespace gpm::cpu {

GPM_KERNEL(cross_score_matrix, CrossScoreMatrix)
GPM_KERNEL(cross_score_matrix_backward_a, MatrixPull<CrossScoreMatrixBackward>)
GPM_KERNEL(cross_score_matrix_backward_b, MatrixPull<CrossScoreMatrixBackward>)

void cross_score_matrix(const CrossScoreMatrix& args, int threads) {
  run_cross(cross_score_matrix_kernel(), args, 0.5 * args.width, threads);
}

void cross_score_matrix_backward(const CrossScoreMatrixBackward& args, int threads) {
  run_cross_backward(cross_score_matrix_backward_a_kernel(), cross_score_matrix_backward_b_kernel(),
                     args, 0.5 * args.width, threads);
}

}  // namespace gpm::cpu
