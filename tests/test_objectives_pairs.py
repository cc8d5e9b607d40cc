"""Objectives on pairs: DPO, cDPO, rDPO, IPO and SimPO against their formulas and by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gpm_core import losses, testing
from gpm_core.objectives import ObjectiveOutput, dpo_loss, ipo_loss, simpo_loss

LENGTHS = (torch.tensor([3, 7, 1, 5]), torch.tensor([2, 2, 9, 4]))
SMOOTHING = torch.tensor([0.1, 0.45, 0.0, 0.3], dtype=torch.float64)


def inputs(dtype: torch.dtype = torch.float64, scale: float = 3.0) -> list[Tensor]:
    return [testing.make_tensor(4, dtype=dtype, seed=i, scale=scale) for i in range(4)]


def cross_entropy(d: Tensor, e: float | Tensor) -> Tensor:
    return -(1 - e) * torch.log(torch.sigmoid(d)) - e * torch.log(1 - torch.sigmoid(d))


def margin(c: Tensor, r: Tensor, rc: Tensor, rr: Tensor) -> Tensor:
    return 0.3 * ((c - rc) - (r - rr))


def ipo_mean(c: Tensor, r: Tensor, rc: Tensor, rr: Tensor) -> Tensor:
    return ((c - rc) / LENGTHS[0] - (r - rr) / LENGTHS[1] - 1 / 0.6) ** 2


def rdpo(*logps: Tensor) -> Tensor:
    d, e = margin(*logps), 0.2
    clean, flipped = cross_entropy(d, 0.0), cross_entropy(-d, 0.0)
    return ((1 - e) * clean - e * flipped) / (1 - 2 * e)


#: objective and its formula, of chosen, rejected and the reference's chosen, rejected
OBJECTIVES: dict[str, tuple[Callable[..., ObjectiveOutput], Callable[..., Tensor]]] = {
    "dpo": (
        lambda *a, **o: dpo_loss(*a, beta=0.3, **o),
        lambda *a: cross_entropy(margin(*a), 0.0),
    ),
    "cdpo": (
        lambda *a, **o: dpo_loss(*a, beta=0.3, label_smoothing=0.2, **o),
        lambda *a: cross_entropy(margin(*a), 0.2),
    ),
    "soft dpo": (
        lambda *a, **o: dpo_loss(*a, beta=0.3, label_smoothing=SMOOTHING, **o),
        lambda *a: cross_entropy(margin(*a), SMOOTHING),
    ),
    "rdpo": (
        lambda *a, **o: dpo_loss(*a, beta=0.3, label_smoothing=0.2, robust=True, **o),
        rdpo,
    ),
    "ipo": (
        lambda *a, **o: ipo_loss(*a, beta=0.3, **o),
        lambda c, r, rc, rr: ((c - rc) - (r - rr) - 1 / 0.6) ** 2,
    ),
    "ipo, means": (lambda *a, **o: ipo_loss(*a, *LENGTHS, beta=0.3, **o), ipo_mean),
    "simpo": (
        lambda c, r, rc, rr, **o: simpo_loss(c, r, *LENGTHS, beta=2.5, gamma=1.4, **o),
        lambda c, r, rc, rr: cross_entropy(2.5 * (c / LENGTHS[0] - r / LENGTHS[1]) - 1.4, 0.0),
    ),
}
each_objective = pytest.mark.parametrize("name", OBJECTIVES)


@each_objective
def test_formula_and_gradients(name: str) -> None:
    objective, formula = OBJECTIVES[name]
    logps = inputs()
    for reduction, reduced in (
        ("none", lambda x: x),
        ("sum", torch.sum),
        ("mean", torch.mean),
    ):
        ours, theirs = ([x.clone().requires_grad_() for x in logps] for _ in range(2))
        output = objective(*ours, reduction=reduction)
        expected = formula(*theirs)
        torch.testing.assert_close(output.loss, reduced(expected))
        torch.testing.assert_close(output.losses, expected.detach())
        output.loss.sum().backward()
        reduced(expected).sum().backward()
        for one, other in zip(ours[:2], theirs[:2], strict=True):
            torch.testing.assert_close(one.grad, other.grad)
        assert all(x.grad is None for x in ours[2:]), "the reference has no gradient"
    assert not any(x.requires_grad for x in (output.losses, output.log_ratios))
    assert torch.autograd.gradcheck(
        lambda c, r: objective(c, r, *logps[2:]).loss,
        [x.clone().requires_grad_() for x in logps[:2]],
    )


@each_objective
def test_extreme_log_ratios_are_finite(name: str) -> None:
    logps = torch.tensor([1e4, -1e4, -1e6, 0.0], requires_grad=True)
    zero = torch.zeros(4)
    output = OBJECTIVES[name][0](logps, zero, zero, zero)
    assert output.loss.isfinite()
    output.loss.backward()
    assert logps.grad.isfinite().all()
    if name == "dpo":
        # e^-3000 is no float: what is certain costs nothing, what is wrong costs its margin
        assert output.losses.tolist() == pytest.approx([0.0, 3e3, 3e5, math.log(2)])


@each_objective
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_inputs_are_widened_first(name: str, dtype: torch.dtype) -> None:
    logps = [x.to(dtype) for x in inputs(scale=200.0)]
    leaf = logps[0].clone().requires_grad_()
    output = OBJECTIVES[name][0](leaf, *logps[1:])
    exact = OBJECTIVES[name][0](*(x.double() for x in logps))
    assert output.loss.dtype == torch.float32
    torch.testing.assert_close(output.losses.double(), exact.losses, rtol=1e-5, atol=1e-5)
    output.loss.backward()
    assert leaf.grad.dtype == dtype


@each_objective
def test_compile_fullgraph(name: str) -> None:
    torch._dynamo.reset()
    objective = OBJECTIVES[name][0]
    compiled = torch.compile(objective, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs()).loss, objective(*inputs()).loss)


@each_objective
def test_metrics_are_trls(name: str) -> None:
    """As ``DPOTrainer`` computes them: beta times the summed log-ratio, and a strict accuracy."""
    chosen, rejected, reference_chosen, reference_rejected = inputs()
    output = OBJECTIVES[name][0](chosen, rejected, reference_chosen, reference_rejected)
    beta = 2.5 if name == "simpo" else 0.3
    if name == "simpo":
        rewards = beta * chosen / LENGTHS[0], beta * rejected / LENGTHS[1]
    else:
        rewards = beta * (chosen - reference_chosen), beta * (rejected - reference_rejected)
        if name == "ipo, means":
            rewards = rewards[0] / LENGTHS[0], rewards[1] / LENGTHS[1]
    expected = {
        "rewards/chosen": rewards[0].mean(),
        "rewards/rejected": rewards[1].mean(),
        "rewards/accuracies": (rewards[0] > rewards[1]).double().mean(),
        "rewards/margins": (rewards[0] - rewards[1]).mean(),
        "logps/chosen": chosen.mean(),
        "logps/rejected": rejected.mean(),
    }
    torch.testing.assert_close(output.metrics, expected)
    torch.testing.assert_close(beta * output.log_ratios, torch.stack(rewards, dim=-1))


def test_by_hand() -> None:
    def pair(*numbers: float) -> list[Tensor]:
        return [torch.tensor([n], dtype=torch.float64) for n in numbers]

    # margin 0.5 * ((-1 + 3) - (-4 + 2)) = 2
    dpo = dpo_loss(*pair(-1, -4, -3, -2), beta=0.5)
    assert dpo.loss.item() == pytest.approx(math.log(1 + math.exp(-2)))
    # (4 - 1 / (2 * 0.25))^2 = 4; means: 2 / 4 - (-2 / 2) - 2 = -0.5
    assert ipo_loss(*pair(-1, -4, -3, -2), beta=0.25).loss.item() == 4
    means = ipo_loss(*pair(-1, -4, -3, -2), *pair(4, 2), beta=0.25)
    assert means.loss.item() == 0.25
    assert means.targets.tolist() == [2.0]
    # 2 * (-1 + 2) - 2 = 0; an empty response counts as one token
    assert simpo_loss(*pair(-4, -2, 4, 0), beta=2.0, gamma=2.0).loss.item() == (
        pytest.approx(math.log(2))
    )


def test_rdpo_is_unbiased_under_flipped_labels() -> None:
    """Averaged over labels of which e are flipped, it is DPO on the clean labels."""
    chosen, rejected, reference_chosen, reference_rejected = inputs()
    options: dict[str, Any] = {"label_smoothing": 0.3, "robust": True}
    right = dpo_loss(chosen, rejected, reference_chosen, reference_rejected, **options).losses
    wrong = dpo_loss(rejected, chosen, reference_rejected, reference_chosen, **options).losses
    clean = dpo_loss(chosen, rejected, reference_chosen, reference_rejected).losses
    torch.testing.assert_close(0.7 * right + 0.3 * wrong, clean)


def test_cdpo_is_least_where_the_margin_is_the_log_odds() -> None:
    margins = torch.tensor([0.0, math.log(4) * 10], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(2, dtype=torch.float64)
    loss = dpo_loss(margins, zero, zero, zero, beta=0.1, label_smoothing=0.2, reduction="sum").loss
    (gradient,) = torch.autograd.grad(loss, margins)
    assert gradient[0] < -1e-3
    assert gradient[1].abs() < 1e-12


def test_simpo_is_the_reference_free_loss_of_preference_models() -> None:
    chosen, rejected, *_ = inputs()
    ours = simpo_loss(chosen, rejected, *LENGTHS, beta=2.0, gamma=1.0).loss
    theirs = losses.reference_free_dpo_loss(chosen, rejected, *LENGTHS, beta=2.0, margin=1.0).loss
    torch.testing.assert_close(ours, theirs)


def test_bad_input() -> None:
    good = torch.zeros(2)
    with pytest.raises(TypeError, match=r"chosen_logps must be a floating-point .* got list"):
        dpo_loss([0.0], good, good, good)
    with pytest.raises(ValueError, match=r"rejected_logps must have the shape .*got \(1,\)"):
        ipo_loss(good, torch.zeros(1), good, good)
    with pytest.raises(ValueError, match="at least one pair"):
        dpo_loss(*(torch.zeros(0) for _ in range(4)))
    with pytest.raises(RuntimeError, match="same device"):
        dpo_loss(good, good, good.to("meta"), good)
    with pytest.raises(ValueError, match="both be given"):
        ipo_loss(good, good, good, good, torch.ones(2))
    with pytest.raises(TypeError, match="chosen_lengths must be a tensor of numbers of tokens"):
        simpo_loss(good, good, 3, good)
    with pytest.raises(ValueError, match="rejected_lengths must have the shape"):
        simpo_loss(good, good, good, torch.ones(3))
    with pytest.raises(ValueError, match=r"label_smoothing must be in \[0, 1\); got 1"):
        dpo_loss(good, good, good, good, label_smoothing=1.0)
    with pytest.raises(ValueError, match=r"\[0, 0.5\) for robust=True; got 0.5"):
        dpo_loss(good, good, good, good, label_smoothing=0.5, robust=True)
    with pytest.raises(ValueError, match=r"label_smoothing must be \(\.\.\.\) as the pairs"):
        dpo_loss(good, good, good, good, label_smoothing=torch.zeros(3))
    with pytest.raises(ValueError, match="gamma must be finite"):
        simpo_loss(good, good, good, good, gamma=math.nan)
    for value in (0.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="beta must be finite and above zero"):
            ipo_loss(good, good, good, good, beta=value)
    with pytest.raises(ValueError, match="reduction must be"):
        dpo_loss(good, good, good, good, reduction="avg")
