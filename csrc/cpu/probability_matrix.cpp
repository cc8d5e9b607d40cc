#include "gpm/probability_matrix.h"

#include "cpu/square.h"

namespace gpm::cpu {

GPM_KERNEL(probability_matrix, ProbabilityMatrix)
GPM_KERNEL(probability_matrix_backward, MatrixPull<ProbabilityMatrixBackward>)

void probability_matrix(const ProbabilityMatrix& args, int threads) {
  run_square(probability_matrix_kernel(), args, 3.0 + 0.5 * args.width, threads);
}

void probability_matrix_backward(const ProbabilityMatrixBackward& args, int threads) {
  run_square_backward(probability_matrix_backward_kernel(), args, 6.0 + 1.0 * args.width, threads);
}

}  // namespace gpm::cpu
