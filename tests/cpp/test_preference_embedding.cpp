#include "gpm/preference_embedding.h"

#include <stdexcept>

#include "memory.h"
#include "tested.h"

using namespace test;

namespace {

struct Shape {
  int64_t rows, length, size, width;
};

void compare(DType dtype, const Shape& shape, Layout layout, bool normalized, bool positioned,
             bool biased) {
  const auto [rows, length, size, width] = shape;
  at_case("%s %ld x %ld x %ld -> %ld %s normalized %d positions %d bias %d", name(dtype),
          long(rows), long(length), long(size), long(width), name(layout), normalized, positioned,
          biased);
  const DType full = wide(dtype);
  const double eps = 1e-12;
  const int64_t tokens = positioned ? length : 1;
  const Matrices hidden(dtype, rows, tokens, size, layout, 1);
  const RowsOf weight(dtype, width, size, layout, 2), grad(dtype, rows, width, layout, 3);
  const RowsOf bias(dtype, 1, width, Layout::dense, 4, biased, 0);
  std::vector<int64_t> positions;
  for (int64_t r = 0; r < rows; ++r) positions.push_back(positioned ? (3 * r + 1) % length : 0);
  const int64_t* position_data = positioned ? positions.data() : nullptr;
  const auto at = [&](int64_t r, int64_t c) { return hidden(r, positions[size_t(r)], c); };

  std::vector<Output> out = for_all_threads([&](int threads) {
    std::vector<Output> results;
    results.emplace_back(dtype, rows * width, layout == Layout::offset);
    results.emplace_back(full, normalized ? rows * width : 0);
    gpm::tested::preference_embedding(
        {dtype, rows, tokens, size, width, normalized, eps, hidden.batch(), position_data,
         weight.rows(), bias.rows().data, results[0].data(),
         normalized ? results[1].data() : nullptr},
        threads);
    return results;
  });

  // Gradients are taken at the true projection.
  Input projection(full, rows * width);
  std::vector<Expected> of_projection(size_t(rows * width));
  for (int64_t r = 0; r < rows; ++r) {
    std::vector<Expected> p(static_cast<size_t>(width));
    Real square = 0, errors = 0;
    for (int64_t o = 0; o < width; ++o) {
      for (int64_t c = 0; c < size; ++c) p[size_t(o)].add(at(r, c) * weight(o, c));
      p[size_t(o)].add(bias(0, o));
      projection.set(r * width + o, p[size_t(o)].value);
      square += p[size_t(o)].value * p[size_t(o)].value;
      errors += p[size_t(o)].slack(dtype) * p[size_t(o)].slack(dtype);
    }
    const Real norm = std::max(std::sqrt(square), Real(eps));
    for (int64_t o = 0; o < width; ++o) {
      Expected value = p[size_t(o)];
      if (normalized) {
        CHECK_CLOSE(full, out[1][r * width + o], value);
        value = {};
        const Real unit = p[size_t(o)].value / norm;
        value.add(unit, std::fabs(unit) * (width + 8) * epsilon(full) +
                            2 * (p[size_t(o)].slack(dtype) + std::sqrt(errors)) / norm);
      }
      CHECK_CLOSE(dtype, out[0][r * width + o], value);
    }
    square = 0;
    for (int64_t o = 0; o < width; ++o) {
      const Real value = projection[r * width + o];
      square += value * value;
    }
    const Real length_of_row = std::sqrt(square), ulps = (width + 8) * epsilon(full);
    Real dot = 0, dot_magnitude = 0;
    for (int64_t o = 0; o < width; ++o) {
      const Real term = projection[r * width + o] / length_of_row * grad(r, o);
      dot += term, dot_magnitude += std::fabs(term);
    }
    for (int64_t o = 0; o < width; ++o) {
      Expected& e = of_projection[size_t(r * width + o)];
      if (!normalized) {
        e.add(grad(r, o));
        continue;
      }
      const Real unit = projection[r * width + o] / length_of_row;
      e.add(grad(r, o) / length_of_row, std::fabs(grad(r, o)) / length_of_row * ulps);
      e.add(-unit * dot / length_of_row,
            std::fabs(unit) * dot_magnitude / length_of_row * 2 * ulps);
    }
  }

  std::vector<Output> g = for_all_threads([&](int threads) {
    std::vector<Output> results;
    results.emplace_back(dtype, rows * tokens * size, layout == Layout::offset);
    results.emplace_back(dtype, width * size, layout == Layout::offset);
    results.emplace_back(dtype, biased ? width : 0);
    Output workspace(full, rows * width);
    gpm::tested::preference_embedding_backward(
        {dtype, rows, tokens, size, width, normalized, eps, grad.rows(), hidden.batch(),
         position_data, weight.rows(), normalized ? projection.data() : nullptr, workspace.data(),
         results[0].data(), results[1].data(), biased ? results[2].data() : nullptr},
        threads);
    for (int64_t i = 0; i < rows * width; ++i) workspace[i];
    CHECK(workspace.rest_untouched(), "workspace: written outside of it");
    return results;
  });
  const auto gradient = [&](int64_t r, int64_t o) { return of_projection[size_t(r * width + o)]; };
  const auto add = [&](Expected& sum, int64_t r, int64_t o, Real factor) {
    sum.add(gradient(r, o).value * factor, gradient(r, o).slack(dtype) * std::fabs(factor));
  };
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < size; ++c) {
      Expected e;
      for (int64_t o = 0; o < width; ++o) add(e, r, o, weight(o, c));
      CHECK_CLOSE(dtype, g[0][(r * tokens + positions[size_t(r)]) * size + c], e);
    }
  for (int64_t o = 0; o < width; ++o) {
    for (int64_t c = 0; c < size; ++c) {
      Expected e;
      for (int64_t r = 0; r < rows; ++r) add(e, r, o, at(r, c));
      CHECK_CLOSE(dtype, g[1][o * size + c], e);
    }
    Expected e;
    for (int64_t r = 0; r < rows; ++r) add(e, r, o, 1);
    if (biased) CHECK_CLOSE(dtype, g[2][o], e);
  }
  check_untouched(out);
  check_untouched(g);  // tokens that were not read are left alone too
}

}  // namespace

