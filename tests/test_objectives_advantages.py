"""GPRL's advantages and drift monitor against their definitions, and GRPO's as the case k = 1."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gpm_core import ops, testing
from gpm_core.objectives.advantages import (
    DriftMonitor,
    block_mean_scores,
    group_relative_advantages,
)
from gpm_core.objectives.targets import mean_scores

SIZES = [3, 1, 4]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return testing.make_tensor(*shape, dtype=torch.float64, seed=seed)


# -- block scores ------------------------------------------------------------------------------


def test_block_scores_are_the_blocks_of_the_mean_score() -> None:
    v, gate, population = normal(2, 5, 6), normal(2, 3, seed=1), normal(2, 4, 6, seed=2)
    blocks = block_mean_scores(v)
    assert blocks.shape == (2, 5, 3)
    for block in range(3):
        own = v[..., 2 * block : 2 * block + 2]
        torch.testing.assert_close(blocks[..., block], ops.score_matrix(own).mean(-1))
    torch.testing.assert_close((blocks * gate[:, None]).sum(-1), mean_scores(v, scale=gate))
    torch.testing.assert_close(
        (block_mean_scores(v, population) * gate[:, None]).sum(-1),
        mean_scores(v, population, scale=gate),
    )


def test_ragged_groups_are_the_groups_alone() -> None:
    v, gate, population = normal(8, 6), normal(3, 3, seed=1), normal(3, 5, 6, seed=2)
    weights = normal(3, seed=3).exp()
    blocks = block_mean_scores(v, group_sizes=SIZES)
    others = block_mean_scores(v, population, group_sizes=SIZES)
    got = group_relative_advantages(blocks, gate, block_weights=weights, group_sizes=SIZES)
    for i, own in enumerate((slice(0, 3), slice(3, 4), slice(4, 8))):
        torch.testing.assert_close(blocks[own], block_mean_scores(v[own]))
        torch.testing.assert_close(others[own], block_mean_scores(v[own], population[i]))
        alone = group_relative_advantages(blocks[own], gate[i], block_weights=weights)
        torch.testing.assert_close(got.advantages[own], alone.advantages)
        torch.testing.assert_close(got.block_advantages[own], alone.block_advantages)
    assert got.advantages[3] == 0, "a group of one has nothing to compare with"


# -- advantages --------------------------------------------------------------------------------


def test_formula() -> None:
    scores, gate, weights = normal(2, 5, 3), normal(2, 3, seed=1).exp(), normal(3, seed=2).exp()
    mean = scores.mean(1, keepdim=True)
    parts = (scores - mean) / (scores.std(1, keepdim=True) + 0.01)
    expected = parts * gate[:, None] * weights
    got = group_relative_advantages(scores, gate, block_weights=weights, eps=0.01)
    torch.testing.assert_close(got.block_advantages, expected)
    torch.testing.assert_close(got.advantages, expected.sum(-1))
    plain = group_relative_advantages(scores)
    torch.testing.assert_close(
        plain.advantages, ((scores - mean) / (scores.std(1, keepdim=True) + 1e-4)).sum(-1)
    )


def test_one_block_is_grpo() -> None:
    """A reward r as the embedding (1, -r): its mean score is r minus the mean reward."""
    rewards = normal(4, 6)
    v = torch.stack((torch.ones_like(rewards), -rewards), dim=-1)
    # GRPO's, as TRL computes it
    expected = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
    got = group_relative_advantages(block_mean_scores(v)).advantages
    torch.testing.assert_close(got, expected)
    gated = group_relative_advantages(block_mean_scores(v), torch.ones(4, 1)).advantages
    torch.testing.assert_close(gated, expected)


def test_no_block_dominates_by_its_size() -> None:
    scores = normal(5, 2)
    large = scores * torch.tensor([1.0, 1e4], dtype=torch.float64)
    one, other = (
        group_relative_advantages(scores, eps=1e-12),
        group_relative_advantages(large, eps=1e-12),
    )
    torch.testing.assert_close(one.advantages, other.advantages)
    constant = torch.stack((scores[:, 0], torch.full((5,), 3.0, dtype=torch.float64)), dim=-1)
    assert (group_relative_advantages(constant).block_advantages[:, 1] == 0).all()


def test_invariances_and_no_gradient() -> None:
    scores, order = normal(3, 5, 2), torch.tensor([2, 0, 4, 1, 3])
    got = group_relative_advantages(scores.clone().requires_grad_()).advantages
    assert not got.requires_grad
    torch.testing.assert_close(group_relative_advantages(scores + 7).advantages, got)
    torch.testing.assert_close(
        group_relative_advantages(scores[:, order]).advantages, got[:, order]
    )
    zero = torch.zeros(3, dtype=torch.float64)
    torch.testing.assert_close(got.sum(-1), zero, atol=1e-12, rtol=0)
    half = group_relative_advantages(scores.bfloat16())
    assert half.advantages.dtype == torch.float32


# -- the drift monitor -------------------------------------------------------------------------


def spread(*variances: float) -> Tensor:
    """Two responses whose block scores vary by this much."""
    sides = torch.tensor([[1.0], [-1.0]])
    return sides * torch.tensor(variances).sqrt()


def test_monitor_by_hand() -> None:
    monitor = DriftMonitor(2, threshold=0.3, smoothing=0.5, strength=1.0)
    first = monitor.update(spread(1.0, 1.0))
    assert first.share.tolist() == [0.5, 0.5]
    assert (first.divergence.item(), first.drifted.item(), first.kl_factor.item()) == (0, False, 1)
    assert first.block_weights.tolist() == [1.0, 1.0]
    # share (0.9, 0.1), smoothed to (0.7, 0.3): not far enough yet
    second = monitor.update(spread(9.0, 1.0))
    assert second.share.tolist() == pytest.approx([0.7, 0.3])
    divergence = 0.7 * math.log(1.4) + 0.3 * math.log(0.6)
    assert second.divergence.item() == pytest.approx(divergence, rel=1e-5)
    assert not second.drifted
    for _ in range(20):
        report = monitor.update(spread(9.0, 1.0))
    divergence = 0.9 * math.log(1.8) + 0.1 * math.log(0.2)
    assert report.divergence.item() == pytest.approx(divergence, rel=1e-4)
    assert report.drifted
    # initial / share = 5 / 9 and 5, to mean one: 0.2 and 1.8
    assert report.block_weights.tolist() == pytest.approx([0.2, 1.8], rel=1e-4)
    assert report.kl_factor.item() == pytest.approx(divergence / 0.3, rel=1e-4)
    # strength 1: the weights undo the change of the share
    undone = report.share * report.block_weights
    assert undone[0].item() == pytest.approx(undone[1].item(), rel=1e-4)
    for _ in range(30):
        report = monitor.update(spread(1.0, 1.0))
    assert not report.drifted
    assert report.block_weights.tolist() == [1.0, 1.0]


def test_monitor_sees_the_gated_variance_within_groups() -> None:
    scores, gate = normal(4, 5, 3).float(), normal(4, 3, seed=1).exp().float()
    offsets = normal(4, 1, 3, seed=2).float() * 50
    report = DriftMonitor(3).update(scores + offsets, gate)
    variances = ((scores * gate[:, None]).var(1, correction=0) * 5).sum(0)
    torch.testing.assert_close(report.share, variances / variances.sum(), rtol=1e-4, atol=1e-4)
    ragged = DriftMonitor(3).update(scores.flatten(0, 1), gate, group_sizes=[5] * 4)
    plain = DriftMonitor(3).update(scores, gate)
    torch.testing.assert_close(ragged.share, plain.share)


def test_warmup_is_the_mean_of_the_first_shares() -> None:
    monitor = DriftMonitor(2, warmup=2)
    monitor.update(spread(1.0, 0.0))
    monitor.update(spread(0.0, 1.0))
    assert monitor.initial_share.tolist() == [0.5, 0.5]
    monitor.update(spread(1.0, 0.0))
    assert monitor.initial_share.tolist() == [0.5, 0.5]
    assert monitor.share.tolist() == pytest.approx([0.55, 0.45])


def test_monitor_without_variance_and_without_a_block() -> None:
    """Ties everywhere say nothing; a block that was never used does not make anything infinite."""
    monitor = DriftMonitor(2, smoothing=0.0, max_block_weight=4.0, max_kl_factor=5.0)
    before = monitor.update(torch.zeros(3, 2))
    assert before.share.tolist() == [0.5, 0.5]
    assert monitor.updates == 0
    assert monitor.initial_share.tolist() == [0.5, 0.5]
    monitor.update(spread(1.0, 0.0))
    assert monitor.initial_share.tolist() == [1.0, 0.0], "the first that varies is the first"
    report = monitor.update(spread(0.0, 1.0))
    assert report.drifted
    assert all(x.isfinite().all() for x in report)
    assert report.kl_factor == 5
    assert (report.block_weights[0] / report.block_weights[1]).item() == pytest.approx(16.0)
    assert report.block_weights.mean().item() == pytest.approx(1.0)


def test_monitor_is_saved_and_restored() -> None:
    monitor = DriftMonitor(2)
    monitor.update(spread(1.0, 2.0))
    monitor.update(spread(5.0, 1.0))
    other = DriftMonitor(2)
    other.load_state_dict(monitor.state_dict())
    for one, two in zip(
        monitor.update(spread(3.0, 1.0)), other.update(spread(3.0, 1.0)), strict=True
    ):
        assert torch.equal(one, two)
    assert list(monitor.parameters()) == []
    assert "threshold=0.1" in repr(monitor)


def test_bad_input() -> None:
    scores = normal(2, 3, 4)
    with pytest.raises(TypeError, match="block_scores must be a floating-point tensor"):
        group_relative_advantages(scores.long())
    with pytest.raises(ValueError, match=r"gate must be one number per group and block, \(2, 4\)"):
        group_relative_advantages(scores, torch.ones(4))
    with pytest.raises(ValueError, match=r"block_weights must be \(4,\)"):
        group_relative_advantages(scores, block_weights=torch.ones(3))
    with pytest.raises(ValueError, match="at least one response and block"):
        group_relative_advantages(scores[:, :0])
    with pytest.raises(ValueError, match=r"block_scores must be \(N, k\)"):
        group_relative_advantages(scores, group_sizes=[1, 1])
    with pytest.raises(ValueError, match="eps must be finite and above zero"):
        group_relative_advantages(scores, eps=0.0)
    with pytest.raises(ValueError, match="even d"):
        block_mean_scores(normal(3, 5))
    with pytest.raises(ValueError, match=r"population must be \(\.\.\., M, 4\)"):
        block_mean_scores(normal(3, 4), normal(3, 6))
    with pytest.raises(ValueError, match="must have k = 2 blocks"):
        DriftMonitor(2).update(scores)
    with pytest.raises(TypeError, match="blocks must be an int; got float"):
        DriftMonitor(2.0)
    for options in ({"warmup": 0}, {"smoothing": 1.0}, {"max_kl_factor": 0.5}, {"threshold": 0.0}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
            DriftMonitor(2, **options)
