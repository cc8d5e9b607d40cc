"""Regression to a target margin, and cross-entropy on scores."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import gpm_core
from gpm_core import losses, testing
from gpm_core.heads import BradleyTerryHead, HybridHead
from gpm_core.losses import bradley_terry_loss, regression_loss, score_loss


@pytest.fixture(params=["native", "reference"])
def backend(request: pytest.FixtureRequest) -> Any:
    reason = gpm_core.backends.why_not(request.param, "score", "cpu", torch.float64)
    if reason is not None:
        pytest.skip(f"backend {request.param} is not available: {reason}")
    with gpm_core.backend(request.param):
        yield request.param


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return testing.make_tensor(*shape, dtype=torch.float64, seed=seed)


def plain_score(a: Tensor, b: Tensor, scale: Tensor | None = None) -> Tensor:
    blocks = a[..., 0::2] * b[..., 1::2] - a[..., 1::2] * b[..., 0::2]
    return (blocks if scale is None else blocks * scale).sum(dim=-1)


# -- regression --------------------------------------------------------------------------------

TARGETS: dict[str, Any] = {
    "a number": 3.0,
    "an integer": -2,
    "one tensor": torch.tensor(1.5, dtype=torch.float64),
    "one per pair": numbers(5, 3, seed=5),
}


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("target", TARGETS)
def test_regression_and_its_gradients(target: str, scaled: bool, backend: str) -> None:
    tensors = [numbers(5, 3, 6), numbers(5, 3, 6, seed=1)]
    tensors += [numbers(5, 3, 3, seed=2).exp()] if scaled else []
    count = len(tensors)
    tensors += [TARGETS[target]] if isinstance(TARGETS[target], Tensor) else []

    leaves = [x.clone().requires_grad_() for x in tensors]
    wanted = leaves[count] if len(leaves) > count else TARGETS[target]
    output = regression_loss(*leaves[:count], target_margin=wanted, tau=0.7)
    got = torch.autograd.grad(output.loss, leaves)

    leaves = [x.clone().requires_grad_() for x in tensors]
    wanted = leaves[count] if len(leaves) > count else TARGETS[target]
    z = plain_score(*leaves[:count]) / 0.7
    per_pair = 0.5 * (z - wanted) ** 2
    expected = torch.autograd.grad(per_pair.mean(), leaves)

    torch.testing.assert_close(output.loss, per_pair.mean())
    torch.testing.assert_close(output.probability, z.sigmoid().detach())
    torch.testing.assert_close(got, expected)
    assert not output.probability.requires_grad
    assert not output.accuracy.requires_grad


def test_defaults_are_the_reference_codes() -> None:
    a, b = numbers(9, 4), numbers(9, 4, seed=1)
    expected = 0.5 * (plain_score(a, b) / 0.1 - 10) ** 2
    torch.testing.assert_close(regression_loss(a, b).loss, expected.mean())
    torch.testing.assert_close(regression_loss(a, b, reduction="sum").loss, expected.sum())
    torch.testing.assert_close(regression_loss(a, b, reduction="none").loss, expected)


def test_regression_by_hand() -> None:
    """A score of 1 at tau 0.1 is the logit 10: no loss at 10, 0.5 * 4 at 8; at tau 0.2, 12.5."""
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert regression_loss(a, b).loss.item() == 0
    assert regression_loss(a, b, target_margin=8.0).loss.item() == pytest.approx(2.0)
    assert regression_loss(a, b, tau=0.2).loss.item() == pytest.approx(12.5)
    assert regression_loss(b, a, target_margin=-10).loss.item() == 0
    assert regression_loss(a, b, tau=1.0).probability.item() == pytest.approx(
        1 / (1 + math.exp(-1))
    )


def test_accuracy_is_against_the_sign_of_the_target() -> None:
    a, b = torch.tensor([[1.0, 0.0]]).expand(4, 2), torch.tensor([[0.0, 1.0]]).expand(4, 2)
    target = torch.tensor([10.0, -1.0, 0.0, 0.1])
    # right, wrong, a tie is half, right
    assert regression_loss(a, b, target_margin=target).accuracy.item() == 0.625
    assert regression_loss(a, b, target_margin=-1).accuracy.item() == 0
    assert regression_loss(a, a).accuracy.item() == 0.5


def test_the_reference_codes_margins() -> None:
    """((s - margin) / tau)^2 / 2 and (s / tau - 5 sigmoid(margin))^2 / 2 are target margins."""
    a, b, margin = numbers(9, 4), numbers(9, 4, seed=1), numbers(9, seed=2)
    s = plain_score(a, b)
    torch.testing.assert_close(
        regression_loss(a, b, target_margin=margin / 0.3, tau=0.3).loss,
        (0.5 * ((s - margin) / 0.3) ** 2).mean(),
    )
    torch.testing.assert_close(
        regression_loss(a, b, target_margin=5 * margin.sigmoid(), tau=0.3).loss,
        (0.5 * (s / 0.3 - 5 * margin.sigmoid()) ** 2).mean(),
    )


def test_rewards_regress_as_embeddings_and_gradients_reach_heads() -> None:
    head = BradleyTerryHead(6, dtype=torch.float64)
    a, b = numbers(9, 6), numbers(9, 6, seed=1)
    output = regression_loss(head.embed(a), head.embed(b), tau=1.0)
    expected = 0.5 * (head.reward(a) - head.reward(b) - 10) ** 2
    torch.testing.assert_close(output.loss, expected.mean())
    hybrid = HybridHead(6, 4, "softmax", dtype=torch.float64)
    prompt = numbers(9, 6, seed=2)
    regression_loss(hybrid.embed(a), hybrid.embed(b), hybrid.scale(prompt)).loss.backward()
    assert all(x.grad is not None and (x.grad != 0).any() for x in hybrid.parameters())


@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
def test_dtypes(dtype: torch.dtype, backend: str) -> None:
    """The score of half-precision embeddings is not rounded before it is divided by tau."""
    wide = torch.promote_types(dtype, torch.float32)
    a, b = numbers(301, 6).to(dtype), numbers(301, 6, seed=1).to(dtype)
    scale = numbers(301, 3, seed=2).exp().to(dtype)
    leaf = a.clone().requires_grad_()
    output = regression_loss(leaf, b, scale)
    z = plain_score(a.double(), b.double(), scale.double()) / 0.1
    assert output.loss.dtype == output.probability.dtype == output.accuracy.dtype == wide
    torch.testing.assert_close(
        output.loss.double(), (0.5 * (z - 10) ** 2).mean(), rtol=2e-6, atol=0
    )
    output.loss.backward()
    assert leaf.grad.dtype == dtype
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(regression_loss(a, b, scale).loss, output.loss)
        # autocast mixes dtypes: a gate from a linear layer is of the lower precision
        mixed = regression_loss(a, b, scale.to(wide)).loss
    assert torch.equal(mixed, output.loss)


def test_compile_fullgraph() -> None:
    torch._dynamo.reset()

    def step(a: Tensor, b: Tensor, target: Tensor) -> Tensor:
        score = (a * b).sum(-1)
        return (
            regression_loss(a, b).loss
            + regression_loss(a, b, target_margin=target).loss
            + score_loss(score, margin=target, target=0.3).loss
        )

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    results = []
    for function in (step, compiled):
        a = testing.make_tensor(5, 4).requires_grad_()
        value = function(a, testing.make_tensor(5, 4, seed=1), testing.make_tensor(5, seed=2))
        value.backward()
        results.append([value.detach(), a.grad])
    torch.testing.assert_close(results[0], results[1])


def test_bad_input_of_the_regression() -> None:
    a = torch.zeros(3, 4)
    with pytest.raises(ValueError, match=r"same shape \(\.\.\., d\); got \(3, 4\) and \(1, 4\)"):
        regression_loss(a, a[:1])
    with pytest.raises(TypeError, match=r"same dtype"):
        regression_loss(a, a.double())
    with pytest.raises(TypeError, match=r"chosen must be a torch.Tensor.*got list"):
        regression_loss([0.0, 1.0], a)
    with pytest.raises(ValueError, match=r"even width"):
        regression_loss(a[:, :3], a[:, :3])
    with pytest.raises(ValueError, match=r"k = 2"):
        regression_loss(a, a, torch.zeros(3, 4))
    for wrong in (torch.zeros(3, 1), torch.zeros(1), torch.zeros(2, 3)):
        with pytest.raises(ValueError, match=r"target_margin must have one number per pair"):
            regression_loss(a, a, target_margin=wrong)
    with pytest.raises(TypeError, match=r"target_margin must be .*got torch.int64"):
        regression_loss(a, a, target_margin=torch.ones(3).long())
    with pytest.raises(TypeError, match=r"target_margin must be .*got None"):
        regression_loss(a, a, target_margin=None)
    with pytest.raises(ValueError, match=r"target_margin must be finite; got inf"):
        regression_loss(a, a, target_margin=math.inf)
    with pytest.raises(RuntimeError, match=r"same device"):
        regression_loss(a, a, target_margin=torch.zeros(3, device="meta"))
    for tau in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"tau must be finite and above zero"):
            regression_loss(a, a, tau=tau)
    with pytest.raises(ValueError, match=r"reduction must be .*got 'avg'"):
        regression_loss(a, a, reduction="avg")


# -- scores ------------------------------------------------------------------------------------


@pytest.mark.parametrize("margin", [None, 0.4, numbers(5, 3, seed=5)], ids=["none", "one", "each"])
@pytest.mark.parametrize("target", [None, 0.5, numbers(5, 3, seed=6).sigmoid()], ids=str)
def test_score_loss_and_its_gradient(target: Any, margin: Any, backend: str) -> None:
    score = numbers(5, 3).requires_grad_()
    output = score_loss(score, margin=margin, target=target, label_smoothing=0.2, tau=0.5)
    got = torch.autograd.grad(output.loss, score)
    z = (score - (0 if margin is None else margin)) / 0.5
    p = torch.as_tensor(1.0 if target is None else target, dtype=z.dtype).expand(z.shape)
    loss = F.binary_cross_entropy_with_logits(z, 0.8 * p + 0.1)
    torch.testing.assert_close(output.loss, loss)
    torch.testing.assert_close(output.probability, z.sigmoid().detach())
    torch.testing.assert_close(got, torch.autograd.grad(loss, score))


def test_score_loss_by_hand_and_of_rewards() -> None:
    output = score_loss(torch.tensor([1.0, -1.0, 0.0]), reduction="none")
    expected = [math.log1p(math.exp(-x)) for x in (1.0, -1.0, 0.0)]
    assert output.loss.tolist() == pytest.approx(expected)
    assert output.accuracy.item() == 0.5
    r, t = numbers(9), numbers(9, seed=1)
    torch.testing.assert_close(score_loss(r - t).loss, bradley_terry_loss(r, t).loss)
    half = score_loss(numbers(9).bfloat16())
    assert half.loss.dtype == torch.float32
    torch.testing.assert_close(half.loss, F.softplus(-numbers(9).bfloat16().float()).mean())


def test_bad_input_of_scores() -> None:
    with pytest.raises(TypeError, match=r"scores must be a tensor of scores; got float"):
        score_loss(1.0)
    with pytest.raises(TypeError, match=r"got torch.int64"):
        score_loss(torch.ones(3).long())
    for name in ("margin", "target"):
        with pytest.raises(
            ValueError, match=rf"{name} must have one number per pair, shape \(3, 1"
        ):
            score_loss(torch.zeros(3, 1), **{name: torch.zeros(3)})


def test_public_names() -> None:
    assert {"Temperature", "regression_loss", "score_loss", "sft_loss"} <= set(losses.__all__)
    assert "reference_free_dpo_loss" in losses.__all__
