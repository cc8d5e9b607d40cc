#include "gpm/probability_matrix.h"

#include "cuda/run_matrix.cuh"

namespace gpm::cuda {

void probability_matrix(const ProbabilityMatrix& args, Stream stream) {
  run_matrix<Probability, true>("probability_matrix", as_matrix(args, args.tau), stream);
}

void probability_matrix_backward(const ProbabilityMatrixBackward& args, Stream stream) {
  run_matrix_backward<Probability, true>("probability_matrix_backward", as_matrix(args, args.tau),
                                         stream);
}

}  // namespace gpm::cuda
