#include "block.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <exception>
#include <vector>

#include "fibre.h"
#include "warp.h"

namespace gpm::cuda::cuda_host {

Running running;

namespace {

enum class State : uint8_t { fresh, started, at_barrier, in_warp, exited };

struct Block {
  const Kernel* kernel = nullptr;
  Random* random = nullptr;
  int threads = 0, current = 0, waiting = 0, exited = 0;
  uint32_t barriers = 0;
  bool active = false, failed = false, eager = false;
  int runnable[kMostThreads], runnable_count = 0;
  State state[kMostThreads];
  unsigned accesses[kMostThreads];
  Fibre* fibre[kMostThreads];
  Lane lanes[kMostThreads];
  Warp warps[kMostThreads / kWarp];
  Fibre host;
};
Block block;

// All stacks that there are, and those that nothing runs on.
std::deque<Fibre> stacks;
std::vector<Fibre*> free_stacks;

Fibre* take_stack() {
  if (free_stacks.empty()) {
    allocate_stack(stacks.emplace_back());
    free_stacks.push_back(&stacks.back());
  }
  Fibre* fibre = free_stacks.back();
  free_stacks.pop_back();
  return fibre;
}

void make_runnable(int thread, State state) {
  block.state[thread] = state;
  block.runnable[block.runnable_count++] = thread;
}

// Every other time that all threads can run, one warp is let far ahead of the others: were each
// next thread any of them, warps that meet often would stay together, and what is wrong only when
// they do not would never show.
void begin_interval() { block.eager = block.random->below(2) == 0; }

// Any thread that can run; in an eager interval any of the last that could, which are mostly a
// warp.
int pick() {
  const auto count = static_cast<uint32_t>(block.runnable_count);
  const bool latest = block.eager && count > kWarp && block.random->below(64) != 0;
  const uint32_t i = latest ? count - 1 - block.random->below(kWarp) : block.random->below(count);
  const int thread = block.runnable[i];
  block.runnable[i] = block.runnable[--block.runnable_count];
  block.current = thread;
  running.thread.x = static_cast<unsigned>(thread);
  return thread;
}

void describe_wait(int thread, char* text, size_t size) {
  const Meeting* meeting = meeting_of(block.warps[thread / kWarp], thread % kWarp);
  if (block.state[thread] == State::at_barrier)
    std::snprintf(text, size, "waits at __syncthreads");
  else if (block.state[thread] == State::in_warp && meeting)
    std::snprintf(text, size, "waits in %s (mask %08x)", name(block.lanes[thread].mine.operation),
                  block.lanes[thread].mine.mask);
  else
    std::snprintf(text, size, "has returned");
}

// Some thread waits in its warp, or else the barrier would have opened.
[[noreturn]] void stop_deadlock() {
  int thread = 0;
  while (block.state[thread] != State::in_warp) ++thread;
  const int first = thread / kWarp * kWarp;
  const Contribution& mine = block.lanes[thread].mine;
  unsigned missing = mine.mask;
  for (int lane = 0; lane < kWarp; ++lane) {
    const bool here = (mine.mask >> lane & 1) && block.state[first + lane] == State::in_warp &&
                      block.lanes[first + lane].mine.mask == mine.mask &&
                      block.lanes[first + lane].mine.operation == mine.operation;
    if (here) missing &= ~(1u << lane);
  }
  const int other = first + __builtin_ctz(missing);
  char wait[100], text[300];
  describe_wait(other, wait, sizeof(wait));
  std::snprintf(text, sizeof(text), "waits for ever in %s (mask %08x) for thread %d, which %s",
                name(mine.operation), mine.mask, other, wait);
  stop(cudaErrorLaunchFailure, thread, text);
}

// What a thread that returns leaves behind must not need it.
void leave() {
  const int thread = block.current;
  block.state[thread] = State::exited;
  ++block.exited;
  Warp& warp = block.warps[thread / kWarp];
  warp.exited |= 1u << thread % kWarp;
  char text[200];
  if (block.waiting) {
    int other = 0;
    while (block.state[other] != State::at_barrier) ++other;
    std::snprintf(text, sizeof(text), "returned while thread %d waits at __syncthreads", other);
    stop(cudaErrorLaunchFailure, thread, text);
  }
  if (const Meeting* meeting = meeting_of(warp, thread % kWarp)) {
    std::snprintf(text, sizeof(text), "returned while thread %d waits for it in %s (mask %08x)",
                  thread / kWarp * kWarp + __builtin_ctz(meeting->arrived),
                  name(meeting->what.operation), meeting->what.mask);
    stop(cudaErrorLaunchFailure, thread, text);
  }
}

void run_thread() {
  block.state[block.current] = State::started;
  char thrown[200] = "";
  try {
    block.kernel->call(*block.kernel);
  } catch (const std::exception& error) {
    std::snprintf(thrown, sizeof(thrown), "%s", error.what());
  }
  if (*thrown) fault(cudaErrorLaunchFailure, "threw an exception: %s", thrown);
  leave();
}

// Threads that begin one after another share a stack.
void run_threads() {
  entered();
  Fibre* mine = block.fibre[block.current];
  for (;;) {
    run_thread();
    if (block.runnable_count == 0 && block.exited < block.threads) stop_deadlock();
    if (block.runnable_count == 0) break;
    const int next = pick();
    if (block.state[next] == State::fresh) {
      block.fibre[next] = mine;
      continue;
    }
    free_stacks.push_back(mine);
    change(*mine, *block.fibre[next], true);
  }
  free_stacks.push_back(mine);
  change(*mine, block.host, true);
}

Fibre& fibre_of(int thread) {
  Fibre*& fibre = block.fibre[thread];
  if (block.state[thread] == State::fresh) {
    fibre = take_stack();
    prepare(*fibre, run_threads);
  }
  return *fibre;
}

// Returns when this thread is picked again.
void wait() {
  if (block.runnable_count == 0) stop_deadlock();
  const int before = block.current, next = pick();
  if (next != before) change(*block.fibre[before], fibre_of(next), false);
}

void reset(const Kernel& kernel, Random& random) {
  block.kernel = &kernel;
  block.random = &random;
  block.threads = static_cast<int>(running.threads.x);
  block.waiting = block.exited = block.runnable_count = 0;
  block.barriers = 0;
  block.failed = false;
  begin_interval();
  for (int thread = 0; thread < block.threads; ++thread) {
    block.accesses[thread] = 0;
    make_runnable(thread, State::fresh);
  }
  for (int first = 0; first < block.threads; first += kWarp) {
    Warp& warp = block.warps[first / kWarp];
    const int count = block.threads - first;
    warp.present = count >= kWarp ? ~0u : (1u << count) - 1;
    warp.exited = warp.barriers = 0;
    warp.count = 0;
  }
}

}  // namespace

bool run_block(const Kernel& kernel, Random& random) {
  reset(kernel, random);
  block.active = true;
  change(block.host, fibre_of(pick()), false);
  block.active = false;
  if (!block.failed) return true;
  free_stacks.clear();
  for (Fibre& fibre : stacks) {
    abandon(fibre);
    free_stacks.push_back(&fibre);
  }
  return false;
}

Moment moment() {
  const auto thread = static_cast<uint32_t>(block.current);
  return {running.block.x, thread, block.barriers, block.warps[thread / kWarp].barriers};
}

unsigned next_access() { return block.accesses[block.current]++; }

void barrier() {
  const int thread = block.current;
  if (block.exited) {
    int other = 0;
    while (block.state[other] != State::exited) ++other;
    fault(cudaErrorLaunchFailure,
          "is at __syncthreads, where thread %d, which has returned, is not", other);
  }
  block.state[thread] = State::at_barrier;
  if (++block.waiting == block.threads) {
    block.waiting = 0;
    ++block.barriers;
    begin_interval();
    for (int i = 0; i < block.threads; ++i) make_runnable(i, State::started);
  }
  wait();
}

uint64_t meet(const Contribution& mine) {
  const int thread = block.current, lane = thread % kWarp, first = thread - lane;
  block.lanes[thread].mine = mine;
  block.state[thread] = State::in_warp;
  unsigned ready = arrive(block.warps[thread / kWarp], &block.lanes[first], first, lane);
  for (; ready; ready &= ready - 1) make_runnable(first + __builtin_ctz(ready), State::started);
  wait();
  return block.lanes[thread].result;
}

void stop(cudaError_t status, int thread, const char* text) {
  char where[160];
  std::snprintf(where, sizeof(where), "block %u of %u, thread %d of %d ", running.block.x,
                running.blocks.x, thread, block.threads);
  set_error(status, std::string(where) + text);
  block.failed = true;
  change(*block.fibre[block.current], block.host, true);
  std::abort();  // nothing goes on with a thread that failed
}

void fault(cudaError_t status, const char* format, ...) {
  char text[400];
  va_list values;
  va_start(values, format);
  std::vsnprintf(text, sizeof(text), format, values);
  va_end(values);
  if (block.active) stop(status, block.current, text);
  std::fprintf(stderr, "outside of a kernel: %s\n", text);
  std::abort();
}

void fail(const char* what) { fault(cudaErrorAssert, "%s", what); }

void fail_assert(const char* condition, const char* file, unsigned line, const char* function) {
  fault(cudaErrorAssert, "found this not to be true: %s (%s:%u, %s)", condition, file, line,
        function);
}

}  // namespace gpm::cuda::cuda_host
