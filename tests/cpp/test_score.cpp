#include "gpm/score.h"

#include "memory.h"
#include "tested.h"

using namespace test;

namespace {

void compare(DType dtype, int64_t rows, int64_t width, Layout layout, bool scaled) {
  at_case("%s %ld x %ld %s%s", name(dtype), long(rows), long(width), name(layout),
          scaled ? " scaled" : "");
  const RowsOf a(dtype, rows, width, layout, 1), b(dtype, rows, width, Layout::dense, 2);
  const RowsOf scale(dtype, rows, width / 2, layout, 3, scaled),
      grad(dtype, rows, 1, Layout::dense, 4);
  std::vector<Output> s = for_all_threads([&](int threads) {
    std::vector<Output> out;
    out.emplace_back(dtype, rows, layout == Layout::offset);
    gpm::tested::score({dtype, rows, width, a.rows(), b.rows(), scale.rows(), out[0].data()},
                       threads);
    return out;
  });
  std::vector<Output> g = for_all_threads([&](int threads) {
    std::vector<Output> out;
    for (int i = 0; i < 2; ++i) out.emplace_back(dtype, rows * width, layout == Layout::offset);
    out.emplace_back(dtype, scaled ? rows * width / 2 : 0);
    gpm::tested::score_backward(
        {dtype, rows, width, grad.rows().data, a.rows(), b.rows(), scale.rows(), out[0].data(),
         out[1].data(), scaled ? out[2].data() : nullptr},
        threads);
    return out;
  });
  for (int64_t r = 0; r < rows; ++r) {
    CHECK_CLOSE(dtype, s[0][r],
                score_of([&](auto c) { return a(r, c); }, [&](auto c) { return b(r, c); },
                         [&](auto l) { return scale(r, l); }, width));
    for (int64_t l = 0; l < width / 2; ++l) {
      const Real xa = a(r, 2 * l), ya = a(r, 2 * l + 1), xb = b(r, 2 * l), yb = b(r, 2 * l + 1);
      const Real weight = grad(r) * scale(r, l);
      const auto one = [](Real value) {
        Expected e;
        e.add(value);
        return e;
      };
      CHECK_CLOSE(dtype, g[0][r * width + 2 * l], one(weight * yb));
      CHECK_CLOSE(dtype, g[0][r * width + 2 * l + 1], one(-weight * xb));
      CHECK_CLOSE(dtype, g[1][r * width + 2 * l], one(-weight * ya));
      CHECK_CLOSE(dtype, g[1][r * width + 2 * l + 1], one(weight * xa));
      if (scaled) {
        Expected e;
        e.add(grad(r) * xa * yb), e.add(-grad(r) * ya * xb);
        CHECK_CLOSE(dtype, g[2][r * (width / 2) + l], e);
      }
    }
  }
  check_untouched(s);
  check_untouched(g);
}

}  // namespace

TEST(agrees_with_the_definition) {
  for (const DType dtype : kDTypes)
    for (const Layout layout : kLayouts)
      for (const bool scaled : {false, true})
        for (const int64_t rows : {0, 1, 3, 15, 16, 17, 67})
          for (const int64_t width : {2, 6, 10, 34}) compare(dtype, rows, width, layout, scaled);
  for (const DType dtype : kDTypes) compare(dtype, 8193, 6, Layout::dense, true);
}

TEST(antisymmetric_to_the_last_bit) {
  for (const DType dtype : kDTypes) {
    at_case("%s", name(dtype));
    const int64_t rows = 301, width = 14;
    const RowsOf a(dtype, rows, width, Layout::dense, 1), b(dtype, rows, width, Layout::dense, 2);
    const RowsOf scale(dtype, rows, width / 2, Layout::dense, 3);
    Output forward(dtype, rows), reverse(dtype, rows), self(dtype, rows);
    gpm::tested::score({dtype, rows, width, a.rows(), b.rows(), scale.rows(), forward.data()}, 1);
    gpm::tested::score({dtype, rows, width, b.rows(), a.rows(), scale.rows(), reverse.data()}, 1);
    gpm::tested::score({dtype, rows, width, a.rows(), a.rows(), scale.rows(), self.data()}, 1);
    for (int64_t r = 0; r < rows; ++r) {
      CHECK(forward[r] == -reverse[r], "%Lg and %Lg", forward[r], reverse[r]);
      CHECK(self[r] == 0, "%Lg", self[r]);
    }
  }
}
