"""Device functions: exp, the sigmoid, log(1 + e) and rounding, to a few units in the last place.

As in ``csrc/cpu/simd/math.h``: series, not fitted coefficients. What Triton offers is not enough:
its exp is exp2 of a rounded product, its division of float32 an approximation.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Before 3.6, Triton's float32 division and square root flush subnormals to zero on NVIDIA's GPUs
# (div.rn.ftz, sqrt.rn.ftz). Through float64 they do not, and round as they should: its 53 bits are
# more than twice float32's 24, so that a normal result that is rounded twice is that rounded once.
_RELEASE = tuple(int(part) for part in triton.__version__.split(".")[:2])
_THROUGH_FLOAT64 = tl.constexpr(_RELEASE < (3, 6))


@triton.jit
def widen(x):
    """A stored number in the type that sums are taken in."""
    if x.dtype == tl.float64:
        return x
    else:
        return x.to(tl.float32)


@triton.jit
def narrow(x, DTYPE: tl.constexpr):
    """A number rounded to nearest, ties to even, in the stored type."""
    if tl.bfloat16 == DTYPE:
        # By hand, so that the conversion is exact: that of the interpreter cuts digits off.
        bits = x.to(tl.int32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        x = tl.where(x == x, rounded.to(tl.float32, bitcast=True), x)
    return x.to(DTYPE)


@triton.jit
def real(number, WIDE: tl.constexpr):
    """A number of the host, which hands a float64 over as its bits: arguments are float32."""
    if tl.float64 == WIDE:
        return number.to(tl.float64, bitcast=True)
    else:
        return number


@triton.jit
def divide(x, y):
    """X / y rounded to nearest."""
    if x.dtype == tl.float64:
        return x / y
    elif _THROUGH_FLOAT64:
        return (x.to(tl.float64) / y).to(tl.float32)
    else:
        return tl.div_rn(x, y)


@triton.jit
def square_root(x):
    """Square root rounded to nearest."""
    if x.dtype == tl.float64:
        return tl.sqrt(x)
    elif _THROUGH_FLOAT64:
        return tl.sqrt(x.to(tl.float64)).to(tl.float32)
    else:
        return tl.sqrt_rn(x)


@triton.jit
def _horner(total, r, COEFFICIENT: tl.constexpr):
    return tl.fma(total, r, tl.full(r.shape, COEFFICIENT, r.dtype))


@triton.jit
def _series_float32(x):
    """(exp(r) - 1) / r, r, and 2^n in two factors, for x = n ln 2 + r with |r| <= ln(2) / 2."""
    x = tl.where(x < -104.0, -104.0, x)  # exp is below half of the smallest subnormal; NaN stays
    # Adding 1.5 * 2^23 rounds to an integer n and leaves it in the low bits.
    shifted = x * 1.4426950408889634 + 12582912.0
    exponent = shifted.to(tl.int32, bitcast=True) - 0x4B400000
    n = shifted - 12582912.0
    # ln(2) in two parts, the first of few bits, so that its product with n is exact.
    r = tl.fma(n, tl.full(x.shape, -0.693145751953125, x.dtype), x)
    r = tl.fma(n, tl.full(x.shape, -1.428606765330187e-06, x.dtype), r)
    total = tl.full(x.shape, 1.0 / 5040.0, x.dtype)  # |r| <= ln(2)/2: r^8/8! < 2^-27
    total = _horner(total, r, 1.0 / 720.0)
    total = _horner(total, r, 1.0 / 120.0)
    total = _horner(total, r, 1.0 / 24.0)
    total = _horner(total, r, 1.0 / 6.0)
    total = _horner(total, r, 0.5)
    total = _horner(total, r, 1.0)
    # Two, since 2^n itself is below the normal range where a result is.
    half = exponent >> 1
    first = ((half + 127) << 23).to(tl.float32, bitcast=True)
    second = ((exponent - half + 127) << 23).to(tl.float32, bitcast=True)
    return total, r, first, second


@triton.jit
def _series_float64(x):
    """(exp(r) - 1) / r, r, and 2^n in two factors, for x = n ln 2 + r with |r| <= ln(2) / 2."""
    x = tl.where(x < -746.0, -746.0, x)
    shifted = x * 1.4426950408889634 + 6755399441055744.0
    exponent = shifted.to(tl.int64, bitcast=True) - 0x4338000000000000
    n = shifted - 6755399441055744.0
    r = tl.fma(n, tl.full(x.shape, -0.6931471803691238, x.dtype), x)
    r = tl.fma(n, tl.full(x.shape, -1.9082149292705877e-10, x.dtype), r)
    total = tl.full(x.shape, 1.0 / 6227020800.0, x.dtype)  # r^14/14! < 2^-57
    total = _horner(total, r, 1.0 / 479001600.0)
    total = _horner(total, r, 1.0 / 39916800.0)
    total = _horner(total, r, 1.0 / 3628800.0)
    total = _horner(total, r, 1.0 / 362880.0)
    total = _horner(total, r, 1.0 / 40320.0)
    total = _horner(total, r, 1.0 / 5040.0)
    total = _horner(total, r, 1.0 / 720.0)
    total = _horner(total, r, 1.0 / 120.0)
    total = _horner(total, r, 1.0 / 24.0)
    total = _horner(total, r, 1.0 / 6.0)
    total = _horner(total, r, 0.5)
    total = _horner(total, r, 1.0)
    half = exponent >> 1
    first = ((half + 1023) << 52).to(tl.float64, bitcast=True)
    second = ((exponent - half + 1023) << 52).to(tl.float64, bitcast=True)
    return total, r, first, second


@triton.jit
def _series(x):
    if x.dtype == tl.float64:
        return _series_float64(x)
    else:
        return _series_float32(x)


@triton.jit
def exp_nonpositive(x):
    """exp(x) for x <= 0; subnormal results are rounded once, NaN stays NaN."""
    series, r, first, second = _series(x)
    return _horner(series, r, 1.0) * first * second


@triton.jit
def hyperbolic_tangent(x):
    """(1 - e) / (1 + e) with e = exp(-2 |x|), without the cancellation of small x."""
    series, r, first, second = _series(-2.0 * tl.abs(x))
    power = first * second
    below = tl.fma(power, r * series, power - 1.0)  # e - 1
    magnitude = divide(-below, below + 2.0)
    return tl.where(x < 0, -magnitude, magnitude)


@triton.jit
def log1p_unit(e):
    """log(1 + e) for e in [0, 1]: 2 atanh(z) with z = e / (2 + e) <= 1/3."""
    z = divide(e, e + 2.0)
    square = z * z
    # z^(2n) / (2n + 1) is below the rounding error from these n on.
    TERMS: tl.constexpr = 17 if e.dtype == tl.float64 else 8
    total = tl.full(e.shape, 1.0 / (2 * TERMS + 1), e.dtype)
    for i in tl.static_range(TERMS):
        total = _horner(total, square, 1.0 / (2 * (TERMS - 1 - i) + 1))
    return 2.0 * z * total


@triton.jit
def smaller_probability(logit):
    """sigmoid(-|logit|): the smaller of the two probabilities, with full relative accuracy."""
    e = exp_nonpositive(-tl.abs(logit))
    return divide(e, e + 1.0)


@triton.jit
def binary_unit(largest):
    """A power of two near ``largest`` >= 0 and its inverse: rows divided by it have safe squares.

    Both are normal numbers whatever ``largest`` is. Nothing is rounded by them, so it does not
    matter to rows of ordinary size.
    """
    if largest.dtype == tl.float64:
        exponent = (largest.to(tl.int64, bitcast=True) >> 52) & 0x7FF
        exponent = tl.minimum(tl.maximum(exponent, 1), 2044)
        unit = (exponent << 52).to(tl.float64, bitcast=True)
        return unit, ((2046 - exponent) << 52).to(tl.float64, bitcast=True)
    else:
        exponent = (largest.to(tl.int32, bitcast=True) >> 23) & 0xFF
        exponent = tl.minimum(tl.maximum(exponent, 1), 252)
        unit = (exponent << 23).to(tl.float32, bitcast=True)
        return unit, ((254 - exponent) << 23).to(tl.float32, bitcast=True)
