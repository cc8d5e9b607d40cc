// The stand-in for the GPU does what a GPU does, and counts what it is asked to count.
#include <algorithm>
#include <cstdlib>
#include <thread>
#include <vector>

#include "check.h"
#include "cuda/memory.cuh"
#include "cuda_host/control.h"

using namespace gpm::cuda;

namespace {

struct Out {
  int* out;
};

struct Sum {
  const float* x;
  float* out;
  int64_t size;
};

void check_success(cudaError_t status) {
  CHECK(status == cudaSuccess, "%s", cudaGetErrorString(status));
}

// Each block: the sum of blockDim.x numbers, by halves in shared memory.
__global__ void sum_in_shared_memory(Sum args) {
  float* parts = shared_memory<float>();
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  parts[threadIdx.x] = i < args.size ? read(args.x + i) : 0;
  for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) parts[threadIdx.x] += parts[threadIdx.x + half];
  }
  if (threadIdx.x == 0) write(args.out + blockIdx.x, parts[0]);
}

__global__ void indices(Out args) {
  const bool right = threadIdx.y == 0 && threadIdx.z == 0 && blockIdx.y == 0 && blockIdx.z == 0 &&
                     blockDim.x == 48 && blockDim.y == 1 && gridDim.x == 1000 && gridDim.z == 1 &&
                     warpSize == 32;
  atomicAdd(args.out + blockIdx.x * blockDim.x + threadIdx.x, right ? 1 : 1000);
}

// The order in which threads come to an atomic counter.
__global__ void order(Out args) {
  args.out[1 + blockIdx.x * blockDim.x + threadIdx.x] = atomicAdd(args.out, 1);
}

struct Lanes {
  int64_t* out;
  int width, argument;
};
constexpr int kShuffles = 4;

__global__ void shuffles(Lanes args) {
  const int lane = threadIdx.x % 32;
  const int64_t mine = (int64_t(1) << 40) + threadIdx.x;
  int64_t* out = args.out + threadIdx.x * kShuffles;
  out[0] = __shfl_sync(~0u, mine, args.argument + lane, args.width);
  out[1] = __shfl_up_sync(~0u, mine, args.argument, args.width);
  out[2] = __shfl_down_sync(~0u, mine, args.argument, args.width);
  out[3] = __shfl_xor_sync(~0u, mine, args.argument, args.width);
}

__global__ void shuffled_types(Out args) {
  const unsigned lane = threadIdx.x;
  bool right = __shfl_xor_sync(~0u, lane + 0.5f, 1) == float(lane ^ 1) + 0.5f;
  right = right && __shfl_xor_sync(~0u, lane + 1e-12, 1) == (lane ^ 1) + 1e-12;
  right = right && __shfl_down_sync(~0u, -int(lane), 1) == -int(lane == 31 ? lane : lane + 1);
  right = right && __shfl_up_sync(~0u, lane, 1) == (lane == 0 ? lane : lane - 1);
  right = right && __shfl_sync(~0u, lane + (1ull << 63), 3) == (1ull << 63) + 3;
  args.out[lane] = right;
}

// Halves of a warp that go different ways, each with its mask.
__global__ void votes(Out args) {
  const unsigned lane = threadIdx.x;
  unsigned result;
  if (lane < 16)
    result = __ballot_sync(0xffffu, lane % 3 == 0);
  else
    result = __any_sync(0xffff0000u, lane == 20) + 2 * __all_sync(0xffff0000u, lane > 16) +
             4 * __all_sync(0xffff0000u, lane >= 16);
  __syncwarp();
  args.out[lane] = static_cast<int>(result);
}

__global__ void atomics(Out args) {
  auto* wide = reinterpret_cast<unsigned long long*>(args.out + 4);
  auto* real = reinterpret_cast<float*>(args.out + 6);
  atomicAdd(args.out, -1);
  atomicAdd(reinterpret_cast<unsigned*>(args.out + 1), 2u);
  atomicAdd(wide, 1ull << 40);
  atomicAdd(real, 0.5f);
  atomicExch(args.out + 2, int(threadIdx.x) + 1);
  atomicCAS(args.out + 3, 0, int(threadIdx.x) + 1);
}

