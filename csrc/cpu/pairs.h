// What the operations on pairs of rows share outside of their kernels.
#pragma once

#include <cstdint>

namespace gpm::cpu {

// Bytes of scratch for one tile of pairs and, with `gradients`, theirs: two embeddings and a scale,
// one cache line of lanes for each column.
constexpr int64_t pair_scratch(int64_t width, bool gradients) {
  return (2 * width + width / 2) * 64 * (gradients ? 2 : 1);
}

}  // namespace gpm::cpu
