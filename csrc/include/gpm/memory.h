// Memory of large results.
#pragma once

#include <cstdint>

namespace gpm::cpu {

// Asks the system for large pages behind fresh memory that is about to be written. A hint: nothing
// happens where the system has none, and the contents never change.
void advise_huge_pages(void* data, int64_t bytes);

}  // namespace gpm::cpu
