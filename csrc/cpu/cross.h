// Threads and memory of the rectangular matrices; their arithmetic is in simd/cross.h.
#pragma once

#include <vector>

#include "cpu/matrices.h"
#include "cpu/parallel.h"
#include "gpm/cross_score_matrix.h"

namespace gpm::cpu {

template <class Kernel, class Args>
void run_cross(Kernel kernel, const Args& args, double operations_per_pair, int threads) {
  const double pairs = static_cast<double>(std::min(args.rows, kCrossRows)) *
                       static_cast<double>(std::min(args.columns, kCrossColumns));
  parallel_for(kernel, args, args.batch * CrossUnits(args.rows, args.columns).per_batch,
               pairs * operations_per_pair, threads,
               packed_bytes(args.dtype, std::min(args.columns, kCrossColumns), args.width) +
                   packed_bytes(args.dtype, std::min(args.rows, kCrossRows), args.width) +
                   sums_bytes(args.dtype, args.width));
}

template <class Kernel, class Args>
void run_cross_backward(Kernel first, Kernel second, const Args& args, double operations_per_pair,
                        int threads) {
  const int64_t lanes = lanes_of(args.dtype), blocks = args.width / 2;
  const int64_t row_tiles = (args.rows + lanes - 1) / lanes;
  const int64_t column_tiles = (args.columns + lanes - 1) / lanes;
  const int64_t units = args.batch * row_tiles;
  std::vector<double> partial(args.grad_scale ? static_cast<size_t>(units * blocks) : 0);
  const MatrixPull<Args> pull{args, args.grad_scale ? partial.data() : nullptr};
  const double per_row = static_cast<double>(lanes) * operations_per_pair;
  const int64_t rest =
      packed_bytes(args.dtype, lanes, args.width) + sums_bytes(args.dtype, args.width);
  parallel_for(first, pull, units, per_row * static_cast<double>(args.columns), threads,
               packed_bytes(args.dtype, args.columns, args.width) + rest);
  parallel_for(second, pull, args.batch * column_tiles, per_row * static_cast<double>(args.rows),
               threads, packed_bytes(args.dtype, args.rows, args.width) + rest);
  if (args.grad_scale)
    sum_partial(partial.data(), args.batch, row_tiles, blocks, args.dtype, args.grad_scale);
}

}  // namespace gpm::cpu
