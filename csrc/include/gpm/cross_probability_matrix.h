// cross_probability_matrix: the probabilities of all pairs between two sets,
// sigmoid(s(a_m > b_n) / tau).
#pragma once

#include "gpm/cross_score_matrix.h"

namespace gpm {

struct CrossProbabilityMatrix : CrossScoreMatrix {
  double tau;
};

struct CrossProbabilityMatrixBackward : CrossScoreMatrixBackward {
  double tau;
};

namespace cpu {
void cross_probability_matrix(const CrossProbabilityMatrix& args, int threads);
void cross_probability_matrix_backward(const CrossProbabilityMatrixBackward& args, int threads);
}  // namespace cpu

namespace cuda {
void cross_probability_matrix(const CrossProbabilityMatrix& args, Stream stream);
void cross_probability_matrix_backward(const CrossProbabilityMatrixBackward& args, Stream stream);
}  // namespace cuda

}  // namespace gpm
