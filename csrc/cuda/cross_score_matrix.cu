#include "gpm/cross_score_matrix.h"

#include "cuda/run_matrix.cuh"

namespace gpm::cuda {

void cross_score_matrix(const CrossScoreMatrix& args, Stream stream) {
  run_matrix<RawScore, false>("cross_score_matrix", as_matrix(args), stream);
}

void cross_score_matrix_backward(const CrossScoreMatrixBackward& args, Stream stream) {
  run_matrix_backward<RawScore, false>("cross_score_matrix_backward", as_matrix(args), stream);
}

}  // namespace gpm::cuda
