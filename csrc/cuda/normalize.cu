#include "gpm/normalize.h"

#include "cuda/norm.cuh"

namespace gpm::cuda {
namespace {

constexpr int kThreads = 256;
// Rows of more vectors than this are worked on by a block, others by some lanes of a warp.
constexpr int64_t kWarpVectors = 128;

// Each team of threads takes one row; `lanes` is its size where it is part of a warp.
template <class Args>
struct Work : Args {
  int lanes;
};

template <class S, class Team>
__global__ void __launch_bounds__(kThreads) forward(Work<Normalize> args) {
  using T = Wide<S>;
  constexpr int V = kVector<S>;
  const Team team{args.lanes};
  const int64_t r = int64_t(blockIdx.x) * (kThreads / args.lanes) + threadIdx.x / args.lanes;
  if (r >= args.rows) return;
  const S* x = row<S>(args.x, r);
  S* out = static_cast<S*>(args.out) + r * args.width;
  const bool in_aligned = is_aligned(x, 0), out_aligned = is_aligned(out, 0);
  const auto get = [&](int64_t c, T(&numbers)[V]) {
    load(x + c, args.width - c, in_aligned, numbers);
  };
  const Norm<T> norm = norm_of<T, V>(args.width, team, get);
  const bool clamped = norm.clamped(args.eps);
  // Two factors: their product may leave the range where the result does not.
  const T first = clamped ? T(1) : T(1) / norm.unit, second = clamped ? T(args.eps) : norm.norm;
  for (int64_t c = int64_t(team.rank()) * V; c < args.width; c += int64_t(team.count) * V) {
    T numbers[V];
    get(c, numbers);
#pragma unroll
    for (int i = 0; i < V; ++i) numbers[i] = numbers[i] * first / second;
    store(out + c, args.width - c, out_aligned, numbers);
  }
}

// With u = x / ||x||: (g - u <u, g>) / ||x||, and g / eps where the norm is below eps.
template <class S, class Team>
__global__ void __launch_bounds__(kThreads) backward(Work<NormalizeBackward> args) {
  using T = Wide<S>;
  constexpr int V = kVector<S>;
  const Team team{args.lanes};
  const int64_t r = int64_t(blockIdx.x) * (kThreads / args.lanes) + threadIdx.x / args.lanes;
  if (r >= args.rows) return;
  const S *x = row<S>(args.x, r), *grad = row<S>(args.grad, r);
  S* out = static_cast<S*>(args.out) + r * args.width;
  const bool x_aligned = is_aligned(x, 0), grad_aligned = is_aligned(grad, 0);
  const auto get = [&](int64_t c, T(&numbers)[V]) {
    load(x + c, args.width - c, x_aligned, numbers);
  };
  const Norm<T> norm = norm_of<T, V>(args.width, team, get);
  const bool clamped = norm.clamped(args.eps);
  const T inverse_unit = T(1) / norm.unit, divisor = clamped ? T(args.eps) : norm.norm;
  const T to_unit = clamped ? T(0) : inverse_unit, scale = clamped ? T(1) : inverse_unit;
  T radial = 0;
  T u[V], g[V];
  for (int64_t c = int64_t(team.rank()) * V; c < args.width; c += int64_t(team.count) * V) {
    get(c, u);
    load(grad + c, args.width - c, grad_aligned, g);
#pragma unroll
    for (int i = 0; i < V; ++i) radial = multiply_add(u[i] * to_unit / divisor, g[i], radial);
  }
  radial = team.reduce(radial, Add());
  for (int64_t c = int64_t(team.rank()) * V; c < args.width; c += int64_t(team.count) * V) {
    get(c, u);
    load(grad + c, args.width - c, grad_aligned, g);
#pragma unroll
    for (int i = 0; i < V; ++i) g[i] = (g[i] - u[i] * to_unit / divisor * radial) / divisor * scale;
    store(out + c, args.width - c, is_aligned(out, 0), g);
  }
}

template <class S, class Args, class Kernel>
void run(const Call& call, const Args& args, Kernel with_lanes, Kernel with_block) {
  const int64_t vectors = ceil_div(args.width, kVector<S>);
  if (vectors > kWarpVectors) {
    launch(call, with_block, args.rows, kThreads, kThreads / kWarp * int64_t(sizeof(Wide<S>)),
           Work<Args>{args, kThreads});
    return;
  }
  int lanes = 1;
  while (lanes < kWarp && lanes < vectors) lanes *= 2;
  launch(call, with_lanes, ceil_div(args.rows, kThreads / lanes), kThreads, 0,
         Work<Args>{args, lanes});
}

}  // namespace

void normalize(const Normalize& args, Stream stream) {
  const Call call{"normalize", stream, args.dtype, {{"rows", args.rows}, {"width", args.width}}};
  with_storage(args.dtype, [&](auto s) {
    using S = decltype(s);
    run<S>(call, args, forward<S, Lanes>, forward<S, Block>);
  });
}

void normalize_backward(const NormalizeBackward& args, Stream stream) {
  const Call call{
      "normalize_backward", stream, args.dtype, {{"rows", args.rows}, {"width", args.width}}};
  with_storage(args.dtype, [&](auto s) {
    using S = decltype(s);
    run<S>(call, args, backward<S, Lanes>, backward<S, Block>);
  });
}

}  // namespace gpm::cuda
