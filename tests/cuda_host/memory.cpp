#include "memory.h"

#include <algorithm>
#include <cstring>
#include <unordered_set>
#include <vector>

#include "block.h"
#include "launch.h"
#include "races.h"
#include "sanitizer.h"

namespace gpm::cuda::cuda_host {
namespace {

constexpr int64_t kGuard = 512;
alignas(128) unsigned char shared[kGuard + kMostShared + kGuard];

// NaN in every type, but not the NaN that shared memory begins with.
unsigned char guard_byte(int64_t i) { return i % 2 ? 0x7f : 0xff; }

struct Range {
  uintptr_t begin, end;
  const Buffers* owner;
};

bool contains(const Range& range, uintptr_t begin, size_t bytes) {
  return begin >= range.begin && begin + bytes <= range.end;
}

// Ranges, sorted and joined where they touch.
class Ranges {
 public:
  void add(const Range& range) { all_.push_back(range), changed_ = true; }
  void remove(const Buffers* owner) {
    const auto owned = [=](const Range& range) { return range.owner == owner; };
    all_.erase(std::remove_if(all_.begin(), all_.end(), owned), all_.end());
    changed_ = true;
  }
  void prepare() {
    if (!changed_) return;
    changed_ = false;
    joined_ = all_;
    std::sort(joined_.begin(), joined_.end(),
              [](const Range& a, const Range& b) { return a.begin < b.begin; });
    size_t count = 0;
    for (const Range& range : joined_)
      if (count && range.begin <= joined_[count - 1].end)
        joined_[count - 1].end = std::max(joined_[count - 1].end, range.end);
      else
        joined_[count++] = range;
    joined_.resize(count);
    last_ = {};
  }
  bool has(uintptr_t begin, size_t bytes) {
    if (contains(last_, begin, bytes)) return true;
    auto after = std::upper_bound(joined_.begin(), joined_.end(), begin,
                                  [](uintptr_t p, const Range& range) { return p < range.begin; });
    if (after == joined_.begin() || !contains(*--after, begin, bytes)) return false;
    last_ = *after;
    return true;
  }
  // The range with the end or the beginning that is nearest; for messages.
  const Range* nearest(uintptr_t p) const {
    const Range* found = nullptr;
    for (const Range& range : joined_)
      if (!found || distance(range, p) < distance(*found, p)) found = &range;
    return found;
  }

