"""The loss of several criteria: the formula over labelled entries, and nothing of the others."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import gpm_core
from gpm_core import testing
from gpm_core.heads import MultiCriteriaHead
from gpm_core.losses import Temperature, general_preference_loss, multi_criteria_loss

NAN = math.nan


@pytest.fixture(params=["native", "reference"])
def backend(request: pytest.FixtureRequest) -> Any:
    reason = gpm_core.backends.why_not(request.param, "preference_loss", "cpu", torch.float64)
    if reason is not None:
        pytest.skip(f"backend {request.param} is not available: {reason}")
    with gpm_core.backend(request.param):
        yield request.param


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return testing.make_tensor(*shape, dtype=dtype, seed=seed)


def labels(*shape: int, seed: int = 6) -> Tensor:
    """Probabilities, hard labels and ties; the third entry of five, and its like, has none."""
    target = numbers(*shape, seed=seed).sigmoid()
    flat = target.view(-1)
    flat[0::5], flat[1::5], flat[2::5] = flat[0::5].round(), 0.5, NAN
    return target


def blocks_of(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0::2] * b[..., 1::2] - a[..., 1::2] * b[..., 0::2]


# -- the formula -------------------------------------------------------------------------------


@pytest.mark.parametrize("margin", ["none", "number", "each"])
@pytest.mark.parametrize("weighted", [None, "criterion", "entry"])
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_loss_and_gradients_are_the_formulas(
    shared: bool, learned: bool, weighted: str | None, margin: str, backend: str
) -> None:
    """Entries without a label are left out by index, not masked, and differentiated by autograd."""
    batch, criteria, blocks = (5, 3), 4, 2
    rows = batch if shared else (*batch, criteria)
    tensors = {
        "a": numbers(*rows, 2 * blocks),
        "b": numbers(*rows, 2 * blocks, seed=1),
        "scale": numbers(*batch, criteria, blocks, seed=2).exp(),
        "tau": torch.tensor([0.4, 0.9], dtype=torch.float64),
    }
    if weighted is not None:
        shape = (criteria,) if weighted == "criterion" else (*batch, criteria)
        tensors["weight"] = numbers(*shape, seed=3).exp()
    if margin == "each":
        tensors["margin"] = numbers(*batch, criteria, seed=4)
    leaves = {name: x.clone().requires_grad_() for name, x in tensors.items()}
    target, e = labels(*batch, criteria), 0.2
    m = leaves.get("margin", {"none": None, "number": 0.3}.get(margin))
    if not learned:
        leaves["tau"] = torch.full((2,), 0.7, dtype=torch.float64, requires_grad=True)
    output = multi_criteria_loss(
        leaves["a"],
        leaves["b"],
        leaves["scale"],
        target,
        weight=leaves.get("weight"),
        margin=m,
        label_smoothing=e,
        tau=leaves["tau"] if learned else 0.7,
    )

    a, b = (leaves[x].unsqueeze(-2) if shared else leaves[x] for x in "ab")
    weighted_blocks = blocks_of(a, b) * leaves["scale"]
    offset = 0.0 if m is None else (m[..., None] if isinstance(m, Tensor) else m) / blocks
    z = ((weighted_blocks - offset) / leaves["tau"]).sum(-1)
    here = target.isfinite()
    smoothed = (1 - e) * target[here] + e / 2
    each = F.binary_cross_entropy_with_logits(z[here], smoothed, reduction="none")
    weight = leaves["weight"].expand(target.shape)[here] if weighted else torch.ones_like(each)
    expected = (weight * each).sum() / weight.sum()

    torch.testing.assert_close(output.loss, expected)
    torch.testing.assert_close(output.probability, z.sigmoid().detach())
    names = [name for name in leaves if name != "tau" or learned]
    inputs = [leaves[name] for name in names]
    torch.testing.assert_close(
        torch.autograd.grad(output.loss, inputs), torch.autograd.grad(expected, inputs)
    )
    score = (weighted_blocks / leaves["tau"]).sum(-1)[here]
    right = (score.sign() * (target[here] - 0.5).sign() + 1) / 2
    torch.testing.assert_close(output.accuracy, right.mean().detach())
    for c in range(criteria):
        column = here.nonzero()[:, -1] == c
        torch.testing.assert_close(output.criterion_loss[c], each[column].mean().detach())
        torch.testing.assert_close(output.criterion_accuracy[c], right[column].mean().detach())
        assert output.labels[c] == column.sum()
    for value in output[1:]:
        assert not value.requires_grad


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
def test_one_criterion_is_the_general_preference_loss(
    dtype: torch.dtype, shared: bool, reduction: Any
) -> None:
    a, b = numbers(7, 4, dtype=dtype), numbers(7, 4, seed=1, dtype=dtype)
    gate, target = numbers(7, 2, seed=2, dtype=dtype).exp(), numbers(7, seed=3).sigmoid()
    for margin, scale, tau in (
        (None, gate, 0.1),
        (0.2, gate, Temperature(0.3)),
        (numbers(7, seed=4), None, Temperature(0.3, blocks=2)),
    ):
        options: dict[str, Any] = {"label_smoothing": 0.1, "tau": tau, "reduction": reduction}
        expected = general_preference_loss(a, b, scale, margin=margin, target=target, **options)
        got = multi_criteria_loss(
            a if shared else a[:, None],
            b if shared else b[:, None],
            None if scale is None else scale[:, None],
            target[:, None],
            margin=margin[:, None] if isinstance(margin, Tensor) else margin,
            **options,
        )
        assert torch.equal(got.loss.squeeze(), expected.loss)
        assert torch.equal(got.probability[:, 0], expected.probability)
        assert torch.equal(got.accuracy, expected.accuracy)
        assert got.loss.dtype == expected.loss.dtype


def test_by_hand() -> None:
    """Scores 1, 2, 3 at tau 1: log(1 + e^-1) for the first, log(1 + e^2) against the second."""
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    scale, target = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[1.0, 0.0, NAN]])
    first, second = math.log1p(math.exp(-1)), math.log1p(math.exp(2))
    for weight, expected in (
        (None, (first + second) / 2),
        (torch.tensor([3.0, 1.0, 100.0]), (3 * first + second) / 4),
        (torch.tensor([0.0, 1.0, NAN]), second),
    ):
        output = multi_criteria_loss(a, b, scale, target, weight=weight, tau=1.0)
        assert output.loss.item() == pytest.approx(expected)
        assert output.accuracy.item() == 0.5
        assert output.criterion_accuracy.tolist() == [1.0, 0.0, 0.0]
        assert output.criterion_loss.tolist() == pytest.approx([first, second, 0.0])
        assert output.labels.tolist() == [1, 1, 0]
        each = multi_criteria_loss(a, b, scale, target, weight=weight, tau=1.0, reduction="none")
        w = [1.0, 1.0] if weight is None else weight[:2].tolist()
        assert each.loss[0].tolist() == pytest.approx([w[0] * first, w[1] * second, 0.0])


def test_one_pair_without_a_batch() -> None:
    a, b, target = numbers(4), numbers(4, seed=1), torch.tensor([1.0, NAN], dtype=torch.float64)
    output = multi_criteria_loss(a, b, numbers(2, 2, seed=2), target)
    expected = general_preference_loss(a, b, numbers(2, 2, seed=2)[0])
    torch.testing.assert_close(output.loss, expected.loss)
    assert output.probability.shape == (2,)
    assert output.labels.tolist() == [1, 0]


# -- no label, no trace ------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_entries_without_a_label_have_exactly_no_gradient(reduction: Any, backend: str) -> None:
    a, b = numbers(6, 3, 4).requires_grad_(), numbers(6, 3, 4, seed=1).requires_grad_()
    scale, margin = numbers(6, 3, 2, seed=2).requires_grad_(), numbers(6, 3).requires_grad_()
    weight, target = numbers(6, 3, seed=5).exp().requires_grad_(), labels(6, 3).requires_grad_()
    output = multi_criteria_loss(
        a, b, scale, target, weight=weight, margin=margin, reduction=reduction
    )
    output.loss.sum().backward()
    without = target.isnan()
    assert without.any()
    for leaf in (a, b, scale, margin, weight, target):
        assert leaf.grad.isfinite().all()
        assert (leaf.grad[without] == 0).all()
        assert (leaf.grad[~without] != 0).any()
    if reduction == "none":
        assert torch.equal(output.loss == 0, without)


def test_an_unlabelled_entry_does_not_change_the_rest() -> None:
    """Bitwise: the batch with a criterion that has no labels is the batch without it."""
    a, b, scale = numbers(5, 2, 4), numbers(5, 2, 4, seed=1), numbers(5, 2, 2, seed=2)
    target = labels(5, 2)
    more = [torch.cat((x, 100 * x[:, :1]), dim=1) for x in (a, b, scale)]
    padded = torch.cat((target, torch.full((5, 1), NAN)), dim=1)
    small, large = multi_criteria_loss(a, b, scale, target), multi_criteria_loss(*more, padded)
    assert torch.equal(small.loss, large.loss)
    assert torch.equal(small.accuracy, large.accuracy)
    assert torch.equal(small.labels, large.labels[:2])


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("batch", [(4,), (0,), (2, 0)], ids=str)
def test_a_batch_without_any_label_is_zero_with_a_graph(
    batch: tuple[int, ...], reduction: Any
) -> None:
    head = MultiCriteriaHead(6, 4, ["helpful", "honest"], gate="softmax")
    temperature = Temperature(0.3)
    chosen, rejected, prompt = (numbers(*batch, 6, seed=i).float() for i in range(3))
    output = multi_criteria_loss(
        head.embed(chosen),
        head.embed(rejected),
        head.scale(prompt),
        torch.full((*batch, 2), NAN),
        tau=temperature,
        reduction=reduction,
    )
    assert output.loss.sum().item() == 0
    output.loss.sum().backward()
    for parameter in (*head.parameters(), temperature.raw):
        assert parameter.grad is not None
        assert (parameter.grad == 0).all()
    assert output.accuracy.item() == 0
    for value in (output.criterion_loss, output.criterion_accuracy, output.labels):
        assert value.tolist() == [0, 0]


def test_weights_of_zero_are_no_division_by_zero() -> None:
    a, b = numbers(3, 2).requires_grad_(), numbers(3, 2, seed=1)
    output = multi_criteria_loss(a, b, numbers(2, 1), labels(3, 2), weight=torch.zeros(2))
    output.loss.backward()
    assert output.loss.item() == 0
    assert (a.grad == 0).all()


# -- other ways to call ------------------------------------------------------------------------


def test_gradcheck(backend: str) -> None:
    target = labels(3, 2)

    def function(a: Tensor, b: Tensor, scale: Tensor, margin: Tensor) -> Tensor:
        return multi_criteria_loss(a, b, scale, target, margin=margin, tau=0.8).loss

    inputs = (numbers(3, 4), numbers(3, 4, seed=1), numbers(2, 2, seed=2), numbers(3, 2, seed=3))
    assert torch.autograd.gradcheck(function, [x.requires_grad_() for x in inputs])


def test_compiled_and_under_autocast() -> None:
    head = MultiCriteriaHead(6, 4, ["helpful", "honest"])
    chosen, rejected = numbers(5, 6).float(), numbers(5, 6, seed=1).float()
    target = labels(5, 2).float()

    def step(chosen: Tensor, rejected: Tensor) -> Tensor:
        return multi_criteria_loss(head(chosen), head(rejected), head.scale(), target).loss

    expected = step(chosen, rejected)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(chosen, rejected), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = step(chosen, rejected)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, expected, rtol=0.05, atol=0.05)


# -- bad input ---------------------------------------------------------------------------------

A, B, S, Y = torch.ones(3, 4), torch.ones(3, 4), torch.ones(2, 2), torch.ones(3, 2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: multi_criteria_loss(A, B, S, Y.long()), TypeError, "target must be float64"),
        (lambda: multi_criteria_loss(A, B, S, [1.0]), TypeError, "target must be a torch.Tensor"),
        (lambda: multi_criteria_loss(A, B, S, torch.ones(2, 2)), ValueError, r"\(2, 2\) and ch.*3"),
        (lambda: multi_criteria_loss(A, B, S, torch.ones(4)), ValueError, r"target .*\(4,\) and"),
        (lambda: multi_criteria_loss(A, B, S, torch.ones(())), ValueError, r"target .*shape \(\)"),
        (lambda: multi_criteria_loss(A, B, S, Y[:, :0]), ValueError, r"target must be .*\(3, 0\)"),
        (
            lambda: multi_criteria_loss(A[:, None].expand(3, 3, 4), B, S, Y),
            ValueError,
            r"target \(3, 2\) and chosen \(3, 3, 4\)",
        ),
        (lambda: multi_criteria_loss(A, B[:2], S, Y), ValueError, "same shape"),
        (lambda: multi_criteria_loss(A, None, S, Y), TypeError, "rejected must be a torch.Tensor"),
        (lambda: multi_criteria_loss(A, B, None, Y), ValueError, "one score, and .* 2 criteria"),
        # One gate per prompt, not per criterion: would be broadcast if B were C.
        (lambda: multi_criteria_loss(A, B, torch.ones(3, 2), Y), ValueError, r"scale must be .*\)"),
        (lambda: multi_criteria_loss(A, B, torch.ones(2), Y), ValueError, r"scale must be .*\(2,"),
        (lambda: multi_criteria_loss(A, B, torch.ones(1, 2), Y), ValueError, "scale must be"),
        (lambda: multi_criteria_loss(A, B, torch.ones(2, 3), Y), ValueError, "k = 2, half"),
        (lambda: multi_criteria_loss(A, B, S.double(), Y), TypeError, "same dtype"),
        (lambda: multi_criteria_loss(A, B, S, Y, weight=[1, 1]), TypeError, "weight must be"),
        (
            lambda: multi_criteria_loss(A, B, S, Y, weight=torch.ones(3)),
            ValueError,
            r"weight must be \(C,\) or .*\(3, 2\); got shape \(3,\)",
        ),
        (lambda: multi_criteria_loss(A, B, S, Y, margin=torch.ones(3)), ValueError, "margin must"),
        (lambda: multi_criteria_loss(A, B, S, Y, tau=0.0), ValueError, "tau must be finite"),
        (lambda: multi_criteria_loss(A, B, S, Y, label_smoothing=1.0), ValueError, "label_smooth"),
        (lambda: multi_criteria_loss(A, B, S, Y, reduction="max"), ValueError, "reduction must be"),
        (lambda: multi_criteria_loss(A, B, S, Y.to("meta")), RuntimeError, "same device.*meta"),
        (
            lambda: multi_criteria_loss(A, B, S, Y, weight=torch.ones(2, device="meta")),
            RuntimeError,
            "weight and chosen must be on the same device",
        ),
    ],
)
def test_bad_input(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
