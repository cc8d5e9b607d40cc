// score_matrix: the scores of all pairs of a set, S[i, j] = s(v_i > v_j).
#pragma once

#include "gpm/stream.h"
#include "gpm/types.h"

namespace gpm {

struct ScoreMatrix {
  DType dtype;
  int64_t batch, rows, width;  // batch, K, d = 2k
  Batch v;                     // (batch, K, d)
  Rows scale;                  // (batch, k) or absent
  void* out;                   // (batch, K, K)
  int64_t out_batch_stride, out_row_stride;
};

struct ScoreMatrixBackward {
  DType dtype;
  int64_t batch, rows, width;
  Batch grad;  // (batch, K, K)
  Batch v;
  Rows scale;
  void* grad_v;      // (batch, K, d), contiguous
  void* grad_scale;  // (batch, k), contiguous; null without a scale
  // (batch, ceil(rows / kGradientRows), k) doubles, where CUDA kernels leave parts of grad_scale.
  // Null where that is; the processor's kernels do without. CUDA's throw std::invalid_argument.
  void* workspace = nullptr;
};

namespace cpu {
void score_matrix(const ScoreMatrix& args, int threads);
void score_matrix_backward(const ScoreMatrixBackward& args, int threads);
}  // namespace cpu

namespace cuda {
void score_matrix(const ScoreMatrix& args, Stream stream);
void score_matrix_backward(const ScoreMatrixBackward& args, Stream stream);
}  // namespace cuda

}  // namespace gpm
