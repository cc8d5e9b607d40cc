// score_matrix and probability_matrix, forward and backward.
#include "gpm/cross_score_matrix.h"
#include "gpm/probability_matrix.h"
#include "gpm/score.h"
#include "memory.h"
#include "tested.h"

using namespace test;

namespace {

struct Case {
  DType dtype;
  int64_t batch, rows, width;
  Layout layout;
  bool scaled;
  double tau;            // 0: raw scores
  bool wide_rows;        // rows of the output lie apart
  int64_t row_step = 1;  // compare every so many rows with the definition
};

void compare(const Case& with) {
  const auto [dtype, batch, rows, width, layout, scaled, tau, wide_rows, row_step] = with;
  at_case("%s %ld x %ld x %ld %s scaled %d tau %g wide %d", name(dtype), long(batch), long(rows),
          long(width), name(layout), scaled, tau, wide_rows);
  const Matrices v(dtype, batch, rows, width, layout, 1);
  const Matrices grad(dtype, batch, rows, rows, layout, 2);
  const RowsOf scale(dtype, batch, width / 2, layout, 3, scaled);
  const int64_t row_stride = wide_rows ? rows + 3 : rows;
  const int64_t batch_stride = wide_rows ? rows * row_stride + 7 : rows * rows;
  const int64_t count =
      batch > 0 && rows > 0 ? (batch - 1) * batch_stride + (rows - 1) * row_stride + rows : 0;

  std::vector<Output> out = for_all_threads([&](int threads) {
    std::vector<Output> results;
    results.emplace_back(dtype, count, layout == Layout::offset);
    const gpm::ScoreMatrix args{
        dtype,        batch,     rows, width, v.batch(), scale.rows(), results[0].data(),
        batch_stride, row_stride};
    tau == 0 ? gpm::tested::score_matrix(args, threads)
             : gpm::tested::probability_matrix({args, tau}, threads);
    return results;
  });
  const auto score = [&](int64_t b, int64_t i, int64_t j) {
    return score_of([&](auto c) { return v(b, i, c); }, [&](auto c) { return v(b, j, c); },
                    [&](auto l) { return scale(b, l); }, width);
  };
  const Real ulps = kFunctionUlps * epsilon(wide(dtype));
  const auto argument_error = [&](const Expected& s) {
    return s.slack(dtype) / tau + 3 * epsilon(wide(dtype)) * std::fabs(s.value / tau);
  };
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < rows; ++j) {
        const Real got = out[0][b * batch_stride + i * row_stride + j];
        const Real mirrored = out[0].peek(b * batch_stride + j * row_stride + i);
        if (tau == 0) {
          CHECK(got == -mirrored, "(%ld, %ld): %Lg, mirrored %Lg", long(i), long(j), got, mirrored);
          if (i % row_step == 0) CHECK_CLOSE(dtype, got, score(b, i, j));
          continue;
        }
        CHECK(rounded(dtype, got + mirrored) == 1, "(%ld, %ld): %Lg + %Lg", long(i), long(j), got,
              mirrored);
        if (i % row_step) continue;
        const Expected s = score(b, i, j);
        const Real z = s.value / tau, p = sigmoid(z);
        Expected e;
        if (z < 0) {  // the small side keeps its relative accuracy
          e.add(p, p * (2 * argument_error(s) + ulps));
        } else {
          const Real q = sigmoid(-z);
          e.add(p, q * (2 * argument_error(s) + ulps) + q * epsilon(dtype) + epsilon(dtype) / 2);
        }
        CHECK_CLOSE(dtype, got, e);
      }
  check_untouched(out);
  if (row_step != 1) return;

  std::vector<Output> g = for_all_threads([&](int threads) {
    std::vector<Output> results;
    results.emplace_back(dtype, batch * rows * width, layout == Layout::offset);
    results.emplace_back(dtype, scaled ? batch * width / 2 : 0);
    const gpm::ScoreMatrixBackward args{dtype,
                                        batch,
                                        rows,
                                        width,
                                        grad.batch(),
                                        v.batch(),
                                        scale.rows(),
                                        results[0].data(),
                                        scaled ? results[1].data() : nullptr};
    tau == 0 ? gpm::tested::score_matrix_backward(args, threads)
             : gpm::tested::probability_matrix_backward({args, tau}, threads);
    return results;
  });
  for (int64_t b = 0; b < batch; ++b) {
    std::vector<Expected> to_v(static_cast<size_t>(rows * width));
    std::vector<Expected> to_scale(static_cast<size_t>(width / 2));
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < rows; ++j) {
        Real d = grad(b, i, j), error = 0;  // of s(v_i > v_j)
        if (tau != 0) {
          const Expected s = score(b, i, j);
          d *= sigmoid(s.value / tau) * sigmoid(-s.value / tau) / tau;
          error = std::fabs(d) * (2 * argument_error(s) + ulps);
        }
        for (int64_t l = 0; l < width / 2; ++l) {
          const Real w = scale(b, l), xi = v(b, i, 2 * l), yi = v(b, i, 2 * l + 1);
          const Real xj = v(b, j, 2 * l), yj = v(b, j, 2 * l + 1);
          const auto add = [&](Expected& e, Real factor) {
            e.add(d * factor, error * std::fabs(factor));
          };
          add(to_v[size_t(i * width + 2 * l)], w * yj);
          add(to_v[size_t(i * width + 2 * l + 1)], -w * xj);
          add(to_v[size_t(j * width + 2 * l)], -w * yi);
          add(to_v[size_t(j * width + 2 * l + 1)], w * xi);
          add(to_scale[size_t(l)], xi * yj);
          add(to_scale[size_t(l)], -yi * xj);
        }
      }
    for (int64_t i = 0; i < rows * width; ++i)
      CHECK_CLOSE(dtype, g[0][b * rows * width + i], to_v[size_t(i)]);
    if (scaled)
      for (int64_t l = 0; l < width / 2; ++l)
        CHECK_CLOSE(dtype, g[1][b * width / 2 + l], to_scale[size_t(l)]);
  }
  check_untouched(g);
}

}  // namespace

