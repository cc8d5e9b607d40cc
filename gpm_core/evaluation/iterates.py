"""Iterates of a policy against each other, on held-out prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from typing import Any, TypeVar

import torch
from torch import Tensor

from gpm_core.evaluation.estimates import Bootstrap, Estimate
from gpm_core.evaluation.intransitivity import count_cycles
from gpm_core.evaluation.length_control import LengthControl
from gpm_core.evaluation.report import _plain
from gpm_core.ranking import nash_mixture

#: Most numbers (resamplings times prompts) that a step of the resampling holds at once: few enough
#: for the processor's caches, where a regression then stays.
_MOST_AT_ONCE = 100_000

#: How far win rates of the two directions may be from a sum of 1.
_COMPLEMENT = 1e-5

#: Mean win rates closer to 1/2 are 1/2: the rounding of float32, which would otherwise decide a
#: game, and far below what any number of prompts can tell.
_TIE = 2e-6

#: Differences of lengths below this share of the longest length are rounding.
_LENGTH_ROUNDING = 1e-6

Cell = TypeVar("Cell", Estimate, Estimate | None)


@dataclass(frozen=True)
class IterateComparison:
    """How the iterates of a policy do against each other; made by :func:`compare_iterates`.

    Matrices have a row for each iterate and a column for each opponent, in the order of ``names``.
    All intervals come from the same resamplings of the prompts, each at its own confidence: that
    *all* of them hold is less likely.

    Attributes:
        names: of the iterates; the first is the start.
        prompts: held-out prompts.
        confidence: of the intervals.
        bootstrap_samples: resamplings.
        win_rates: mean over prompts of the probability that the row's response is preferred to the
            column's. ``[j][i]`` is 1 minus ``[i][j]``, its interval turned round; the diagonal is
            1/2, without one.
        length_controlled: what it would be at equal length (:func:`compare_iterates` says how);
            None where that cannot be told, because one is longer by the same on all prompts.
        extrapolated: one of the two is longer on every prompt: equal length was never seen, and the
            length-controlled win rate rests on the form of the regression.
        lengths: mean response length, in tokens.
        kl: mean of log pi_i(y) - log pi_start(y) over an iterate's own responses y, in nats per
            response, an estimate of KL(pi_i || pi_start); None if it was not given.
        nash: weights of the mixture of iterates that none of them beats, the equilibrium of the
            game P - 1/2 (:func:`gpm_core.ranking.nash_mixture`).
        nash_support: share of the resamplings in whose mixture the iterate is.
    """

    names: tuple[str, ...]
    prompts: int
    confidence: float
    bootstrap_samples: int
    win_rates: tuple[tuple[Estimate, ...], ...]
    length_controlled: tuple[tuple[Estimate | None, ...], ...]
    extrapolated: tuple[tuple[bool, ...], ...]
    lengths: tuple[Estimate, ...]
    kl: tuple[Estimate, ...] | None
    nash: tuple[Estimate, ...]
    nash_support: tuple[float, ...]

    @property
    def against_start(self) -> tuple[Estimate, ...]:
        """Each iterate's win rate against the start, whose own is 1/2."""
        return tuple(row[0] for row in self.win_rates)

    @property
    def length_controlled_against_start(self) -> tuple[Estimate | None, ...]:
        """Each iterate's win rate against the start at equal length."""
        return tuple(row[0] for row in self.length_controlled)

    @property
    def copeland(self) -> tuple[float, ...]:
        """How many others each iterate beats, with a win rate above 1/2; a tie counts half."""
        margin = self.win_rate_matrix() - 0.5
        return tuple(float(value) for value in ((torch.sign(margin) + 1).sum(dim=1) - 1) / 2)

    @property
    def surely_beaten(self) -> tuple[tuple[str, ...], ...]:
        """For each iterate the others that it beats with an interval above 1/2."""
        return tuple(
            tuple(self.names[j] for j in range(len(self.names)) if self._surely_beats(i, j))
            for i in range(len(self.names))
        )

    @property
    def cyclic_triples(self) -> int:
        """Triples with win rates above 1/2 in a circle, however wide the intervals."""
        return count_cycles(self.win_rate_matrix() - 0.5)[0]

    @property
    def cycles(self) -> tuple[tuple[str, str, str], ...]:
        """Triples (a, b, c), a > b > c > a, whose three intervals all exclude 1/2."""
        found = []
        for i, j, k in combinations(range(len(self.names)), 3):
            for a, b, c in ((i, j, k), (i, k, j)):
                if all(self._surely_beats(*pair) for pair in ((a, b), (b, c), (c, a))):
                    found.append((self.names[a], self.names[b], self.names[c]))
        return tuple(found)

    def win_rate_matrix(self) -> Tensor:
        """(I, I) float64: the win rates without their intervals."""
        values = [[cell.value for cell in row] for row in self.win_rates]
        return torch.tensor(values, dtype=torch.float64)

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON: what is not known is None, all numbers are finite."""
        derived = ("against_start", "length_controlled_against_start", "copeland", "surely_beaten")
        values = dict(vars(self))
        values |= {name: getattr(self, name) for name in (*derived, "cyclic_triples", "cycles")}
        result: dict[str, Any] = _plain(values)
        return result

    def _surely_beats(self, i: int, j: int) -> bool:
        low = self.win_rates[i][j].low
        return low is not None and low > 0.5


def compare_iterates(
    win_rates: Tensor,
    lengths: Tensor,
    names: Sequence[str],
    *,
    kl: Tensor | None = None,
    bootstrap: Bootstrap | None = None,
) -> IterateComparison:
    """Compare every iterate with the start and with all others, on P held-out prompts.

    *Intervals* are a bootstrap over prompts (:class:`Bootstrap`). They say how the figures would
    vary with other prompts and other samples, nothing of other trainings or of another judge. Below
    20 prompts, or where all resamplings agree, win rates have Wilson's and the rest none.

    *Length control* asks for each pair of iterates what AlpacaEval's length-controlled win rate
    (arXiv 2404.04475) asks of a model and its baseline. With y_p the win rate on prompt p and d_p
    the difference of lengths, a logistic regression with a fractional response is fitted,

        y_p ~ sigmoid(a + b tanh(d_p / s)),   s^2 = mean of d_p^2,

    and read at d = 0: sigmoid(a). AlpacaEval's terms for the difficulty of an instruction, which
    need the results of many models, are left out. Seen from the other side y becomes 1 - y, d
    becomes -d and a becomes -a, so that the two sides add up to 1. Where all d are 0, or y does not
    vary, it is the plain win rate; where d is the same on all prompts and not 0, quality and length
    cannot be told apart, and there is none. The penalty (1e-6 a^2 + 0.01 b^2) / 2, beside a loss
    that is a sum over prompts, keeps b finite where the longer response always wins, and a where
    one side wins everything in a resampling. s is that of all prompts in every resampling.

    *Ties*: mean win rates within 2e-6 of 1/2, the rounding of float32, are 1/2.

    Args:
        win_rates: (P, I, I) float32 or float64 in [0, 1]: for each prompt the mean probability that
            a sample of iterate i is preferred to one of iterate j. ``win_rates + win_rates.mT`` is
            1, the diagonal 1/2.
        lengths: (P, I) float, mean length of iterate i's responses to prompt p, in tokens.
        names: I different names, the first of the start.
        kl: (P, I) float or None: mean over iterate i's samples of prompt p of
            log pi_i(y) - log pi_start(y), in nats per response.
        bootstrap: makes the intervals; None for ``Bootstrap()``: 1,000 samples, 95 %.

    Raises:
        TypeError: for what is not a tensor of float32 or float64, or names that are not texts.
        ValueError: for wrong shapes, no prompts, numbers that are not finite or out of range, win
            rates of two directions that do not add up to 1, or names that repeat.

    Example:
        >>> win_rates = torch.tensor([[0.5, 0.25], [0.75, 0.5]]).expand(100, 2, 2)
        >>> lengths = torch.full((100, 2), 20.0)
        >>> comparison = compare_iterates(win_rates, lengths, ["start", "gpo-1"])
        >>> comparison.against_start[1].value, comparison.nash[1].value
        (0.75, 1.0)
    """
    names = _check_names(names)
    margins = _check_win_rates(win_rates, len(names))
    lengths = _check_table("lengths", lengths, margins.shape[:2])
    if float(lengths.min()) < 0:
        raise ValueError(f"lengths must be at least 0; got {float(lengths.min()):g}")
    tables = [lengths] if kl is None else [lengths, _check_table("kl", kl, margins.shape[:2])]
    bootstrap = Bootstrap() if bootstrap is None else bootstrap
    prompts, iterates = lengths.shape
    first, second = torch.triu_indices(iterates, iterates, offset=1)
    margins = margins[:, first, second]
    control = LengthControl(
        0.5 + margins,
        lengths[:, first] - lengths[:, second],
        _LENGTH_ROUNDING * float(lengths.max()),
    )
    means, controlled = _resample(torch.cat((margins, *tables), dim=1), control, bootstrap)
    payoff = torch.where(means[:, : len(first)].abs() < _TIE, 0.0, means[:, : len(first)])
    weights = nash_mixture(_square(payoff, iterates))
    summarize = partial(_summarize, bootstrap=bootstrap, prompts=prompts)
    rates = summarize(0.5 + payoff, is_share=True)
    fitted = dict(zip(control.solutions, summarize(controlled), strict=True))
    at_equal_length = [
        None if pair in control.unknown else fitted.get(pair, rate)
        for pair, rate in enumerate(rates)
    ]
    measured = summarize(means[:, len(first) :])
    return IterateComparison(
        names=names,
        prompts=prompts,
        confidence=bootstrap.confidence,
        bootstrap_samples=bootstrap.samples,
        win_rates=_matrix(rates, iterates, prompts),
        length_controlled=_matrix(at_equal_length, iterates, prompts),
        extrapolated=_extrapolated(control.one_sided, iterates),
        lengths=measured[:iterates],
        kl=None if kl is None else measured[iterates:],
        nash=summarize(weights),
        nash_support=tuple((weights[1:] > 0).double().mean(dim=0).tolist()),
    )


def _resample(
    columns: Tensor, control: LengthControl, bootstrap: Bootstrap
) -> tuple[Tensor, Tensor]:
    """Means of columns (P, M) and win rates at equal length, (1 + B, ...): of the data, then drawn.

    Each resampling has one draw of prompts for all of its figures.
    """
    prompts = len(columns)
    means = [columns.mean(dim=0, keepdim=True)]
    intercepts = [solution[:1] for solution in control.solutions.values()]
    controlled = [torch.cat([columns.new_empty(0), *intercepts]).sigmoid()[None]]
    step = max(1, _MOST_AT_ONCE // prompts)
    for start in range(0, bootstrap.samples, step):
        some = min(step, bootstrap.samples - start)
        counts = torch.from_numpy(bootstrap.counts(prompts, some))
        means.append(counts @ columns / prompts)
        controlled.append(control.resample(counts))
    result = torch.cat(means)
    # What does not vary over prompts does not vary over draws either, not even by rounding.
    constant = (columns == columns[0]).all(dim=0)
    result[:, constant] = columns[0, constant]
    return result, torch.cat(controlled)


def _summarize(
    values: Tensor, *, bootstrap: Bootstrap, prompts: int, is_share: bool = False
) -> tuple[Estimate, ...]:
    """Estimates of M figures from values (1 + B, M): those of the data, then those drawn."""
    return tuple(
        bootstrap.summarize(float(value[0]), value[1:].numpy(), prompts, prompts, is_share=is_share)
        for value in values.T
    )


def _square(upper: Tensor, iterates: int) -> Tensor:
    """Skew-symmetric (R, I, I) with ``upper`` (R, I (I - 1) / 2) above the diagonal."""
    first, second = torch.triu_indices(iterates, iterates, offset=1)
    square = upper.new_zeros(len(upper), iterates, iterates)
    square[:, first, second] = upper
    return square - square.mT


def _matrix(upper: Sequence[Cell], iterates: int, prompts: int) -> tuple[tuple[Cell, ...], ...]:
    """Estimates of all ordered pairs from those above the diagonal, row by row."""
    half = Estimate(0.5, None, None, prompts, prompts, "none")
    cells: dict[tuple[int, int], Cell] = {}
    for (i, j), cell in zip(combinations(range(iterates), 2), upper, strict=True):
        cells[i, j], cells[j, i] = cell, _mirrored(cell)
    return tuple(
        tuple(half if i == j else cells[i, j] for j in range(iterates)) for i in range(iterates)
    )


def _mirrored(cell: Cell) -> Cell:
    """The same share, seen from the other side."""
    if cell is None:
        return cell
    low, high = cell.low, cell.high
    return replace(
        cell,
        value=1 - cell.value,
        low=None if high is None else 1 - high,
        high=None if low is None else 1 - low,
    )


def _extrapolated(one_sided: Tensor, iterates: int) -> tuple[tuple[bool, ...], ...]:
    square = _square(one_sided[None].double(), iterates)[0] != 0
    return tuple(tuple(row) for row in square.tolist())


def _check_names(names: Sequence[str]) -> tuple[str, ...]:
    given = [names] if isinstance(names, str) else list(names)
    if isinstance(names, str) or not all(isinstance(name, str) for name in given):
        raise TypeError(f"names must be a sequence of texts, one for each iterate; got {names!r}")
    if not given or not all(given) or len(set(given)) < len(given):
        raise ValueError(f"names must be at least one, not empty, all different; got {given}")
    return tuple(given)


def _check_float(name: str, values: Any, shape: str) -> Tensor:
    if not isinstance(values, Tensor) or values.dtype not in (torch.float32, torch.float64):
        given = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(f"{name} must be a tensor {shape} of float32 or float64; got {given}")
    values = values.detach().to("cpu", torch.float64)
    if not values.isfinite().all():
        raise ValueError(f"{name} must be finite; it holds an infinity or NaN")
    return values


def _check_win_rates(win_rates: Any, iterates: int) -> Tensor:
    """The win rates less 1/2 (P, I, I), exactly skew-symmetric."""
    values = _check_float("win_rates", win_rates, "(P, I, I)")
    if values.dim() != 3 or values.shape[1:] != (iterates, iterates) or not len(values):
        raise ValueError(
            f"win_rates must be (P, I, I) for P >= 1 prompts and the {iterates} iterates that are "
            f"named; got shape {tuple(values.shape)}"
        )
    if float(values.min()) < -_COMPLEMENT or float(values.max()) > 1 + _COMPLEMENT:
        low, high = float(values.min()), float(values.max())
        raise ValueError(f"win_rates must be in [0, 1]; got values from {low:g} to {high:g}")
    excess = float((values + values.mT - 1).abs().max())
    if excess > _COMPLEMENT:
        raise ValueError(
            "win_rates + win_rates.mT must be 1, and the diagonal 1/2: of each pair one is "
            f"preferred, ties half; it is off by up to {excess:.3g}"
        )
    return ((values - values.mT) / 2).clamp(-0.5, 0.5)


def _check_table(name: str, values: Any, shape: Sequence[int]) -> Tensor:
    values = _check_float(name, values, "(P, I)")
    if values.shape != tuple(shape):
        raise ValueError(
            f"{name} must be (P, I) = {tuple(shape)}, as of win_rates; got {tuple(values.shape)}"
        )
    return values
