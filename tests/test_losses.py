"""Losses against their formulas in plain PyTorch and double precision, and their definitions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gpm_core
from gpm_core import testing
from gpm_core.losses import (
    BradleyTerryLoss,
    GeneralPreferenceLoss,
    bradley_terry_loss,
    general_preference_loss,
)


@pytest.fixture(params=["native", "reference"])
def backend(request: pytest.FixtureRequest) -> Any:
    reason = gpm_core.backends.why_not(request.param, "preference_loss", "cpu", torch.float64)
    if reason is not None:
        pytest.skip(f"backend {request.param} is not available: {reason}")
    with gpm_core.backend(request.param):
        yield request.param


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return testing.make_tensor(*shape, dtype=torch.float64, seed=seed)


def plain_score(a: Tensor, b: Tensor, scale: Tensor | None = None) -> Tensor:
    blocks = a[..., 0::2] * b[..., 1::2] - a[..., 1::2] * b[..., 0::2]
    return (blocks if scale is None else blocks * scale).sum(dim=-1)


#: label -> options; tensors have the shape (5, 3) of the batch
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tau": {"tau": 0.7},
    "margin": {"margin": 0.4, "tau": 0.5},
    "margins": {"margin": numbers(5, 3, seed=5), "tau": 0.5},
    "hard targets": {"target": (numbers(5, 3, seed=6) > 0).double(), "tau": 0.5},
    "soft targets": {"target": numbers(5, 3, seed=6).sigmoid(), "tau": 0.5},
    "tie": {"target": 0.5, "tau": 0.5},
    "lost": {"target": 0, "tau": 0.5},
    "smoothing": {"label_smoothing": 0.2, "tau": 0.5},
    "smoothed targets": {
        "target": numbers(5, 3, seed=6).sigmoid(),
        "label_smoothing": 0.2,
        "margin": numbers(5, 3, seed=5),
        "tau": 0.5,
    },
}


def plain_loss(
    s: Tensor,
    *,
    margin: Any = None,
    target: Any = None,
    label_smoothing: float = 0.0,
    tau: float = 0.1,
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, probabilities and accuracy, written with PyTorch's own binary cross-entropy."""
    logit = (s - (0 if margin is None else margin)) / tau
    p = torch.as_tensor(1.0 if target is None else target, dtype=s.dtype).expand(s.shape)
    smooth = (1 - label_smoothing) * p + label_smoothing / 2
    loss = F.binary_cross_entropy_with_logits(logit, smooth, reduction="none")
    agrees = torch.where((s == 0) | (p == 0.5), 0.5, ((s > 0) == (p > 0.5)).double())
    return loss, torch.sigmoid(logit), agrees.mean()


def leaves(options: dict[str, Any], *tensors: Tensor) -> tuple[list[Tensor], dict[str, Any]]:
    """Copies that want gradients, of the tensors and of the tensors among the options."""
    copies = {
        k: v.clone().requires_grad_() if isinstance(v, Tensor) else v for k, v in options.items()
    }
    first = [t.clone().requires_grad_() for t in tensors]
    return [*first, *(v for v in copies.values() if isinstance(v, Tensor))], copies


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("label", OPTIONS)
def test_general_preference_loss_and_its_gradients(label: str, scaled: bool, backend: str) -> None:
    tensors = [numbers(5, 3, 6), numbers(5, 3, 6, seed=1)]
    if scaled:
        tensors.append(numbers(5, 3, 3, seed=2).exp())
    inputs, options = leaves(OPTIONS[label], *tensors)
    output = general_preference_loss(*inputs[: len(tensors)], **options)
    got = torch.autograd.grad(output.loss, inputs)

    inputs, options = leaves(OPTIONS[label], *tensors)
    loss, probability, accuracy = plain_loss(plain_score(*inputs[: len(tensors)]), **options)
    expected = torch.autograd.grad(loss.mean(), inputs)

    torch.testing.assert_close(output.loss, loss.mean())
    torch.testing.assert_close(output.probability, probability.detach())
    torch.testing.assert_close(output.accuracy.double(), accuracy.detach())
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("label", OPTIONS)
def test_bradley_terry_loss_and_its_gradients(label: str, backend: str) -> None:
    tensors = [numbers(5, 3), numbers(5, 3, seed=1)]
    inputs, options = leaves(OPTIONS[label], *tensors)
    output = bradley_terry_loss(*inputs[:2], **options)
    got = torch.autograd.grad(output.loss, inputs)

    inputs, options = leaves(OPTIONS[label], *tensors)
    options = {"tau": 1.0, **options}
    loss, probability, accuracy = plain_loss(inputs[0] - inputs[1], **options)
    expected = torch.autograd.grad(loss.mean(), inputs)

    torch.testing.assert_close(output.loss, loss.mean())
    torch.testing.assert_close(output.probability, probability.detach())
    torch.testing.assert_close(output.accuracy.double(), accuracy.detach())
    torch.testing.assert_close(got, expected)


