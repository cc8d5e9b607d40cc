#include "gpm/score_matrix.h"

#include "cuda/run_matrix.cuh"

namespace gpm::cuda {

void score_matrix(const ScoreMatrix& args, Stream stream) {
  run_matrix<RawScore, true>("score_matrix", as_matrix(args), stream);
}

void score_matrix_backward(const ScoreMatrixBackward& args, Stream stream) {
  run_matrix_backward<RawScore, true>("score_matrix_backward", as_matrix(args), stream);
}

}  // namespace gpm::cuda
