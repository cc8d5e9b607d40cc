// cross_score_matrix: the scores of all pairs between two sets, S[m, n] = s(a_m > b_n).
#pragma once

#include "gpm/stream.h"
#include "gpm/types.h"

namespace gpm {

struct CrossScoreMatrix {
  DType dtype;
  int64_t batch, rows, columns, width;  // batch, M, N, d = 2k
  Batch a, b;                           // (batch, M, d), (batch, N, d)
  Rows scale;                           // (batch, k) or absent
  void* out;                            // (batch, M, N)
  int64_t out_batch_stride, out_row_stride;
};

struct CrossScoreMatrixBackward {
  DType dtype;
  int64_t batch, rows, columns, width;
  Batch grad;  // (batch, M, N)
  Batch a, b;
  Rows scale;
  void* grad_a;      // (batch, M, d), contiguous
  void* grad_b;      // (batch, N, d), contiguous
  void* grad_scale;  // (batch, k), contiguous; null without a scale
  // (batch, ceil(rows / kGradientRows), k) doubles, where CUDA kernels leave parts of grad_scale.
  // Null where that is; the processor's kernels do without. CUDA's throw std::invalid_argument.
  void* workspace = nullptr;
};

namespace cpu {
void cross_score_matrix(const CrossScoreMatrix& args, int threads);
void cross_score_matrix_backward(const CrossScoreMatrixBackward& args, int threads);
}  // namespace cpu

namespace cuda {
void cross_score_matrix(const CrossScoreMatrix& args, Stream stream);
void cross_score_matrix_backward(const CrossScoreMatrixBackward& args, Stream stream);
}  // namespace cuda

}  // namespace gpm
