#include "gpm/cross_probability_matrix.h"

#include "cuda/run_matrix.cuh"

namespace gpm::cuda {

void cross_probability_matrix(const CrossProbabilityMatrix& args, Stream stream) {
  run_matrix<Probability, false>("cross_probability_matrix", args, stream);
}

void cross_probability_matrix_backward(const CrossProbabilityMatrixBackward& args, Stream stream) {
  run_matrix_backward<Probability, false>("cross_probability_matrix_backward", args, stream);
}

}  // namespace gpm::cuda
