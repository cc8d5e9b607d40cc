#include "gpm/cross_probability_matrix.h"

#include "cpu/simd/cross.h"

namespace gpm::cpu::GPM_SIMD_NAMESPACE {

void cross_probability_matrix(const CrossProbabilityMatrix& args, int64_t begin, int64_t end,
                              void* scratch) {
  cross<Probability>(args, begin, end, scratch);
}

void cross_probability_matrix_backward_a(const MatrixPull<CrossProbabilityMatrixBackward>& args,
                                         int64_t begin, int64_t end, void* scratch) {
  cross_pull<Probability, true>(args, begin, end, scratch);
}

void cross_probability_matrix_backward_b(const MatrixPull<CrossProbabilityMatrixBackward>& args,
                                         int64_t begin, int64_t end, void* scratch) {
  cross_pull<Probability, false>(args, begin, end, scratch);
}

}  // namespace gpm::cpu::GPM_SIMD_NAMESPACE
