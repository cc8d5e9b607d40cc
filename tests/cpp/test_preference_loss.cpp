#include "gpm/preference_loss.h"

#include "memory.h"
#include "tested.h"

using namespace test;

namespace {

// -log sigmoid(z).
Real softplus(Real z) { return std::log1p(std::exp(-std::fabs(z))) + (z < 0 ? -z : 0); }

struct Options {
  bool scale, margin, target, grad_loss, grad_probability;
  double tau;
};

void compare(DType dtype, int64_t rows, int64_t width, Layout layout, const Options& with) {
  at_case("%s %ld x %ld %s scale %d margin %d target %d grads %d %d tau %g", name(dtype),
          long(rows), long(width), name(layout), with.scale, with.margin, with.target,
          with.grad_loss, with.grad_probability, with.tau);
  const DType full = wide(dtype);
  const RowsOf a(dtype, rows, width, layout, 1), b(dtype, rows, width, Layout::dense, 2);
  const RowsOf scale(dtype, rows, width / 2, layout, 3, with.scale);
  const RowsOf margin(full, rows, 1, layout, 4, with.margin, 0);
  RowsOf target(full, rows, 1, layout, 5, with.target, 1);
  if (with.target)
    for (int64_t r = 0; r < rows; ++r)
      target.set(r, 0, r % 4 == 0 ? 0 : r % 4 == 1 ? 1 : sigmoid(target(r)));
  const RowsOf grad_loss(full, rows, 1, Layout::dense, 6, with.grad_loss, 0);
  const RowsOf grad_probability(full, rows, 1, Layout::dense, 7, with.grad_probability, 0);

  std::vector<Output> out = for_all_threads([&](int threads) {
    std::vector<Output> results;
    for (int i = 0; i < 2; ++i) results.emplace_back(full, rows, layout == Layout::offset);
    gpm::tested::preference_loss(
        {dtype, rows, width, with.tau, a.rows(), b.rows(), scale.rows(), margin.rows(),
         target.rows(), results[0].data(), results[1].data()},
        threads);
    return results;
  });
  std::vector<Output> g = for_all_threads([&](int threads) {
    std::vector<Output> results;
    for (int i = 0; i < 2; ++i) results.emplace_back(dtype, rows * width, layout == Layout::offset);
    results.emplace_back(dtype, with.scale ? rows * width / 2 : 0);
    results.emplace_back(full, with.margin ? rows : 0);
    results.emplace_back(full, with.target ? rows : 0);
    gpm::tested::preference_loss_backward(
        {dtype, rows, width, with.tau, grad_loss.rows().data, grad_probability.rows().data,
         a.rows(), b.rows(), scale.rows(), margin.rows(), target.rows(), results[0].data(),
         results[1].data(), with.scale ? results[2].data() : nullptr,
         with.margin ? results[3].data() : nullptr, with.target ? results[4].data() : nullptr},
        threads);
    return results;
  });

  const Real ulps = kFunctionUlps * epsilon(full), least = 2 * smallest(full), tau = with.tau;
  for (int64_t r = 0; r < rows; ++r) {
    Expected s = score_of([&](auto c) { return a(r, c); }, [&](auto c) { return b(r, c); },
                          [&](auto l) { return scale(r, l); }, width);
    s.add(-margin(r));
    const Real z = s.value / tau, dz = s.slack(dtype) / tau + 2 * epsilon(full) * std::fabs(z);
    const Real p = sigmoid(z), q = sigmoid(-z), t = target(r), curve = p * q * dz * 2;
    Expected loss, probability, gradient, of_target;
    loss.add(t * softplus(z) + (1 - t) * softplus(-z));
    loss.error = std::fabs((1 - t) * p - t * q) * dz + curve * dz + ulps * loss.value;
    probability.add(p, curve + ulps * p);
    gradient.add(grad_loss(r) * ((1 - t) * p - t * q) / tau,
                 std::fabs(grad_loss(r)) * (curve + least + ulps * ((1 - t) * p + t * q)) / tau);
    gradient.add(grad_probability(r) * p * q / tau,
                 std::fabs(grad_probability(r)) * (curve + least + ulps * p * q) / tau);
    of_target.add(-grad_loss(r) * z, std::fabs(grad_loss(r)) * dz);
    CHECK_CLOSE(full, out[0][r], loss);
    CHECK_CLOSE(full, out[1][r], probability);
    if (with.margin) CHECK_CLOSE(full, g[3][r], gradient.times(-1, dtype));
    if (with.target) CHECK_CLOSE(full, g[4][r], of_target);
    for (int64_t l = 0; l < width / 2; ++l) {
      const Real xa = a(r, 2 * l), ya = a(r, 2 * l + 1), xb = b(r, 2 * l), yb = b(r, 2 * l + 1);
      const Real weight = scale(r, l);
      CHECK_CLOSE(dtype, g[0][r * width + 2 * l], gradient.times(weight * yb, dtype));
      CHECK_CLOSE(dtype, g[0][r * width + 2 * l + 1], gradient.times(-weight * xb, dtype));
      CHECK_CLOSE(dtype, g[1][r * width + 2 * l], gradient.times(-weight * ya, dtype));
      CHECK_CLOSE(dtype, g[1][r * width + 2 * l + 1], gradient.times(weight * xa, dtype));
      if (with.scale) {
        Expected e;
        for (const Real term : {xa * yb, -ya * xb})
          e.add(gradient.value * term, gradient.slack(dtype) * std::fabs(term));
        CHECK_CLOSE(dtype, g[2][r * (width / 2) + l], e);
      }
    }
  }
  check_untouched(out);
  check_untouched(g);
}

}  // namespace

TEST(agrees_with_the_definition) {
  for (const DType dtype : kDTypes) {
    for (const Layout layout : kLayouts)
      for (const int64_t rows : {0, 1, 3, 16, 17, 67})
        for (const int64_t width : {2, 6, 18})
          for (const Options& with : {Options{true, true, true, true, true, 0.5},
                                      Options{false, false, false, true, false, 0.1},
                                      Options{false, true, false, false, true, 2.0},
                                      Options{true, false, true, true, false, 0.01}})
            compare(dtype, rows, width, layout, with);
    compare(dtype, 8193, 6, Layout::dense, {true, true, true, true, true, 0.5});
  }
}

TEST(hard_targets_of_certain_pairs_stay_finite) {
  for (const DType dtype : {DType::float64, DType::float32})
    for (const double tau : {1e-4, 1e-37}) {  // in float32 the second logit is infinite
      at_case("%s tau %g", name(dtype), tau);
      Input a(dtype, 2), b(dtype, 2), target(dtype, 1);
      a.set(0, 1000), a.set(1, 0), b.set(0, 0), b.set(1, 1), target.set(0, 1);
      Output loss(dtype, 1), probability(dtype, 1);
      gpm::tested::preference_loss({dtype,
                                    1,
                                    2,
                                    tau,
                                    {a.data(), 2},
                                    {b.data(), 2},
                                    {},
                                    {},
                                    {target.data(), 1},
                                    loss.data(),
                                    probability.data()},
                                   1);
      CHECK(loss[0] == 0, "%Lg", loss[0]);
      CHECK(probability[0] == 1, "%Lg", probability[0]);
    }
}
