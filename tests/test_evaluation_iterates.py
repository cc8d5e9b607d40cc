"""Comparison of policy iterates, against numbers worked out by hand, SciPy and simulations."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

pytest.importorskip("scipy", reason="the extra 'train' is not installed")

import numpy as np
from iterate_comparisons import against_start, bounds, labels, simulated
from scipy.optimize import minimize

from gpm_core.evaluation import (
    Bootstrap,
    Estimate,
    compare_iterates,
    iterates_markdown,
    wilson_interval,
)

# -- numbers worked out by hand ------------------------------------------------------------------


def test_means_of_two_prompts() -> None:
    rates = torch.tensor([0.9, 0.4])
    kl = torch.tensor([[0.0, 2.0], [0.0, 3.0]])
    found = against_start(rates, torch.tensor([10.0, 30.0]), kl=kl)
    assert [cell.value for cell in found.against_start] == pytest.approx([0.5, 0.65])
    assert found.win_rate_matrix().tolist() == [
        pytest.approx([0.5, 0.35]),
        pytest.approx([0.65, 0.5]),
    ]
    assert [cell.value for cell in found.lengths] == [200.0, 220.0]
    assert found.kl is not None
    assert [cell.value for cell in found.kl] == [0.0, 2.5]
    # Two prompts are too few for a bootstrap: Wilson's, with 1.3 of 2.
    assert found.against_start[1].method == "wilson"
    assert bounds(found.against_start[1]) == pytest.approx(wilson_interval(1.3, 2), abs=1e-6)
    assert (found.lengths[1].method, found.against_start[0].method) == ("none", "none")
    assert found.copeland == (0.0, 1.0)
    assert found.surely_beaten == ((), ())
    assert (found.prompts, found.bootstrap_samples, found.confidence) == (2, 1000, 0.95)


def test_nash_mixture_and_cycle_of_a_circle() -> None:
    """Payoffs (0, -1, 2; 1, 0, -1; -2, 1, 0) / 10, of which (1/4, 1/2, 1/4) is the equilibrium."""
    payoff = torch.tensor([[0.0, -1, 2], [1, 0, -1], [-2, 1, 0]], dtype=torch.float64) / 10
    noise = torch.rand(400, 3, 3, generator=torch.Generator().manual_seed(0)).double()
    noise = 0.2 * (noise - noise.mean(dim=0))
    win_rates = 0.5 + payoff + (noise - noise.mT) / 2
    found = compare_iterates(win_rates, torch.ones(400, 3), ["start", "gpo-1", "gpo-2"])
    assert [weight.value for weight in found.nash] == pytest.approx([0.25, 0.5, 0.25])
    assert found.nash_support == (1.0, 1.0, 1.0)
    for weight in found.nash:
        low, high = bounds(weight)
        assert weight.value - 0.1 < low < weight.value < high < weight.value + 0.1
    assert found.copeland == (1.0, 1.0, 1.0)
    assert found.cyclic_triples == 1
    assert found.cycles == (("start", "gpo-2", "gpo-1"),)  # start > gpo-2 > gpo-1 > start
    assert found.surely_beaten == (("gpo-2",), ("start",), ("gpo-1",))


def test_a_circle_by_chance_is_no_cycle() -> None:
    payoff = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], dtype=torch.float64)
    sign = torch.tensor([1.0, -1.0] * 20 + [1.0]).double()
    found = compare_iterates(
        0.5 + 0.3 * sign[:, None, None] * payoff, torch.ones(41, 3), ["start", "b", "c"]
    )
    assert (found.cyclic_triples, found.cycles) == (1, ())
    assert "1 of the triples is a circle" in iterates_markdown(found)


def test_a_dominated_iterate_is_in_no_mixture() -> None:
    win_rates, lengths, _ = simulated(200, 3)
    win_rates[:, 2, :2], win_rates[:, :2, 2] = 0.9, 0.1
    found = compare_iterates(win_rates, lengths, labels(3))
    assert [weight.value for weight in found.nash] == [0.0, 0.0, 1.0]
    assert found.nash_support == (0.0, 0.0, 1.0)
    # Nothing varies over prompts: Wilson's interval, not one of rounding errors.
    assert found.win_rates[2][0].method == "wilson"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tie_up_to_rounding_is_a_tie(dtype: torch.dtype) -> None:
    rates = torch.tensor([0.3, 0.7, 0.1, 0.9] * 8, dtype=dtype)
    found = against_start(rates, torch.zeros(32, dtype=dtype))
    assert found.against_start[1].value == 0.5
    assert [weight.value for weight in found.nash] == [0.5, 0.5]
    assert found.copeland == (0.5, 0.5)


# -- equal length --------------------------------------------------------------------------------


def test_two_differences_of_lengths_by_hand() -> None:
    """Longer 0.8, shorter 0.5: the mean of the log-odds log 4 and 0 is log 2, which is 2/3."""
    difference = torch.tensor([30.0, -30.0] * 2000).double()
    rates = torch.tensor([0.8, 0.5] * 2000).double()
    found = against_start(rates, difference)
    controlled = found.length_controlled_against_start[1]
    assert controlled is not None
    assert found.against_start[1].value == pytest.approx(0.65)
    assert controlled.value == pytest.approx(2 / 3, abs=1e-5)
    # No regression error is left: every resampling has the same two log-odds.
    assert bounds(controlled) == pytest.approx((2 / 3, 2 / 3), abs=1e-5)


def regression(rates: Any, difference: Any, counts: Any) -> float:
    """The documented estimator, maximized by SciPy."""
    x = np.tanh(difference / np.sqrt(np.mean(difference**2)))

    def loss(parameters: Any) -> tuple[float, Any]:
        logit = parameters[0] + parameters[1] * x
        terms = rates * np.logaddexp(0, -logit) + (1 - rates) * np.logaddexp(0, logit)
        residual = counts * (1 / (1 + np.exp(-logit)) - rates)
        gradient = np.array([residual.sum(), residual @ x + 0.01 * parameters[1]])
        return counts @ terms + 0.005 * parameters[1] ** 2, gradient

    found = minimize(loss, np.zeros(2), jac=True, method="BFGS", options={"gtol": 1e-9})
    return float(1 / (1 + np.exp(-found.x[0])))


def test_regression_and_intervals_against_scipy() -> None:
    """Also that all figures have the same resamplings, each of all prompts."""
    win_rates, lengths, kl = simulated(50, 3)
    found = compare_iterates(win_rates, lengths, labels(3), kl=kl, bootstrap=Bootstrap(200, 0.8, 7))
    counts = np.random.default_rng(7).multinomial(50, [1 / 50] * 50, size=200)

    def interval(draws: Any) -> Any:
        return pytest.approx(tuple(np.quantile(draws, [0.1, 0.9])), abs=1e-7)

    for i, j in ((0, 1), (2, 0), (1, 2)):
        rates = win_rates[:, i, j].numpy()
        difference = (lengths[:, i] - lengths[:, j]).numpy()
        assert bounds(found.win_rates[i][j]) == interval(counts @ rates / 50)
        controlled = found.length_controlled[i][j]
        assert controlled is not None
        assert controlled.value == pytest.approx(
            regression(rates, difference, np.ones(50)), abs=1e-7
        )
        draws = [regression(rates, difference, drawn) for drawn in counts]
        assert bounds(controlled) == interval(draws)
    assert found.kl is not None
    assert bounds(found.kl[2]) == interval(counts @ kl[:, 2].numpy() / 50)
    assert bounds(found.lengths[1]) == interval(counts @ lengths[:, 1].numpy() / 50)


def test_how_sure_a_mixture_is() -> None:
    """Of two iterates the winner is the mixture: of the data, and of each resampling."""
    rates = torch.tensor([0.2, 0.45, 0.9] * 20, dtype=torch.float64)
    found = against_start(rates, torch.zeros(60).double(), bootstrap=Bootstrap(300, seed=5))
    counts = np.random.default_rng(5).multinomial(60, [1 / 60] * 60, size=300)
    margin = counts @ (rates.numpy() - 0.5)
    share, ties = np.mean(margin > 1e-9), np.mean(abs(margin) <= 1e-9)
    assert 0.5 < share < 0.99
    assert [weight.value for weight in found.nash] == [0.0, 1.0]
    assert found.nash_support == pytest.approx((1 - share, share + ties))
    assert bounds(found.nash[1]) == (0.0, 1.0)


@pytest.mark.parametrize("quality", [-0.4, 0.0, 0.5])
def test_a_planted_effect_of_length_is_removed(quality: float) -> None:
    """Judges like length: wins are sigmoid(quality + 0.02 d), d 20 tokens on average."""
    generator = torch.Generator().manual_seed(3)
    difference = 20 + 40 * torch.randn(3000, generator=generator).double()
    chance = torch.sigmoid(quality + 0.02 * difference)
    rates = torch.bernoulli(chance.expand(4, -1), generator=generator).mean(dim=0)
    found = against_start(rates, difference)
    controlled = found.length_controlled_against_start[1]
    truth = 1 / (1 + math.exp(-quality))
    assert controlled is not None
    assert bounds(controlled)[0] < truth < bounds(controlled)[1]
    assert bounds(found.against_start[1])[0] > truth + 0.03
    assert bounds(controlled)[1] - bounds(controlled)[0] < 0.04
    assert not found.extrapolated[1][0]


def test_equal_lengths_change_nothing() -> None:
    win_rates, lengths, _ = simulated(60, 3)
    lengths[:, 1] = lengths[:, 0]
    found = compare_iterates(win_rates, lengths, labels(3))
    assert found.length_controlled[1][0] == found.win_rates[1][0]
    assert found.length_controlled[2][0] != found.win_rates[2][0]


def test_a_difference_that_is_always_the_same_cannot_be_controlled() -> None:
    win_rates, lengths, _ = simulated(60, 3)
    lengths[:, 1] = lengths[:, 0] + 12
    found = compare_iterates(win_rates.float(), lengths.float(), labels(3))
    assert found.length_controlled[1][0] is None
    assert found.length_controlled[0][1] is None
    assert found.length_controlled[2][0] is not None
    assert found.extrapolated[0] == (False, True, False)
    cells = [cell.strip() for cell in iterates_markdown(found).split("|")]
    assert cells.count("-") == 3  # in the table of the start, and twice in the matrix


@pytest.mark.parametrize("sign", [1, -1])
def test_one_that_is_always_longer_is_marked(sign: int) -> None:
    win_rates, lengths, _ = simulated(60, 2)
    lengths[:, 1] = lengths[:, 0] + sign * torch.linspace(1, 50, 60)
    found = compare_iterates(win_rates, lengths + 100, labels(2))
    assert found.length_controlled[1][0] is not None
    assert found.extrapolated == ((False, True), (True, False))
    assert "]* |" in iterates_markdown(found)
    assert "equal length was never seen" in iterates_markdown(found)


# -- symmetry ------------------------------------------------------------------------------------


def test_the_two_sides_of_a_pair_add_up_to_one() -> None:
    win_rates, lengths, _ = simulated(80, 4)
    found = compare_iterates(win_rates, lengths, labels(4))
    for matrix in (found.win_rates, found.length_controlled):
        for i in range(4):
            for j in range(4):
                one, other = matrix[i][j], matrix[j][i]
                assert one is not None
                assert other is not None
                assert one.value + other.value == pytest.approx(1, abs=1e-15)
                if i != j:
                    assert bounds(one)[0] + bounds(other)[1] == pytest.approx(1, abs=1e-15)
                    assert bounds(one)[0] < one.value < bounds(one)[1]


def test_the_order_of_the_iterates_does_not_matter() -> None:
    win_rates, lengths, kl = simulated(80, 5)
    order, names = [3, 0, 4, 2, 1], labels(5)
    found = compare_iterates(win_rates, lengths, names, kl=kl)
    other = compare_iterates(
        win_rates[:, order][:, :, order],
        lengths[:, order],
        [names[i] for i in order],
        kl=kl[:, order],
    )

    def flat(estimate: Estimate | None) -> list[float]:
        assert estimate is not None
        return [estimate.value, estimate.low or 0.0, estimate.high or 0.0]

    for matrix, permuted in (
        (found.win_rates, other.win_rates),
        (found.length_controlled, other.length_controlled),
    ):
        for i in range(5):
            for j in range(5):
                expected = pytest.approx(flat(matrix[order[i]][order[j]]), abs=1e-9)
                assert flat(permuted[i][j]) == expected
    assert found.kl is not None
    assert other.kl is not None
    for one, permuted_one in (
        (found.lengths, other.lengths),
        (found.kl, other.kl),
        (found.nash, other.nash),
    ):
        for i in range(5):
            assert flat(permuted_one[i]) == pytest.approx(flat(one[order[i]]), abs=1e-9)
    assert other.copeland == tuple(found.copeland[i] for i in order)
    assert other.nash_support == tuple(found.nash_support[i] for i in order)


# -- intervals -----------------------------------------------------------------------------------


def test_coverage() -> None:
    """95 % intervals hold the truth in 95 % of 200 simulations.

    Three standard deviations of that share are 0.046, and percentile intervals from 100 prompts
    are a little too narrow.
    """
    generator = torch.Generator().manual_seed(11)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    mean = weights / weights.sum() @ (1 / (1 + np.exp(-0.3 - 0.8 * np.tanh(nodes))))
    truth = {"plain": float(mean), "controlled": 1 / (1 + math.exp(-0.3)), "length": 200.0}
    held = dict.fromkeys(truth, 0)
    for seed in range(200):
        difference = 30 * torch.randn(100, generator=generator).double()
        chance = torch.sigmoid(0.3 + 0.8 * torch.tanh(difference / 30))
        wins = torch.bernoulli(chance, generator=generator)
        found = against_start(wins, difference, bootstrap=Bootstrap(200, seed=seed))
        controlled = found.length_controlled_against_start[1]
        assert controlled is not None
        figures = {"plain": found.against_start[1], "controlled": controlled}
        for name, estimate in {**figures, "length": found.lengths[1]}.items():
            held[name] += bounds(estimate)[0] < truth[name] < bounds(estimate)[1]
    for name, count in held.items():
        assert 0.89 <= count / 200 <= 0.99, name
