// Threads and processes: forks, callers in parallel, calls from within parallel regions.
#include <sys/wait.h>
#include <unistd.h>

#include <thread>

#include "gpm/probability_matrix.h"
#include "memory.h"

using namespace test;

namespace {

constexpr int64_t kRows = 300, kWidth = 8;

const Matrices& embeddings() {
  static const Matrices v(DType::float32, 1, kRows, kWidth, Layout::dense, 1);
  return v;
}

Output compute(int threads) {
  Output out(DType::float32, kRows * kRows);
  gpm::cpu::probability_matrix({{DType::float32,
                                 1,
                                 kRows,
                                 kWidth,
                                 embeddings().batch(),
                                 {},
                                 out.data(),
                                 kRows * kRows,
                                 kRows},
                                0.1},
                               threads);
  return out;
}

// Whether a child process, which may fork once more, computes the same without hanging.
bool works_in_a_child(const Output& expected, int generations) {
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);
    bool same = compute(5).same_bytes(expected);
    if (generations > 1) same = same && works_in_a_child(expected, generations - 1);
    _exit(same ? 0 : 1);
  }
  int status = -1;
  waitpid(child, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

}  // namespace

TEST(works_after_a_fork) {
  const Output expected = compute(2);
  CHECK(works_in_a_child(expected, 2), "the child failed");
  CHECK(compute(2).same_bytes(expected), "the parent lost its threads");
}

TEST(works_from_many_threads_at_once) {
  const Output expected = compute(1);
  bool same[4] = {};
  std::vector<std::thread> threads;
  for (bool& s : same)
    threads.emplace_back([&s, &expected] { s = compute(2).same_bytes(expected); });
  for (std::thread& thread : threads) thread.join();
  for (const bool s : same) CHECK(s, "a thread got something else");
}

TEST(works_within_a_parallel_region) {
  const Output expected = compute(1);
  int same = 0;
#pragma omp parallel for reduction(+ : same)
  for (int i = 0; i < 4; ++i) same += compute(2).same_bytes(expected);
  CHECK(same == 4, "%d of 4", same);
}

TEST(thread_counts_below_one_are_one) {
  const Output expected = compute(1);
  CHECK(compute(0).same_bytes(expected) && compute(-3).same_bytes(expected), "differs");
}
