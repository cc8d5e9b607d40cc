#include "gpm/linear_logprob.h"

#include "memory.h"
#include "tested.h"

using namespace test;
using gpm::kLogprobGradients;
using gpm::kLogprobStates;

namespace {

struct Options {
  bool bias, entropy;
  double softcap, temperature;
};

// Products of all columns, and what becomes of them. Row 0 has no target, row 1 starts with columns
// that a bias excludes, if there is one.
class Problem {
 public:
  Problem(DType dtype, int64_t rows, int64_t columns, const Options& with)
      : full(wide(dtype)),
        with_(with),
        columns_(columns),
        products_(full, rows, columns, Layout::dense, 1),
        bias_(full, 1, columns, Layout::dense, 2, with.bias, 0) {
    for (int64_t r = 0; r < rows; ++r) {
      targets.push_back(r == 0 ? -100 : (r * 7 + 3) % columns);
      for (int64_t c = 0; c < columns; ++c) products_.set(r, c, 4 * products_(r, c));
    }
    if (with.bias && with.softcap == 0)
      for (int64_t c = 0; c < columns / 3; ++c) bias_.set(0, c, -INFINITY);
  }

  Real logit(int64_t r, int64_t c) const {
    Real z = products_(r, c) + bias_(0, c);
    if (with_.softcap != 0) z = with_.softcap * std::tanh(z / with_.softcap);
    return z / with_.temperature;
  }
  // What a logit is off by at most.
  Real off(int64_t r, int64_t c) const {
    const Real sum = std::fabs(products_(r, c)) + std::fabs(bias_(0, c));
    return std::isinf(sum) ? 0 : 12 * epsilon(full) * (sum / with_.temperature + 1);
  }
  Real slope(int64_t r, int64_t c) const {
    if (with_.softcap == 0) return 1;
    const Real t = std::tanh((products_(r, c) + bias_(0, c)) / with_.softcap);
    return 1 - t * t;
  }
  Real product(int64_t r, int64_t c) const { return products_(r, c); }
  // The bias of a chunk, or null.
  Input bias(int64_t first, int64_t count) const {
    Input part(full, count);
    for (int64_t c = 0; c < count; ++c) part.set(c, bias_(0, first + c));
    return part;
  }

  const DType full;
  std::vector<int64_t> targets;

 private:
  Options with_;
  int64_t columns_;
  RowsOf products_, bias_;
};

// The products of a chunk, where a kernel may write.
Output chunk_of(const Problem& problem, int64_t rows, int64_t first, int64_t count) {
  Output chunk(problem.full, rows * count);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < count; ++c)
      write(problem.full, chunk.data(), r * count + c, problem.product(r, first + c));
  return chunk;
}

