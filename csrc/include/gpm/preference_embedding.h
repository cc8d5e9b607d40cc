// preference_embedding: picks a token, projects it, adds the bias, normalizes.
#pragma once

#include "gpm/stream.h"
#include "gpm/types.h"

namespace gpm {

// hidden holds `rows` sequences; row r is read at token positions[r], or is itself the hidden state
// where positions is null (then row_stride of hidden does not matter).
struct PreferenceEmbedding {
  DType dtype;
  int64_t rows, length, size, width;  // sequences, tokens, H, d
  bool normalized;
  double eps;
  Batch hidden;              // (rows, length, size)
  const int64_t* positions;  // (rows) in [0, length), or null
  Rows weight;               // (width, size)
  const void* bias;          // (width) or null
  void* out;                 // (rows, width), contiguous
  // (rows, width) in the accumulation type, or null; CUDA kernels need it where they normalize.
  void* projection;
};

struct PreferenceEmbeddingBackward {
  DType dtype;
  int64_t rows, length, size, width;
  bool normalized;
  double eps;
  Rows grad;  // (rows, width)
  Batch hidden;
  const int64_t* positions;
  Rows weight;
  const void* projection;  // of the forward pass; null unless normalized
  void* grad_projection;   // (rows, width) workspace in the accumulation type; null for CUDA
  // (rows, length, size) or (rows, size), contiguous, or null if not wanted. Only what was read
  // gets a gradient: with positions, the caller clears the rest.
  void* grad_hidden;
  void* grad_weight;  // (width, size), contiguous, or null
  void* grad_bias;    // (width) or null
};

namespace cpu {
// Both throw std::out_of_range for a position outside [0, length).
void preference_embedding(const PreferenceEmbedding& args, int threads);
void preference_embedding_backward(const PreferenceEmbeddingBackward& args, int threads);
}  // namespace cpu

namespace cuda {
// A position outside [0, length) stops the kernel, which the next call that waits for it reports.
// Both throw std::invalid_argument where a projection that they need is null.
void preference_embedding(const PreferenceEmbedding& args, Stream stream);
void preference_embedding_backward(const PreferenceEmbeddingBackward& args, Stream stream);
}  // namespace cuda

}  // namespace gpm
