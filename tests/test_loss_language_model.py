"""Language-model losses: supervised fine-tuning and reference-free DPO."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gpm_core import testing
from gpm_core.losses import LanguageModelLossOutput, reference_free_dpo_loss, sft_loss


def logps(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return -20 * testing.make_tensor(*shape, dtype=torch.float64, seed=seed).abs().to(dtype)


LENGTHS = torch.tensor([[3, 1, 20], [7, 2, 5]])
OTHER_LENGTHS = torch.tensor([[4, 9, 1], [1, 30, 2]])


# -- supervised fine-tuning --------------------------------------------------------------------


@pytest.mark.parametrize("beta", [None, 0.1, 2.0])
@pytest.mark.parametrize("lengths", [None, LENGTHS, LENGTHS.double()], ids=["sum", "int", "float"])
def test_sft_and_its_gradient(lengths: Tensor | None, beta: float | None) -> None:
    values = logps(2, 3).requires_grad_()
    likelihood = values if lengths is None else values / LENGTHS
    expected = -likelihood if beta is None else -torch.log(torch.sigmoid(beta * likelihood))
    for reduction, wanted in (
        ("none", expected),
        ("sum", expected.sum()),
        ("mean", expected.mean()),
    ):
        output = sft_loss(values, lengths, beta=beta, reduction=reduction)
        assert isinstance(output, LanguageModelLossOutput)
        torch.testing.assert_close(output.loss, wanted)
        torch.testing.assert_close(output.logps, likelihood.detach())
        assert not output.logps.requires_grad
    got = torch.autograd.grad(output.loss, values)
    torch.testing.assert_close(got, torch.autograd.grad(expected.mean(), values))


@pytest.mark.parametrize("form", ["vanilla", "mean", "sum"])
def test_sft_from_logits_is_the_reference_codes(form: str) -> None:
    """From logits, labels and a mask of response tokens, as SFTVanilla-, -Mean- and -SumLoss."""
    logits = testing.make_tensor(4, 6, 11, dtype=torch.float64).requires_grad_()
    labels = torch.arange(24).reshape(4, 6) % 11
    mask = torch.arange(6) < torch.tensor([[1], [3], [6], [4]])
    token_logps = logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0]
    summed, lengths = (token_logps * mask).sum(-1), mask.sum(-1)
    rows = []
    for row in range(4):
        n = int(lengths[row])
        nll = F.cross_entropy(logits[row, :n], labels[row, :n], reduction="none")
        rows.append(
            {
                "vanilla": nll.mean(),
                "mean": -F.logsigmoid(2.0 * -nll.mean()),
                "sum": -F.logsigmoid(0.1 * -nll.sum()),
            }[form]
        )
    expected = torch.stack(rows).mean()
    output = {
        "vanilla": lambda: sft_loss(summed, lengths),
        "mean": lambda: sft_loss(summed, lengths, beta=2.0),
        "sum": lambda: sft_loss(summed, None, beta=0.1),
    }[form]()
    torch.testing.assert_close(output.loss, expected)
    got = torch.autograd.grad(output.loss, logits, retain_graph=True)
    torch.testing.assert_close(got, torch.autograd.grad(expected, logits))


def test_sft_by_hand() -> None:
    """Two tokens and one: each response weighs the same, 0.5 * (2 / 2 + 6 / 1), not 8 / 3."""
    values, lengths = torch.tensor([-2.0, -6.0]), torch.tensor([2, 1])
    assert sft_loss(values, lengths).loss.item() == 3.5
    assert sft_loss(values, None).loss.item() == 4.0
    assert sft_loss(torch.tensor(0.0), None, beta=1.0).loss.item() == pytest.approx(math.log(2))


def test_an_empty_response_has_no_loss_and_no_nan() -> None:
    values = torch.tensor([0.0, -6.0], requires_grad=True)
    output = sft_loss(values, torch.tensor([0, 2]))
    assert output.loss.item() == 1.5
    output.loss.backward()
    assert values.grad.isfinite().all()


# -- reference-free DPO ------------------------------------------------------------------------


@pytest.mark.parametrize("margin", [0.0, 1.0, -0.5])
@pytest.mark.parametrize("with_lengths", [False, True])
@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_dpo_and_its_gradients(beta: float, with_lengths: bool, margin: float) -> None:
    leaves = [logps(2, 3).requires_grad_(), logps(2, 3, seed=1).requires_grad_()]
    lengths = (LENGTHS, OTHER_LENGTHS) if with_lengths else ()
    output = reference_free_dpo_loss(*leaves, *lengths, beta=beta, margin=margin)
    got = torch.autograd.grad(output.loss, leaves)
    chosen, rejected = leaves
    if with_lengths:
        chosen, rejected = chosen / LENGTHS, rejected / OTHER_LENGTHS
    z = beta * (chosen - rejected) - margin
    per_pair = -F.logsigmoid(z)
    torch.testing.assert_close(output.loss, per_pair.mean())
    torch.testing.assert_close(output.probability, z.sigmoid().detach())
    assert output.accuracy.item() == pytest.approx((chosen > rejected).double().mean().item())
    torch.testing.assert_close(got, torch.autograd.grad(per_pair.mean(), leaves))
    for reduction, wanted in (("none", per_pair), ("sum", per_pair.sum())):
        output = reference_free_dpo_loss(
            *leaves, *lengths, beta=beta, margin=margin, reduction=reduction
        )
        torch.testing.assert_close(output.loss, wanted)


def test_dpo_by_hand() -> None:
    """Sums -10 and -20: 0.1 * 10 = 1. Means over 10 and 5 tokens, -1 and -4: 2 * 3 - 1 = 5."""
    chosen, rejected = torch.tensor([-10.0]), torch.tensor([-20.0])
    softplus = [math.log1p(math.exp(-x)) for x in (1.0, 5.0)]
    assert reference_free_dpo_loss(chosen, rejected).loss.item() == pytest.approx(softplus[0])
    tokens = torch.tensor([10]), torch.tensor([5])
    output = reference_free_dpo_loss(chosen, rejected, *tokens, beta=2.0, margin=1.0)
    assert output.loss.item() == pytest.approx(softplus[1])
    assert output.accuracy.item() == 1


# -- dtypes, compilation, bad input ------------------------------------------------------------


@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    """What half precision does not round: the quotients and differences, in float32 at least."""
    wide = torch.promote_types(dtype, torch.float32)
    a, b = logps(2, 3, dtype=dtype), logps(2, 3, seed=1, dtype=dtype)
    leaf = a.clone().requires_grad_()
    sft = sft_loss(leaf, LENGTHS)
    dpo = reference_free_dpo_loss(leaf, b, LENGTHS, OTHER_LENGTHS)
    assert sft.loss.dtype == sft.logps.dtype == dpo.loss.dtype == dpo.probability.dtype == wide
    torch.testing.assert_close(sft.loss.double(), -(a.double() / LENGTHS).mean(), rtol=1e-6, atol=0)
    z = 0.1 * (a.double() / LENGTHS - b.double() / OTHER_LENGTHS)
    torch.testing.assert_close(dpo.loss.double(), F.softplus(-z).mean(), rtol=2e-6, atol=0)
    (sft.loss + dpo.loss).backward()
    assert leaf.grad.dtype == dtype
    assert (leaf.grad != 0).all()


def test_compile_fullgraph() -> None:
    torch._dynamo.reset()

    def step(a: Tensor, b: Tensor) -> Tensor:
        return (
            sft_loss(a, LENGTHS).loss
            + sft_loss(a, None, beta=0.1).loss
            + reference_free_dpo_loss(a, b).loss
            + reference_free_dpo_loss(a, b, LENGTHS, OTHER_LENGTHS, beta=2.0, margin=1.0).loss
        )

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    results = []
    for function in (step, compiled):
        a = logps(2, 3).float().requires_grad_()
        value = function(a, logps(2, 3, seed=1).float())
        value.backward()
        results.append([value.detach(), a.grad])
    torch.testing.assert_close(results[0], results[1])


def test_bad_input_of_sft() -> None:
    values = torch.zeros(3)
    with pytest.raises(TypeError, match=r"logps must be .*got float"):
        sft_loss(0.0, None)
    with pytest.raises(TypeError, match=r"logps must be .*got torch.int64"):
        sft_loss(values.long(), None)
    with pytest.raises(TypeError, match=r"lengths must be a tensor .*got torch.bool"):
        sft_loss(values, values > 0)
    with pytest.raises(TypeError, match=r"lengths must be a tensor .*got list"):
        sft_loss(values, [1, 2, 3])
    for wrong in (torch.ones(3, 1), torch.ones(1), torch.ones(2, 3)):
        with pytest.raises(ValueError, match=r"lengths must have the shape \(\.\.\.\) of logps"):
            sft_loss(values, wrong)
    with pytest.raises(RuntimeError, match=r"lengths and logps must be on the same device"):
        sft_loss(values, torch.ones(3, device="meta"))
    with pytest.raises(ValueError, match=r"reduction must be .*got 'avg'"):
        sft_loss(values, None, reduction="avg")


@pytest.mark.parametrize(
    "loss",
    [
        lambda **k: sft_loss(torch.zeros(3), None, **k),
        lambda **k: reference_free_dpo_loss(torch.zeros(3), torch.zeros(3), **k),
    ],
    ids=["sft", "dpo"],
)
def test_bad_beta(loss: Any) -> None:
    for beta in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"beta must be finite and above zero; got"):
            loss(beta=beta)
    for beta in ("1", True, torch.tensor(1.0)):
        with pytest.raises(TypeError, match=r"beta must be a number; got"):
            loss(beta=beta)


def test_bad_input_of_dpo() -> None:
    values, tokens = torch.zeros(3), torch.ones(3)
    with pytest.raises(TypeError, match=r"rejected_logps must be .*got NoneType"):
        reference_free_dpo_loss(values, None)
    with pytest.raises(TypeError, match=r"same dtype; got torch.float32 and torch.float64"):
        reference_free_dpo_loss(values, values.double())
    with pytest.raises(ValueError, match=r"rejected_logps must have .*got \(3, 1\) and \(3,\)"):
        reference_free_dpo_loss(values, values[:, None])
    with pytest.raises(ValueError, match=r"must both be given"):
        reference_free_dpo_loss(values, values, tokens)
    with pytest.raises(ValueError, match=r"must both be given"):
        reference_free_dpo_loss(values, values, rejected_lengths=tokens)
    with pytest.raises(ValueError, match=r"chosen_lengths must have .*got \(1,\) and \(3,\)"):
        reference_free_dpo_loss(values, values, tokens[:1], tokens)
    with pytest.raises(RuntimeError, match=r"rejected_logps and chosen_logps must be on the same"):
        reference_free_dpo_loss(values, values.to("meta"))
    with pytest.raises(ValueError, match=r"margin must be finite; got nan"):
        reference_free_dpo_loss(values, values, margin=math.nan)
    with pytest.raises(TypeError, match=r"margin must be a number; got Tensor"):
        reference_free_dpo_loss(values, values, margin=values)
    with pytest.raises(ValueError, match=r"reduction must be .*got 'avg'"):
        reference_free_dpo_loss(values, values, reduction="avg")
