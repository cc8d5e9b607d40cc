#include "cpu/parallel.h"

#include <pthread.h>

#include <atomic>

namespace gpm::cpu {
namespace {

std::atomic<bool> is_forked{false};

const int registered = pthread_atfork(nullptr, nullptr, [] { is_forked = true; });

}  // namespace

bool forked() {
  (void)registered;
  return is_forked.load(std::memory_order_relaxed);
}

}  // namespace gpm::cpu