 private:
  static uintptr_t distance(const Range& range, uintptr_t p) {
    return p < range.begin ? range.begin - p : p < range.end ? 0 : p - range.end;
  }
  std::vector<Range> all_, joined_;
  Range last_ = {};
  bool changed_ = false;
};
Ranges readable_ranges, writable_ranges;
int owners = 0;

const char* verb(Access access) {
  return access == Access::read ? "read" : access == Access::write ? "wrote" : "updated";
}

void check_buffers(uintptr_t begin, size_t bytes, Access access) {
  Ranges& ranges = access == Access::read ? readable_ranges : writable_ranges;
  if (ranges.has(begin, bytes)) return;
  const Range* range = ranges.nearest(begin);
  if (!range) fault(cudaErrorIllegalAddress, "%s global memory, where it has none", verb(access));
  const long long from = static_cast<long long>(begin - range->begin);
  fault(cudaErrorIllegalAddress,
        "%s %zu bytes at byte %lld of a buffer of %zu bytes, outside of all that it may",
        verb(access), bytes, from, static_cast<size_t>(range->end - range->begin));
}

bool ordering = false;

bool counting = false;
Traffic traffic;

struct Seen {
  uint32_t warp, access;
  uintptr_t sector;
  bool operator<(const Seen& other) const {
    if (warp != other.warp) return warp < other.warp;
    if (access != other.access) return access < other.access;
    return sector < other.sector;
  }
};
std::vector<Seen> seen_read, seen_written;
std::unordered_set<uintptr_t> all_read, all_written;

constexpr uintptr_t kSector = 32;

void count_access(uintptr_t begin, size_t bytes, Access access) {
  const bool read = access == Access::read;
  (read ? traffic.read : traffic.written).bytes += static_cast<int64_t>(bytes);
  const uint32_t warp = running.thread.x / kWarp, ordinal = next_access();
  for (uintptr_t sector = begin / kSector; sector * kSector < begin + bytes; ++sector)
    (read ? seen_read : seen_written).push_back({warp, ordinal, sector});
}

void count_seen(std::vector<Seen>& seen, std::unordered_set<uintptr_t>& all, Count& count) {
  std::sort(seen.begin(), seen.end());
  const Seen* last = nullptr;
  std::vector<uintptr_t> sectors;
  for (const Seen& one : seen) {
    const bool same_request = last && last->warp == one.warp && last->access == one.access;
    if (!same_request) ++count.requests;
    if (!same_request || last->sector != one.sector) {
      ++count.request_sectors;
      sectors.push_back(one.sector);
    }
    last = &one;
  }
  std::sort(sectors.begin(), sectors.end());
  const auto end = std::unique(sectors.begin(), sectors.end());
  count.sectors += end - sectors.begin();
  all.insert(sectors.begin(), end);
  seen.clear();
}

bool in_shared(uintptr_t begin, size_t bytes) {
  const auto from = reinterpret_cast<uintptr_t>(shared);
  return begin >= from && begin + bytes <= from + sizeof(shared);
}

}  // namespace

void prepare_shared(int64_t bytes) {
  running.shared = shared + kGuard;
  ASAN_UNPOISON_MEMORY_REGION(shared, sizeof(shared));
  for (int64_t i = 0; i < kGuard; ++i) shared[i] = shared[kGuard + bytes + i] = guard_byte(i);
  std::memset(shared + kGuard, 0xff, static_cast<size_t>(bytes));
  ASAN_POISON_MEMORY_REGION(shared, kGuard);
  ASAN_POISON_MEMORY_REGION(shared + kGuard + bytes, kMostShared - bytes + kGuard);
}

bool find_overrun(int64_t bytes, int64_t& offset) {
  ASAN_UNPOISON_MEMORY_REGION(shared, sizeof(shared));
  for (int64_t i = 0; i < kGuard; ++i) {
    const bool after = shared[kGuard + bytes + i] != guard_byte(i);
    if (!after && shared[i] == guard_byte(i)) continue;
    offset = after ? bytes + i : i - kGuard;
    return true;
  }
  return false;
}

void note(const void* p, size_t bytes, Access access) {
  const auto begin = reinterpret_cast<uintptr_t>(p);
  if (begin % alignment_of(bytes) != 0)
    fault(cudaErrorMisalignedAddress, "%s %zu bytes at %p, which is not a multiple of %zu",
          verb(access), bytes, p, alignment_of(bytes));
  if (!running.watched || in_shared(begin, bytes)) return;
  if (owners) check_buffers(begin, bytes, access);
  if (counting) count_access(begin, bytes, access);
  if (ordering && access != Access::atomic) check_order(begin, bytes, access);
}

void prepare_watch(const Launch& launch) {
  readable_ranges.prepare();
  writable_ranges.prepare();
  if (ordering) forget_accesses();
  if (counting) traffic.launches.push_back(launch);
  running.watched = owners || counting || ordering;
}

void count_block() {
  if (!counting) return;
  count_seen(seen_read, all_read, traffic.read);
  count_seen(seen_written, all_written, traffic.written);
}

Buffers::Buffers() {
  const Turn turn;
  ++owners;
}

Buffers::~Buffers() {
  const Turn turn;
  --owners;
  readable_ranges.remove(this);
  writable_ranges.remove(this);
}

Buffers& Buffers::readable(const void* begin, int64_t bytes) {
  const Turn turn;
  const auto from = reinterpret_cast<uintptr_t>(begin);
  readable_ranges.add({from, from + static_cast<uintptr_t>(bytes), this});
  return *this;
}

Buffers& Buffers::writable(void* begin, int64_t bytes) {
  const Turn turn;
  const auto from = reinterpret_cast<uintptr_t>(begin);
  writable_ranges.add({from, from + static_cast<uintptr_t>(bytes), this});
  return *this;
}

void find_races(bool wanted) {
  const Turn turn;
  ordering = wanted;
  forget_accesses();
}

void start_traffic() {
  const Turn turn;
  counting = true;
  traffic = {};
  all_read.clear();
  all_written.clear();
}

Traffic stop_traffic() {
  const Turn turn;
  counting = false;
  traffic.read.distinct_sectors = static_cast<int64_t>(all_read.size());
  traffic.written.distinct_sectors = static_cast<int64_t>(all_written.size());
  return traffic;
}

}  // namespace gpm::cuda::cuda_host
