"""Nash mixtures against a linear program, and the Hodge decomposition against its definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gpm_core import ops, testing
from gpm_core.ranking import hodge, nash_mixture, tabular

optimize = pytest.importorskip("scipy.optimize", reason="needs SciPy, of gpm_core[train]")

ROCK_PAPER_SCISSORS = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]])


def skew(players: int, seed: int) -> Tensor:
    matrix = testing.make_tensor(players, players, dtype=torch.float64, seed=seed)
    return matrix - matrix.mT


def linear_program(payoff: Tensor) -> Tensor:
    """An equilibrium by HiGHS: the most v with w payoff >= v, sum w = 1, w >= 0."""
    import numpy as np

    players = payoff.shape[0]
    result = optimize.linprog(
        np.append(np.zeros(players), -1.0),
        A_ub=np.column_stack((-payoff.numpy().T, np.ones(players))),
        b_ub=np.zeros(players),
        A_eq=np.append(np.ones(players), 0.0)[None],
        b_eq=[1.0],
        bounds=[(0, None)] * players + [(None, None)],
        method="highs",
    )
    assert result.status == 0
    assert abs(result.x[-1]) < 1e-9, "the value of a symmetric game is zero"
    return torch.from_numpy(result.x[:-1])


# -- Nash --------------------------------------------------------------------------------------


@pytest.mark.parametrize("players", [1, 2, 3, 8, 31, 90])
def test_unique_equilibria_are_the_linear_programs(players: int) -> None:
    """Games with random payoffs have one equilibrium, with an odd number of players."""
    for seed in range(3):
        payoff = skew(players, seed)
        weights = nash_mixture(payoff)
        torch.testing.assert_close(weights, linear_program(payoff), atol=1e-7, rtol=0)
        assert weights.sum().item() == pytest.approx(1.0, abs=1e-12)
        assert (weights >= 0).all()
        assert (payoff @ weights).max() < 1e-9 * payoff.abs().max().clamp(min=1)
        assert (weights > 0).sum() % 2 == 1


def test_by_hand() -> None:
    third = torch.full((3,), 1 / 3)
    torch.testing.assert_close(nash_mixture(ROCK_PAPER_SCISSORS), third)
    # a player that beats everyone; probabilities as payoffs; ties
    matrix = torch.tensor([[0.5, 0.9, 0.6], [0.1, 0.5, 0.8], [0.4, 0.2, 0.5]])
    assert nash_mixture(matrix - 0.5).tolist() == [1.0, 0.0, 0.0]
    assert nash_mixture(torch.zeros(4, 4)).tolist() == pytest.approx([0.25] * 4)
    # a fourth player who loses to all is not in the support, exactly
    weak = torch.nn.functional.pad(ROCK_PAPER_SCISSORS, (0, 1, 0, 1))
    weak[:3, 3], weak[3, :3] = 0.5, -0.5
    assert nash_mixture(weak)[3] == 0
    torch.testing.assert_close(nash_mixture(weak)[:3], third)


def test_among_several_equilibria_the_nearest_to_equal_weights() -> None:
    """A clone of rock halves its weight; every split would be an equilibrium."""
    clones = [0, 0, 1, 2]
    payoff = ROCK_PAPER_SCISSORS[clones][:, clones]
    assert nash_mixture(payoff).tolist() == pytest.approx([1 / 6, 1 / 6, 1 / 3, 1 / 3])
    # no equilibrium has a smaller sum of squares: of low rank there are many
    v = testing.make_tensor(12, 4, dtype=torch.float64)
    payoff = ops.score_matrix(v)
    weights = nash_mixture(payoff)
    assert (payoff @ weights).max() < 1e-9
    other = linear_program(payoff)
    assert (other - weights).abs().max() > 0.01
    for mix in (1e-3, 0.1, 1.0):
        moved = (1 - mix) * weights + mix * other
        assert (payoff @ moved).max() < 1e-9, "equilibria are convex"
        assert moved.square().sum() > weights.square().sum()


def test_order_size_and_batch_do_not_matter() -> None:
    payoff, order = skew(7, 4), torch.tensor([3, 6, 0, 2, 5, 1, 4])
    weights = nash_mixture(payoff)
    permuted = nash_mixture(payoff[order][:, order])
    torch.testing.assert_close(permuted, weights[order], atol=1e-9, rtol=0)
    for scale in (1e-8, 1e8):
        torch.testing.assert_close(nash_mixture(scale * payoff), weights, atol=1e-9, rtol=0)
    batch = torch.stack((payoff, -payoff))[None]
    got = nash_mixture(batch)
    assert got.shape == (1, 2, 7)
    torch.testing.assert_close(got[0, 1], nash_mixture(-payoff))
    single = nash_mixture(payoff.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), weights, atol=1e-5, rtol=0)
    assert nash_mixture(payoff.bfloat16()).dtype == torch.float32
    assert not nash_mixture(payoff.requires_grad_()).requires_grad


# -- Hodge -------------------------------------------------------------------------------------


def test_decomposition_is_orthogonal_and_the_nearest_ranking() -> None:
    payoff = torch.stack((skew(6, 0), skew(6, 1)))
    parts = hodge(payoff)
    torch.testing.assert_close(parts.ratings, payoff.mean(-1))
    torch.testing.assert_close(parts.transitive, parts.ratings[:, :, None] - parts.ratings[:, None])
    torch.testing.assert_close(parts.transitive + parts.cyclic, payoff)
    assert torch.equal(parts.cyclic, -parts.cyclic.mT)
    zero = torch.zeros(2, dtype=torch.float64)
    torch.testing.assert_close(
        (parts.transitive * parts.cyclic).sum((-2, -1)), zero, atol=1e-12, rtol=0
    )
    torch.testing.assert_close(
        parts.transitive_energy + parts.cyclic_energy, payoff.square().sum((-2, -1))
    )
    for seed in range(5):
        f = parts.ratings + testing.make_tensor(2, 6, dtype=torch.float64, seed=seed, scale=0.1)
        distance = (payoff - (f[:, :, None] - f[:, None])).square().sum((-2, -1))
        assert (distance > parts.cyclic_energy).all()


def test_pure_cases() -> None:
    ratings = torch.tensor([3.0, 1.0, -4.0])
    ranking = hodge(ratings[:, None] - ratings)
    assert ranking.ratings.tolist() == [3.0, 1.0, -4.0]
    assert ranking.cyclic_energy == 0
    cycle = hodge(ROCK_PAPER_SCISSORS)
    assert cycle.transitive_energy == 0
    assert cycle.cyclic_energy == 6


def test_bad_payoffs() -> None:
    for function in (hodge, nash_mixture, lambda x: tabular.expected_scores(x, torch.zeros(3))):
        with pytest.raises(TypeError, match=r"payoff must be a floating-point .* got list"):
            function([[0.0]])
        with pytest.raises(
            ValueError, match=r"payoff must be \(\.\.\., K, K\).*got shape \(2, 3\)"
        ):
            function(torch.zeros(2, 3))
        with pytest.raises(ValueError, match=r"skew-symmetric.*off by 1.*pass P - 0.5"):
            function(torch.full((3, 3), 0.5))
        with pytest.raises(ValueError, match="payoff must be finite"):
            function(torch.full((3, 3), torch.nan))
