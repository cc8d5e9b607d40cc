#include "gpm/linear_logprob.h"

#include "cuda/reduce.cuh"

namespace gpm::cuda {
namespace {

// A block takes a row: its part of one is read twice, the second time from the caches.
constexpr int kThreads = 256;
// On a multiprocessor: without it the assembler spills a few bytes to fit one more.
template <class S>
constexpr int kBlocks = sizeof(S) == 8 ? 3 : 4;
constexpr int64_t kShared = kThreads / kWarp * 8;

template <class T>
__device__ __forceinline__ T infinity() {
  return T(INFINITY);
}

// From products to logits z, and the derivative of softcap there.
template <class T>
struct Logits {
  T temperature, softcap;
  const T* bias;

  template <class Args>
  __device__ __forceinline__ explicit Logits(const Args& args)
      : temperature(T(args.temperature)),
        softcap(T(args.softcap)),
        bias(static_cast<const T*>(args.bias)) {}

  // N of them from column c, -inf past the last column: they add nothing to any sum.
  template <int N>
  __device__ __forceinline__ void get(const T* products, int64_t c, int64_t columns, bool aligned,
                                      T (&z)[N]) const {
    constexpr int V = kVector<T>;
#pragma unroll
    for (int first = 0; first < N; first += V) {
      const int64_t at = c + first;
      T part[V], more[V] = {};
      load(products + at, columns - at, aligned, part);
      if (bias) load(bias + at, columns - at, is_aligned(bias, 0), more);
#pragma unroll
      for (int i = 0; i < V; ++i)
        z[first + i] = at + i < columns ? logit(part[i] + more[i]) : -infinity<T>();
    }
  }

  __device__ __forceinline__ T logit(T z) const {
    if (softcap != T(0)) z = softcap * hyperbolic_tangent(z / softcap);
    return temperature == T(1) ? z : z / temperature;
  }

  __device__ __forceinline__ T slope(T z) const {
    if (softcap == T(0)) return T(1);
    const T t = z * (temperature / softcap);
    return T(1) - t * t;
  }
};

template <class S>
__global__ void __launch_bounds__(kThreads, kBlocks<S>) forward(LinearLogprob args) {
  using T = Wide<S>;
  constexpr int N = kVector<S>;
  const Block block{kThreads};
  const Logits<T> logits(args);
  const int64_t r = blockIdx.x, columns = args.columns;
  const T* row = static_cast<const T*>(args.logits) + r * columns;
  T* state = static_cast<T*>(args.state) + r * kLogprobStates;
  S* coefficients = args.coefficients ? static_cast<S*>(args.coefficients) + r * columns : nullptr;
  const bool aligned = is_aligned(row, 0), out_aligned = is_aligned(coefficients, 0);
  const int64_t target = read(args.target + r) - args.first;
  const T before = read(state + kMaximum);

  T largest = before, z[N];
  for (int64_t c = int64_t(block.rank()) * N; c < columns; c += int64_t(kThreads) * N) {
    logits.get(row, c, columns, aligned, z);
#pragma unroll
    for (int i = 0; i < N; ++i) largest = z[i] > largest ? z[i] : largest;
  }
  const T now = block.reduce(largest, Larger());
  // All excluded so far: any finite shift leaves their exponentials zero.
  const T shift = now == -infinity<T>() ? T(0) : now, factor = exponential(before - shift);

  T sum = 0, moment = 0;
  for (int64_t c = int64_t(block.rank()) * N; c < columns; c += int64_t(kThreads) * N) {
    logits.get(row, c, columns, aligned, z);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      T e = exponential(z[i] - shift);
      const T slope = logits.slope(z[i]);
      if (c + i == target) {
        write(state + kTargetLogit, z[i]);
        write(state + kTargetSlope, slope);
        e = 0;
      }
      sum += e;
      if (e != T(0)) moment += e * (z[i] - shift);
      z[i] = e == T(0) ? e : e * slope;  // the slope of -inf is no number
    }
    if (coefficients) store(coefficients + c, columns - c, out_aligned, z);
  }
  sum = block.reduce(sum, Add());
  if (args.entropy) moment = block.reduce(moment, Add());
  if (block.rank() == 0) {
    const T rest = read(state + kRest), past = read(state + kMoment);
    write(state + kMaximum, now);
    write(state + kRest, factor * rest + sum);
    const T moved = before == -infinity<T>() ? T(0) : factor * (past + rest * (before - shift));
    write(state + kMoment, moved + moment);
  }
  if (args.pulled && factor != T(1)) {
    T* pulled = static_cast<T*>(args.pulled) + r * args.size;
    for (int64_t i = block.rank(); i < args.size; i += kThreads)
      write(pulled + i, read(pulled + i) * factor);
  }
}

template <class S>
__global__ void __launch_bounds__(kThreads, kBlocks<S>) backward(LinearLogprobBackward args) {
  using T = Wide<S>;
  constexpr int N = kVector<S>;
  const Logits<T> logits(args);
  const int64_t r = blockIdx.x, columns = args.columns;
  const T* row = static_cast<const T*>(args.logits) + r * columns;
  const T* given = static_cast<const T*>(args.gradients) + r * kLogprobGradients;
  S* out = static_cast<S*>(args.coefficients) + r * columns;
  const bool aligned = is_aligned(row, 0), out_aligned = is_aligned(out, 0);
  const int64_t target = read(args.target + r) - args.first;
  const T grad_logp = read(given + kGradLogp), grad_entropy = read(given + kGradEntropy);
  const T log_sum = read(given + kLogSumExp), entropy = read(given + kEntropy);
  const T at_target = grad_logp * read(given + kMiss);
  const bool nothing = grad_logp == T(0) && grad_entropy == T(0);
  const T over_temperature = T(1.0 / args.temperature);
  for (int64_t c = int64_t(threadIdx.x) * N; c < columns; c += int64_t(kThreads) * N) {
    T z[N];
    if (!nothing) logits.get(row, c, columns, aligned, z);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (nothing) {
        z[i] = 0;
        continue;
      }
      const T log_p = z[i] - log_sum, p = exponential(log_p);
      T grad = c + i == target ? at_target : -grad_logp * p;
      // Zero times the logarithm of zero.
      if (args.entropy && p != T(0)) grad -= p * grad_entropy * (log_p + entropy);
      z[i] = grad == T(0) ? grad : grad * logits.slope(z[i]) * over_temperature;
    }
    store(out + c, columns - c, out_aligned, z);
  }
}

}  // namespace

void linear_logprob(const LinearLogprob& args, Stream stream) {
  const Call call{"linear_logprob",
                  stream,
                  args.dtype,
                  {{"rows", args.rows}, {"columns", args.columns}, {"first", args.first}}};
  with_storage(args.dtype, [&](auto s) {
    launch(call, forward<decltype(s)>, args.rows, kThreads, kShared, args);
  });
}

void linear_logprob_backward(const LinearLogprobBackward& args, Stream stream) {
  const Call call{"linear_logprob_backward",
                  stream,
                  args.dtype,
                  {{"rows", args.rows}, {"columns", args.columns}, {"first", args.first}}};
  with_storage(args.dtype,
               [&](auto s) { launch(call, backward<decltype(s)>, args.rows, kThreads, 0, args); });
}

}  // namespace gpm::cuda