def test_default_losses_are_the_log_sigmoid_of_the_papers() -> None:
    a, b = numbers(9, 4), numbers(9, 4, seed=1)
    expected = -F.logsigmoid(plain_score(a, b) / 0.1).mean()
    torch.testing.assert_close(general_preference_loss(a, b).loss, expected)
    r, t = a[:, 0], b[:, 0]
    torch.testing.assert_close(bradley_terry_loss(r, t).loss, -F.logsigmoid(r - t).mean())


@pytest.mark.parametrize("label", ["plain", "smoothed targets"])
def test_reductions(label: str) -> None:
    a, b = numbers(5, 3, 6), numbers(5, 3, 6, seed=1)
    per_pair = plain_loss(plain_score(a, b), **OPTIONS[label])[0]
    for reduction, expected in (
        ("none", per_pair),
        ("sum", per_pair.sum()),
        ("mean", per_pair.mean()),
    ):
        output = general_preference_loss(a, b, reduction=reduction, **OPTIONS[label])
        torch.testing.assert_close(output.loss, expected)
        assert output.probability.shape == (5, 3)
        assert output.accuracy.shape == ()
        assert bradley_terry_loss(a, b, reduction=reduction).loss.shape == (
            (5, 3, 6) if reduction == "none" else ()
        )


def test_one_pair_without_batch_dimension() -> None:
    output = general_preference_loss(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), tau=1.0)
    assert output.loss.item() == pytest.approx(math.log1p(math.exp(-1)))
    assert output.probability.item() == pytest.approx(1 / (1 + math.exp(-1)))
    assert bradley_terry_loss(torch.tensor(2.0), torch.tensor(0.5)).probability.item() == (
        pytest.approx(1 / (1 + math.exp(-1.5)))
    )


# -- label smoothing ---------------------------------------------------------------------------


def test_label_smoothing_by_hand() -> None:
    """e = 0.2 turns 1 into 0.9, 0 into 0.1, 0.3 into 0.34, and leaves a tie."""
    a, b = numbers(4), numbers(4, seed=1)
    for target, smoothed in ((None, 0.9), (1.0, 0.9), (0.0, 0.1), (0.3, 0.34), (0.5, 0.5)):
        torch.testing.assert_close(
            bradley_terry_loss(a, b, target=target, label_smoothing=0.2).loss,
            bradley_terry_loss(a, b, target=smoothed).loss,
        )
    one = bradley_terry_loss(a, b)
    smoothed = bradley_terry_loss(a, b, label_smoothing=0.2)
    assert torch.equal(one.probability, smoothed.probability)
    assert torch.equal(one.accuracy, smoothed.accuracy)


def test_smoothing_of_half_precision_targets_is_not_rounded() -> None:
    """0.95 is 0.9492 in bfloat16: a smoothed target stays in float32."""
    a, b = numbers(5, 4).bfloat16(), numbers(5, 4, seed=1).bfloat16()
    got = general_preference_loss(a, b, target=torch.ones(5).bfloat16(), label_smoothing=0.1)
    assert torch.equal(got.loss, general_preference_loss(a, b, label_smoothing=0.1).loss)


# -- probability and accuracy ------------------------------------------------------------------


def rewards(*differences: float) -> tuple[Tensor, Tensor]:
    chosen = torch.tensor(differences)
    return chosen, torch.zeros_like(chosen)


