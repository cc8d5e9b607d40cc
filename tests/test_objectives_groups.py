"""Ragged groups: every objective gives each of them what it gives the group alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gpm_core import objectives, testing
from gpm_core.objectives import groups

SIZES = [3, 2, 5, 2]
TOTAL = sum(SIZES)


def flat(seed: int, *width: int) -> Tensor:
    return testing.make_tensor(TOTAL, *width, dtype=torch.float64, seed=seed)


def padded_matrices(seed: int) -> Tensor:
    """Probabilities of each group, padded with NaN: what is not there must not matter."""
    matrices = torch.full((len(SIZES), 5, 5), torch.nan, dtype=torch.float64)
    for i, size in enumerate(SIZES):
        skew = testing.make_tensor(size, size, dtype=torch.float64, seed=seed + i)
        matrices[i, :size, :size] = (skew - skew.mT).sigmoid()
    return matrices


def dsppo(logps: Tensor, reference: Tensor, matrix: Tensor, **options: Any) -> Any:
    transitive, cyclic = matrix, matrix.square()
    return objectives.dsppo_loss(
        logps, reference, transitive, cyclic, iteration=2, eta=3.0, **options
    )


#: objective, whether its third argument is a matrix of the group
OBJECTIVES: dict[str, tuple[Callable[..., Any], bool]] = {
    "gpo": (lambda *a, **o: objectives.gpo_loss(*a, beta=0.3, **o), False),
    "gpo centred": (lambda *a, **o: objectives.gpo_loss(*a, centered=True, **o), False),
    "sppo": (lambda *a, **o: objectives.sppo_loss(*a, eta=2.0, **o), False),
    "nash-md": (objectives.nash_md_loss, False),
    "nash-md centred": (lambda *a, **o: objectives.nash_md_loss(*a, centered=True, **o), False),
    "online ipo": (objectives.online_ipo_loss, True),
    "dsppo": (dsppo, True),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_ragged_groups_are_the_groups_alone(name: str) -> None:
    objective, pairwise = OBJECTIVES[name]
    logps, reference = flat(0).requires_grad_(), flat(1)
    third = padded_matrices(2) if pairwise else flat(2).sigmoid()
    output = objective(logps, reference, third, group_sizes=SIZES, reduction="none")
    weights = flat(9)
    (gradient,) = torch.autograd.grad((output.loss * weights).sum(), logps)
    start = 0
    rewards, margins = [], []
    for i, size in enumerate(SIZES):
        own = slice(start, start + size)
        alone_logps = logps.detach()[own].requires_grad_()
        values = third[i, :size, :size] if pairwise else third[own]
        alone = objective(alone_logps, reference[own], values, reduction="none")
        torch.testing.assert_close(output.loss[own], alone.loss)
        torch.testing.assert_close(output.losses[own], alone.losses)
        torch.testing.assert_close(output.log_ratios[own], alone.log_ratios)
        torch.testing.assert_close(output.targets[own], alone.targets)
        (one,) = torch.autograd.grad((alone.loss * weights[own]).sum(), alone_logps)
        torch.testing.assert_close(gradient[own], one)
        rewards.append(alone.metrics["rewards/chosen"])
        margins.append(alone.metrics["rewards/margins"])
        start += size
    torch.testing.assert_close(output.metrics["rewards/chosen"], torch.stack(rewards).mean())
    torch.testing.assert_close(output.metrics["rewards/margins"], torch.stack(margins).mean())
    mean = objective(logps, reference, third, group_sizes=torch.tensor(SIZES))
    torch.testing.assert_close(mean.loss, output.loss.mean())
    assert mean.loss.isfinite()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_equal_sizes_are_the_even_layout(name: str) -> None:
    objective, pairwise = OBJECTIVES[name]
    logps, reference = (testing.make_tensor(4, 3, seed=i) for i in range(2))
    third = testing.make_tensor(4, 3, 3, seed=2).sigmoid()
    third = third if pairwise else third[..., 0]
    even = objective(logps, reference, third)
    ragged = objective(
        logps.flatten(),
        reference.flatten(),
        third if pairwise else third.flatten(),
        group_sizes=[3] * 4,
    )
    torch.testing.assert_close(even.loss, ragged.loss)
    torch.testing.assert_close(even.metrics, ragged.metrics)


def test_ragged_compiles_whole() -> None:
    torch._dynamo.reset()

    def function(logps: Tensor, reference: Tensor, scores: Tensor) -> Tensor:
        return objectives.gpo_loss(logps, reference, scores, centered=True, group_sizes=SIZES).loss

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    tensors = [flat(i) for i in range(3)]
    torch.testing.assert_close(compiled(*tensors), function(*tensors))


def test_statistics_by_hand() -> None:
    values = torch.tensor([5.0, 1.0, 2.0, 6.0])
    assert groups.group_mean(values, [1, 3]).tolist() == [5.0, 3.0, 3.0, 3.0]
    assert groups.center(values, [1, 3]).tolist() == [0.0, -2.0, -1.0, 3.0]
    # (4 + 1 + 9) / 2 = 7; a group of one has no spread
    assert groups.group_std(values, [1, 3]).tolist() == pytest.approx([0, *[7**0.5] * 3])
    rows = torch.stack((values, -values), dim=-1)
    torch.testing.assert_close(
        groups.group_std(rows, [1, 3], dim=-2)[:, 1], groups.group_std(values, [1, 3])
    )
    even = torch.tensor([[1.0, 2.0, 6.0]])
    torch.testing.assert_close(
        groups.group_std(even), even.std(dim=-1, keepdim=True).expand_as(even)
    )


def test_padding_and_back() -> None:
    values = flat(0, 2)
    padded = groups.pad(values, SIZES, fill=-7.0)
    assert padded.shape == (4, 5, 2)
    assert (padded[1, 2:] == -7).all()
    assert torch.equal(padded[2], values[5:10])
    assert torch.equal(groups.unpad(padded, SIZES), values)
    with pytest.raises(ValueError, match=r"padded must be .* \(4, 5, \.\.\.\)"):
        groups.unpad(padded[:, :4], SIZES)


def test_best_and_worst_of_ragged_groups() -> None:
    """The first of equals; a padded place never wins, also among infinities of its own sign."""
    values = torch.tensor([-1.0, -2.0, 3.0, 3.0, 1.0, 1.0])
    best, worst = groups.best_and_worst(values, [2, 4])
    assert best.tolist() == [0, 2]
    assert worst.tolist() == [1, 4]
    infinite = torch.tensor([-torch.inf, -torch.inf, 0.0, 1.0, 2.0])
    assert groups.best_and_worst(infinite, [2, 3])[0].tolist() == [0, 4]


def test_pairs_are_what_the_reference_code_trains_on() -> None:
    """Best and worst by mean score, each with its target in the whole group."""
    scores = torch.tensor([[0.1, -0.4, 0.3], [-0.2, 0.0, 0.2]])
    logps = torch.tensor([[-1.0, -2.0, -3.0], [-4.0, -5.0, -6.0]])
    pairs = groups.select_pairs(scores, logps, 0 * logps, scores)
    assert pairs[0].tolist() == [[-3.0, -2.0], [-6.0, -4.0]]
    loss = objectives.gpo_loss(*pairs, beta=0.1).loss
    by_hand = [(-3 - 3) ** 2, (-2 + 4) ** 2, (-6 - 2) ** 2, (-4 + 2) ** 2]
    assert loss.item() == pytest.approx(sum(by_hand) / 4)
    ragged = groups.select_pairs(scores.flatten(), logps.flatten(), group_sizes=[3, 3])
    assert torch.equal(ragged[0], pairs[0])


@pytest.mark.parametrize(
    ("sizes", "error", "message"),
    [
        ([3, 2], ValueError, "add up to 5 for 12 responses"),
        ([12, 0], ValueError, "each at least 1"),
        ([], ValueError, "each at least 1"),
        ([6.0, 6.0], TypeError, "integers; got float"),
        (torch.tensor([6.0, 6.0]), TypeError, "integers; got a tensor of torch.float32"),
        (torch.tensor([[12]]), ValueError, r"must be \(G,\); got \(1, 1\)"),
    ],
)
def test_bad_group_sizes(sizes: Any, error: type[Exception], message: str) -> None:
    logps = flat(0)
    with pytest.raises(error, match=message):
        objectives.gpo_loss(logps, logps, logps, group_sizes=sizes)


def test_ragged_responses_have_one_dimension() -> None:
    two = torch.zeros(4, 2)
    with pytest.raises(ValueError, match=r"values of ragged groups must be \(N,\); got \(4, 2\)"):
        objectives.gpo_loss(two, two, two, group_sizes=[2, 2])
    with pytest.raises(ValueError, match="tensors must have the shape of values"):
        groups.select_pairs(two, two[:1])
