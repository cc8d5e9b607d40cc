// How the work of the all-pairs operations is cut, known to both sides of a kernel's call.
#pragma once

#include <cstdint>

#include "cpu/dispatch.h"
#include "cpu/inline.h"
#include "gpm/types.h"

namespace gpm::cpu {

// Side of a unit of a square matrix, in rows: 8 vectors of 16 floats. A unit writes runs of 512
// bytes in each row of both triangles, so that a page is found in the address cache once for eight
// cache lines, and a large matrix falls into enough units for many threads.
constexpr int64_t kSquareUnit = 128;

// Units of the square matrices: pairs of ranges of rows on or above the diagonal, batch by batch.
struct SquareUnits {
  struct Unit {
    int64_t batch, row, column;
  };

  GPM_INLINE explicit constexpr SquareUnits(int64_t rows)
      : side((rows + kSquareUnit - 1) / kSquareUnit), per_batch(side * (side + 1) / 2) {}

  GPM_INLINE Unit operator[](int64_t unit) const {
    const int64_t batch = unit / per_batch;
    int64_t rest = unit % per_batch;
    int64_t row = 0;
    for (int64_t in_row = side; rest >= in_row; rest -= in_row, --in_row) ++row;
    return {batch, row * kSquareUnit, (row + rest) * kSquareUnit};
  }

  int64_t side, per_batch;
};

// Whether matrices are computed side by side, one in each lane: when there are enough of them, and
// they are so small that a vector's worth of results stays in the first-level cache (16 KiB).
GPM_INLINE constexpr bool is_small_square(int64_t batch, int64_t rows) {
  return batch >= 8 && rows > 0 && rows <= 16;
}

// Rows and columns of a unit of a rectangular matrix. A unit's columns are packed once for all
// units above and below it, which follow each other.
constexpr int64_t kCrossRows = 64;
constexpr int64_t kCrossColumns = 1024;

struct CrossUnits {
  struct Unit {
    int64_t batch, row, column;
  };

  GPM_INLINE constexpr CrossUnits(int64_t rows, int64_t columns)
      : tall((rows + kCrossRows - 1) / kCrossRows),
        per_batch(tall * ((columns + kCrossColumns - 1) / kCrossColumns)) {}

  GPM_INLINE constexpr Unit operator[](int64_t unit) const {
    const int64_t rest = unit % per_batch;
    return {unit / per_batch, rest % tall * kCrossRows, rest / tall * kCrossColumns};
  }

  int64_t tall, per_batch;
};

// Whether an output is large enough to go past the caches, and aligned so that it can.
GPM_INLINE bool may_stream(const void* out, int64_t rows, int64_t columns, int64_t row_stride,
                           int64_t item) {
  constexpr int64_t kCacheBytes = int64_t(16) << 20;
  return item >= 4 && rows * columns * item >= kCacheBytes && row_stride * item % 64 == 0 &&
         reinterpret_cast<uintptr_t>(out) % 64 == 0;
}

// Arguments of a backward kernel with room for partial sums of the scale's gradient, one set of
// them a unit, added up in order when all are done.
template <class Args>
struct MatrixPull : Args {
  double* partial;
};

// dst[b, l] = sum over the units u of batch entry b of partial[u, l], as dtype.
void sum_partial(const double* partial, int64_t batch, int64_t units, int64_t blocks, DType dtype,
                 void* dst);

// Numbers of the accumulation type of dtype in a vector of the chosen instruction set.
GPM_INLINE int64_t lanes_of(DType dtype) {
  return vector_bytes() / (dtype == DType::float64 ? 8 : 4);
}

// Bytes that `rows` embeddings take when packed in whole vectors.
GPM_INLINE int64_t packed_bytes(DType dtype, int64_t rows, int64_t width) {
  const int64_t lanes = lanes_of(dtype);
  return (rows + lanes - 1) / lanes * lanes * width * (dtype == DType::float64 ? 8 : 4);
}

// Bytes of a scale and of the sums for one vector of embeddings.
GPM_INLINE int64_t sums_bytes(DType dtype, int64_t width) {
  return (lanes_of(dtype) + 1) * width * (dtype == DType::float64 ? 8 : 4);
}

}  // namespace gpm::cpu
