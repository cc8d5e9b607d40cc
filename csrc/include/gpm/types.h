// Types that every operation of the library shares. No Python, no PyTorch: raw memory only.
#pragma once

#include <cstdint>

namespace gpm {

// How numbers are stored. Sums are taken in float, in double for float64.
enum class DType : int { float64 = 0, float32 = 1, bfloat16 = 2, float16 = 3 };

constexpr int64_t item_size(DType dtype) {
  return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2;
}

// Rows of a matrix whose numbers are contiguous within a row. Strides count numbers, not bytes;
// they may be zero (one row for all) and exceed 32 bits.
struct Rows {
  const void* data = nullptr;  // null where an optional input is absent
  int64_t stride = 0;
};

// A batch of matrices, each with contiguous rows.
struct Batch {
  const void* data = nullptr;
  int64_t batch_stride = 0;
  int64_t row_stride = 0;
};

}  // namespace gpm
