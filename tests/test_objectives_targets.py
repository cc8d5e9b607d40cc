"""Targets: against sums written out, and what they see of cycles."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gpm_core import ops, testing
from gpm_core.objectives import groups, targets
from gpm_core.ranking import hodge, nash_mixture

SIZES = [3, 1, 4]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return testing.make_tensor(*shape, dtype=torch.float64, seed=seed)


def test_mean_scores_are_means_of_the_matrix() -> None:
    v, population, scale = normal(2, 5, 6), normal(2, 7, 6, seed=1), normal(2, 3, seed=2)
    weights = normal(2, 7, seed=3).softmax(-1)
    own = ops.score_matrix(v, scale)
    torch.testing.assert_close(targets.mean_scores(v, scale=scale), own.mean(-1))
    matrix = ops.cross_score_matrix(v, population, scale)
    torch.testing.assert_close(targets.mean_scores(v, population, scale=scale), matrix.mean(-1))
    torch.testing.assert_close(
        targets.mean_scores(v, population, weights=weights, scale=scale),
        torch.einsum("bij,bj->bi", matrix, weights),
    )
    policy = normal(2, 5, seed=4).softmax(-1)
    torch.testing.assert_close(
        targets.mean_scores(v, weights=policy),
        torch.einsum("bij,bj->bi", ops.score_matrix(v), policy),
    )
    zero = torch.zeros(2, dtype=torch.float64)
    torch.testing.assert_close(targets.mean_scores(v).sum(-1), zero, atol=1e-12, rtol=0)
    assert torch.equal(
        targets.mean_scores(v[:, :1], population[:, :1]),
        -targets.mean_scores(population[:, :1], v[:, :1]),
    ), "antisymmetric bitwise, as the score"


@pytest.mark.parametrize("kind", ["own", "weights", "population", "population, weights"])
@pytest.mark.parametrize("function", [targets.mean_scores, targets.mean_win_rates])
def test_ragged_embeddings_are_the_groups_alone(function: Any, kind: str) -> None:
    v, scale = normal(8, 4), normal(3, 2, seed=1)
    population = normal(3, 6, 4, seed=2) if "population" in kind else None
    weights = None
    if "weights" in kind:
        weights = normal(*((8,) if population is None else (3, 6)), seed=3).sigmoid()
    got = function(v, population, weights=weights, scale=scale, group_sizes=SIZES)
    assert got.shape == (8,)
    for i, own in enumerate((slice(0, 3), slice(3, 4), slice(4, 8))):
        opponents = None if population is None else population[i]
        part = weights if weights is None else weights[own if population is None else i]
        alone = function(v[own], opponents, weights=part, scale=scale[i])
        torch.testing.assert_close(got[own], alone)


def test_mean_win_rates_are_means_of_the_matrix() -> None:
    v, population, scale = normal(2, 5, 6), normal(2, 7, 6, seed=1), normal(2, 3, seed=2)
    expected = (ops.cross_score_matrix(v, population, scale) / 0.7).sigmoid()
    got = targets.mean_win_rates(v, population, scale=scale, tau=0.7)
    torch.testing.assert_close(got, expected.mean(-1))
    weights = normal(2, 7, seed=3).softmax(-1)
    got = targets.mean_win_rates(v, population, weights=weights, scale=scale, tau=0.7)
    torch.testing.assert_close(got, torch.einsum("bij,bj->bi", expected, weights))
    own = targets.mean_win_rates(v, tau=0.7)
    torch.testing.assert_close(own, ops.probability_matrix(v, tau=0.7).mean(-1))
    torch.testing.assert_close(own.mean(-1), torch.full((2,), 0.5, dtype=torch.float64))


def test_padding_of_matrices_does_not_matter() -> None:
    v = normal(8, 4)
    matrix = ops.probability_matrix(groups.pad(v, SIZES))
    clean = targets.row_means(matrix, group_sizes=SIZES)
    mask = groups.pad(torch.ones(8), SIZES).bool()
    matrix[~(mask[:, None] & mask[:, :, None])] = torch.nan
    assert torch.equal(targets.row_means(matrix, group_sizes=SIZES), clean)
    torch.testing.assert_close(clean[:3], ops.probability_matrix(v[:3]).mean(-1))
    with pytest.raises(ValueError, match="Opponents from elsewhere need weights="):
        targets.row_means(matrix[:, :, :2], group_sizes=SIZES)


def test_half_precision_is_averaged_in_float32() -> None:
    v = testing.make_tensor(64, 8, dtype=torch.bfloat16)
    got = targets.mean_scores(v)
    assert got.dtype == torch.float32
    exact = targets.mean_scores(v.double())
    torch.testing.assert_close(got.double(), exact, atol=1e-5, rtol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(targets.mean_scores(v.float()), targets.mean_scores(v.float()))
        matrix, weights = ops.score_matrix(v.float()), torch.full((64,), 1 / 64)
        inside = targets.row_means(matrix, weights=weights)
    torch.testing.assert_close(inside.double(), exact, atol=1e-5, rtol=1e-5)


# -- what they see -----------------------------------------------------------------------------


def test_row_means_see_the_transitive_part_alone() -> None:
    payoff = normal(6, 6)
    parts = hodge(payoff - payoff.mT)
    zero = torch.zeros(6, dtype=torch.float64)
    torch.testing.assert_close(targets.row_means(parts.cyclic), zero, atol=1e-12, rtol=0)
    torch.testing.assert_close(
        targets.row_means(parts.transitive + 9 * parts.cyclic), parts.ratings
    )


def test_other_opponents_see_cycles() -> None:
    angles = torch.tensor([0.0, 2.0, 4.0], dtype=torch.float64) * torch.pi / 3
    v = torch.stack((angles.cos(), angles.sin()), dim=-1)
    zero = torch.zeros(3, dtype=torch.float64)
    torch.testing.assert_close(targets.mean_scores(v), zero, atol=1e-12, rtol=0)
    against_first = targets.mean_scores(v, v[:1])
    assert against_first.tolist() == pytest.approx([0.0, -(0.75**0.5), 0.75**0.5])
    policy = torch.tensor([0.6, 0.2, 0.2], dtype=torch.float64)
    weighted = targets.mean_scores(v, weights=policy)
    assert weighted.tolist() == pytest.approx([0.0, -0.4 * 0.75**0.5, 0.4 * 0.75**0.5])
    nash = targets.mean_scores(v, weights=nash_mixture(ops.score_matrix(v)))
    assert nash.max() < 1e-9, "nothing beats the Nash mixture"


# -- conventions -------------------------------------------------------------------------------


def test_reference_code_by_its_own_steps() -> None:
    """Tables T_ij = s_ij / tau, W_ij = T_ij - T_ji; probabilities exp(W) / (1 + exp(W))."""
    v, tau = normal(5, 4), 0.1
    scores = ops.score_matrix(v)
    table = scores / tau
    weighted = torch.stack(
        [torch.stack([table[i, j] - table[j, i] for j in range(5)]) for i in range(5)]
    )
    torch.testing.assert_close(
        targets.reference_code_scores(targets.mean_scores(v), tau), weighted.sum(1) / 5
    )
    # not at the largest scores, where exp(W) / (1 + exp(W)) itself loses digits
    torch.testing.assert_close(
        targets.reference_code_probabilities(scores, tau),
        weighted.exp() / (1 + weighted.exp()),
        rtol=1e-12,
        atol=1e-12,
    )
    assert targets.reference_code_probabilities(torch.tensor([-1e4, 1e4])).tolist() == [0.0, 1.0]


def test_symmetrize_removes_what_the_position_adds() -> None:
    fair = (normal(4, 4) - normal(4, 4).mT).sigmoid()
    torch.testing.assert_close(targets.symmetrize(fair), fair)
    torch.testing.assert_close(targets.symmetrize(fair + 0.03), fair)
    got = targets.symmetrize(normal(3, 4, 4, seed=1).sigmoid())
    torch.testing.assert_close(got + got.mT, torch.ones_like(got), atol=1e-15, rtol=0)


def test_dynamic_scores_go_from_transitive_to_all() -> None:
    transitive, cyclic = normal(3, 3), normal(3, 3, seed=1)

    def at(iteration: int, curriculum: float = 1.0) -> Tensor:
        return targets.dynamic_scores(
            transitive, cyclic, iteration=iteration, curriculum=curriculum
        )

    torch.testing.assert_close(at(1), 2 * transitive)
    torch.testing.assert_close(at(4), 1.5 * transitive + 0.5 * cyclic)
    torch.testing.assert_close(at(4, -0.5), 0.75 * transitive + 1.25 * cyclic)
    torch.testing.assert_close(at(10**12), transitive + cyclic, rtol=1e-5, atol=1e-5)


def test_bad_input() -> None:
    v = normal(2, 3, 4)
    with pytest.raises(TypeError, match="v must be a floating-point tensor"):
        targets.mean_scores(v.long())
    with pytest.raises(ValueError, match="at least one response"):
        targets.mean_scores(v[:, :0])
    with pytest.raises(ValueError, match=r"weights must be \(2, 3\)"):
        targets.mean_scores(v, weights=torch.ones(3))
    with pytest.raises(ValueError, match=r"population of 2 ragged groups must be \(2, M, d\)"):
        targets.mean_scores(v.flatten(0, 1), v[0], group_sizes=[3, 3])
    with pytest.raises(ValueError, match=r"probabilities must be \(\.\.\., K, K\)"):
        targets.symmetrize(v)
    with pytest.raises(ValueError, match="iteration must be at least 1; got 0"):
        targets.dynamic_scores(v, v, iteration=0)
    with pytest.raises(TypeError, match="iteration must be an int; got float"):
        targets.dynamic_scores(v, v, iteration=1.0)
    with pytest.raises(ValueError, match="must have the same shape"):
        targets.dynamic_scores(v, v[0], iteration=1)
    with pytest.raises(ValueError, match="tau must be finite and above zero"):
        targets.reference_code_scores(v, tau=0.0)
    with pytest.raises(ValueError, match="at least one opponent"):
        targets.row_means(torch.zeros(3, 0))
