// Stacks to run the threads of a block on, one at a time.
#pragma once

#include <cstddef>

#if !defined(__x86_64__) || defined(GPM_CUDA_HOST_UCONTEXT)
#define GPM_CUDA_HOST_PORTABLE 1
#include <ucontext.h>
#else
#define GPM_CUDA_HOST_PORTABLE 0
#endif

namespace gpm::cuda::cuda_host {

struct Fibre {
#if GPM_CUDA_HOST_PORTABLE
  ucontext_t context;
#else
  void* stack_pointer = nullptr;
#endif
  void* bottom = nullptr;
  size_t size = 0;
  void* fake_stack = nullptr;  // AddressSanitizer's
  int colour = 0;
};

// Memory for a fibre, with a guard page below; never returned to the system.
void allocate_stack(Fibre& fibre);

// Makes the fibre begin at `entry`, which calls `entered()` first and never returns.
void prepare(Fibre& fibre, void (*entry)());
void entered();

// Goes on with another fibre; returns when somebody goes on with this one. One that has ended is
// not gone on with.
void change(Fibre& from, Fibre& to, bool ended);

// Forgets what ran on the stack.
void abandon(Fibre& fibre);

}  // namespace gpm::cuda::cuda_host
