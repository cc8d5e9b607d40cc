// Accesses to global memory whose order is left to chance.
#pragma once

#include "block.h"

namespace gpm::cuda::cuda_host {

// Before a launch: forgets all accesses.
void forget_accesses();

// Remembers an access of the running thread. Faults if some other thread accessed the same memory,
// one of the two wrote, and no barrier is between them.
void check_order(uintptr_t begin, size_t bytes, Access access);

}  // namespace gpm::cuda::cuda_host
