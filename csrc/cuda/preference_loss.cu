#include "gpm/preference_loss.h"

#include "cuda/pairs.cuh"

namespace gpm::cuda {
namespace {

// (s - margin) / tau of the pair of this thread; every thread of the block takes part.
template <class S, class Args>
__device__ __forceinline__ Wide<S> logit(const Args& args, int64_t r) {
  using T = Wide<S>;
  const Pairs<S> pairs{args.chosen, args.rejected, args.scale, args.rows, args.width};
  T s = score_pairs(pairs, int64_t(blockIdx.x) * kPairs);
  if (args.margin.data && r < args.rows) s -= read(row<T>(args.margin, r));
  return s / T(args.tau);
}

template <class S>
__global__ void __launch_bounds__(kPairs) forward(PreferenceLoss args) {
  using T = Wide<S>;
  const int64_t r = int64_t(blockIdx.x) * kPairs + threadIdx.x;
  const T z = logit<S>(args, r);
  if (r >= args.rows) return;
  const T size = magnitude(z), e = exponential(-size), tail = log_one_plus(e);
  const T right = z < 0 ? size + tail : tail, wrong = z < 0 ? tail : size + tail;
  T loss = right;
  if (args.target.data) {
    const T p = read(row<T>(args.target, r));
    // Zero times an infinite loss would be NaN for a hard target.
    loss = (p == 0 ? T(0) : p * right) + (p == 1 ? T(0) : (T(1) - p) * wrong);
  }
  const T small = e / (e + T(1));
  write(static_cast<T*>(args.loss) + r, loss);
  write(static_cast<T*>(args.probability) + r, z < 0 ? small : T(1) - small);
}

// Gradient of the pair's score; those of its margin and target are written.
template <class S>
__device__ __forceinline__ Wide<S> pull_logit(const PreferenceLossBackward& args, int64_t r,
                                              Wide<S> z) {
  using T = Wide<S>;
  const T small = small_sigmoid(z), large = T(1) - small;
  const T p = z < 0 ? small : large, q = z < 0 ? large : small;
  T grad = 0;
  const T grad_loss = args.grad_loss ? read(static_cast<const T*>(args.grad_loss) + r) : T(0);
  if (args.grad_loss) {
    T slope = -q;
    if (args.target.data) {
      const T target = read(row<T>(args.target, r));
      slope = (T(1) - target) * p - target * q;
    }
    grad = grad_loss * slope;
  }
  if (args.grad_probability)
    grad += read(static_cast<const T*>(args.grad_probability) + r) * (small * large);
  grad /= T(args.tau);
  if (args.grad_margin) write(static_cast<T*>(args.grad_margin) + r, -grad);
  if (args.grad_target) write(static_cast<T*>(args.grad_target) + r, -grad_loss * z);
  return grad;
}

template <class S>
__global__ void __launch_bounds__(kPairs) backward(PreferenceLossBackward args) {
  using T = Wide<S>;
  const int64_t first = int64_t(blockIdx.x) * kPairs, mine = first + threadIdx.x;
  const T z = logit<S>(args, mine);
  // In place of the first column of embeddings, of which each number was this thread's alone.
  T* grads = shared_memory<T>();
  if (mine < args.rows) grads[threadIdx.x] = pull_logit<S>(args, mine, z);
  __syncthreads();
  // Again as neighbours: each thread takes V columns of a pair.
  const Pairs<S> pairs{args.chosen, args.rejected, args.scale, args.rows, args.width};
  const PairGradients out{args.grad_chosen, args.grad_rejected, args.grad_scale};
  const int64_t vectors = ceil_div(args.width, kVector<S>);
  for (int64_t n = threadIdx.x; n < at_most(args.rows - first, kPairs) * vectors; n += kPairs) {
    int64_t c = n;
    const int64_t r = divide(c, vectors);
    pull_pair(pairs, first + r, c * kVector<S>, grads[r], out);
  }
}

}  // namespace

void preference_loss(const PreferenceLoss& args, Stream stream) {
  const Call call{
      "preference_loss", stream, args.dtype, {{"pairs", args.rows}, {"width", args.width}}};
  with_storage(args.dtype, [&](auto s) {
    using S = decltype(s);
    launch(call, forward<S>, ceil_div(args.rows, kPairs), kPairs,
           pairs_bytes<S>(args.width, args.scale), args);
  });
}

void preference_loss_backward(const PreferenceLossBackward& args, Stream stream) {
  const Call call{"preference_loss_backward",
                  stream,
                  args.dtype,
                  {{"pairs", args.rows}, {"width", args.width}}};
  with_storage(args.dtype, [&](auto s) {
    using S = decltype(s);
    launch(call, backward<S>, ceil_div(args.rows, kPairs), kPairs,
           pairs_bytes<S>(args.width, args.scale), args);
  });
}

}  // namespace gpm::cuda
