// linear_logprob: what is fused around the matrix products, on a chunk of the logits at a time.
//
// The products themselves (hidden times weight, and those of the gradients) are the caller's: a
// BLAS does them. The logits of a token are split into chunks of columns, which go through
// linear_logprob one after another, each with the state that the one before left.
#pragma once

#include "gpm/stream.h"
#include "gpm/types.h"

namespace gpm {

// What a row of logits z has come to, numbers of the accumulation type. The target is kept apart:
// of a probability near one it is the rest that has the digits.
enum LogprobState {
  kMaximum,      // largest z so far, before the first chunk -inf
  kRest,         // sum of exp(z - maximum) without the target
  kMoment,       // sum of exp(z - maximum) (z - maximum) without the target, if asked for
  kTargetLogit,  // z of the target
  kTargetSlope,  // derivative of softcap at it
  kLogprobStates
};

// dtype is that of coefficients; logits, bias, state and pulled are in its accumulation type.
// z = softcap * tanh((logit + bias) / softcap) / temperature.
struct LinearLogprob {
  DType dtype;
  int64_t rows, columns;
  int64_t first;  // column 0 is this token
  int64_t size;   // numbers in a row of pulled
  double temperature;
  double softcap;         // 0 for none
  bool entropy;           // whether the moment is asked for
  void* logits;           // (rows, columns), contiguous; undefined afterwards
  const int64_t* target;  // (rows), contiguous; tokens of no chunk are left out
  const void* bias;       // (columns), contiguous, or null
  void* state;            // (rows, kLogprobStates), contiguous
  void* coefficients;     // (rows, columns): exp(z - maximum) times the derivative of softcap, zero
                          // at the target; or null. May be the memory of logits
                          // where both are of one type
  void* pulled;           // (rows, size): multiplied by what the maximum's change makes of earlier
                          // coefficients; or null
};

// What arrives at a row, numbers of the accumulation type.
enum LogprobGradient {
  kGradLogp,
  kGradEntropy,
  kLogSumExp,
  kEntropy,
  kMiss,  // 1 - probability of the target
  kLogprobGradients
};

struct LinearLogprobBackward {
  DType dtype;
  int64_t rows, columns, first;
  double temperature, softcap;
  bool entropy;  // whether gradients of entropies arrive
  void* logits;  // as above
  const int64_t* target;
  const void* bias;
  const void* gradients;  // (rows, kLogprobGradients), contiguous
  void* coefficients;     // (rows, columns): gradient of logit + bias. May be as above
};

namespace cpu {
void linear_logprob(const LinearLogprob& args, int threads);
void linear_logprob_backward(const LinearLogprobBackward& args, int threads);
}  // namespace cpu

namespace cuda {
void linear_logprob(const LinearLogprob& args, Stream stream);
void linear_logprob_backward(const LinearLogprobBackward& args, Stream stream);
}  // namespace cuda

}  // namespace gpm
