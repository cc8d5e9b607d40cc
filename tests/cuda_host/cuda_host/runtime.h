// What stands in for the GPU below csrc/cuda: kernels run on the processor, one thread at a time,
// in an order that a seed decides, and stop at the first thing that a GPU would not forgive.
#pragma once

#include <driver_types.h>
#include <vector_types.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace gpm::cuda::cuda_host {

// Who runs. Launches take turns, so that there is one at most; not thread_local, which would be
// slower.
struct Running {
  uint3 thread, block;
  dim3 threads, blocks;
  unsigned char* shared;
  bool watched;  // whether accesses are counted or compared with known buffers
};
extern Running running;

// The dynamic shared memory of the running block, aligned to 128 bytes.
inline void* shared_memory() { return running.shared; }

// Stops the launch, which then returns `status`, described by the text. Outside of kernels it ends
// the process.
[[noreturn]] void fault(cudaError_t status, const char* format, ...)
    __attribute__((format(printf, 2, 3)));
// What an assertion of a kernel that does not hold comes to.
[[noreturn]] void fail(const char* what);
[[noreturn]] void fail_assert(const char* condition, const char* file, unsigned line,
                              const char* function);

enum class Access { read, write, atomic };
void note(const void* p, size_t bytes, Access access);

// What a GPU wants an address to be a multiple of.
constexpr size_t alignment_of(size_t bytes) {
  const size_t power = bytes & (~bytes + 1);
  return power < 16 ? power : 16;
}

inline void note_access(const void* p, size_t bytes, Access access) {
  if (running.watched || reinterpret_cast<uintptr_t>(p) % alignment_of(bytes) != 0)
    note(p, bytes, access);
}
inline void note_read(const void* p, size_t bytes) { note_access(p, bytes, Access::read); }
inline void note_write(void* p, size_t bytes) { note_access(p, bytes, Access::write); }
inline void note_atomic(void* p, size_t bytes) { note_access(p, bytes, Access::atomic); }

// All threads of the block meet.
void barrier();

enum class Operation { shuffle, shuffle_up, shuffle_down, shuffle_xor, ballot, any, all, sync };
struct Contribution {
  Operation operation;
  unsigned mask;
  int bytes;  // of the type of a value that is shuffled
  uint64_t value = 0;
  int argument = 0, width = 32;  // of shuffles
};
// The threads that the mask names meet; returns what the operation is for this one.
uint64_t meet(const Contribution& mine);

// Calls a kernel of any arguments.
struct Kernel {
  void (*call)(const Kernel&);
  void (*function)();
  const void* args;
};
cudaError_t run(const Kernel& kernel, int64_t blocks, int threads, int64_t shared_bytes);

template <class Args>
cudaError_t launch(void (*kernel)(Args), int64_t blocks, int threads, int64_t shared_bytes,
                   const Args& args) {
  static_assert(std::is_trivially_copyable<Args>::value, "the GPU gets a copy of the bytes");
  static_assert(sizeof(Args) <= 4096, "more than a GPU takes as arguments");
  const auto call = [](const Kernel& k) {
    reinterpret_cast<void (*)(Args)>(k.function)(*static_cast<const Args*>(k.args));
  };
  return run({call, reinterpret_cast<void (*)()>(kernel), &args}, blocks, threads, shared_bytes);
}

// The part of the runtime library that csrc/cuda uses. Two devices that differ in nothing but their
// number.
cudaError_t get_last_error();
const char* error_string(cudaError_t status);
cudaError_t get_device(int* device);
cudaError_t set_device(int device);

}  // namespace gpm::cuda::cuda_host

// The toolkit's headers declare the real ones, which a process may have as well.
#define cudaGetLastError ::gpm::cuda::cuda_host::get_last_error
#define cudaGetErrorString ::gpm::cuda::cuda_host::error_string
#define cudaGetDevice ::gpm::cuda::cuda_host::get_device
#define cudaSetDevice ::gpm::cuda::cuda_host::set_device
