#include "gpm/preference_embedding.h"

#include "cuda/norm.cuh"

namespace gpm::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
// Rows that share a weight once it is in registers.
constexpr int kRows = 4;
// Fewer rows than this do better with a block each.
constexpr int64_t kFewRows = 256;

template <class Args>
__device__ __forceinline__ int64_t token_of(const Args& args, int64_t r) {
  if (args.positions == nullptr) return 0;
  const int64_t token = read(args.positions + r);
  require(token >= 0 && token < args.length, "positions must lie in [0, length of hidden)");
  return token;
}

// Products of R hidden states with row o of the weight, by a warp. Every sum has the same order
// whatever R is.
template <class S, int R>
__device__ __forceinline__ void project(const PreferenceEmbedding& args,
                                        const S* const (&hidden)[R], int64_t o,
                                        Wide<S> (&sums)[R]) {
  using T = Wide<S>;
  constexpr int V = kVector<S>;
  const S* weight = row<S>(args.weight, o);
  const bool weight_aligned = is_aligned(weight, 0);
  bool aligned[R];
#pragma unroll
  for (int r = 0; r < R; ++r) sums[r] = 0, aligned[r] = is_aligned(hidden[r], 0);
#pragma unroll 4
  for (int64_t c = threadIdx.x % kWarp * V; c < args.size; c += kWarp * V) {
    T w[V] = {}, h[V] = {};
    load(weight + c, args.size - c, weight_aligned, w);
#pragma unroll
    for (int r = 0; r < R; ++r) {
      load(hidden[r] + c, args.size - c, aligned[r], h);
#pragma unroll
      for (int i = 0; i < V; ++i) sums[r] = multiply_add(h[i], w[i], sums[r]);
    }
  }
#pragma unroll
  for (int r = 0; r < R; ++r) sums[r] = Lanes{kWarp}.reduce(sums[r], Add());
}

// One row of the projection, by a warp, to unit length.
template <class S>
__device__ __forceinline__ void normalize_row(const Wide<S>* projection, int64_t width, double eps,
                                              S* out) {
  using T = Wide<S>;
  const auto get = [&](int64_t c, T(&number)[1]) { number[0] = read(projection + c); };
  const Norm<T> norm = norm_of<T, 1>(width, Lanes{kWarp}, get);
  const bool clamped = norm.clamped(eps);
  const T first = clamped ? T(1) : T(1) / norm.unit, second = clamped ? T(eps) : norm.norm;
  for (int64_t c = threadIdx.x % kWarp; c < width; c += kWarp)
    write(out + c, narrow<S>(read(projection + c) * first / second));
}

// R rows to a block, an output to a warp.
template <class S, int R>
__global__ void __launch_bounds__(kThreads, 4) forward(PreferenceEmbedding args) {
  using T = Wide<S>;
  const int64_t first = int64_t(blockIdx.x) * R;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const S* hidden[R];
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const int64_t mine = first + r < args.rows ? first + r : args.rows - 1;
    hidden[r] = row<S>(args.hidden, mine, token_of(args, mine));
  }
  for (int64_t o = warp; o < args.width; o += kWarps) {
    T sums[R];
    project(args, hidden, o, sums);
    const T bias = args.bias ? widen(read(static_cast<const S*>(args.bias) + o)) : T(0);
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const int64_t place = (first + r) * args.width + o;
      if (lane != r || first + r >= args.rows) continue;
      if (args.normalized)
        write(static_cast<T*>(args.projection) + place, sums[r] + bias);
      else
        write(static_cast<S*>(args.out) + place, narrow<S>(sums[r] + bias));
    }
  }
  if (!args.normalized) return;
  __syncthreads();
  if (warp < R && first + warp < args.rows) {
    const int64_t place = (first + warp) * args.width;
    normalize_row(static_cast<const T*>(args.projection) + place, args.width, args.eps,
                  static_cast<S*>(args.out) + place);
  }
}

// -- backward ------------------------------------------------------------------------------------

