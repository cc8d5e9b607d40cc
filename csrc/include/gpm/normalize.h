// normalize: rows scaled to unit length, x / max(||x||_2, eps).
#pragma once

#include "gpm/stream.h"
#include "gpm/types.h"

namespace gpm {

struct Normalize {
  DType dtype;
  int64_t rows, width;
  double eps;  // above zero
  Rows x;
  void* out;  // (rows, width), contiguous
};

struct NormalizeBackward {
  DType dtype;
  int64_t rows, width;
  double eps;
  Rows grad, x;
  void* out;  // (rows, width), contiguous
};

namespace cpu {
void normalize(const Normalize& args, int threads);
void normalize_backward(const NormalizeBackward& args, int threads);
}  // namespace cpu

namespace cuda {
void normalize(const Normalize& args, Stream stream);
void normalize_backward(const NormalizeBackward& args, Stream stream);
}  // namespace cuda

}  // namespace gpm
