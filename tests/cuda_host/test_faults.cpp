// What a GPU would not forgive, or would do silently, ends a launch with a message.
#include <cstdlib>
#include <set>
#include <string>
#include <vector>

#include "check.h"
#include "cuda/memory.cuh"
#include "cuda_host/control.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sys/wait.h>
#include <unistd.h>
#endif

using namespace gpm::cuda;

namespace {

struct Case {
  int* data;
  int which;
};

// The launch fails with the status, and a text that has all of the parts.
void check_fails(cudaError_t status, cudaError_t expected, std::vector<const char*> parts) {
  const std::string text = cudaGetErrorString(status);
  CHECK(status == expected, "%d: %s", int(status), text.c_str());
  for (const char* part : parts)
    CHECK(text.find(part) != std::string::npos, "%s: not in: %s", part, text.c_str());
  CHECK(cudaGetLastError() == expected && cudaGetLastError() == cudaSuccess, "%s", text.c_str());
}

__global__ void nothing(Case) {}

__global__ void rotate(Case args) {
  int* shared = shared_memory<int>();
  shared[threadIdx.x] = int(threadIdx.x);
  if (args.which) __syncthreads();
  args.data[threadIdx.x] = shared[(threadIdx.x + 1) % blockDim.x];
}

__global__ void barriers(Case args) {
  const unsigned t = threadIdx.x;
  if (args.which == 0 && t % 2) return;
  if (args.which == 1 && t < 32) __syncwarp();
  if (args.which != 1 || t != 40) __syncthreads();
  if (args.which == 1 && t == 40) __syncwarp();
  if (args.which == 2 && t == 5) return;
  if (args.which == 2) __syncthreads();
}

__global__ void warps(Case args) {
  const unsigned t = threadIdx.x;
  switch (args.which) {
    case 0:  // does not name itself
      args.data[t] = __shfl_xor_sync(0xffffu, int(t), 1);
      break;
    case 1:  // names threads that return
      if (t % 2) return;
      args.data[t] = __shfl_xor_sync(~0u, int(t), 1);
      break;
    case 2:  // reads from outside of the mask
      if (t < 16) args.data[t] = __shfl_xor_sync(0xffffu, int(t), 16);
      break;
    case 3:  // different masks
      args.data[t] = __shfl_xor_sync(t < 16 ? ~0u : 0xffff0000u, int(t), 1);
      break;
    case 4:  // different operations
      args.data[t] = t < 16 ? __shfl_xor_sync(~0u, int(t), 1) : __any_sync(~0u, 1);
      break;
    case 5:  // different types
      args.data[t] = t < 16 ? __shfl_sync(~0u, int(t), 1) : int(__shfl_sync(~0u, double(t), 1));
      break;
    case 6:
      args.data[t] = __shfl_sync(~0u, int(t), 1, 12);
      break;
    default:  // a part of the warp is at the barrier
      if (t < 16)
        __syncthreads();
      else
        __syncwarp();
  }
}

// A plain access, unseen by AddressSanitizer.
__attribute__((no_sanitize("address"))) __global__ void past_shared(Case args) {
  static_cast<volatile int*>(cuda_host::shared_memory())[args.which] = 3;
}

#if defined(__SANITIZE_ADDRESS__)
__global__ void seen_past_shared(Case args) {
  if (args.which < 100)
    shared_memory<int>()[args.which] = 3;
  else
    args.data[0] = shared_memory<int>()[args.which - 100];
}
#endif

__global__ void copy_one(Case args) { write(args.data + args.which, read(args.data + 8) + 1); }
__global__ void read_one(Case args) {
  const int x = read(args.data + args.which);
  write(args.data, x);
}
__global__ void add_one(Case args) { atomicAdd(args.data + args.which, 1); }

__global__ void vector(Case args) {
  const uint4 x = read(reinterpret_cast<const uint4*>(args.data + args.which));
  write(reinterpret_cast<uint4*>(args.data), x);
}

__global__ void races(Case args) {
  int* mine = args.data + blockIdx.x * 64 + threadIdx.x;
  const unsigned other = threadIdx.x ^ (args.which == 2 ? 1 : 32);
  switch (args.which) {
    case 0:  // two blocks write the same
      write(args.data + threadIdx.x, 1);
      break;
    case 1:  // two blocks read, one of them writes
      if (read(args.data + 256 + threadIdx.x) >= 0 && blockIdx.x == 0)
        write(args.data + 256 + threadIdx.x, 1);
      break;
    case 5:  // nothing races
      atomicAdd(args.data + 255, read(args.data + 256));
      [[fallthrough]];
    default:  // another thread's number
      write(mine, int(threadIdx.x));
      if (args.which >= 4) __syncthreads();
      __syncwarp();
      const int x = read(args.data + blockIdx.x * 64 + other);
      if (args.which == 5) __syncthreads();
      if (args.which >= 4) write(mine, x);
  }
}

// All read a number; when they have, one of the later block writes it.
__global__ void late_write(Case args) {
  read(args.data);
  __syncthreads();
  if (threadIdx.x == 0 && atomicAdd(args.data + 1, 1) == 1) write(args.data, 1);
}

__global__ void assertions(Case args) {
  if (args.which == 0) assert(threadIdx.x != 3 && "three");
  if (args.which == 1 && threadIdx.x == 3) __trap();
  if (args.which == 2) require(threadIdx.x != 3, "a message");
}

cudaError_t run(void (*kernel)(Case), int which, int threads = 96, int64_t shared = 0) {
  static std::vector<int> data(1024);
  return cuda_host::launch(kernel, 2, threads, shared, Case{data.data(), which});
}

}  // namespace