def test_accuracy_counts_ties_half() -> None:
    assert bradley_terry_loss(*rewards(1.0, -1.0, 0.0, 2.0)).accuracy.item() == 0.625
    assert bradley_terry_loss(*rewards(0.0)).accuracy.item() == 0.5
    assert bradley_terry_loss(*rewards(3.0, 1e-3)).accuracy.item() == 1.0
    # chosen against itself
    v = testing.make_tensor(7, 4)
    assert general_preference_loss(v, v).accuracy.item() == 0.5


def test_accuracy_is_against_the_side_of_the_target() -> None:
    scores = rewards(1.0, 1.0, 1.0, -1.0)
    target = torch.tensor([1.0, 0.2, 0.5, 0.2])
    # right, wrong, a tie is half, right
    assert bradley_terry_loss(*scores, target=target).accuracy.item() == 0.625
    assert bradley_terry_loss(*scores, target=0.0).accuracy.item() == 0.25
    assert bradley_terry_loss(*scores, target=0.9).accuracy.item() == 0.75
    assert bradley_terry_loss(*scores, target=0.5).accuracy.item() == 0.5
    single = torch.tensor(0.1)
    assert bradley_terry_loss(*scores, target=single).accuracy.item() == 0.25


def test_with_a_margin_probability_is_after_it_and_accuracy_before() -> None:
    output = bradley_terry_loss(*rewards(0.5, 2.0, -1.0, 0.0), margin=1.0)
    expected = torch.sigmoid(torch.tensor([-0.5, 1.0, -2.0, -1.0]))
    torch.testing.assert_close(output.probability, expected)
    assert output.accuracy.item() == (1 + 1 + 0 + 0.5) / 4
    margins = torch.tensor([0.0, 3.0, -9.0, 0.0])
    output = bradley_terry_loss(*rewards(0.5, 2.0, -1.0, 0.0), margin=margins)
    assert output.accuracy.item() == (1 + 1 + 0 + 0.5) / 4
    a, b = testing.make_tensor(50, 4), testing.make_tensor(50, 4, seed=1)
    gate = testing.make_tensor(50, 2, seed=2)
    plain = general_preference_loss(a, b, gate, tau=1.0)
    with_margin = general_preference_loss(a, b, gate, margin=0.5, tau=1.0)
    assert 0 < plain.accuracy < 1
    assert with_margin.accuracy == plain.accuracy
    assert (with_margin.probability < plain.probability).all()


def test_what_is_logged_is_detached() -> None:
    a = testing.make_tensor(5, 4).requires_grad_()
    b, target = testing.make_tensor(5, 4, seed=1), torch.rand(5, requires_grad=True)
    for output in (
        general_preference_loss(a, b, margin=0.1, target=target),
        general_preference_loss(a, b, target=target),
        bradley_terry_loss(a[:, 0], b[:, 0]),
    ):
        assert output.loss.requires_grad
        assert not output.probability.requires_grad
        assert not output.accuracy.requires_grad


def test_swapping_the_pair_swaps_the_target() -> None:
    a, b, target = numbers(9, 4), numbers(9, 4, seed=1), numbers(9, seed=2).sigmoid()
    one = general_preference_loss(a, b, target=target)
    other = general_preference_loss(b, a, target=1 - target)
    torch.testing.assert_close(one.loss, other.loss)
    torch.testing.assert_close(one.probability, 1 - other.probability)
    assert one.accuracy == other.accuracy


def test_far_out_scores_are_finite() -> None:
    chosen = torch.tensor([1e4, -1e4], requires_grad=True)
    output = bradley_terry_loss(chosen, torch.zeros(2), label_smoothing=0.1, reduction="none")
    torch.testing.assert_close(output.loss.detach(), torch.tensor([0.05e4, 0.95e4]))
    output.loss.sum().backward()
    torch.testing.assert_close(chosen.grad, torch.tensor([0.05, -0.95]))