// Rows of the gradient of the projection in shared memory at a time.
constexpr int kGradRows = 32;
// Outputs at a time: for hidden's gradient, which sums over them, and for the weight's.
constexpr int kHiddenOutputs = 32, kWeightOutputs = 8;
// Vectors of columns that a block takes of the weight's gradient; its warps share rows.
constexpr int kWeightVectors = 8;
constexpr int kGradPitch = kHiddenOutputs + 1;

// What a row's normalization does to a gradient: ((g - u radial) / divisor) scale, u = p to_unit /
// divisor.
template <class T>
struct RowPull {
  T to_unit, divisor, radial, scale;
};

template <class S>
struct Shared {
  using T = Wide<S>;
  RowPull<T>* rows;  // (kGradRows)
  T* grad;           // (kGradRows, kGradPitch): gradient of the projection
  T* sums;           // (kWarps, kWeightOutputs, kWeightVectors * V)

  __device__ __forceinline__ Shared()
      : rows(shared_memory<RowPull<T>>()),
        grad(reinterpret_cast<T*>(rows + kGradRows)),
        sums(grad + kGradRows * kGradPitch) {}
  static constexpr int64_t kBytes =
      int64_t(sizeof(T)) * (4 * kGradRows + kGradRows * kGradPitch +
                            kWarps * kWeightOutputs * kWeightVectors * kVector<S>);
};

// Rows `first` on, each by a warp.
template <class S>
__device__ __forceinline__ void pull_rows(const PreferenceEmbeddingBackward& args, int64_t first,
                                          int count, RowPull<Wide<S>>* rows) {
  using T = Wide<S>;
  const Lanes team{kWarp};
  for (int r = threadIdx.x / kWarp; r < count; r += kWarps) {
    const S* grad = row<S>(args.grad, first + r);
    const T* projection = static_cast<const T*>(args.projection) + (first + r) * args.width;
    const auto get = [&](int64_t c, T(&number)[1]) { number[0] = read(projection + c); };
    const Norm<T> norm = norm_of<T, 1>(args.width, team, get);
    const bool clamped = norm.clamped(args.eps);
    const T inverse_unit = T(1) / norm.unit;
    RowPull<T> pull{clamped ? T(0) : inverse_unit, clamped ? T(args.eps) : norm.norm, T(0),
                    clamped ? T(1) : inverse_unit};
    for (int64_t c = team.rank(); c < args.width; c += kWarp)
      pull.radial = multiply_add(read(projection + c) * pull.to_unit / pull.divisor,
                                 widen(read(grad + c)), pull.radial);
    pull.radial = team.reduce(pull.radial, Add());
    if (team.rank() == 0) rows[r] = pull;
  }
}

// Gradient of the projection, `count` rows from `first` by outputs from `output` on, to shared
// memory; zero outside.
template <class S>
__device__ __forceinline__ void pull_outputs(const PreferenceEmbeddingBackward& args, int64_t first,
                                             int count, int64_t output, int outputs,
                                             const Shared<S>& shared) {
  using T = Wide<S>;
  for (int n = threadIdx.x; n < kGradRows * outputs; n += kThreads) {
    const int r = n / outputs, o = n % outputs;
    T g = 0;
    if (r < count && output + o < args.width) {
      g = widen(read(row<S>(args.grad, first + r) + output + o));
      if (args.normalized) {
        const RowPull<T> pull = shared.rows[r];
        const T p =
            read(static_cast<const T*>(args.projection) + (first + r) * args.width + output + o);
        g = (g - p * pull.to_unit / pull.divisor * pull.radial) / pull.divisor * pull.scale;
      }
    }
    shared.grad[r * kGradPitch + o] = g;
  }
}