TEST(agrees_with_the_definition) {
  for (const DType dtype : kDTypes)
    for (const Layout layout : kLayouts)
      for (const Shape& shape : {Shape{0, 3, 5, 2}, Shape{1, 1, 1, 1}, Shape{3, 7, 67, 6},
                                 Shape{9, 4, 33, 13}, Shape{5, 2, 64, 4}})
        for (const int options : {0, 3, 5, 6, 7})
          compare(dtype, shape, layout, options & 1, options & 2, options & 4);
  for (const DType dtype : kDTypes)
    compare(dtype, {70, 3, 517, 6}, Layout::dense, true, true, true);
}

TEST(positions_out_of_range_throw) {
  const DType dtype = DType::float32;
  const Matrices hidden(dtype, 2, 3, 4, Layout::dense, 1);
  const RowsOf weight(dtype, 2, 4, Layout::dense, 2), grad(dtype, 2, 2, Layout::dense, 3);
  for (const int64_t bad : {int64_t(-1), int64_t(3), INT64_MIN, INT64_MAX})
    for (const int64_t row : {0, 1}) {
      int64_t positions[2] = {2, 0};
      positions[row] = bad;
      std::vector<Output> out;
      for (int i = 0; i < 5; ++i) out.emplace_back(dtype, 24);
      bool forward = false, backward = false;
      try {
        gpm::tested::preference_embedding(
            {dtype, 2, 3, 4, 2, false, 1e-12, hidden.batch(), positions, weight.rows(), nullptr,
             out[0].data(), nullptr},
            2);
      } catch (const gpm::tested::BadPosition&) {
        forward = true;
      }
      try {
        gpm::tested::preference_embedding_backward(
            {dtype, 2, 3, 4, 2, false, 1e-12, grad.rows(), hidden.batch(), positions, weight.rows(),
             nullptr, out[1].data(), out[2].data(), out[3].data(), out[4].data()},
            2);
      } catch (const gpm::tested::BadPosition&) {
        backward = true;
      }
      CHECK(forward && backward, "position %ld was taken", long(bad));
      if (gpm::tested::kChecksBeforeWriting) check_untouched(out);
    }
}