TEST(a_removed_barrier_shows) {
  int right[2] = {};
  for (uint64_t seed = 1; seed <= 8; ++seed)
    for (const int with : {0, 1}) {
      std::vector<int> out(64), expected(64);
      for (int i = 0; i < 64; ++i) expected[size_t(i)] = (i + 1) % 64;
      cuda_host::set_seed(seed);
      cuda_host::launch(rotate, 3, 64, 256, Case{out.data(), with});
      right[with] += out == expected;
    }
  CHECK(right[1] == 8 && right[0] == 0, "%d %d", right[1], right[0]);
}

// All seeds find the fault, some of them as the first text says and some as the second does.
void check_found_as(void (*kernel)(Case), int which, const char* first, const char* second) {
  int found_first = 0, found_second = 0;
  for (uint64_t seed = 1; seed <= 8; ++seed) {
    cuda_host::set_seed(seed);
    const std::string text = cudaGetErrorString(run(kernel, which));
    found_first += text.find(first) != std::string::npos;
    found_second += text.find(second) != std::string::npos;
  }
  CHECK(found_first && found_second && found_first + found_second == 8, "%d: %d %d", which,
        found_first, found_second);
}

TEST(threads_that_return_are_missed) {
  check_found_as(barriers, 0, "which has returned, is not", "returned while thread");
  check_found_as(warps, 1, "which has returned", "returned while thread");
}

TEST(barriers_are_for_all_threads) {
  for (uint64_t seed = 1; seed <= 8; ++seed) {
    cuda_host::set_seed(seed);
    check_fails(run(barriers, 0), cudaErrorLaunchFailure, {"returned", "__syncthreads"});
    check_fails(run(barriers, 1), cudaErrorLaunchFailure, {"thread", "__syncthreads"});
    check_fails(run(barriers, 2), cudaErrorLaunchFailure, {"thread 5", "__syncthreads"});
    CHECK(run(barriers, 3) == cudaSuccess, "%s", cudaGetErrorString(cudaGetLastError()));
  }
}

TEST(warps_meet_as_their_masks_say) {
  constexpr const char* kParts[] = {
      "does not name it", "returned", "to read from thread", "__shfl_xor_sync (mask",
      "__any_sync (mask", "8 bytes",  "width of 12",         "waits at __syncthreads"};
  for (uint64_t seed = 1; seed <= 8; ++seed)
    for (int which = 0; which < 8; ++which) {
      cuda_host::set_seed(seed);
      check::context = std::to_string(which);
      check_fails(run(warps, which, 32), cudaErrorLaunchFailure, {kParts[which], "block"});
    }
  check_fails(run(warps, 6, 31), cudaErrorLaunchFailure, {"names thread 31, which there is not"});
}

TEST(writes_past_shared_memory) {
  CHECK(run(past_shared, 9, 32, 40) == cudaSuccess, "%s", cudaGetErrorString(cudaGetLastError()));
  check_fails(run(past_shared, 10, 32, 40), cudaErrorIllegalAddress,
              {"wrote at byte 40 of shared memory of 40 bytes"});
  check_fails(run(past_shared, -1, 32, 40), cudaErrorIllegalAddress, {"wrote at byte -4"});
  check_fails(run(past_shared, 0, 32, 0), cudaErrorIllegalAddress, {"wrote at byte 0"});
}

#if defined(__SANITIZE_ADDRESS__)
TEST(the_sanitizer_sees_accesses_past_shared_memory) {
  for (const int which : {9, 10, -1, 100 + 9, 100 + 10}) {
    const pid_t child = fork();
    if (child == 0) {
      close(2);  // its report
      _exit(run(seen_past_shared, which, 1, 40) == cudaSuccess ? 0 : 1);
    }
    int status = 0;
    waitpid(child, &status, 0);
    CHECK((status == 0) == (which % 100 == 9), "%d: %d", which, status);
  }
}
#endif

