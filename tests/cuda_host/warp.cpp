#include "warp.h"

#include <cstdio>

namespace gpm::cuda::cuda_host {
namespace {

bool has(unsigned mask, int lane) { return mask >> lane & 1; }

bool alike(const Contribution& a, const Contribution& b) {
  return a.operation == b.operation && a.mask == b.mask && a.bytes == b.bytes;
}

template <class... Values>
[[noreturn]] void stop_with(int thread, const char* format, Values... values) {
  char text[300];
  std::snprintf(text, sizeof(text), format, values...);
  stop(cudaErrorLaunchFailure, thread, text);
}

void check_mask(const Warp& warp, const Contribution& what, int first, int lane) {
  const char* operation = name(what.operation);
  if (!has(what.mask, lane))
    stop_with(first + lane, "called %s with a mask, %08x, that does not name it", operation,
              what.mask);
  if (const unsigned absent = what.mask & ~warp.present)
    stop_with(first + lane, "called %s with a mask, %08x, that names thread %d, which there is not",
              operation, what.mask, first + __builtin_ctz(absent));
  if (const unsigned exited = what.mask & warp.exited)
    stop_with(first + lane, "called %s with a mask, %08x, that names thread %d, which has returned",
              operation, what.mask, first + __builtin_ctz(exited));
  if (what.width < 1 || what.width > kWarp || (what.width & (what.width - 1)))
    stop_with(first + lane, "called %s with a width of %d", operation, what.width);
}

// The meeting that the lane is expected at, or a new one.
Meeting& find_meeting(Warp& warp, const Contribution& what, int first, int lane) {
  for (int i = 0; i < warp.count; ++i) {
    Meeting& meeting = warp.meetings[i];
    if (alike(meeting.what, what)) return meeting;
    const unsigned waiting = meeting.arrived & what.mask;
    // Either waits for the other elsewhere, for ever.
    if (has(meeting.what.mask, lane) && waiting)
      stop_with(first + lane,
                "called %s (mask %08x, %d bytes) where thread %d, of the same mask, called %s "
                "(mask %08x, %d bytes)",
                name(what.operation), what.mask, what.bytes, first + __builtin_ctz(waiting),
                name(meeting.what.operation), meeting.what.mask, meeting.what.bytes);
  }
  Meeting& meeting = warp.meetings[warp.count++];
  meeting = {what, 0};
  return meeting;
}

// The lane that a shuffle reads, which is the lane itself where there is none.
int source(const Contribution& what, int lane) {
  const int begin = lane & ~(what.width - 1), end = begin + what.width;
  if (what.operation == Operation::shuffle) return begin + (what.argument & (what.width - 1));
  // In 64 bits, since arguments can be any.
  int64_t from = lane ^ int64_t(what.argument);
  if (what.operation == Operation::shuffle_up)
    from = lane - int64_t(static_cast<unsigned>(what.argument));
  if (what.operation == Operation::shuffle_down)
    from = lane + int64_t(static_cast<unsigned>(what.argument));
  const bool up = what.operation == Operation::shuffle_up;
  return from < (up ? begin : 0) || from >= end ? lane : static_cast<int>(from);
}

uint64_t vote(Operation operation, unsigned mask, const Lane* lanes) {
  unsigned votes = 0;
  for (int lane = 0; lane < kWarp; ++lane)
    if (has(mask, lane) && lanes[lane].mine.value) votes |= 1u << lane;
  if (operation == Operation::any) return votes != 0;
  if (operation == Operation::all) return votes == mask;
  return votes;
}

void exchange(const Contribution& what, Lane* lanes, int first) {
  const bool shuffles = what.bytes != 0;
  const uint64_t votes = shuffles ? 0 : vote(what.operation, what.mask, lanes);
  for (unsigned rest = what.mask; rest; rest &= rest - 1) {
    const int lane = __builtin_ctz(rest);
    Lane& mine = lanes[lane];
    const int from = shuffles ? source(mine.mine, lane) : lane;
    if (!has(what.mask, from))
      stop_with(first + lane,
                "called %s to read from thread %d, which the mask, %08x, does not name",
                name(what.operation), first + from, what.mask);
    mine.result = shuffles ? lanes[from].mine.value : votes;
  }
}

}  // namespace

const char* name(Operation operation) {
  constexpr const char* kNames[] = {"__shfl_sync",     "__shfl_up_sync", "__shfl_down_sync",
                                    "__shfl_xor_sync", "__ballot_sync",  "__any_sync",
                                    "__all_sync",      "__syncwarp"};
  return kNames[static_cast<int>(operation)];
}

unsigned arrive(Warp& warp, Lane* lanes, int first, int lane) {
  const Contribution& what = lanes[lane].mine;
  check_mask(warp, what, first, lane);
  Meeting& meeting = find_meeting(warp, what, first, lane);
  meeting.arrived |= 1u << lane;
  if (meeting.arrived != what.mask) return 0;
  exchange(what, lanes, first);
  if (what.operation == Operation::sync && what.mask == warp.present) ++warp.barriers;
  meeting = warp.meetings[--warp.count];
  return what.mask;
}

const Meeting* meeting_of(const Warp& warp, int lane) {
  for (int i = 0; i < warp.count; ++i)
    if (has(warp.meetings[i].what.mask, lane)) return &warp.meetings[i];
  return nullptr;
}

}  // namespace gpm::cuda::cuda_host
