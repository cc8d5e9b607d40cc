#include "gpm/preference_embedding.h"

#include "cpu/simd/columns.h"
#include "gpm/normalize.h"

namespace gpm::cpu::GPM_SIMD_NAMESPACE {

// Defined in kernels/normalize.cpp of the same instruction set.
void normalize(const Normalize& args, int64_t begin, int64_t end, void* scratch);

namespace {

template <class S, class Args>
GPM_INLINE const S* hidden_row(const Args& args, int64_t r) {
  return row<S>(args.hidden, r, args.positions ? args.positions[r] : 0);
}

// Dot products of R hidden states with O rows of the weight. Every sum runs over the same lanes in
// the same order whatever R and O are, so results do not depend on how the work is cut.
template <class S, int R, int O>
GPM_INLINE void dots(const S* const (&hidden)[R], const S* weight, int64_t stride, int64_t size,
                     Accumulate<S> (&out)[R][O]) {
  using T = Accumulate<S>;
  constexpr int W = kLanes<T>;
  Vector<T> sums[R][O] = {};
  int64_t c = 0;
  for (; c + W <= size; c += W) {
    Vector<T> h[R];
    for (int r = 0; r < R; ++r) h[r] = load(hidden[r] + c);
    for (int o = 0; o < O; ++o) {
      const Vector<T> w = load(weight + o * stride + c);
      for (int r = 0; r < R; ++r) sums[r][o] = multiply_add(h[r], w, sums[r][o]);
    }
  }
  if (c < size)
    for (int o = 0; o < O; ++o) {
      const Vector<T> w = load_partial(weight + o * stride + c, size - c);
      for (int r = 0; r < R; ++r)
        sums[r][o] = multiply_add(load_partial(hidden[r] + c, size - c), w, sums[r][o]);
    }
  for (int r = 0; r < R; ++r)
    for (int o = 0; o < O; ++o) out[r][o] = sum_lanes<T>(sums[r][o]);
}

// Projections of R sequences from `first`, before normalization.
template <class S, int R>
void project(const PreferenceEmbedding& args, int64_t first, Accumulate<S>* out) {
  using T = Accumulate<S>;
  const S* hidden[R];
  for (int r = 0; r < R; ++r) hidden[r] = hidden_row<S>(args, first + r);
  const S* bias = static_cast<const S*>(args.bias);
  int64_t o = 0;
  for (; o + 4 <= args.width; o += 4) {
    T sums[R][4];
    dots<S, R, 4>(hidden, row<S>(args.weight, o), args.weight.stride, args.size, sums);
    for (int r = 0; r < R; ++r)
      for (int i = 0; i < 4; ++i)
        out[r * args.width + o + i] = sums[r][i] + (bias ? T(widen(bias[o + i])) : T(0));
  }
  for (; o < args.width; ++o) {
    T sums[R][1];
    dots<S, R, 1>(hidden, row<S>(args.weight, o), args.weight.stride, args.size, sums);
    for (int r = 0; r < R; ++r)
      out[r * args.width + o] = sums[r][0] + (bias ? T(widen(bias[o])) : T(0));
  }
}

// Rows of the accumulation type rounded to the stored one.
template <class S>
void round_rows(const Accumulate<S>* from, int64_t count, S* to) {
  constexpr int W = kLanes<Accumulate<S>>;
  for (int64_t i = 0; i < count; i += W) {
    const int64_t n = at_most(W, count - i);
    store_partial(to + i, load_partial(from + i, n), n);
  }
}

template <class S>
void forward(const PreferenceEmbedding& args, int64_t begin, int64_t end, void* scratch) {
  using T = Accumulate<S>;
  constexpr int R = GPM_VECTOR_BYTES == 64 ? 4 : 2;
  constexpr DType kWide = sizeof(T) == 8 ? DType::float64 : DType::float32;
  T* unit = static_cast<T*>(scratch);
  T* projected = unit + R * args.width;
  for (int64_t r = begin; r < end;) {
    const int64_t count = end - r >= R ? R : 1;
    if (args.projection) projected = static_cast<T*>(args.projection) + r * args.width;
    count == R ? project<S, R>(args, r, projected) : project<S, 1>(args, r, projected);
    S* out = static_cast<S*>(args.out) + r * args.width;
    if (args.normalized) {
      const Normalize step{kWide, count, args.width, args.eps, {projected, args.width}, unit};
      normalize(step, 0, count, nullptr);
      round_rows<S>(unit, count * args.width, out);
    } else {
      round_rows<S>(projected, count * args.width, out);
    }
    r += count;
  }
}

// Gradient of hidden, one row of the gradient of the projection at a time.
template <class S>
void backward_rows(const PreferenceEmbeddingBackward& args, int64_t begin, int64_t end) {
  using T = Accumulate<S>;
  constexpr int W = kLanes<T>;
  const int64_t tokens = args.positions ? args.length : 1;
  for (int64_t r = begin; r < end; ++r) {
    const T* grad = static_cast<const T*>(args.grad_projection) + r * args.width;
    const int64_t token = args.positions ? args.positions[r] : 0;
    S* out = static_cast<S*>(args.grad_hidden) + (r * tokens + token) * args.size;
    for (int64_t c = 0; c < args.size; c += W) {
      const int64_t n = at_most(W, args.size - c);
      Vector<T> sum{};
      for (int64_t o = 0; o < args.width; ++o)
        sum = multiply_add(broadcast(grad[o]), load_partial(row<S>(args.weight, o) + c, n), sum);
      store_partial(out + c, sum, n);
    }
  }
}

// Gradient of the weight, W columns of it at a time; unit u is columns u * W to (u + 1) * W.
template <class S>
void backward_columns(const PreferenceEmbeddingBackward& args, int64_t begin, int64_t end) {
  using T = Accumulate<S>;
  constexpr int W = kLanes<T>;
  constexpr int O = 8;  // rows of the weight at a time, so that sums stay in registers
  for (int64_t u = begin; u < end; ++u) {
    const int64_t c = u * W, n = at_most(W, args.size - c);
    if (n <= 0) return;
    for (int64_t first = 0; first < args.width; first += O) {
      const int64_t count = at_most(O, args.width - first);
      Vector<T> sums[O] = {};
      for (int64_t r = 0; r < args.rows; ++r) {
        const Vector<T> h = load_partial(hidden_row<S>(args, r) + c, n);
        const T* grad = static_cast<const T*>(args.grad_projection) + r * args.width + first;
        if (count == O)
          for (int o = 0; o < O; ++o) sums[o] = multiply_add(broadcast(grad[o]), h, sums[o]);
        else
          for (int64_t o = 0; o < count; ++o)
            sums[o] = multiply_add(broadcast(grad[o]), h, sums[o]);
      }
      for (int64_t o = 0; o < count; ++o)
        store_partial(static_cast<S*>(args.grad_weight) + (first + o) * args.size + c, sums[o], n);
    }
  }
}

template <class S>
void widen_rows(const PreferenceEmbeddingBackward& args, int64_t begin, int64_t end) {
  using T = Accumulate<S>;
  for (int64_t r = begin; r < end; ++r)
    for (int64_t o = 0; o < args.width; ++o)
      static_cast<T*>(args.grad_projection)[r * args.width + o] = widen(row<S>(args.grad, r)[o]);
}

template <class S>
void backward_bias(const PreferenceEmbeddingBackward& args) {
  using T = Accumulate<S>;
  for (int64_t o = 0; o < args.width; ++o) {
    T sum = 0;
    for (int64_t r = 0; r < args.rows; ++r)
      sum += static_cast<const T*>(args.grad_projection)[r * args.width + o];
    narrow(sum, static_cast<S*>(args.grad_bias)[o]);
  }
}

}  // namespace

void preference_embedding(const PreferenceEmbedding& args, int64_t begin, int64_t end,
                          void* scratch) {
  with_storage(args.dtype, [&](auto s) { forward<decltype(s)>(args, begin, end, scratch); });
}

void preference_embedding_widen(const PreferenceEmbeddingBackward& args, int64_t begin, int64_t end,
                                void*) {
  with_storage(args.dtype, [&](auto s) { widen_rows<decltype(s)>(args, begin, end); });
}

void preference_embedding_rows(const PreferenceEmbeddingBackward& args, int64_t begin, int64_t end,
                               void*) {
  with_storage(args.dtype, [&](auto s) { backward_rows<decltype(s)>(args, begin, end); });
}

void preference_embedding_columns(const PreferenceEmbeddingBackward& args, int64_t begin,
                                  int64_t end, void*) {
  with_storage(args.dtype, [&](auto s) { backward_columns<decltype(s)>(args, begin, end); });
}

void preference_embedding_bias(const PreferenceEmbeddingBackward& args, int64_t, int64_t, void*) {
  with_storage(args.dtype, [&](auto s) { backward_bias<decltype(s)>(args); });
}

}  // namespace gpm::cpu::GPM_SIMD_NAMESPACE