// Gradient of hidden: 32 rows by 32 vectors of columns, four rows and a vector to a thread.
template <class S>
__device__ void pull_hidden(const PreferenceEmbeddingBackward& args, int64_t tile,
                            const Shared<S>& shared) {
  using T = Wide<S>;
  constexpr int V = kVector<S>;
  const int64_t columns = ceil_div(args.size, kWarp * V);
  const int64_t first = divide(tile, columns) * kGradRows;
  const int count = static_cast<int>(args.rows - first < kGradRows ? args.rows - first : kGradRows);
  const int64_t c = (tile * kWarp + threadIdx.x % kWarp) * V;
  const int warp = threadIdx.x / kWarp;
  const bool aligned = is_aligned(static_cast<const S*>(args.weight.data), args.weight.stride);
  T sums[kGradRows / kWarps][V] = {};
  if (args.normalized) pull_rows<S>(args, first, count, shared.rows);
  for (int64_t output = 0; output < args.width; output += kHiddenOutputs) {
    __syncthreads();
    pull_outputs(args, first, count, output, kHiddenOutputs, shared);
    __syncthreads();
    if (c >= args.size) continue;
    for (int o = 0; o < kHiddenOutputs && output + o < args.width; ++o) {
      T w[V];
      load(row<S>(args.weight, output + o) + c, args.size - c, aligned, w);
#pragma unroll
      for (int i = 0; i < kGradRows / kWarps; ++i) {
        const T g = shared.grad[(warp + i * kWarps) * kGradPitch + o];
#pragma unroll
        for (int j = 0; j < V; ++j) sums[i][j] = multiply_add(g, w[j], sums[i][j]);
      }
    }
  }
  if (c >= args.size) return;
#pragma unroll
  for (int i = 0; i < kGradRows / kWarps; ++i) {
    const int64_t r = first + warp + i * kWarps;
    if (r >= args.rows) break;
    const int64_t place = args.positions ? r * args.length + token_of(args, r) : r;
    S* out = static_cast<S*>(args.grad_hidden) + place * args.size + c;
    store(out, args.size - c, is_aligned(out, 0), sums[i]);
  }
}

// The sums of all threads that share columns, always in the same order.
template <class S>
__device__ __forceinline__ void collect_weight(const PreferenceEmbeddingBackward& args,
                                               int64_t output, int64_t column,
                                               Wide<S> (&sums)[kWeightOutputs][kVector<S>],
                                               const Shared<S>& shared) {
  using T = Wide<S>;
  constexpr int V = kVector<S>, kColumns = kWeightVectors * V;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
#pragma unroll
  for (int o = 0; o < kWeightOutputs; ++o)
#pragma unroll
    for (int i = 0; i < V; ++i) {
      T sum = sums[o][i];
#pragma unroll
      for (int offset = kWeightVectors; offset < kWarp; offset *= 2)
        sum += __shfl_xor_sync(~0u, sum, offset);
      if (lane < kWeightVectors)
        shared.sums[(warp * kWeightOutputs + o) * kColumns + lane * V + i] = sum;
    }
  __syncthreads();
  for (int n = threadIdx.x; n < kWeightOutputs * kColumns; n += kThreads) {
    const int64_t o = output + n / kColumns, c = column + n % kColumns;
    if (o >= args.width || c >= args.size) continue;
    T sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += shared.sums[w * kWeightOutputs * kColumns + n];
    write(static_cast<S*>(args.grad_weight) + o * args.size + c, narrow<S>(sum));
  }
}

