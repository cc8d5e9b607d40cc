#include "gpm/score.h"

#include "cuda/pairs.cuh"

namespace gpm::cuda {
namespace {

constexpr int kThreads = 256;

template <class S>
__global__ void __launch_bounds__(kPairs) forward(Score args) {
  const int64_t r = int64_t(blockIdx.x) * kPairs + threadIdx.x;
  const Pairs<S> pairs{args.a, args.b, args.scale, args.rows, args.width};
  const Wide<S> s = score_pairs(pairs, int64_t(blockIdx.x) * kPairs);
  if (r < args.rows) write(static_cast<S*>(args.out) + r, narrow<S>(s));
}

// A thread takes V columns of a pair.
template <class S>
__global__ void __launch_bounds__(kThreads) backward(ScoreBackward args) {
  const Pairs<S> pairs{args.a, args.b, args.scale, args.rows, args.width};
  const int64_t vectors = ceil_div(args.width, kVector<S>);
  int64_t c = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t r = divide(c, vectors);
  if (r >= args.rows) return;
  const Wide<S> grad = widen(read(static_cast<const S*>(args.grad) + r));
  pull_pair(pairs, r, c * kVector<S>, grad, {args.grad_a, args.grad_b, args.grad_scale});
}

}  // namespace

void score(const Score& args, Stream stream) {
  const Call call{"score", stream, args.dtype, {{"pairs", args.rows}, {"width", args.width}}};
  with_storage(args.dtype, [&](auto s) {
    using S = decltype(s);
    launch(call, forward<S>, ceil_div(args.rows, kPairs), kPairs,
           pairs_bytes<S>(args.width, args.scale), args);
  });
}

void score_backward(const ScoreBackward& args, Stream stream) {
  const Call call{
      "score_backward", stream, args.dtype, {{"pairs", args.rows}, {"width", args.width}}};
  with_storage(args.dtype, [&](auto s) {
    using S = decltype(s);
    const int64_t vectors = args.rows * ceil_div(args.width, kVector<S>);
    launch(call, backward<S>, ceil_div(vectors, kThreads), kThreads, 0, args);
  });
}

}  // namespace gpm::cuda
