// Which kernel computes a matrix.
#pragma once

#include "cuda/pull.cuh"
#include "cuda/small.cuh"

namespace gpm::cuda {

template <class Args>
Call matrix_call(const char* op, const Args& args, Stream stream) {
  return {op,
          stream,
          args.dtype,
          {{"batch", args.batch},
           {"rows", args.rows},
           {"columns", args.columns},
           {"width", args.width}}};
}

template <template <class> class Output, bool kSquare>
void run_matrix(const char* op, const Matrix& args, Stream stream) {
  const Call call = matrix_call(op, args, stream);
  with_storage(args.dtype, [&](auto s) {
    using S = decltype(s);
    using T = Wide<S>;
    if (is_small(args.rows, args.columns)) {
      const int64_t together = small_together(args.rows, args.columns);
      launch(call, small_matrices<S, Output>, ceil_div(args.batch, together), kSmallThreads,
             small_bytes<T>(false), Together<Matrix>{args, static_cast<int>(together)});
      return;
    }
    constexpr int64_t kNumbers = kTile * kPitch > kTileNumbers ? kTile * kPitch : kTileNumbers;
    launch(call, matrix_tiles<S, Output, kSquare>,
           args.batch * tiles_of<kSquare>(args.rows, args.columns), kTileThreads,
           kNumbers * int64_t(sizeof(T)), args);
  });
}

// A block sums kColumns columns of embeddings in registers; wider ones take several blocks, each of
// which computes all scores.
template <class S, template <class> class Output, int kColumns, bool kSquare>
void launch_pull(const Call& call, const MatrixBackward& args) {
  const int64_t tall = ceil_div(args.rows, kTile);
  const int64_t wide = kSquare ? 0 : ceil_div(args.columns, kTile);
  launch(call, matrix_pull<S, Output, kColumns, kSquare>,
         args.batch * (tall + wide) * ceil_div(args.width, kColumns), kTileThreads,
         kPullNumbers<kColumns> * int64_t(sizeof(Wide<S>)), args);
  // The scale's gradient crosses blocks. Adding their parts in the same launch would need a counter
  // that another launch has set to zero.
  if (args.grad_scale)
    launch(call, sum_partial<S>, ceil_div(args.batch * (args.width / 2), kTileThreads),
           kTileThreads, 0,
           PartialSums{args.dtype, args.batch, tall, args.width / 2,
                       static_cast<const double*>(args.workspace), args.grad_scale});
}

template <template <class> class Output, bool kSquare>
void run_matrix_backward(const char* op, const MatrixBackward& args, Stream stream) {
  if (args.grad_scale && args.workspace == nullptr && args.batch * args.rows > 0)
    throw std::invalid_argument(std::string(op) + ": the gradient of a scale needs workspace");
  const Call call = matrix_call(op, args, stream);
  with_storage(args.dtype, [&](auto s) {
    using S = decltype(s);
    using T = Wide<S>;
    if (is_small(args.rows, args.columns)) {
      const int64_t together = small_together(args.rows, args.columns);
      launch(call, small_matrices_backward<S, Output, kSquare>, ceil_div(args.batch, together),
             kSmallThreads, small_bytes<T>(true),
             Together<MatrixBackward>{args, static_cast<int>(together)});
      return;
    }
    if constexpr (sizeof(T) == 4) {  // more columns of doubles would not fit into shared memory
      if (args.width > 32) return launch_pull<S, Output, 64, kSquare>(call, args);
      if (args.width > 8) return launch_pull<S, Output, 32, kSquare>(call, args);
    }
    launch_pull<S, Output, 8, kSquare>(call, args);
  });
}

}  // namespace gpm::cuda
