// Threads and memory of the square matrices; their arithmetic is in simd/square.h.
#pragma once

#include <vector>

#include "cpu/matrices.h"
#include "cpu/parallel.h"
#include "gpm/score_matrix.h"

namespace gpm::cpu {

template <class Kernel, class Args>
void run_square(Kernel kernel, const Args& args, double operations_per_pair, int threads) {
  if (is_small_square(args.batch, args.rows)) {
    const int64_t lanes = lanes_of(args.dtype), item = args.dtype == DType::float64 ? 8 : 4;
    const int64_t columns = args.rows * args.width + args.rows * args.rows + args.width / 2;
    parallel_for(kernel, args, (args.batch + lanes - 1) / lanes,
                 static_cast<double>(lanes * args.rows * args.rows) * operations_per_pair / 2,
                 threads, columns * lanes * item);
    return;
  }
  const double side = static_cast<double>(std::min(args.rows, kSquareUnit));
  const double pairs = side * std::max(side, static_cast<double>(lanes_of(args.dtype)));
  parallel_for(
      kernel, args, args.batch * SquareUnits(args.rows).per_batch, pairs * operations_per_pair,
      threads,
      packed_bytes(args.dtype, args.rows, args.width) + sums_bytes(args.dtype, args.width));
}

template <class Kernel, class Args>
void run_square_backward(Kernel kernel, const Args& args, double operations_per_pair, int threads) {
  const int64_t lanes = lanes_of(args.dtype), tiles = (args.rows + lanes - 1) / lanes;
  const int64_t blocks = args.width / 2, units = args.batch * tiles;
  std::vector<double> partial(args.grad_scale ? static_cast<size_t>(units * blocks) : 0);
  MatrixPull<Args> pull{args, args.grad_scale ? partial.data() : nullptr};
  parallel_for(
      kernel, pull, units,
      static_cast<double>(lanes) * static_cast<double>(args.rows) * operations_per_pair, threads,
      packed_bytes(args.dtype, args.rows, args.width) + sums_bytes(args.dtype, args.width));
  if (args.grad_scale)
    sum_partial(partial.data(), args.batch, tiles, blocks, args.dtype, args.grad_scale);
}

}  // namespace gpm::cpu