__global__ void poison(Out args) {
  args.out[threadIdx.x] = shared_memory<int>()[threadIdx.x];
  shared_memory<int>()[threadIdx.x] = 7;
}

struct Access {
  const float* x;
  float4* out;
  int stride;
};
__global__ void strided(Access args) {
  const float x = read(args.x + threadIdx.x * args.stride);
  write(args.out + threadIdx.x, float4{x, x, x, x});
}

std::vector<int> run_order(uint64_t seed, int64_t blocks, int threads) {
  cuda_host::set_seed(seed);
  std::vector<int> out(static_cast<size_t>(1 + blocks * threads));
  check_success(cuda_host::launch(order, blocks, threads, 0, Out{out.data()}));
  return out;
}

}  // namespace

TEST(every_thread_runs_once_with_its_indices) {
  std::vector<int> out(48 * 1000);
  check_success(cuda_host::launch(indices, 1000, 48, 0, Out{out.data()}));
  CHECK(std::count(out.begin(), out.end(), 1) == 48 * 1000, "");
}

TEST(seeds_decide_the_order) {
  const std::vector<int> first = run_order(1, 13, 50);
  CHECK(first == run_order(1, 13, 50), "not the same order again");
  CHECK(first != run_order(2, 13, 50), "the same order with another seed");
  std::vector<int> sorted(first.begin() + 1, first.end());
  CHECK(run_order(1, 1, 50) != run_order(2, 1, 50), "threads do not change places");
  CHECK(run_order(1, 50, 1) != run_order(2, 50, 1), "blocks do not change places");
  std::sort(sorted.begin(), sorted.end());
  for (size_t i = 0; i < sorted.size(); ++i) CHECK(sorted[i] == int(i), "%zu", i);
}

TEST(shared_memory_and_barriers) {
  std::vector<float> x(1000), out(4);
  for (int i = 0; i < 1000; ++i) x[static_cast<size_t>(i)] = float(i);
  for (uint64_t seed = 1; seed <= 8; ++seed) {
    cuda_host::set_seed(seed);
    std::fill(out.begin(), out.end(), 0.0f);
    check_success(
        cuda_host::launch(sum_in_shared_memory, 4, 256, 1024, Sum{x.data(), out.data(), 1000}));
    for (int block = 0; block < 4; ++block) {
      const int begin = block * 256, end = std::min(begin + 256, 1000);
      const int sum = (begin + end - 1) * (end - begin) / 2;
      CHECK(out[static_cast<size_t>(block)] == float(sum), "block %d", block);
    }
  }
}

TEST(shared_memory_begins_as_nan_in_every_block) {
  std::vector<int> out(64);
  check_success(cuda_host::launch(poison, 5, 64, 256, Out{out.data()}));
  CHECK(std::count(out.begin(), out.end(), -1) == 64, "");
}

TEST(shuffles_move_values) {
  for (const int width : {32, 8, 1})
    for (const int argument : {0, 1, 5, 31}) {
      std::vector<int64_t> out(64 * kShuffles);
      check_success(cuda_host::launch(shuffles, 1, 64, 0, Lanes{out.data(), width, argument}));
      for (int thread = 0; thread < 64; ++thread) {
        const int begin = thread / width * width, end = begin + width, warp = thread / 32 * 32;
        const int up = thread - argument, down = thread + argument;
        const int across = warp + ((thread % 32) ^ argument);
        const int expected[kShuffles] = {begin + (argument + thread % 32) % width,
                                         up < begin ? thread : up, down >= end ? thread : down,
                                         across >= end ? thread : across};
        for (int i = 0; i < kShuffles; ++i)
          CHECK(
              out[static_cast<size_t>(thread * kShuffles + i)] - (int64_t(1) << 40) == expected[i],
              "shuffle %d, width %d, argument %d, thread %d", i, width, argument, thread);
      }
    }
  std::vector<int> out(32);
  check_success(cuda_host::launch(shuffled_types, 1, 32, 0, Out{out.data()}));
  CHECK(std::count(out.begin(), out.end(), 1) == 32, "");
}