void forward(DType dtype, int64_t rows, const std::vector<int64_t>& chunks, const Options& with) {
  int64_t columns = 0;
  for (const int64_t count : chunks) columns += count;
  at_case("%s %ld x %ld in %zu bias %d entropy %d softcap %g temperature %g", name(dtype),
          long(rows), long(columns), chunks.size(), with.bias, with.entropy, with.softcap,
          with.temperature);
  const Problem problem(dtype, rows, columns, with);
  const DType full = problem.full;
  const int64_t size = 5;
  const bool in_place = dtype == full;

  std::vector<Output> out = for_all_threads([&](int threads) {
    std::vector<Output> results;
    results.emplace_back(full, rows * kLogprobStates);
    results.emplace_back(full, rows * size, 1);
    for (int64_t r = 0; r < rows; ++r)
      for (int i = 0; i < kLogprobStates; ++i)
        write(full, results[0].data(), r * kLogprobStates + i,
              i == gpm::kMaximum ? -Real(INFINITY) : 0);
    int64_t first = 0;
    for (const int64_t count : chunks) {
      Output logits = chunk_of(problem, rows, first, count);
      results.emplace_back(dtype, in_place ? 0 : rows * count, 1);
      const Input bias = problem.bias(first, count);
      void* coefficients = in_place ? logits.data() : results.back().data();
      if (first == 0)
        for (int64_t i = 0; i < rows * size; ++i) write(full, results[1].data(), i, 0);
      gpm::tested::linear_logprob(
          {dtype, rows, count, first, size, with.temperature, with.softcap, with.entropy,
           logits.data(), problem.targets.data(), with.bias ? bias.data() : nullptr,
           results[0].data(), coefficients, results[1].data()},
          threads);
      if (first == 0)
        for (int64_t i = 0; i < rows * size; ++i) write(full, results[1].data(), i, i + 1);
      if (in_place) results.back() = std::move(logits);
      first += count;
    }
    return results;
  });

  const Real ulps = kFunctionUlps * epsilon(full);
  for (int64_t r = 0; r < rows; ++r) {
    Real maximum = -INFINITY, at_first = 0, most_off = 0;
    int64_t first = 0;
    for (size_t i = 0; i < chunks.size(); first += chunks[i++]) {
      for (int64_t c = first; c < first + chunks[i]; ++c) {
        maximum = std::max(maximum, problem.logit(r, c));
        most_off = std::max(most_off, problem.off(r, c));
      }
      if (i == 0) at_first = maximum;
      const Real shift = std::isinf(maximum) ? 0 : maximum;
      for (int64_t c = 0; c < chunks[i]; ++c) {
        const int64_t column = first + c;
        const Real e =
            column == problem.targets[r] ? 0 : std::exp(problem.logit(r, column) - shift);
        Expected coefficient;
        coefficient.add(e * problem.slope(r, column), e * (3 * most_off + ulps));
        CHECK_CLOSE(dtype, out[2 + i][r * chunks[i] + c], coefficient);
      }
    }
    Expected largest, rest, moment, of_target, slope;
    largest.add(maximum, most_off);
    for (int64_t c = 0; c < columns; ++c) {
      const Real z = problem.logit(r, c), distance = z - maximum, e = std::exp(distance);
      if (c == problem.targets[r]) {
        of_target.add(z, problem.off(r, c));
        slope.add(problem.slope(r, c), 2 * problem.off(r, c) + ulps);
      } else if (e > 0) {
        rest.add(e, e * (2 * most_off + ulps));
        moment.add(e * distance, e * (1 - distance) * (2 * most_off + ulps));
      }
    }
    const int64_t s = r * kLogprobStates;
    CHECK_CLOSE(full, out[0][s + gpm::kMaximum], largest);
    CHECK_CLOSE(full, out[0][s + gpm::kRest], rest);
    const Real got_moment = out[0][s + gpm::kMoment];
    if (with.entropy) CHECK_CLOSE(full, got_moment, moment);
    CHECK_CLOSE(full, out[0][s + gpm::kTargetLogit], of_target);
    CHECK_CLOSE(full, out[0][s + gpm::kTargetSlope], slope);
    const Real factor = std::exp(at_first - maximum);
    for (int64_t i = 0; i < size; ++i) {
      Expected pulled;
      pulled.add((r * size + i + 1) * factor,
                 (r * size + i + 1) * factor * (2 * most_off + chunks.size() * ulps));
      CHECK_CLOSE(full, out[1][r * size + i], pulled);
    }
  }
  check_untouched(out);
}

