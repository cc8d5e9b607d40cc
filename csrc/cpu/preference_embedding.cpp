#include "gpm/preference_embedding.h"

#include <stdexcept>
#include <string>

#include "cpu/dispatch.h"
#include "cpu/parallel.h"
#include "gpm/normalize.h"

namespace gpm::cpu {

GPM_KERNEL(preference_embedding, PreferenceEmbedding)
GPM_KERNEL(preference_embedding_widen, PreferenceEmbeddingBackward)
GPM_KERNEL(preference_embedding_rows, PreferenceEmbeddingBackward)
GPM_KERNEL(preference_embedding_columns, PreferenceEmbeddingBackward)
GPM_KERNEL(preference_embedding_bias, PreferenceEmbeddingBackward)

namespace {

void check_positions(const int64_t* positions, int64_t rows, int64_t length) {
  if (positions == nullptr) return;
  for (int64_t r = 0; r < rows; ++r)
    if (positions[r] < 0 || positions[r] >= length)
      throw std::out_of_range("positions must lie in [0, " + std::to_string(length) +
                              ") for hidden of length " + std::to_string(length) + "; got " +
                              std::to_string(positions[r]));
}

}  // namespace

void preference_embedding(const PreferenceEmbedding& args, int threads) {
  check_positions(args.positions, args.rows, args.length);
  // Room for 4 rows twice, in doubles.
  parallel_for(preference_embedding_kernel(), args, args.rows,
               30.0 + 0.15 * static_cast<double>(args.size * args.width), threads,
               2 * 4 * args.width * 8);
}

void preference_embedding_backward(const PreferenceEmbeddingBackward& args, int threads) {
  check_positions(args.positions, args.rows, args.length);
  preference_embedding_widen_kernel()(args, 0, args.rows, nullptr);
  if (args.normalized) {
    const DType wide = args.dtype == DType::float64 ? DType::float64 : DType::float32;
    normalize_backward({wide,
                        args.rows,
                        args.width,
                        args.eps,
                        {args.grad_projection, args.width},
                        {args.projection, args.width},
                        args.grad_projection},
                       threads);
  }
  if (args.grad_hidden)
    parallel_for(preference_embedding_rows_kernel(), args, args.rows,
                 0.15 * static_cast<double>(args.size * args.width), threads);
  if (args.grad_weight) {
    const int64_t lanes = vector_bytes() / (args.dtype == DType::float64 ? 8 : 4);
    parallel_for(preference_embedding_columns_kernel(), args, (args.size + lanes - 1) / lanes,
                 0.15 * static_cast<double>(args.rows * args.width * lanes), threads);
  }
  if (args.grad_bias) preference_embedding_bias_kernel()(args, 0, 1, nullptr);
}

}  // namespace gpm::cpu
