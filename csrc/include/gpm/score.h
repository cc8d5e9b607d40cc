// score: s(a > b) = sum_l scale_l (a[2l] b[2l+1] - a[2l+1] b[2l]) of pairs of rows.
#pragma once

#include "gpm/stream.h"
#include "gpm/types.h"

namespace gpm {

struct Score {
  DType dtype;
  int64_t rows, width;  // width = 2k, even
  Rows a, b;            // (rows, width)
  Rows scale;           // (rows, width / 2) or absent
  void* out;            // (rows), contiguous
};

struct ScoreBackward {
  DType dtype;
  int64_t rows, width;
  const void* grad;  // (rows), contiguous
  Rows a, b, scale;
  void* grad_a;      // (rows, width), contiguous
  void* grad_b;      // (rows, width), contiguous
  void* grad_scale;  // (rows, width / 2), contiguous; null without a scale
};

namespace cpu {
void score(const Score& args, int threads);
void score_backward(const ScoreBackward& args, int threads);
}  // namespace cpu

namespace cuda {
void score(const Score& args, Stream stream);
void score_backward(const ScoreBackward& args, Stream stream);
}  // namespace cuda

}  // namespace gpm
