// Where the threads of warps meet.
#pragma once

#include "block.h"

namespace gpm::cuda::cuda_host {

// Some threads of a warp that have arrived where others are still expected.
struct Meeting {
  Contribution what;  // of the first of them
  unsigned arrived = 0;
};

struct Warp {
  unsigned present = 0, exited = 0;
  uint32_t barriers = 0;  // of all threads, which alone order their accesses to memory
  int count = 0;
  Meeting meetings[kWarp];
};

struct Lane {
  Contribution mine;
  uint64_t result;
};

const char* name(Operation operation);

// A lane arrives. Returns the lanes that can go on, none as long as some are missing. Faults go to
// stop(); `first` is the number of the warp's first thread.
unsigned arrive(Warp& warp, Lane* lanes, int first, int lane);

// What a lane of the mask that is gone would leave waiting.
const Meeting* meeting_of(const Warp& warp, int lane);

}  // namespace gpm::cuda::cuda_host
