// Functions that leave no symbol behind.
//
// What kernels share with the rest of the library is compiled several times, for AVX-512 too. Of an
// ordinary inline function the linker keeps one copy for the whole program, and that may be one
// that this processor cannot run. These have no copies.
#pragma once

#define GPM_INLINE inline __attribute__((always_inline))
