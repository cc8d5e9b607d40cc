// probability_matrix: the probabilities of all pairs of a set, sigmoid(s(v_i > v_j) / tau).
#pragma once

#include "gpm/score_matrix.h"

namespace gpm {

struct ProbabilityMatrix : ScoreMatrix {
  double tau;
};

struct ProbabilityMatrixBackward : ScoreMatrixBackward {
  double tau;
};

namespace cpu {
void probability_matrix(const ProbabilityMatrix& args, int threads);
void probability_matrix_backward(const ProbabilityMatrixBackward& args, int threads);
}  // namespace cpu

namespace cuda {
void probability_matrix(const ProbabilityMatrix& args, Stream stream);
void probability_matrix_backward(const ProbabilityMatrixBackward& args, Stream stream);
}  // namespace cuda

}  // namespace gpm
