#include "gpm/cross_probability_matrix.h"

#include "cpu/cross.h"

namespace gpm::cpu {

GPM_KERNEL(cross_probability_matrix, CrossProbabilityMatrix)
GPM_KERNEL(cross_probability_matrix_backward_a, MatrixPull<CrossProbabilityMatrixBackward>)
GPM_KERNEL(cross_probability_matrix_backward_b, MatrixPull<CrossProbabilityMatrixBackward>)

void cross_probability_matrix(const CrossProbabilityMatrix& args, int threads) {
  run_cross(cross_probability_matrix_kernel(), args, 5.0 + 0.5 * args.width, threads);
}

void cross_probability_matrix_backward(const CrossProbabilityMatrixBackward& args, int threads) {
  run_cross_backward(cross_probability_matrix_backward_a_kernel(),
                     cross_probability_matrix_backward_b_kernel(), args, 6.0 + 1.0 * args.width,
                     threads);
}

}  // namespace gpm::cpu
