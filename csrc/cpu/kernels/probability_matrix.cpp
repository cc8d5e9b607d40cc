#include "gpm/probability_matrix.h"

#include "cpu/simd/square.h"

namespace gpm::cpu::GPM_SIMD_NAMESPACE {

void probability_matrix(const ProbabilityMatrix& args, int64_t begin, int64_t end, void* scratch) {
  square<Probability>(args, begin, end, scratch);
}

void probability_matrix_backward(const MatrixPull<ProbabilityMatrixBackward>& args, int64_t begin,
                                 int64_t end, void* scratch) {
  square_pull<Probability>(args, begin, end, scratch);
}

}  // namespace gpm::cpu::GPM_SIMD_NAMESPACE
