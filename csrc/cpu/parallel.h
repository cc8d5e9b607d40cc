// The one place where work is spread over threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace gpm::cpu {

// True in a process that was forked from one that loaded the library. OpenMP's threads do not
// survive a fork and its runtime would wait for them for ever, so such a process works alone.
bool forked();

constexpr int64_t kCacheLine = 64;

// Uninitialized memory for all threads, each with a part of its own.
class Scratch {
 public:
  Scratch(int threads, int64_t bytes_per_thread)
      : stride_((bytes_per_thread + kCacheLine - 1) / kCacheLine * kCacheLine) {
    if (stride_ == 0) return;
    const std::size_t bytes = static_cast<std::size_t>(stride_) * static_cast<std::size_t>(threads);
    data_.reset(static_cast<char*>(std::aligned_alloc(kCacheLine, bytes)));
    if (!data_) throw std::bad_alloc();
  }
  void* part(int thread) const { return data_ ? data_.get() + thread * stride_ : nullptr; }

 private:
  struct Free {
    void operator()(char* p) const { std::free(p); }
  };
  int64_t stride_;
  std::unique_ptr<char, Free> data_;
};

// Fewer operations than this, some microseconds, are not worth waking another thread for.
constexpr double kGrain = 4e4;

inline int useful_threads(int threads, int64_t units, double operations_per_unit) {
#if defined(_OPENMP)
  if (forked() || omp_in_parallel()) return 1;
  const double by_work = static_cast<double>(units) * operations_per_unit / kGrain;
  const double most = std::min({static_cast<double>(threads), static_cast<double>(units), by_work});
  return std::max(1, static_cast<int>(most));
#else
  (void)threads, (void)units, (void)operations_per_unit;
  return 1;
#endif
}

// Call kernel(args, begin, end, scratch) such that all units [0, units) are done, `chunk` at a
// time. What a kernel writes depends on its units only, so the thread count never changes a result.
template <class Kernel, class Args>
void parallel_for(Kernel kernel, const Args& args, int64_t units, double operations_per_unit,
                  int threads, int64_t scratch_bytes = 0) {
  if (units <= 0) return;
  threads = useful_threads(threads, units, operations_per_unit);
  const Scratch scratch(threads, scratch_bytes);
  if (threads == 1) return kernel(args, 0, units, scratch.part(0));
#if defined(_OPENMP)
  // Several chunks a thread, so that a slow one does not hold up all; none smaller than the grain.
  const int64_t least = static_cast<int64_t>(kGrain / 4 / operations_per_unit) + 1;
  const int64_t chunk = std::max(least, (units + threads * 8 - 1) / (threads * 8));
  const int64_t chunks = (units + chunk - 1) / chunk;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int64_t i = 0; i < chunks; ++i)
    kernel(args, i * chunk, std::min(units, (i + 1) * chunk), scratch.part(omp_get_thread_num()));
#endif
}

}  // namespace gpm::cpu
