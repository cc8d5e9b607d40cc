#include "gpm/linear_logprob.h"

#include "cpu/simd/columns.h"
#include "cpu/simd/math.h"

namespace gpm::cpu::GPM_SIMD_NAMESPACE {
namespace {

// From products to logits z, and the derivative of softcap there.
template <class T>
struct Logits {
  T temperature, softcap;
  const T* bias;

  template <class Args>
  GPM_INLINE explicit Logits(const Args& args)
      : temperature(T(args.temperature)),
        softcap(T(args.softcap)),
        bias(static_cast<const T*>(args.bias)) {}

  GPM_INLINE bool changes() const { return bias || softcap != 0 || temperature != 1; }

  // n lanes from column c; -inf in the others, which add nothing to any sum.
  GPM_INLINE Vector<T> operator()(const T* products, int64_t c, int64_t n) const {
    Vector<T> z = load_partial(products + c, n);
    if (bias) z += load_partial(bias + c, n);
    if (softcap != 0) z = softcap * hyperbolic_tangent<T>(z / softcap);
    if (temperature != 1) z /= temperature;
    return pad(z, n);
  }

  GPM_INLINE static Vector<T> pad(Vector<T> z, int64_t n) {
    if (n >= kLanes<T>) return z;
    for (int i = 0; i < kLanes<T>; ++i)
      if (i >= n) z[i] = -T(__builtin_inf());
    return z;
  }

  template <class V>
  GPM_INLINE V slope(V z) const {
    const V t = z * (temperature / softcap);
    return T(1) - t * t;
  }
};

template <class T>
GPM_INLINE T largest_lane(Vector<T> v) {
  T most = v[0];
  for (int i = 1; i < kLanes<T>; ++i) most = v[i] > most ? v[i] : most;
  return most;
}

template <class T>
GPM_INLINE T exp_of(T x) {
  Vector<T> one[1] = {broadcast(x)};
  exp_nonpositive<T>(one);
  return one[0][0];
}

// Columns c to c + R vectors of a row whose logits are z already, the last of n lanes.
template <class S, int R, class T>
GPM_INLINE void accumulate(const LinearLogprob& args, const Logits<T>& logits, const T* row,
                           S* coefficients, int64_t c, int64_t n, T shift, Vector<T>& sum,
                           Vector<T>& moment) {
  constexpr int W = kLanes<T>;
  Vector<T> z[R], e[R];
  for (int q = 0; q < R; ++q) {
    z[q] = R == 1 ? Logits<T>::pad(load_partial(row + c, n), n) : load(row + c + q * W);
    e[q] = z[q] - shift;
  }
  exp_nonpositive<T>(e);
  for (int q = 0; q < R; ++q) {
    sum += e[q];
    // Zero times the logarithm of zero.
    if (args.entropy) moment += e[q] == 0 ? Vector<T>{} : e[q] * (z[q] - shift);
    if (coefficients)
      store_partial(coefficients + c + q * W,
                    logits.softcap != 0 ? e[q] * logits.slope(z[q]) : e[q], R == 1 ? n : W);
  }
}

template <class S>
void forward(const LinearLogprob& args, int64_t r) {
  using T = Accumulate<S>;
  constexpr int W = kLanes<T>, R = 4;
  const T infinity = T(__builtin_inf());
  const Logits<T> logits(args);
  T* row = static_cast<T*>(args.logits) + r * args.columns;
  T* state = static_cast<T*>(args.state) + r * kLogprobStates;
  S* coefficients =
      args.coefficients ? static_cast<S*>(args.coefficients) + r * args.columns : nullptr;

  Vector<T> largest = broadcast(state[kMaximum]);
  for (int64_t c = 0; c < args.columns; c += W) {
    const int64_t n = at_most(W, args.columns - c);
    const Vector<T> z = logits(row, c, n);
    if (logits.changes()) store_partial(row + c, z, n);
    largest = z > largest ? z : largest;
  }
  const int64_t t = args.target[r] - args.first;
  const bool here = t >= 0 && t < args.columns;
  if (here) {
    state[kTargetLogit] = row[t];
    state[kTargetSlope] = logits.softcap != 0 ? logits.slope(row[t]) : T(1);
    row[t] = -infinity;
  }
  const T before = state[kMaximum], now = largest_lane<T>(largest);
  // All excluded so far: any finite shift leaves their exponentials zero.
  const T shift = now == -infinity ? T(0) : now, factor = exp_of<T>(before - shift);

  Vector<T> sum{}, moment{};
  int64_t c = 0;
  for (; c + R * W <= args.columns; c += R * W)
    accumulate<S, R>(args, logits, row, coefficients, c, W, shift, sum, moment);
  for (; c < args.columns; c += W)
    accumulate<S, 1>(args, logits, row, coefficients, c, at_most(W, args.columns - c), shift, sum,
                     moment);
  if (here && coefficients) narrow(T(0), coefficients[t]);

  const T moved =
      before == -infinity ? T(0) : factor * (state[kMoment] + state[kRest] * (before - shift));
  state[kMoment] = moved + sum_lanes<T>(moment);
  state[kRest] = factor * state[kRest] + sum_lanes<T>(sum);
  state[kMaximum] = now;
  if (args.pulled && factor != 1) {
    T* pulled = static_cast<T*>(args.pulled) + r * args.size;
    for (int64_t i = 0; i < args.size; ++i) pulled[i] *= factor;
  }
}

// What arrives at a row.
template <class T>
struct Incoming {
  T logp, entropy, logsumexp, of_entropy;
  bool with_entropy;

