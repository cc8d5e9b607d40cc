#include "fibre.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <new>

#include "sanitizer.h"

namespace gpm::cuda::cuda_host {
namespace {

constexpr size_t kStackBytes = GPM_CUDA_HOST_ASAN ? 512 << 10 : 128 << 10;

#if GPM_CUDA_HOST_ASAN
// The one that was left for the fibre that runs now.
Fibre* previous;
#endif

}  // namespace

void allocate_stack(Fibre& fibre) {
  static int count = 0;
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  void* memory = mmap(nullptr, page + kStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, page, PROT_NONE) != 0) throw std::bad_alloc();
  fibre.bottom = static_cast<char*>(memory) + page;
  fibre.size = kStackBytes;
  // Stacks that begin alike would all compete for the same lines of the cache.
  fibre.colour = count++ % 16 * 256;
}

void abandon(Fibre& fibre) { ASAN_UNPOISON_MEMORY_REGION(fibre.bottom, fibre.size); }

#if GPM_CUDA_HOST_PORTABLE

void prepare(Fibre& fibre, void (*entry)()) {
  getcontext(&fibre.context);
  fibre.context.uc_stack.ss_sp = fibre.bottom;
  fibre.context.uc_stack.ss_size = fibre.size - static_cast<size_t>(fibre.colour);
  fibre.context.uc_link = nullptr;
  makecontext(&fibre.context, entry, 0);
}

static void swap(Fibre& from, Fibre& to) { swapcontext(&from.context, &to.context); }

#else

// Saves what a call preserves on one stack, and returns on the other. The floating-point modes stay
// as they are: nobody changes them.
extern "C" void gpm_cuda_host_swap(void** from, void* to);
asm(R"(
  .text
  .p2align 4
  .globl gpm_cuda_host_swap
  .hidden gpm_cuda_host_swap
  .type gpm_cuda_host_swap, @function
gpm_cuda_host_swap:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size gpm_cuda_host_swap, .-gpm_cuda_host_swap
)");

void prepare(Fibre& fibre, void (*entry)()) {
  char* top = static_cast<char*>(fibre.bottom) + fibre.size - fibre.colour;
  // Six registers, where to go, and the end of the chain of callers.
  void* frame[8] = {};
  frame[6] = reinterpret_cast<void*>(entry);
  fibre.stack_pointer = top - sizeof(frame);
  std::memcpy(fibre.stack_pointer, frame, sizeof(frame));
}

static void swap(Fibre& from, Fibre& to) {
  gpm_cuda_host_swap(&from.stack_pointer, to.stack_pointer);
}

#endif

#if GPM_CUDA_HOST_ASAN

void entered() {
  // What it says of the stack that was left is how the bounds of the system's own are found.
  __sanitizer_finish_switch_fiber(nullptr, const_cast<const void**>(&previous->bottom),
                                  &previous->size);
}

void change(Fibre& from, Fibre& to, bool ended) {
  previous = &from;
  __sanitizer_start_switch_fiber(ended ? nullptr : &from.fake_stack, to.bottom, to.size);
  swap(from, to);
  __sanitizer_finish_switch_fiber(from.fake_stack, const_cast<const void**>(&previous->bottom),
                                  &previous->size);
}

#else

void entered() {}

void change(Fibre& from, Fibre& to, bool) { swap(from, to); }

#endif

}  // namespace gpm::cuda::cuda_host
