// Memory that notices what kernels do to it.
#pragma once

#include <array>
#include <cstdlib>
#include <memory>
#include <vector>

#include "numbers.h"

namespace test {

// Numbers to read, in a block of exactly their size (a sanitizer sees what is read past it).
// Numbers that nobody set are NaN, so that reading them shows.
class Input {
 public:
  explicit Input(DType dtype, int64_t count = 0, int64_t offset = 0)
      : dtype_(dtype),
        offset_(offset),
        bytes_(static_cast<size_t>((count + offset) * gpm::item_size(dtype)), 0xff) {}

  const void* data() const { return bytes_.data() + offset_ * gpm::item_size(dtype_); }
  void set(int64_t i, Real value) { write(dtype_, bytes_.data(), offset_ + i, value); }
  Real operator[](int64_t i) const { return read(dtype_, bytes_.data(), offset_ + i); }

 private:
  DType dtype_;
  int64_t offset_;
  std::vector<unsigned char> bytes_;
};

// Memory for results between guard zones, filled with NaN. Knows which numbers the test asked for:
// no other byte may change.
class Output {
 public:
  // The first number is `offset` numbers past a cache line.
  Output(DType dtype, int64_t count, int64_t offset = 0)
      : dtype_(dtype),
        item_(gpm::item_size(dtype)),
        bytes_(static_cast<size_t>((kGuard + (count + offset) * item_ + kGuard) / 64 * 64 + 64)),
        memory_(static_cast<unsigned char*>(std::aligned_alloc(64, bytes_))),
        data_(memory_.get() + kGuard + offset * item_),
        expected_(static_cast<size_t>(count), false) {
    std::memset(memory_.get(), 0xff, bytes_);
  }

  void* data() const { return data_; }
  Real operator[](int64_t i) {
    expected_[static_cast<size_t>(i)] = true;
    return read(dtype_, data_, i);
  }
  Real peek(int64_t i) const { return read(dtype_, data_, i); }
  bool same_bytes(const Output& other) const {
    return bytes_ == other.bytes_ && std::memcmp(memory_.get(), other.memory_.get(), bytes_) == 0;
  }
  // Whether all else is as it was; to be asked when all results were read.
  bool rest_untouched() const {
    const unsigned char *end = memory_.get() + bytes_, *p = memory_.get();
    while (p < end) {
      const int64_t i = p < data_ ? -1 : (p - data_) / item_;
      if (i >= 0 && i < static_cast<int64_t>(expected_.size()) && expected_[static_cast<size_t>(i)])
        p += item_;
      else if (*p++ != 0xff)
        return false;
    }
    return true;
  }

 private:
  struct Free {
    void operator()(unsigned char* p) const { std::free(p); }
  };
  static constexpr int64_t kGuard = 256;
  DType dtype_;
  int64_t item_;
  size_t bytes_;
  std::unique_ptr<unsigned char, Free> memory_;
  unsigned char* data_;
  std::vector<bool> expected_;
};

// How rows lie in memory.
enum class Layout { dense, offset, strided, interleaved, repeated, shared };
constexpr Layout kLayouts[] = {Layout::dense,       Layout::offset,   Layout::strided,
                               Layout::interleaved, Layout::repeated, Layout::shared};

inline const char* name(Layout layout) {
  constexpr const char* kNames[] = {"dense",       "offset",   "strided",
                                    "interleaved", "repeated", "shared"};
  return kNames[static_cast<int>(layout)];
}

// A batch of matrices of random numbers.
class Matrices {
 public:
  Matrices(DType dtype, int64_t batch, int64_t rows, int64_t width, Layout layout, uint64_t seed)
      : memory_(dtype) {
    row_stride_ = width, batch_stride_ = rows * width;
    if (layout == Layout::strided) row_stride_ = width + 3, batch_stride_ = rows * row_stride_ + 5;
    if (layout == Layout::interleaved) row_stride_ = batch * width, batch_stride_ = width;
    if (layout == Layout::repeated) row_stride_ = 0, batch_stride_ = width;  // one row for all
    if (layout == Layout::shared) batch_stride_ = 0;                         // one matrix for all
    const bool empty = batch * rows * width == 0;
    const int64_t count =
        empty ? 0 : (batch - 1) * batch_stride_ + (rows - 1) * row_stride_ + width;
    memory_ = Input(dtype, count, layout == Layout::offset ? 1 : 0);
    Random random(seed);
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < width; ++c) set(b, r, c, random.normal());
  }

  gpm::Batch batch() const { return {memory_.data(), batch_stride_, row_stride_}; }
  Real operator()(int64_t b, int64_t r, int64_t c) const {
    return memory_[b * batch_stride_ + r * row_stride_ + c];
  }
  void set(int64_t b, int64_t r, int64_t c, Real value) {
    memory_.set(b * batch_stride_ + r * row_stride_ + c, value);
  }

 private:
  int64_t batch_stride_, row_stride_;
  Input memory_;
};

// Rows of random numbers; or absent, and then read as `otherwise`.
class RowsOf {
 public:
  RowsOf(DType dtype, int64_t rows, int64_t width, Layout layout, uint64_t seed,
         bool present = true, Real otherwise = 1)
      : present_(present), otherwise_(otherwise), matrix_(dtype, 1, rows, width, layout, seed) {}

  gpm::Rows rows() const {
    return present_ ? gpm::Rows{matrix_.batch().data, matrix_.batch().row_stride} : gpm::Rows{};
  }
  bool present() const { return present_; }
  Real operator()(int64_t r, int64_t c = 0) const {
    return present_ ? matrix_(0, r, c) : otherwise_;
  }
  void set(int64_t r, int64_t c, Real value) { matrix_.set(0, r, c, value); }

 private:
  bool present_;
  Real otherwise_;
  Matrices matrix_;
};

constexpr int kThreads[] = {1, 2, 5};

// Call compute(threads) -> std::vector<Output> for several thread counts; the results must be the
// same to the last bit. Returns them.
template <class Compute>
std::vector<Output> for_all_threads(Compute compute) {
  std::vector<Output> results = compute(kThreads[0]);
  for (const int threads : kThreads) {
    const std::vector<Output> others = compute(threads);
    for (size_t i = 0; i < results.size(); ++i)
      CHECK(results[i].same_bytes(others[i]), "result %zu differs with %d threads", i, threads);
  }
  return results;
}

inline void check_untouched(const std::vector<Output>& results) {
  for (size_t i = 0; i < results.size(); ++i)
    CHECK(results[i].rest_untouched(), "result %zu: written outside of it", i);
}

template <class... Values>
void at_case(const char* format, Values... values) {
  char text[200];
  std::snprintf(text, sizeof(text), format, values...);
  check::context = text;
}

// The exact score of two rows given by functions of the column.
template <class A, class B, class Scale>
Expected score_of(A a, B b, Scale scale, int64_t width) {
  Expected s;
  for (int64_t l = 0; l < width / 2; ++l) {
    s.add(scale(l) * a(2 * l) * b(2 * l + 1));
    s.add(-scale(l) * a(2 * l + 1) * b(2 * l));
  }
  return s;
}

inline Real sigmoid(Real z) { return 1 / (1 + std::exp(-z)); }

// Room for the error of exp, log1p and of a division, in units of the last place.
constexpr int kFunctionUlps = 16;

}  // namespace test
