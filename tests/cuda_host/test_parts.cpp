// Parts of csrc/cuda that no operation reaches here: sizes beyond 32 bits, other devices, old GPUs.
#include <stdexcept>

#include "check.h"
#include "cuda/architectures.h"
#include "cuda/tile.cuh"
#include "cuda_host/control.h"
#include "gpm/gpm.h"

using namespace gpm::cuda;

TEST(divides_beyond_32_bits) {
  constexpr int64_t kSizes[] = {
      1, 3, 1000, (int64_t(1) << 32) - 1, int64_t(1) << 32, (int64_t(1) << 40) + 7};
  for (const int64_t by : kSizes)
    for (const int64_t quotient : {int64_t(0), int64_t(1), int64_t(5), int64_t(1) << 21})
      for (const int64_t rest : {int64_t(0), by / 2, by - 1}) {
        int64_t n = quotient * by + rest;
        const int64_t got = divide(n, by);
        CHECK(got == quotient && n == rest, "by %ld: %ld rest %ld", long(by), long(got), long(n));
      }
}

TEST(finds_tiles_of_large_matrices) {
  for (const int64_t side : {1, 2, 3, 64, 725, 46341, 65535})
    for (const int64_t row : {int64_t(0), int64_t(1), side / 3, side / 2, side - 2, side - 1}) {
      if (row < 0 || row >= side) continue;
      const int64_t before = row * side - row * (row - 1) / 2;
      for (const int64_t column : {row, (row + side) / 2, side - 1}) {
        int64_t got_row = 0, got_column = 0;
        upper_tile(before + column - row, side, got_row, got_column);
        CHECK(got_row == row && got_column == column, "side %ld: (%ld, %ld), not (%ld, %ld)",
              long(side), long(got_row), long(got_column), long(row), long(column));
      }
    }
}

namespace {

struct Seen {
  int* device;
};

void look(Seen args) { cudaGetDevice(args.device); }

}  // namespace

TEST(launches_on_the_device_of_its_stream) {
  int seen = -1, after = -1;
  const Call call{"look", {1, nullptr}, gpm::DType::float32};
  launch(call, look, 1, 1, 0, Seen{&seen});
  cudaGetDevice(&after);
  CHECK(seen == 1 && after == 0, "on device %d, then on %d", seen, after);
  cuda_host::fail_next_launch(cudaErrorLaunchFailure);
  bool thrown = false;
  try {
    launch(call, look, 1, 1, 0, Seen{&seen});
  } catch (const std::runtime_error& error) {
    thrown = std::string(error.what()).find("device 1") != std::string::npos;
  }
  cudaGetDevice(&after);
  CHECK(thrown && after == 0, "after a failure on device %d", after);
}

TEST(knows_which_gpus_are_served) {
  constexpr const char* kDefault = "sm_80 sm_90 sm_100 compute_100";
  struct {
    const char* built;
    int major, minor;
    bool ptx, served;
  } constexpr kCases[] = {
      {kDefault, 7, 5, true, false},    {kDefault, 8, 0, false, true},
      {kDefault, 8, 9, false, true},    {kDefault, 9, 0, false, true},
      {kDefault, 10, 3, false, true},   {kDefault, 12, 0, true, true},
      {kDefault, 12, 0, false, false},  {"sm_90", 8, 0, true, false},
      {"sm_86", 8, 0, true, false},     {"sm_90a", 9, 0, true, true},
      {"compute_80", 9, 0, true, true}, {"native", 8, 6, false, true},
      {"", 9, 0, true, false},
  };
  for (const auto& c : kCases)
    CHECK(is_served(c.built, c.major, c.minor, c.ptx) == c.served, "%s on %d.%d", c.built, c.major,
          c.minor);
}

TEST(what_kernels_need_is_asked_for) {
  float number = 0;
  int refused = 0;
  try {
    preference_embedding({gpm::DType::float32,
                          1,
                          1,
                          1,
                          1,
                          true,
                          1e-12,
                          {&number, 1, 1},
                          nullptr,
                          {&number, 1},
                          nullptr,
                          &number,
                          nullptr},
                         {});
  } catch (const std::invalid_argument&) {
    ++refused;
  }
  try {
    gpm::ScoreMatrixBackward args{};
    args.batch = args.rows = 1;
    args.grad_scale = &number;
    score_matrix_backward(args, {});
  } catch (const std::invalid_argument&) {
    ++refused;
  }
  CHECK(refused == 2, "%d of 2", refused);
}