// Gradient of eight rows of the weight by eight vectors of columns, and of the bias by the first
// block of each: a thread takes a vector of columns and every 32nd row of hidden.
template <class S>
__device__ void pull_weight(const PreferenceEmbeddingBackward& args, int64_t tile,
                            const Shared<S>& shared) {
  using T = Wide<S>;
  constexpr int V = kVector<S>;
  const int64_t columns = args.grad_weight ? ceil_div(args.size, kWeightVectors * V) : 1;
  const int64_t output = divide(tile, columns) * kWeightOutputs;
  const int64_t c = (tile * kWeightVectors + threadIdx.x % kWeightVectors) * V;
  const int mine = threadIdx.x / kWeightVectors;
  const bool sums_bias = args.grad_bias && tile == 0 && threadIdx.x < kWeightOutputs;
  T sums[kWeightOutputs][V] = {};
  T bias = 0;
  for (int64_t first = 0; first < args.rows; first += kGradRows) {
    const int count =
        static_cast<int>(args.rows - first < kGradRows ? args.rows - first : kGradRows);
    __syncthreads();
    if (args.normalized) pull_rows<S>(args, first, count, shared.rows);
    __syncthreads();
    pull_outputs(args, first, count, output, kWeightOutputs, shared);
    __syncthreads();
    if (sums_bias)
      for (int r = 0; r < count; ++r) bias += shared.grad[r * kGradPitch + threadIdx.x];
    if (!args.grad_weight || mine >= count || c >= args.size) continue;
    const S* hidden = row<S>(args.hidden, first + mine, token_of(args, first + mine)) + c;
    T h[V];
    load(hidden, args.size - c, is_aligned(hidden, 0), h);
#pragma unroll
    for (int o = 0; o < kWeightOutputs; ++o) {
      const T g = shared.grad[mine * kGradPitch + o];
#pragma unroll
      for (int i = 0; i < V; ++i) sums[o][i] = multiply_add(g, h[i], sums[o][i]);
    }
  }
  if (sums_bias && output + threadIdx.x < args.width)
    write(static_cast<S*>(args.grad_bias) + output + threadIdx.x, narrow<S>(bias));
  if (args.grad_weight) collect_weight(args, output, tile * kWeightVectors * V, sums, shared);
}

struct Backward : PreferenceEmbeddingBackward {
  int64_t hidden_blocks;
};

// Both kinds of gradients in one launch: blocks share nothing, and each brings the gradient through
// the normalization for the rows it needs, which is little against the rest.
template <class S>
__global__ void __launch_bounds__(kThreads) backward(Backward args) {
  const Shared<S> shared;
  if (blockIdx.x < args.hidden_blocks)
    pull_hidden(args, blockIdx.x, shared);
  else
    pull_weight(args, blockIdx.x - args.hidden_blocks, shared);
}

template <class Args>
Call embedding_call(const char* op, const Args& args, Stream stream) {
  return {
      op,
      stream,
      args.dtype,
      {{"rows", args.rows}, {"length", args.length}, {"size", args.size}, {"width", args.width}}};
}

template <class Args>
void need_projection(const Args& args) {
  if (args.normalized && args.rows > 0 && args.projection == nullptr)
    throw std::invalid_argument(
        "preference_embedding: CUDA kernels that normalize need projection");
}

}  // namespace

void preference_embedding(const PreferenceEmbedding& args, Stream stream) {
  need_projection(args);
  const Call call = embedding_call("preference_embedding", args, stream);
  with_storage(args.dtype, [&](auto s) {
    using S = decltype(s);
    if (args.rows < kFewRows)
      launch(call, forward<S, 1>, args.rows, kThreads, 0, args);
    else
      launch(call, forward<S, kRows>, ceil_div(args.rows, kRows), kThreads, 0, args);
  });
}

void preference_embedding_backward(const PreferenceEmbeddingBackward& args, Stream stream) {
  need_projection(args);
  const Call call = embedding_call("preference_embedding_backward", args, stream);
  with_storage(args.dtype, [&](auto s) {
    using S = decltype(s);
    constexpr int V = kVector<S>;
    const int64_t hidden_blocks =
        args.grad_hidden ? ceil_div(args.rows, kGradRows) * ceil_div(args.size, kWarp * V) : 0;
    const int64_t columns = args.grad_weight ? ceil_div(args.size, kWeightVectors * V) : 1;
    const int64_t weight_blocks =
        args.grad_weight || args.grad_bias ? ceil_div(args.width, kWeightOutputs) * columns : 0;
    launch(call, backward<S>, hidden_blocks + weight_blocks, kThreads, Shared<S>::kBytes,
           Backward{args, hidden_blocks});
  });
}

}  // namespace gpm::cuda
