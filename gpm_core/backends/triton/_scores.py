"""Device functions that all operations share: a pair's score, and what becomes of it."""

from __future__ import annotations

import triton
import triton.language as tl

from gpm_core.backends.triton._math import narrow, smaller_probability, widen


@triton.jit
def pair_scores(a, b, scale, blocks, a_mask, b_mask, scale_mask, total):
    """Add the scores of pairs to ``total`` (zero), block by block.

    ``a``, ``b`` and ``scale`` are addresses of rows, of shapes that broadcast to that of
    ``total``. Both products of a block are rounded before they are subtracted, and blocks are added
    in one order, so that every operation gets the same bits for a pair, and their negative for
    the pair exchanged.
    """
    for block in range(blocks):
        xa = widen(tl.load(a + 2 * block, mask=a_mask, other=0.0))
        ya = widen(tl.load(a + 2 * block + 1, mask=a_mask, other=0.0))
        xb = widen(tl.load(b + 2 * block, mask=b_mask, other=0.0))
        yb = widen(tl.load(b + 2 * block + 1, mask=b_mask, other=0.0))
        skew = xa * yb - ya * xb
        if scale is None:
            total += skew
        else:
            factor = widen(tl.load(scale + block, mask=scale_mask, other=0.0))
            total = tl.fma(tl.broadcast_to(factor, total.shape), skew, total)
    return total


@triton.jit
def outcomes(s, inverse_tau, DTYPE: tl.constexpr):
    """What is stored for pairs of score ``s``, and for the same pairs exchanged.

    The scores, or with ``inverse_tau`` the probabilities: the smaller one is rounded to storage
    first and the larger one is its complement, so that both add up to one exactly there.
    """
    if inverse_tau is None:
        return narrow(s, DTYPE), narrow(-s, DTYPE)
    else:
        small = narrow(smaller_probability(s * inverse_tau), DTYPE)
        large = narrow(1.0 - widen(small), DTYPE)
        wins = s > 0
        return tl.where(wins, large, small), tl.where(wins, small, large)


@triton.jit
def slope(s, inverse_tau):
    """D sigmoid(s / tau) / ds, the same for s and -s."""
    small = smaller_probability(s * inverse_tau)
    return small * (1.0 - small) * inverse_tau