TEST(agree_with_the_definition) {
  for (const DType dtype : kDTypes)
    for (const double tau : {0.0, 0.3})
      for (const Layout layout : kLayouts)
        for (const bool scaled : {false, true})
          for (const auto& [batch, rows, width] : {std::array<int64_t, 3>{1, 0, 2},
                                                   {0, 4, 2},
                                                   {9, 0, 4},
                                                   {1, 1, 2},
                                                   {2, 3, 6},
                                                   {3, 17, 10},
                                                   {8, 1, 2},
                                                   {11, 5, 6},
                                                   {17, 3, 4},
                                                   {2, 33, 2}})
            compare({dtype, batch, rows, width, layout, scaled, tau, layout == Layout::strided});
}

TEST(many_units) {
  for (const DType dtype : kDTypes)
    for (const double tau : {0.0, 0.1}) {
      compare({dtype, 1, 139, 6, Layout::dense, true, tau, true});
      compare({dtype, 2, 261, 4, Layout::dense, true, tau, false, 7});
      compare({dtype, 301, 16, 8, Layout::dense, true, tau, false, 5});
      compare({dtype, 9, 9, 34, Layout::dense, true, tau, false});
      compare({dtype, 1, 70, 34, Layout::strided, true, tau, false});
      compare({dtype, 1, 70, 68, Layout::dense, true, tau, false, 5});
    }
}

TEST(past_the_caches) {
  compare({DType::float32, 1, 2048, 2, Layout::dense, false, 0.1, false, 401});
  compare({DType::float64, 1, 1456, 2, Layout::dense, false, 0, false, 401});
  compare({DType::float32, 1, 2049, 2, Layout::dense, false, 0, false, 401});
}

TEST(all_operations_agree_to_the_last_bit) {
  const int64_t batch = 9, rows = 13, width = 10;
  for (const DType dtype : kDTypes) {
    at_case("%s", name(dtype));
    const Matrices v(dtype, batch, rows, width, Layout::dense, 1);
    const RowsOf scale(dtype, batch, width / 2, Layout::dense, 2);
    const int64_t count = batch * rows * rows;
    Output together(dtype, count), alone(dtype, count), cross(dtype, count), pairs(dtype, count);
    gpm::tested::score_matrix(
        {dtype, batch, rows, width, v.batch(), scale.rows(), together.data(), rows * rows, rows},
        1);
    const auto at = [&](const void* data, int64_t i) {
      return static_cast<const char*>(data) + i * gpm::item_size(dtype);
    };
    for (int64_t b = 0; b < batch; ++b) {
      gpm::Batch one = v.batch();
      one.data = at(one.data, b * rows * width);
      const gpm::Rows gate{at(scale.rows().data, b * (width / 2)), width / 2};
      void* to_alone = const_cast<char*>(at(alone.data(), b * rows * rows));
      void* to_cross = const_cast<char*>(at(cross.data(), b * rows * rows));
      gpm::tested::score_matrix({dtype, 1, rows, width, one, gate, to_alone, 0, rows}, 1);
      gpm::tested::cross_score_matrix(
          {dtype, 1, rows, rows, width, one, one, gate, to_cross, 0, rows}, 1);
      for (int64_t i = 0; i < rows; ++i) {
        void* to_pairs = const_cast<char*>(at(pairs.data(), (b * rows + i) * rows));
        gpm::tested::score({dtype,
                            rows,
                            width,
                            {at(one.data, i * width), 0},
                            {one.data, width},
                            {gate.data, 0},
                            to_pairs},
                           1);
      }
    }
    for (int64_t i = 0; i < count; ++i)
      CHECK(together[i] == alone[i] && alone[i] == cross[i] && cross[i] == pairs[i],
            "%ld: %Lg %Lg %Lg %Lg", long(i), together[i], alone[i], cross[i], pairs[i]);
  }
}

TEST(extreme_temperatures) {
  for (const DType dtype : {DType::float64, DType::float32})
    for (const double tau : {1e-300, 1e-40, 1e40, 1e300}) {
      at_case("%s tau %g", name(dtype), tau);
      Input v(dtype, 4);
      v.set(0, 1), v.set(1, 0), v.set(2, 0), v.set(3, 1);
      Output out(dtype, 4);
      gpm::tested::probability_matrix(
          {{dtype, 1, 2, 2, {v.data(), 4, 2}, {}, out.data(), 4, 2}, tau}, 1);
      CHECK(out[0] == 0.5L && out[3] == 0.5L, "%Lg %Lg", out[0], out[3]);
      CHECK(out[1] == (tau < 1 ? 1 : 0.5L) && out[2] == 1 - out[1], "%Lg %Lg", out[1], out[2]);
    }
}
