#include "launch.h"

#include <atomic>
#include <cstdlib>
#include <utility>

#include "block.h"
#include "memory.h"

namespace gpm::cuda::cuda_host {

std::mutex turns;

namespace {

constexpr int kDevices = 2;
constexpr int64_t kMostBlocks = (int64_t(1) << 31) - 1;

struct LastError {
  cudaError_t unread = cudaSuccess;  // for get_last_error()
  cudaError_t status = cudaSuccess;  // what `text` describes
  std::string text;
};
thread_local LastError last_error;
thread_local int device = 0;

std::atomic<int64_t> launch_count{0};
cudaError_t planned_failure = cudaSuccess;

uint64_t first_seed() {
  const char* given = std::getenv("GPM_CUDA_HOST_SEED");
  return given ? std::strtoull(given, nullptr, 0) : 1;
}
uint64_t seed = first_seed();

const char* general_text(cudaError_t status) {
  switch (status) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorNoKernelImageForDevice:
      return "no kernel image is available for execution on the device";
    case cudaErrorLaunchFailure:
      return "unspecified launch failure";
    case cudaErrorAssert:
      return "device-side assert triggered";
    case cudaErrorIllegalAddress:
      return "an illegal memory access was encountered";
    case cudaErrorMisalignedAddress:
      return "misaligned address";
    default:
      return "unrecognized error code";
  }
}

cudaError_t validate(int64_t blocks, int threads, int64_t shared_bytes) {
  if (planned_failure != cudaSuccess) return std::exchange(planned_failure, cudaSuccess);
  if (threads < 1 || threads > kMostThreads || blocks < 1 || blocks > kMostBlocks)
    return cudaErrorInvalidConfiguration;
  return shared_bytes < 0 || shared_bytes > kMostShared ? cudaErrorInvalidValue : cudaSuccess;
}

// The numbers from 0 to count - 1 in some order, without room for them: each step can be undone, so
// that no two numbers of `bits` bits become the same one.
class Order {
 public:
  Order(int64_t count, Random& random) : count_(static_cast<uint64_t>(count)) {
    while (uint64_t(1) << bits_ < count_) ++bits_;
    for (uint64_t& factor : factors_) factor = random.below(~0u) | 1;
    for (uint64_t& term : terms_) term = random.below(~0u);
  }
  uint64_t next() {
    uint64_t n;
    do {
      n = mix(position_++);
    } while (n >= count_);
    return n;
  }

 private:
  uint64_t mix(uint64_t n) const {
    const uint64_t mask = (uint64_t(1) << bits_) - 1;
    for (int round = 0; round < kRounds; ++round) {
      n = (n * factors_[round] + terms_[round]) & mask;
      n ^= n >> (bits_ / 2 + 1);
    }
    return n;
  }
  static constexpr int kRounds = 4;
  uint64_t count_, position_ = 0, factors_[kRounds], terms_[kRounds];
  int bits_ = 0;
};

bool run_blocks(const Kernel& kernel, int64_t blocks, int64_t shared_bytes) {
  Random random(seed);
  Order order(blocks, random);
  for (int64_t i = 0; i < blocks; ++i) {
    running.block = {static_cast<unsigned>(order.next()), 0, 0};
    prepare_shared(shared_bytes);
    const bool ended = run_block(kernel, random);
    count_block();
    int64_t offset = 0;
    const bool overrun = find_overrun(shared_bytes, offset);
    if (!ended) return false;
    if (!overrun) continue;
    set_error(cudaErrorIllegalAddress, "block " + std::to_string(running.block.x) + " of " +
                                           std::to_string(blocks) + " wrote at byte " +
                                           std::to_string(offset) + " of shared memory of " +
                                           std::to_string(shared_bytes) + " bytes");
    return false;
  }
  return true;
}

}  // namespace

void set_error(cudaError_t status, const std::string& text) {
  last_error.unread = last_error.status = status;
  last_error.text = std::string(general_text(status));
  if (!text.empty()) last_error.text += ": " + text + " (order " + std::to_string(seed) + ")";
}

cudaError_t run(const Kernel& kernel, int64_t blocks, int threads, int64_t shared_bytes) {
  const Turn turn;
  last_error.text.clear();
  if (const cudaError_t status = validate(blocks, threads, shared_bytes)) {
    set_error(status, "");
    return status;
  }
  ++launch_count;
  running.thread = {0, 0, 0};
  running.threads = dim3(static_cast<unsigned>(threads));
  running.blocks = dim3(static_cast<unsigned>(blocks));
  prepare_watch({blocks, shared_bytes, threads});
  const bool ended = run_blocks(kernel, blocks, shared_bytes);
  running.watched = false;
  return ended ? cudaSuccess : last_error.status;
}

void set_seed(uint64_t value) {
  const Turn turn;
  seed = value;
}

int64_t launches() { return launch_count; }

void fail_next_launch(cudaError_t status) {
  const Turn turn;
  planned_failure = status;
}

cudaError_t get_last_error() { return std::exchange(last_error.unread, cudaSuccess); }

const char* error_string(cudaError_t status) {
  const bool described = status == last_error.status && !last_error.text.empty();
  return described ? last_error.text.c_str() : general_text(status);
}

cudaError_t get_device(int* current) {
  *current = device;
  return cudaSuccess;
}

cudaError_t set_device(int wanted) {
  if (wanted < 0 || wanted >= kDevices) return cudaErrorInvalidDevice;
  device = wanted;
  return cudaSuccess;
}

}  // namespace gpm::cuda::cuda_host