void backward(DType dtype, int64_t rows, int64_t columns, const Options& with) {
  at_case("%s backward %ld x %ld bias %d entropy %d softcap %g temperature %g", name(dtype),
          long(rows), long(columns), with.bias, with.entropy, with.softcap, with.temperature);
  const Problem problem(dtype, rows, columns, with);
  const DType full = problem.full;
  const int64_t first = 11;  // of a larger vocabulary
  std::vector<int64_t> targets = problem.targets;
  for (int64_t& target : targets) target = target < 0 ? 3 : target + first;
  RowsOf given(full, rows, kLogprobGradients, Layout::dense, 4);
  for (int64_t r = 0; r < rows; ++r) {
    if (!with.entropy) given.set(r, gpm::kGradEntropy, 0);
    if (r % 5 == 4) given.set(r, gpm::kGradLogp, 0), given.set(r, gpm::kGradEntropy, 0);
    given.set(r, gpm::kLogSumExp, 9 + given(r, gpm::kLogSumExp));
  }
  const bool in_place = dtype == full;
  const Input bias = problem.bias(0, columns);

  std::vector<Output> out = for_all_threads([&](int threads) {
    std::vector<Output> results;
    Output logits = chunk_of(problem, rows, 0, columns);
    for (int64_t r = 4; r < rows; r += 5)  // nothing arrives there, so nothing counts
      for (int64_t c = 0; c < columns; ++c) write(full, logits.data(), r * columns + c, NAN);
    results.emplace_back(dtype, in_place ? 0 : rows * columns, 1);
    void* coefficients = in_place ? logits.data() : results[0].data();
    gpm::tested::linear_logprob_backward(
        {dtype, rows, columns, first, with.temperature, with.softcap, with.entropy, logits.data(),
         targets.data(), with.bias ? bias.data() : nullptr, given.rows().data, coefficients},
        threads);
    if (in_place) results[0] = std::move(logits);
    return results;
  });

  const Real ulps = kFunctionUlps * epsilon(full);
  for (int64_t r = 0; r < rows; ++r) {
    const Real g = given(r, gpm::kGradLogp), h = given(r, gpm::kGradEntropy);
    for (int64_t c = 0; c < columns; ++c) {
      const Real log_p = problem.logit(r, c) - given(r, gpm::kLogSumExp), p = std::exp(log_p);
      const Real off = 2 * problem.off(r, c) + 16 * epsilon(full) + ulps;
      const Real slope = problem.slope(r, c) / with.temperature;
      Expected grad;
      if (targets[r] == first + c)
        grad.add(g * given(r, gpm::kMiss) * slope, std::fabs(g * given(r, gpm::kMiss)) * off);
      else
        grad.add(-g * p * slope, std::fabs(g) * p * off);
      if (p > 0) {
        const Real inner = log_p + given(r, gpm::kEntropy);
        grad.add(-h * p * inner * slope, std::fabs(h) * p * (2 + 2 * std::fabs(inner)) * off);
      }
      grad.error *= 1 + 2 / with.temperature;
      CHECK_CLOSE(dtype, out[0][r * columns + c], g == 0 && h == 0 ? Expected() : grad);
    }
  }
  check_untouched(out);
}

constexpr Options kOptions[] = {{false, false, 0, 1}, {false, true, 0, 1}, {true, false, 0, 0.7},
                                {true, true, 0, 1},   {false, true, 3, 1}, {true, true, 3, 0.7}};

}  // namespace

TEST(state_of_chunks_agrees_with_the_definition) {
  for (const DType dtype : kDTypes)
    for (const Options& with : kOptions) {
      forward(dtype, 0, {5}, with);
      forward(dtype, 3, {1, 2}, with);
      forward(dtype, 2, {64, 65, 130, 3}, with);
      forward(dtype, 2, {2050, 777}, with);
      forward(dtype, 67, {40, 24, 33}, with);
    }
}

TEST(gradients_agree_with_the_definition) {
  for (const DType dtype : kDTypes)
    for (const Options& with : kOptions)
      for (const int64_t columns : {1, 3, 64, 67, 2051}) {
        backward(dtype, 1, columns, with);
        backward(dtype, 7, columns, with);
      }
}

TEST(huge_logits_and_numbers_that_are_none) {
  for (const DType dtype : {DType::float64, DType::float32}) {
    at_case("%s", name(dtype));
    const Real numbers[][3] = {{1e30L, -1e30L, 1e30L}, {0, NAN, 1}, {1, 2, INFINITY}};
    for (const auto& row : numbers) {
      Output logits(dtype, 3), state(dtype, kLogprobStates);
      for (int i = 0; i < 3; ++i) write(dtype, logits.data(), i, row[i]);
      for (int i = 0; i < kLogprobStates; ++i)
        write(dtype, state.data(), i, i == gpm::kMaximum ? -Real(INFINITY) : 0);
      const int64_t target = 0;
      gpm::tested::linear_logprob({dtype, 1, 3, 0, 0, 1, 0, false, logits.data(), &target, nullptr,
                                   state.data(), nullptr, nullptr},
                                  1);
      const Real rest = state[gpm::kRest];
      if (&row == &numbers[0])
        CHECK(rest == 1, "%Lg", rest);
      else
        CHECK(std::isnan(rest), "%Lg", rest);
    }
  }
}
