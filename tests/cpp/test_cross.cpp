// cross_score_matrix and cross_probability_matrix, forward and backward.
#include "gpm/cross_probability_matrix.h"
#include "memory.h"
#include "tested.h"

using namespace test;

namespace {

struct Case {
  DType dtype;
  int64_t batch, rows, columns, width;
  Layout layout;
  bool scaled;
  double tau;            // 0: raw scores
  bool wide_rows;        // rows of the output lie apart
  int64_t row_step = 1;  // compare every so many rows with the definition
};

void compare(const Case& with) {
  const auto [dtype, batch, rows, columns, width, layout, scaled, tau, wide_rows, row_step] = with;
  at_case("%s %ld x (%ld, %ld) x %ld %s scaled %d tau %g wide %d", name(dtype), long(batch),
          long(rows), long(columns), long(width), name(layout), scaled, tau, wide_rows);
  const Matrices a(dtype, batch, rows, width, layout, 1);
  const Matrices b(dtype, batch, columns, width, layout, 4);
  const Matrices grad(dtype, batch, rows, columns, layout, 2);
  const RowsOf scale(dtype, batch, width / 2, layout, 3, scaled);
  const int64_t row_stride = wide_rows ? columns + 3 : columns;
  const int64_t batch_stride = wide_rows ? rows * row_stride + 7 : rows * columns;
  const int64_t count = batch > 0 && rows > 0 && columns > 0
                            ? (batch - 1) * batch_stride + (rows - 1) * row_stride + columns
                            : 0;

  std::vector<Output> out = for_all_threads([&](int threads) {
    std::vector<Output> results;
    results.emplace_back(dtype, count, layout == Layout::offset);
    const gpm::CrossScoreMatrix args{dtype,        batch,        rows,
                                     columns,      width,        a.batch(),
                                     b.batch(),    scale.rows(), results[0].data(),
                                     batch_stride, row_stride};
    tau == 0 ? gpm::tested::cross_score_matrix(args, threads)
             : gpm::tested::cross_probability_matrix({args, tau}, threads);
    return results;
  });
  const auto score = [&](int64_t n, int64_t i, int64_t j) {
    return score_of([&](auto c) { return a(n, i, c); }, [&](auto c) { return b(n, j, c); },
                    [&](auto l) { return scale(n, l); }, width);
  };
  const Real ulps = kFunctionUlps * epsilon(wide(dtype));
  const auto argument_error = [&](const Expected& s) {
    return s.slack(dtype) / tau + 3 * epsilon(wide(dtype)) * std::fabs(s.value / tau);
  };
  for (int64_t n = 0; n < batch; ++n)
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j) {
        const Real got = out[0][n * batch_stride + i * row_stride + j];
        if (i % row_step) continue;
        const Expected s = score(n, i, j);
        if (tau == 0) {
          CHECK_CLOSE(dtype, got, s);
          continue;
        }
        const Real p = sigmoid(s.value / tau), q = sigmoid(-s.value / tau);
        Expected e;
        e.add(p, std::min(p, q) * (2 * argument_error(s) + ulps) +
                     (p > q ? q * epsilon(dtype) + epsilon(dtype) / 2 : 0));
        CHECK_CLOSE(dtype, got, e);
      }
  check_untouched(out);
  if (row_step != 1) return;