TEST(accesses_outside_of_buffers) {
  std::vector<int> data(32);
  const auto launch_one = [&](void (*kernel)(Case), int which) {
    return cuda_host::launch(kernel, 1, 1, 0, Case{data.data(), which});
  };
  CHECK(launch_one(copy_one, 20) == cudaSuccess, "nothing is known of buffers");
  cuda_host::Buffers buffers;
  buffers.readable(data.data() + 8, 32).writable(data.data(), 32).readable(data.data() + 16, 32);
  CHECK(launch_one(copy_one, 7) == cudaSuccess && launch_one(read_one, 23) == cudaSuccess, "");
  check_fails(launch_one(copy_one, 8), cudaErrorIllegalAddress,
              {"block 0 of 1, thread 0 of 1 wrote 4 bytes at byte 32 of a buffer of 32 bytes"});
  check_fails(launch_one(copy_one, -1), cudaErrorIllegalAddress, {"wrote 4 bytes at byte -4"});
  check_fails(launch_one(read_one, 24), cudaErrorIllegalAddress, {"read 4 bytes at byte 64"});
  check_fails(launch_one(read_one, 7), cudaErrorIllegalAddress, {"read 4 bytes at byte -4"});
  check_fails(launch_one(add_one, 8), cudaErrorIllegalAddress, {"updated 4 bytes at byte 32"});
  CHECK(data[7] == 1 && data[8] == 0, "%d %d", data[7], data[8]);
}

TEST(accesses_in_no_order) {
  cuda_host::find_races(true);
  constexpr const char* kParts[] = {"of block", "of block", nullptr, "thread", "thread", nullptr};
  for (uint64_t seed = 1; seed <= 8; ++seed)
    for (int which = 0; which < 6; ++which) {
      cuda_host::set_seed(seed);
      check::context = std::to_string(which);
      const cudaError_t status = run(races, which, 64);
      if (kParts[which])
        check_fails(status, cudaErrorLaunchFailure, {kParts[which], "which of them is first"});
      else
        CHECK(status == cudaSuccess, "%s", cudaGetErrorString(status));
    }
  int data[2] = {};
  check_fails(cuda_host::launch(late_write, 2, 64, 0, Case{data, 0}), cudaErrorLaunchFailure,
              {"which of them is first"});
  cuda_host::find_races(false);
  CHECK(run(races, 0, 64) == cudaSuccess, "not asked for");
}

TEST(misaligned_vectors) {
  alignas(16) int data[16] = {};
  const auto launch_one = [&](int which) {
    return cuda_host::launch(vector, 1, 1, 0, Case{data, which});
  };
  CHECK(launch_one(4) == cudaSuccess, "");
  {
    cuda_host::Buffers buffers;
    buffers.readable(data, 28).writable(data, 16);
    check_fails(launch_one(4), cudaErrorIllegalAddress, {"read 16 bytes at byte 16", "of 28"});
  }
  check_fails(launch_one(5), cudaErrorMisalignedAddress, {"read 16 bytes", "multiple of 16"});
}

TEST(launches_that_a_gpu_refuses) {
  CHECK(run(nothing, 0, 1024, 48 << 10) == cudaSuccess, "");
  const int64_t before = cuda_host::launches();
  check_fails(run(nothing, 0, 1025), cudaErrorInvalidConfiguration, {"configuration"});
  check_fails(run(nothing, 0, 0), cudaErrorInvalidConfiguration, {"configuration"});
  check_fails(run(nothing, 0, 32, (48 << 10) + 1), cudaErrorInvalidValue, {"invalid argument"});
  check_fails(cuda_host::launch(nothing, int64_t(1) << 31, 1, 0, Case{}),
              cudaErrorInvalidConfiguration, {"configuration"});
  CHECK(cuda_host::launches() == before, "counted");
}

TEST(assertions_of_kernels) {
  check_fails(run(assertions, 0), cudaErrorAssert, {"thread 3 of 96", "three"});
  check_fails(run(assertions, 1), cudaErrorLaunchFailure, {"thread 3 of 96", "__trap"});
  check_fails(run(assertions, 2), cudaErrorAssert, {"thread 3 of 96", "a message"});
}

TEST(planned_failures) {
  const Call call{"an_op", {1, nullptr}, gpm::DType::bfloat16, {{"rows", 3}}};
  cuda_host::fail_next_launch(cudaErrorNoKernelImageForDevice);
  std::string text;
  try {
    launch(call, nothing, 1, 32, 0, Case{});
  } catch (const std::runtime_error& error) {
    text = error.what();
  }
  CHECK(text.find("an_op") != std::string::npos && text.find("rows 3") != std::string::npos &&
            text.find("no kernel image is available") != std::string::npos,
        "%s", text.c_str());
  launch(call, nothing, 1, 32, 0, Case{});
  int device = -1;
  cudaGetDevice(&device);
  CHECK(device == 0, "%d", device);
}
