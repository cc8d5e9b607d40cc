#include "gpm/score_matrix.h"

#include "cpu/simd/square.h"

namespace gpm::cpu::GPM_SIMD_NAMESPACE {

void score_matrix(const ScoreMatrix& args, int64_t begin, int64_t end, void* scratch) {
  square<RawScore>(args, begin, end, scratch);
}

void score_matrix_backward(const MatrixPull<ScoreMatrixBackward>& args, int64_t begin, int64_t end,
                           void* scratch) {
  square_pull<RawScore>(args, begin, end, scratch);
}

}  // namespace gpm::cpu::GPM_SIMD_NAMESPACE
