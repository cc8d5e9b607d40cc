#include "gpm/score.h"

#include "cpu/simd/blocks.h"

namespace gpm::cpu::GPM_SIMD_NAMESPACE {
namespace {

template <class S>
void forward(const Score& args, int64_t begin, int64_t end, void* scratch) {
  using T = Accumulate<S>;
  constexpr int W = kLanes<T>;
  T* memory = static_cast<T*>(scratch);
  PairTile<T> tile;
  place(tile, memory, args.width, args.scale.data != nullptr);
  for (int64_t first = begin; first < end; first += W) {
    const int64_t count = at_most(W, end - first);
    load_pairs<S>(args.a, args.b, args.scale, first, count, args.width, tile);
    store_partial(static_cast<S*>(args.out) + first, score_pairs<T>(tile, args.width), count);
  }
}

template <class S>
void backward(const ScoreBackward& args, int64_t begin, int64_t end, void* scratch) {
  using T = Accumulate<S>;
  constexpr int W = kLanes<T>;
  T* memory = static_cast<T*>(scratch);
  PairTile<T> tile, grads;
  place(tile, memory, args.width, args.scale.data != nullptr);
  place(grads, memory, args.width, args.scale.data != nullptr);
  for (int64_t first = begin; first < end; first += W) {
    const int64_t count = at_most(W, end - first);
    load_pairs<S>(args.a, args.b, args.scale, first, count, args.width, tile);
    const Vector<T> grad = load_partial(static_cast<const S*>(args.grad) + first, count);
    pull_pairs<T>(tile, args.width, grad, grads);
    store_pairs<S>(grads, first, count, args.width, args.grad_a, args.grad_b, args.grad_scale);
  }
}

}  // namespace

void score(const Score& args, int64_t begin, int64_t end, void* scratch) {
  with_storage(args.dtype, [&](auto s) { forward<decltype(s)>(args, begin, end, scratch); });
}

void score_backward(const ScoreBackward& args, int64_t begin, int64_t end, void* scratch) {
  with_storage(args.dtype, [&](auto s) { backward<decltype(s)>(args, begin, end, scratch); });
}

}  // namespace gpm::cpu::GPM_SIMD_NAMESPACE
