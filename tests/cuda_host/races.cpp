#include "races.h"

#include <array>
#include <cstdio>
#include <memory>
#include <unordered_map>

namespace gpm::cuda::cuda_host {
namespace {

// Two bytes of memory: no number has less.
struct Cell {
  bool written = false, read = false, read_by_others = false;
  Moment writer;
  Moment readers[2];  // the last one, and the last of another thread
  uint32_t reading_block = 0;
};

constexpr uintptr_t kCellBytes = 2, kPageBytes = 4096;
using Page = std::array<Cell, kPageBytes / kCellBytes>;
std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages;

Cell& cell_at(uintptr_t p) {
  std::unique_ptr<Page>& page = pages[p / kPageBytes];
  if (!page) page = std::make_unique<Page>();
  return (*page)[p % kPageBytes / kCellBytes];
}

bool same_thread(const Moment& a, const Moment& b) {
  return a.block == b.block && a.thread == b.thread;
}

bool in_order(const Moment& before, const Moment& after) {
  if (before.block != after.block) return false;
  if (before.thread == after.thread || before.barriers != after.barriers) return true;
  return before.thread / kWarp == after.thread / kWarp &&
         before.warp_barriers != after.warp_barriers;
}

[[noreturn]] void fault_race(uintptr_t p, Access access, uint32_t block, const char* other,
                             const char* did) {
  fault(cudaErrorLaunchFailure,
        "%s memory at %p, which %s of block %u %s too; nothing decides which of them is first",
        access == Access::read ? "read" : "wrote", reinterpret_cast<void*>(p), other, block, did);
}

void check_against(uintptr_t p, Access access, const Moment& before, const Moment& now,
                   const char* did) {
  if (in_order(before, now)) return;
  char other[32];
  std::snprintf(other, sizeof(other), "thread %u", before.thread);
  fault_race(p, access, before.block, other, did);
}

void check_readers(uintptr_t p, const Cell& cell, const Moment& now) {
  if (!cell.read) return;
  for (const Moment& reader : cell.readers) check_against(p, Access::write, reader, now, "read");
  if (cell.read_by_others || cell.reading_block != now.block)
    fault_race(p, Access::write, cell.reading_block, "a thread", "read");
}

void remember_read(Cell& cell, const Moment& now) {
  if (!cell.read) cell.readers[0] = now, cell.reading_block = now.block;
  if (!cell.read || !same_thread(cell.readers[0], now)) cell.readers[1] = cell.readers[0];
  cell.readers[0] = now;
  cell.read = true;
  cell.read_by_others = cell.read_by_others || cell.reading_block != now.block;
}

}  // namespace

void forget_accesses() { pages.clear(); }

void check_order(uintptr_t begin, size_t bytes, Access access) {
  const Moment now = moment();
  for (uintptr_t p = begin; p < begin + bytes; p += kCellBytes) {
    Cell& cell = cell_at(p);
    if (cell.written) check_against(p, access, cell.writer, now, "wrote");
    if (access == Access::read) {
      remember_read(cell, now);
    } else {
      check_readers(p, cell, now);
      cell.written = true;
      cell.writer = now;
    }
  }
}

}  // namespace gpm::cuda::cuda_host
