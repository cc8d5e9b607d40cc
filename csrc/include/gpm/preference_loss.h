// preference_loss: cross-entropy of sigmoid((s(chosen > rejected) - margin) / tau), fused.
#pragma once

#include "gpm/stream.h"
#include "gpm/types.h"

namespace gpm {

// margin, target, loss, probability and their gradients are in the accumulation type: double for
// float64, float for all others.
struct PreferenceLoss {
  DType dtype;
  int64_t rows, width;
  double tau;
  Rows chosen, rejected;  // (rows, width)
  Rows scale;             // (rows, width / 2) or absent
  Rows margin, target;    // (rows): one number per stride, or absent
  void* loss;             // (rows), contiguous
  void* probability;      // (rows), contiguous
};

struct PreferenceLossBackward {
  DType dtype;
  int64_t rows, width;
  double tau;
  const void* grad_loss;         // (rows), contiguous, or null for zero
  const void* grad_probability;  // (rows), contiguous, or null for zero
  Rows chosen, rejected, scale, margin, target;
  void* grad_chosen;    // (rows, width), contiguous
  void* grad_rejected;  // (rows, width), contiguous
  void* grad_scale;     // (rows, width / 2), contiguous, or null
  void* grad_margin;    // (rows), contiguous, or null
  void* grad_target;    // (rows), contiguous, or null
};

namespace cpu {
void preference_loss(const PreferenceLoss& args, int threads);
void preference_loss_backward(const PreferenceLossBackward& args, int threads);
}  // namespace cpu

namespace cuda {
void preference_loss(const PreferenceLoss& args, Stream stream);
void preference_loss_backward(const PreferenceLossBackward& args, Stream stream);
}  // namespace cuda

}  // namespace gpm
