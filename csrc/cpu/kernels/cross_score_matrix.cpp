#include "gpm/cross_score_matrix.h"

#include "cpu/simd/cross.h"

namespace gpm::cpu::GPM_SIMD_NAMESPACE {

void cross_score_matrix(const CrossScoreMatrix& args, int64_t begin, int64_t end, void* scratch) {
  cross<RawScore>(args, begin, end, scratch);
}

void cross_score_matrix_backward_a(const MatrixPull<CrossScoreMatrixBackward>& args, int64_t begin,
                                   int64_t end, void* scratch) {
  cross_pull<RawScore, true>(args, begin, end, scratch);
}

void cross_score_matrix_backward_b(const MatrixPull<CrossScoreMatrixBackward>& args, int64_t begin,
                                   int64_t end, void* scratch) {
  cross_pull<RawScore, false>(args, begin, end, scratch);
}

}  // namespace gpm::cpu::GPM_SIMD_NAMESPACE