  // Gradient of the logits z.
  GPM_INLINE Vector<T> operator()(Vector<T> z) const {
    const Vector<T> log_probability = z - logsumexp;
    Vector<T> p[1] = {log_probability};
    exp_nonpositive<T>(p);
    if (!with_entropy) return -logp * p[0];
    const Vector<T> grad = -p[0] * (logp + entropy * (log_probability + of_entropy));
    return p[0] == 0 ? Vector<T>{} : grad;
  }
};

template <class S>
void backward(const LinearLogprobBackward& args, int64_t r) {
  using T = Accumulate<S>;
  constexpr int W = kLanes<T>;
  const Logits<T> logits(args);
  const T* row = static_cast<const T*>(args.logits) + r * args.columns;
  const T* given = static_cast<const T*>(args.gradients) + r * kLogprobGradients;
  S* out = static_cast<S*>(args.coefficients) + r * args.columns;
  Incoming<T> incoming{given[kGradLogp], given[kGradEntropy], given[kLogSumExp], given[kEntropy],
                       args.entropy};
  const T over_temperature = T(1 / args.temperature);
  const bool nothing = incoming.logp == 0 && incoming.entropy == 0;

  const int64_t t = args.target[r] - args.first;
  const bool here = t >= 0 && t < args.columns;
  T at_target = 0;
  if (here && !nothing) {
    // Before `out`, perhaps the same memory, is written.
    const Vector<T> z = logits(row, t, 1);
    at_target = incoming.logp * given[kMiss];
    incoming.logp = 0;
    if (args.entropy) at_target += incoming(z)[0];
    incoming.logp = given[kGradLogp];
    if (logits.softcap != 0) at_target *= logits.slope(T(z[0]));
  }
  for (int64_t c = 0; c < args.columns; c += W) {
    const int64_t n = at_most(W, args.columns - c);
    Vector<T> grad{};
    if (!nothing) {
      const Vector<T> z = logits(row, c, n);
      grad = incoming(z) * over_temperature;
      if (logits.softcap != 0) grad *= logits.slope(z);
    }
    store_partial(out + c, grad, n);
  }
  if (here) narrow(at_target * over_temperature, out[t]);
}

}  // namespace

void linear_logprob(const LinearLogprob& args, int64_t begin, int64_t end, void*) {
  with_storage(args.dtype, [&](auto s) {
    for (int64_t r = begin; r < end; ++r) forward<decltype(s)>(args, r);
  });
}

void linear_logprob_backward(const LinearLogprobBackward& args, int64_t begin, int64_t end, void*) {
  with_storage(args.dtype, [&](auto s) {
    for (int64_t r = begin; r < end; ++r) backward<decltype(s)>(args, r);
  });
}

}  // namespace gpm::cpu::GPM_SIMD_NAMESPACE
