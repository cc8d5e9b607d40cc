#include "gpm/preference_loss.h"

#include "cpu/simd/blocks.h"
#include "cpu/simd/math.h"

namespace gpm::cpu::GPM_SIMD_NAMESPACE {
namespace {

// One number a row, in the accumulation type; zero lanes past count.
template <class T>
GPM_INLINE Vector<T> load_numbers(const Rows& numbers, int64_t first, int64_t count) {
  constexpr int W = kLanes<T>;
  T lanes[W] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = *row<T>(numbers, first + i);
  return load(lanes);
}

template <class S, class Args>
GPM_INLINE Vector<Accumulate<S>> logit(const Args& args, int64_t first, int64_t count,
                                       const PairTile<Accumulate<S>>& tile) {
  using T = Accumulate<S>;
  load_pairs<S>(args.chosen, args.rejected, args.scale, first, count, args.width, tile);
  Vector<T> s = score_pairs<T>(tile, args.width);
  if (args.margin.data) s -= load_numbers<T>(args.margin, first, count);
  return s / T(args.tau);
}

template <class S>
void forward(const PreferenceLoss& args, int64_t begin, int64_t end, void* scratch) {
  using T = Accumulate<S>;
  constexpr int W = kLanes<T>;
  T* memory = static_cast<T*>(scratch);
  PairTile<T> tile;
  place(tile, memory, args.width, args.scale.data != nullptr);
  for (int64_t first = begin; first < end; first += W) {
    const int64_t count = at_most(W, end - first);
    const Vector<T> z = logit<S>(args, first, count, tile);
    const Vector<T> magnitude = absolute<T>(z);
    Vector<T> exponential[1] = {-magnitude};
    exp_nonpositive<T>(exponential);
    const Vector<T> e = exponential[0];
    const Vector<T> tail = log1p_unit<T>(e);  // softplus(-|z|)
    const Vector<T> right = z < 0 ? magnitude + tail : tail,
                    wrong = z < 0 ? tail : magnitude + tail;
    Vector<T> loss = right;
    if (args.target.data) {
      const Vector<T> p = load_numbers<T>(args.target, first, count);
      // Zero times an infinite loss would be NaN for a hard target.
      const Vector<T> zero{};
      loss = (p == 0 ? zero : p * right) + (p == 1 ? zero : (T(1) - p) * wrong);
    }
    const Vector<T> small = e / (e + T(1));
    store_partial(static_cast<T*>(args.loss) + first, loss, count);
    store_partial(static_cast<T*>(args.probability) + first, z < 0 ? small : T(1) - small, count);
  }
}

template <class S>
void backward(const PreferenceLossBackward& args, int64_t begin, int64_t end, void* scratch) {
  using T = Accumulate<S>;
  constexpr int W = kLanes<T>;
  T* memory = static_cast<T*>(scratch);
  PairTile<T> tile, grads;
  place(tile, memory, args.width, args.scale.data != nullptr);
  place(grads, memory, args.width, args.scale.data != nullptr);
  for (int64_t first = begin; first < end; first += W) {
    const int64_t count = at_most(W, end - first);
    const Vector<T> z = logit<S>(args, first, count, tile);
    Vector<T> sigmoid[1] = {z};
    small_sigmoid<T>(sigmoid);
    const Vector<T> small = sigmoid[0];
    const Vector<T> large = T(1) - small;
    const Vector<T> probability = z < 0 ? small : large, complement = z < 0 ? large : small;
    Vector<T> grad{}, grad_loss{};
    if (args.grad_loss) {
      grad_loss = load_partial(static_cast<const T*>(args.grad_loss) + first, count);
      Vector<T> slope = -complement;
      if (args.target.data) {
        const Vector<T> p = load_numbers<T>(args.target, first, count);
        slope = (T(1) - p) * probability - p * complement;
      }
      grad = grad_loss * slope;
    }
    if (args.grad_probability) {
      const auto* outer = static_cast<const T*>(args.grad_probability) + first;
      grad += load_partial(outer, count) * (small * large);
    }
    grad /= T(args.tau);
    pull_pairs<T>(tile, args.width, grad, grads);
    store_pairs<S>(grads, first, count, args.width, args.grad_chosen, args.grad_rejected,
                   args.grad_scale);
    if (args.grad_margin) store_partial(static_cast<T*>(args.grad_margin) + first, -grad, count);
    if (args.grad_target)
      store_partial(static_cast<T*>(args.grad_target) + first, -grad_loss * z, count);
  }
}

}  // namespace

void preference_loss(const PreferenceLoss& args, int64_t begin, int64_t end, void* scratch) {
  with_storage(args.dtype, [&](auto s) { forward<decltype(s)>(args, begin, end, scratch); });
}

void preference_loss_backward(const PreferenceLossBackward& args, int64_t begin, int64_t end,
                              void* scratch) {
  with_storage(args.dtype, [&](auto s) { backward<decltype(s)>(args, begin, end, scratch); });
}

}  // namespace gpm::cpu::GPM_SIMD_NAMESPACE