# -- dtypes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
@pytest.mark.parametrize("margin", [None, 0.25])
def test_dtypes(dtype: torch.dtype, margin: float | None, backend: str) -> None:
    """Inputs are rounded, the loss of the rounded inputs is not: float32 at least throughout."""
    wide = torch.promote_types(dtype, torch.float32)
    a, b = numbers(301, 6).to(dtype), numbers(301, 6, seed=1).to(dtype)
    leaf = a.clone().requires_grad_()
    output = general_preference_loss(leaf, b, margin=margin, label_smoothing=0.1)
    s = plain_score(a.double(), b.double())
    loss, probability, accuracy = plain_loss(s, margin=margin, label_smoothing=0.1)
    assert output.loss.dtype == output.probability.dtype == output.accuracy.dtype == wide
    torch.testing.assert_close(output.loss.double(), loss.mean(), rtol=2e-6, atol=0)
    torch.testing.assert_close(output.probability.double(), probability, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(output.accuracy.double(), accuracy, rtol=1e-6, atol=0)
    output.loss.backward()
    assert leaf.grad.dtype == dtype
    rewards = bradley_terry_loss(a[:, 0], b[:, 0], margin=margin)
    assert rewards.loss.dtype == rewards.accuracy.dtype == wide


def test_under_autocast_nothing_is_rounded() -> None:
    a, b = testing.make_tensor(5, 4), testing.make_tensor(5, 4, seed=1)
    expected = general_preference_loss(a, b, margin=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = general_preference_loss(a, b, margin=0.1)
    assert torch.equal(got.loss, expected.loss)
    assert torch.equal(got.accuracy, expected.accuracy)


@pytest.mark.parametrize("label", ["plain", "margins", "soft targets", "smoothed targets"])
def test_gradcheck(label: str, backend: str) -> None:
    names = [k for k, v in OPTIONS[label].items() if isinstance(v, Tensor)]
    tensors = [OPTIONS[label][name][:2, 0] for name in names]
    rest = {k: v for k, v in OPTIONS[label].items() if k not in names}

    def function(a: Tensor, b: Tensor, scale: Tensor, *values: Tensor) -> Tensor:
        options = {**rest, **dict(zip(names, values, strict=True))}
        return general_preference_loss(a, b, scale, reduction="none", **options).loss

    inputs = [numbers(2, 4), numbers(2, 4, seed=1), numbers(2, 2, seed=2).exp(), *tensors]
    assert torch.autograd.gradcheck(function, [x.clone().requires_grad_() for x in inputs])


# -- modules -----------------------------------------------------------------------------------


def equal(one: Any, other: Any) -> bool:
    return all(torch.equal(x, y) for x, y in zip(one, other, strict=True))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_modules_are_the_functions(reduction: Any) -> None:
    a, b = testing.make_tensor(5, 4), testing.make_tensor(5, 4, seed=1)
    scale, margin = testing.make_tensor(5, 2, seed=2), testing.make_tensor(5, seed=3)
    target = testing.make_tensor(5, seed=4).sigmoid()
    held = {"tau": 0.3, "label_smoothing": 0.1, "reduction": reduction}
    general, bt = GeneralPreferenceLoss(**held), BradleyTerryLoss(**held)
    assert isinstance(general, nn.Module)
    assert equal(
        general(a, b, scale, margin=margin, target=target),
        general_preference_loss(a, b, scale, margin=margin, target=target, **held),
    )
    assert equal(general(a, b), general_preference_loss(a, b, **held))
    r, t = a[:, 0], b[:, 0]
    assert equal(
        bt(r, t, margin=margin, target=target),
        bradley_terry_loss(r, t, margin=margin, target=target, **held),
    )
    for module in (general, bt):
        assert f"tau=0.3, label_smoothing=0.1, reduction='{reduction}'" in repr(module)


def test_modules_have_the_functions_defaults() -> None:
    a, b = testing.make_tensor(5, 4), testing.make_tensor(5, 4, seed=1)
    assert equal(GeneralPreferenceLoss()(a, b), general_preference_loss(a, b))
    assert equal(BradleyTerryLoss()(a[:, 0], b[:, 0]), bradley_terry_loss(a[:, 0], b[:, 0]))


def test_compile_fullgraph() -> None:
    torch._dynamo.reset()
    module = GeneralPreferenceLoss(label_smoothing=0.1)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for options in ({}, {"margin": torch.rand(5), "target": torch.rand(5)}):
        results = []
        for function in (module, compiled):
            a = testing.make_tensor(5, 4).requires_grad_()
            output = function(a, testing.make_tensor(5, 4, seed=1), **options)
            output.loss.backward()
            results.append([*(x.detach() for x in output), a.grad])
        torch.testing.assert_close(results[0], results[1])
