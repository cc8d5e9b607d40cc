#include "gpm/normalize.h"

#include "memory.h"
#include "tested.h"

using namespace test;

namespace {

// Sizes of whole rows: ordinary, zero, with squares that leave the range, subnormal.
std::vector<Real> sizes(DType dtype) {
  if (dtype == DType::float64) return {1, 0, 1e-200L, 1e300L, 1e-310L, 5e-324L};
  if (dtype == DType::float16) return {1, 0, 6e-8L, 2e4L};
  return {1, 0, 1e-25L, 1e37L, 1e-39L, 1e-44L};
}

void compare(DType dtype, int64_t rows, int64_t width, Layout layout, Real size, double eps) {
  at_case("%s %ld x %ld %s size %Lg eps %g", name(dtype), long(rows), long(width), name(layout),
          size, eps);
  RowsOf x(dtype, rows, width, layout, 1);
  if (size != 1) {
    const RowsOf unit(dtype, rows, width, layout, 1);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < width; ++c) x.set(r, c, rounded(dtype, unit(r, c) * size));
  }
  const RowsOf grad(dtype, rows, width, layout, 2);
  const auto results = [&](auto compute) {
    return for_all_threads([&](int threads) {
      std::vector<Output> out;
      out.emplace_back(dtype, rows * width, layout == Layout::offset);
      compute(out[0].data(), threads);
      return out;
    });
  };
  std::vector<Output> out = results([&](void* to, int threads) {
    gpm::tested::normalize({dtype, rows, width, eps, x.rows(), to}, threads);
  });
  std::vector<Output> g = results([&](void* to, int threads) {
    gpm::tested::normalize_backward({dtype, rows, width, eps, grad.rows(), x.rows(), to}, threads);
  });
  const Real ulps = (width + 8) * epsilon(wide(dtype));
  for (int64_t r = 0; r < rows; ++r) {
    Real square = 0, dot = 0, dot_magnitude = 0;
    for (int64_t c = 0; c < width; ++c) square += x(r, c) * x(r, c);
    const Real norm = std::sqrt(square), divisor = std::max(norm, Real(eps));
    for (int64_t c = 0; c < width; ++c) {
      const Real term = norm > eps ? x(r, c) / norm * grad(r, c) : 0;
      dot += term, dot_magnitude += std::fabs(term);
    }
    for (int64_t c = 0; c < width; ++c) {
      const Real unit = x(r, c) / divisor;
      Expected value, gradient;
      value.add(unit, std::fabs(unit) * ulps);
      gradient.add(grad(r, c) / divisor, std::fabs(grad(r, c)) / divisor * ulps);
      gradient.add(-unit * dot / divisor, std::fabs(unit) * dot_magnitude / divisor * 2 * ulps);
      CHECK_CLOSE(dtype, out[0][r * width + c], value);
      CHECK_CLOSE(dtype, g[0][r * width + c], gradient);
    }
  }
  check_untouched(out);
  check_untouched(g);
}

}  // namespace

TEST(agrees_with_the_definition) {
  for (const DType dtype : kDTypes) {
    for (const Layout layout : kLayouts)
      for (const int64_t rows : {0, 1, 5, 18})
        for (const int64_t width : {1, 2, 7, 16, 33, 130, 1100})
          compare(dtype, rows, width, layout, 1, 1e-12);
    compare(dtype, 4001, 33, Layout::dense, 1, 1e-12);
  }
}

TEST(rows_of_any_size) {
  for (const DType dtype : kDTypes)
    for (const Real size : sizes(dtype))
      for (const double eps : {1e-12, dtype == DType::float64 ? 0x1p-1060 : 0x1p-140})
        for (const int64_t width : {2, 19}) compare(dtype, 9, width, Layout::dense, size, eps);
}