TEST(votes_of_parts_of_a_warp) {
  std::vector<int> out(32);
  check_success(cuda_host::launch(votes, 1, 32, 0, Out{out.data()}));
  for (size_t lane = 0; lane < 32; ++lane)
    CHECK(out[lane] == (lane < 16 ? 0x9249 : 1 + 4), "lane %zu: %x", lane, out[lane]);
}

TEST(atomic_operations) {
  alignas(8) int out[8] = {};
  check_success(cuda_host::launch(atomics, 3, 64, 0, Out{out}));
  CHECK(out[0] == -192 && out[1] == 384, "%d %d", out[0], out[1]);
  CHECK(out[2] >= 1 && out[2] <= 64 && out[3] >= 1 && out[3] <= 64, "%d %d", out[2], out[3]);
  unsigned long long wide;
  float real;
  std::memcpy(&wide, out + 4, sizeof(wide));
  std::memcpy(&real, out + 6, sizeof(real));
  CHECK(wide == 192ull << 40 && real == 96.0f, "%llu %g", wide, double(real));
}

TEST(traffic_is_counted) {
  auto* x = static_cast<float*>(std::aligned_alloc(128, 64 * 8 * 4));
  auto* out = static_cast<float4*>(std::aligned_alloc(128, 64 * 16));
  for (int i = 0; i < 64 * 8; ++i) x[i] = float(i);
  for (const int stride : {0, 1, 8}) {
    cuda_host::start_traffic();
    check_success(cuda_host::launch(strided, 3, 64, 0, Access{x, out, stride}));
    const cuda_host::Traffic traffic = cuda_host::stop_traffic();
    const cuda_host::Count &read = traffic.read, &written = traffic.written;
    const int sectors = stride == 0 ? 1 : 8 * stride;  // of a block of two warps
    CHECK(read.bytes == 3 * 64 * 4 && written.bytes == 3 * 64 * 16, "stride %d", stride);
    CHECK(read.requests == 3 * 2 && written.requests == 3 * 2, "stride %d", stride);
    CHECK(read.sectors == 3 * sectors, "stride %d: %ld", stride, long(read.sectors));
    CHECK(read.request_sectors == 3 * (stride == 0 ? 2 : sectors), "stride %d", stride);
    CHECK(written.sectors == 3 * 32 && written.request_sectors == 3 * 32, "stride %d", stride);
  }
  std::free(x);
  std::free(out);
}

TEST(launches_are_counted_and_take_turns) {
  const int64_t before = cuda_host::launches();
  std::vector<std::thread> callers;
  std::vector<std::vector<int>> outs(4, std::vector<int>(48 * 1000));
  for (std::vector<int>& out : outs)
    callers.emplace_back([&out] {
      for (int i = 0; i < 5; ++i) cuda_host::launch(indices, 1000, 48, 0, Out{out.data()});
    });
  for (std::thread& caller : callers) caller.join();
  CHECK(cuda_host::launches() - before == 20, "%ld", long(cuda_host::launches() - before));
  for (const std::vector<int>& out : outs)
    CHECK(std::count(out.begin(), out.end(), 5) == 48 * 1000, "");
}

TEST(devices_are_left_as_they_were) {
  std::vector<int> out(48 * 1000);
  const Call call{"indices", {1, nullptr}, gpm::DType::float32, {}};
  launch(call, indices, 1000, 48, 0, Out{out.data()});
  int device = -1;
  cudaGetDevice(&device);
  CHECK(device == 0 && out[0] == 1, "%d", device);
}