  std::vector<Output> g = for_all_threads([&](int threads) {
    std::vector<Output> results;
    results.emplace_back(dtype, batch * rows * width, layout == Layout::offset);
    results.emplace_back(dtype, batch * columns * width, layout == Layout::offset);
    results.emplace_back(dtype, scaled ? batch * width / 2 : 0);
    const gpm::CrossScoreMatrixBackward args{dtype,
                                             batch,
                                             rows,
                                             columns,
                                             width,
                                             grad.batch(),
                                             a.batch(),
                                             b.batch(),
                                             scale.rows(),
                                             results[0].data(),
                                             results[1].data(),
                                             scaled ? results[2].data() : nullptr};
    tau == 0 ? gpm::tested::cross_score_matrix_backward(args, threads)
             : gpm::tested::cross_probability_matrix_backward({args, tau}, threads);
    return results;
  });
  for (int64_t n = 0; n < batch; ++n) {
    std::vector<Expected> to_a(static_cast<size_t>(rows * width));
    std::vector<Expected> to_b(static_cast<size_t>(columns * width));
    std::vector<Expected> to_scale(static_cast<size_t>(width / 2));
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j) {
        Real d = grad(n, i, j), error = 0;  // of s(a_i > b_j)
        if (tau != 0) {
          const Expected s = score(n, i, j);
          d *= sigmoid(s.value / tau) * sigmoid(-s.value / tau) / tau;
          error = std::fabs(d) * (2 * argument_error(s) + ulps);
        }
        for (int64_t l = 0; l < width / 2; ++l) {
          const Real w = scale(n, l), xa = a(n, i, 2 * l), ya = a(n, i, 2 * l + 1);
          const Real xb = b(n, j, 2 * l), yb = b(n, j, 2 * l + 1);
          const auto add = [&](Expected& e, Real factor) {
            e.add(d * factor, error * std::fabs(factor));
          };
          add(to_a[size_t(i * width + 2 * l)], w * yb);
          add(to_a[size_t(i * width + 2 * l + 1)], -w * xb);
          add(to_b[size_t(j * width + 2 * l)], -w * ya);
          add(to_b[size_t(j * width + 2 * l + 1)], w * xa);
          add(to_scale[size_t(l)], xa * yb);
          add(to_scale[size_t(l)], -ya * xb);
        }
      }
    for (int64_t i = 0; i < rows * width; ++i)
      CHECK_CLOSE(dtype, g[0][n * rows * width + i], to_a[size_t(i)]);
    for (int64_t i = 0; i < columns * width; ++i)
      CHECK_CLOSE(dtype, g[1][n * columns * width + i], to_b[size_t(i)]);
    if (scaled)
      for (int64_t l = 0; l < width / 2; ++l)
        CHECK_CLOSE(dtype, g[2][n * width / 2 + l], to_scale[size_t(l)]);
  }
  check_untouched(g);
}

}  // namespace

TEST(agree_with_the_definition) {
  for (const DType dtype : kDTypes)
    for (const double tau : {0.0, 0.3})
      for (const Layout layout : kLayouts)
        for (const bool scaled : {false, true})
          for (const auto& [batch, rows, columns, width] : {std::array<int64_t, 4>{1, 0, 3, 2},
                                                            {2, 3, 0, 4},
                                                            {0, 2, 2, 2},
                                                            {1, 1, 1, 2},
                                                            {2, 5, 1, 6},
                                                            {3, 17, 33, 6},
                                                            {2, 9, 16, 10}})
            compare({dtype, batch, rows, columns, width, layout, scaled, tau,
                     layout == Layout::strided});
}

TEST(many_units) {
  for (const DType dtype : kDTypes)
    for (const double tau : {0.0, 0.1}) {
      compare({dtype, 2, 67, 130, 6, Layout::dense, true, tau, true});
      compare({dtype, 2, 131, 2051, 4, Layout::dense, true, tau, false, 19});
      compare({dtype, 9, 9, 7, 34, Layout::dense, true, tau, false});
      compare({dtype, 1, 70, 66, 34, Layout::strided, true, tau, false});
      compare({dtype, 1, 70, 66, 68, Layout::dense, true, tau, false, 5});
    }
}

TEST(exact_with_the_sets_exchanged) {
  const int64_t rows = 37, columns = 70, width = 14;
  for (const DType dtype : kDTypes) {
    at_case("%s", name(dtype));
    const Matrices a(dtype, 1, rows, width, Layout::dense, 1);
    const Matrices b(dtype, 1, columns, width, Layout::dense, 2);
    const RowsOf scale(dtype, 1, width / 2, Layout::dense, 3);
    const auto run = [&](const Matrices& first, const Matrices& second, int64_t m, int64_t n,
                         double tau) {
      Output out(dtype, m * n);
      const gpm::CrossScoreMatrix args{
          dtype, 1, m, n, width, first.batch(), second.batch(), scale.rows(), out.data(), m * n, n};
      tau == 0 ? gpm::tested::cross_score_matrix(args, 1)
               : gpm::tested::cross_probability_matrix({args, tau}, 1);
      return out;
    };
    for (const double tau : {0.0, 0.3, 3.0}) {
      const Output ab = run(a, b, rows, columns, tau), ba = run(b, a, columns, rows, tau);
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < columns; ++j) {
          const Real sum = ab.peek(i * columns + j) + ba.peek(j * rows + i);
          CHECK(rounded(dtype, sum) == (tau == 0 ? 0 : 1), "tau %g: (%ld, %ld) add up to %.20Lg",
                tau, long(i), long(j), sum);
        }
    }
  }
}

TEST(past_the_caches) {
  compare({DType::float32, 1, 1025, 4096, 2, Layout::dense, false, 0.1, false, 301});
  compare({DType::float64, 2, 513, 2048, 2, Layout::dense, false, 0, false, 301});
}
