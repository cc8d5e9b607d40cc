"""GPO and SPPO against their formulas, and the optimum that their docstrings promise."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from gpm_core import ops, testing
from gpm_core.objectives import ObjectiveOutput, gpo_loss, sppo_loss

K = 5


def group(*batch: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return testing.make_tensor(*batch, K, dtype=torch.float64, seed=seed, scale=scale)


def gpo(logps: Tensor, reference: Tensor, values: Tensor, **options: Any) -> Any:
    return gpo_loss(logps, reference, values, beta=0.2, **options)


def sppo(logps: Tensor, reference: Tensor, values: Tensor, **options: Any) -> Any:
    return sppo_loss(logps, reference, values, eta=3.0, **options)


#: objective, and the number that the log-ratio of each response is regressed on
OBJECTIVES = {"gpo": (gpo, lambda s: s / 0.2), "sppo": (sppo, lambda p: 3.0 * (p - 0.5))}
each_objective = pytest.mark.parametrize("name", OBJECTIVES)


def tensors_of(output: ObjectiveOutput) -> list[Tensor]:
    assert output.targets is not None
    return [*output[:3], output.targets, *output.metrics.values()]


def plain(name: str, logps: Tensor, reference: Tensor, values: Tensor, centered: bool) -> Tensor:
    left, right = logps - reference, OBJECTIVES[name][1](values)
    if centered:
        left = left - left.mean(dim=-1, keepdim=True)
        right = right - right.mean(dim=-1, keepdim=True)
    return (left - right) ** 2


@each_objective
@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("batch", [(), (4,), (2, 3)], ids=str)
def test_formula_and_gradients(name: str, batch: tuple[int, ...], centered: bool) -> None:
    logps, reference, values = (group(*batch, seed=i) for i in range(3))
    expected = plain(name, logps, reference, values, centered)
    for reduction, value in (
        ("none", expected),
        ("sum", expected.sum()),
        ("mean", expected.mean()),
    ):
        one, other = (logps.clone().requires_grad_() for _ in range(2))
        output = OBJECTIVES[name][0](one, reference, values, centered=centered, reduction=reduction)
        torch.testing.assert_close(output.loss, value)
        output.loss.sum().backward()
        loss = plain(name, other, reference, values, centered)
        (loss.mean() if reduction == "mean" else loss.sum()).backward()
        torch.testing.assert_close(one.grad, other.grad)
    torch.testing.assert_close(output.losses, expected)
    torch.testing.assert_close(output.log_ratios, logps - reference)
    torch.testing.assert_close(output.targets, OBJECTIVES[name][1](values))
    assert not any(x.requires_grad for x in tensors_of(output)[1:])


def test_by_hand() -> None:
    logps, reference = torch.tensor([-3.0, -5.0]), torch.tensor([-4.0, -4.0])
    # ratios 1 and -1; targets 0.5 / 0.25 = 2 and -2
    output = gpo_loss(logps, reference, torch.tensor([0.5, -0.5]), beta=0.25, reduction="none")
    assert output.loss.tolist() == [1.0, 1.0]
    assert output.log_ratios.tolist() == [1.0, -1.0]
    assert output.targets.tolist() == [2.0, -2.0]
    # targets 8 * 0.25 = 2 and 0
    output = sppo_loss(logps, reference, torch.tensor([0.75, 0.5]), eta=8.0, reduction="none")
    assert output.loss.tolist() == [1.0, 1.0]
    # centred: ratios 1 and -1, targets 1 and -1
    output = sppo_loss(logps, reference, torch.tensor([0.75, 0.5]), eta=8.0, centered=True)
    assert output.loss.item() == 0


def test_default_strengths_are_the_papers() -> None:
    zeros = torch.zeros(2)
    assert gpo_loss(zeros, zeros, torch.tensor([1e-3, -2e-3])).targets.tolist() == (
        pytest.approx([1.0, -2.0])
    )
    assert sppo_loss(zeros, zeros, torch.tensor([0.501, 0.498])).targets.tolist() == (
        pytest.approx([1.0, -2.0], rel=1e-3)
    )


@each_objective
def test_gradcheck(name: str) -> None:
    reference, values = group(2, seed=1), group(2, seed=2)
    for centered in (False, True):

        def function(logps: Tensor, centered: bool = centered) -> Tensor:
            return OBJECTIVES[name][0](logps, reference, values, centered=centered).loss

        assert torch.autograd.gradcheck(function, group(2).requires_grad_())


@each_objective
def test_no_gradient_into_reference_and_values(name: str) -> None:
    tensors = [group(3, seed=i).requires_grad_() for i in range(3)]
    OBJECTIVES[name][0](*tensors).loss.backward()
    assert tensors[0].grad.abs().sum() > 0
    assert tensors[1].grad is None
    assert tensors[2].grad is None


def test_clamping_by_hand() -> None:
    logps, reference = torch.tensor([5.0, -1.0], requires_grad=True), torch.zeros(2)
    # ratios 5 and -1, held to 2 and -1; targets 8 and -0.5, held to 3 and -0.5
    output = gpo_loss(
        logps,
        reference,
        torch.tensor([0.8, -0.05]),
        beta=0.1,
        max_target=3.0,
        max_log_ratio=2.0,
        reduction="none",
    )
    torch.testing.assert_close(output.losses, torch.tensor([1.0, 0.25]))
    assert output.log_ratios.tolist() == [5.0, -1.0], "reported as they are"
    assert output.targets.tolist() == pytest.approx([3.0, -0.5])
    output.loss.sum().backward()
    assert logps.grad.tolist() == pytest.approx([0.0, -1.0])
    # clamped first, then centred: targets 1 and -1 of 10 and -1
    centred = gpo_loss(
        logps, reference, torch.tensor([10.0, -1.0]), beta=1.0, max_target=1.0, centered=True
    )
    # ratios 3 and -3, targets 1 and -1
    assert centred.losses.tolist() == pytest.approx([4.0, 4.0])


@each_objective
def test_metrics_by_hand(name: str) -> None:
    """Chosen is the highest target of each group; an accuracy of TRL's kind counts no ties."""
    logps = torch.tensor([[-1.0, -2.0, -3.0], [-4.0, -5.0, -6.0]], dtype=torch.float64)
    reference = torch.tensor([[-2.0, -2.0, -2.0], [-5.0, -7.0, -5.0]], dtype=torch.float64)
    values = torch.tensor([[0.9, 0.5, 0.1], [0.2, 0.1, 0.7]], dtype=torch.float64)
    metrics = OBJECTIVES[name][0](logps, reference, values).metrics
    beta = {"gpo": 0.2, "sppo": 1 / 3}[name]
    # chosen have the log-ratios 1 and -1, rejected -1 and 2
    expected = {
        "rewards/chosen": 0.0,
        "rewards/rejected": beta * 0.5,
        "rewards/accuracies": 0.5,
        "rewards/margins": -beta * 0.5,
        "logps/chosen": -3.5,
        "logps/rejected": -4.0,
        "objective/kl": 2 / 6,
    }
    assert {key: value.item() for key, value in metrics.items()} == pytest.approx(expected)
    same = OBJECTIVES[name][0](logps, logps, values).metrics
    assert same["rewards/accuracies"] == 0


# -- invariances -------------------------------------------------------------------------------


@each_objective
def test_centred_form_does_not_see_a_constant_per_group(name: str) -> None:
    objective = OBJECTIVES[name][0]
    logps, reference, values = (group(4, seed=i) for i in range(3))
    shift = testing.make_tensor(4, 1, dtype=torch.float64, seed=9, scale=30)
    expected = objective(logps, reference, values, centered=True, reduction="none").loss
    for moved in (
        (logps + shift, reference, values),
        (logps, reference + shift, values),
        (logps, reference, values + shift),
    ):
        loss = objective(*moved, centered=True, reduction="none").loss
        torch.testing.assert_close(loss, expected)
        assert not torch.allclose(objective(*moved, reduction="none").loss, expected)
    leaf = logps.clone().requires_grad_()
    objective(leaf, reference, values, centered=True).loss.backward()
    zero = torch.zeros(4, dtype=torch.float64)
    torch.testing.assert_close(leaf.grad.sum(dim=-1), zero, atol=1e-12, rtol=0)


@each_objective
@pytest.mark.parametrize("centered", [False, True])
def test_order_of_the_responses_does_not_matter(name: str, centered: bool) -> None:
    objective, order = OBJECTIVES[name][0], torch.tensor([3, 0, 4, 2, 1])
    tensors = [group(4, seed=i) for i in range(3)]
    one = objective(*tensors, centered=centered, reduction="none").loss
    other = objective(*(t[:, order] for t in tensors), centered=centered, reduction="none").loss
    torch.testing.assert_close(other, one[:, order])


@each_objective
@pytest.mark.parametrize("centered", [False, True])
def test_groups_do_not_mix(name: str, centered: bool) -> None:
    objective, tensors = OBJECTIVES[name][0], [group(4, seed=i) for i in range(3)]
    together = objective(*tensors, centered=centered, reduction="none").loss
    for i in range(4):
        alone = objective(*(t[i] for t in tensors), centered=centered, reduction="none").loss
        torch.testing.assert_close(together[i], alone)


def test_centring_changes_nothing_where_both_sides_are_centred() -> None:
    """The mean scores of a group against itself sum to zero, as the docstring says."""
    v = testing.make_tensor(3, K, 4, dtype=torch.float64)
    scores = ops.score_matrix(v).mean(dim=-1)
    zero = torch.zeros(3, dtype=torch.float64)
    torch.testing.assert_close(scores.sum(dim=-1), zero, atol=1e-12, rtol=0)
    reference = group(3, seed=1)
    ratios = group(3, seed=2)
    ratios = ratios - ratios.mean(dim=-1, keepdim=True)
    losses = [gpo(reference + ratios, reference, scores, centered=c).loss for c in (False, True)]
    torch.testing.assert_close(*losses)


# -- the optimum -------------------------------------------------------------------------------


def descend(name: str, reference_logits: Tensor, values: Tensor, *, centered: bool) -> Tensor:
    """The policy over K responses that gradient descent on the objective ends at."""
    logits = torch.zeros(K, dtype=torch.float64, requires_grad=True)
    reference = reference_logits.log_softmax(-1)
    for _ in range(800):
        loss = OBJECTIVES[name][0](
            logits.log_softmax(-1), reference, values, centered=centered, reduction="sum"
        ).loss
        (gradient,) = torch.autograd.grad(loss, logits)
        with torch.no_grad():
            logits -= 0.2 * gradient
    return logits.detach().softmax(-1)


def test_gpo_converges_to_its_optimum() -> None:
    """pi proportional to pi_t exp(s / beta), which maximizes E[s] - beta KL(pi || pi_t)."""
    beta, start = 0.2, group(seed=3)
    scores = ops.score_matrix(
        testing.make_tensor(K, 4, dtype=torch.float64, seed=4, scale=0.4)
    ).mean(dim=-1)
    optimum = (start.log_softmax(-1) + scores / beta).softmax(-1)
    assert (optimum - start.softmax(-1)).abs().max() > 0.1
    policy = descend("gpo", start, scores, centered=True)
    torch.testing.assert_close(policy, optimum, rtol=1e-6, atol=1e-8)

    def value(p: Tensor) -> Tensor:
        return (p * scores).sum() - beta * (p * (p.log() - start.log_softmax(-1))).sum()

    for seed in range(20):
        nudge = group(seed=30 + seed, scale=0.05)
        assert value((policy.log() + nudge).softmax(-1)) < value(policy)


def test_sppo_converges_to_the_multiplicative_weights_update() -> None:
    """pi proportional to pi_t exp(eta P)."""
    start, p = group(seed=3), group(seed=5).sigmoid()
    policy = descend("sppo", start, p, centered=True)
    optimum = (start.log_softmax(-1) + 3.0 * p).softmax(-1)
    torch.testing.assert_close(policy, optimum, rtol=1e-6, atol=1e-8)


def test_without_centring_the_dropped_normalizer_shows() -> None:
    """Why the centred form is offered: the plain one ends elsewhere when log Z is not zero."""
    start, p = group(seed=3), group(seed=5).sigmoid()
    optimum = (start.log_softmax(-1) + 3.0 * p).softmax(-1)
    policy = descend("sppo", start, p, centered=False)
    assert (policy - optimum).abs().max() > 1e-3


# -- numbers -----------------------------------------------------------------------------------


@each_objective
@pytest.mark.parametrize("centered", [False, True])
def test_extreme_log_ratios_are_finite(name: str, centered: bool) -> None:
    """A long response may become e^10000 times less likely; a KL weight may be tiny."""
    logps = torch.tensor([-1e4, -3.0, 0.0, -2e5, -1e-30], requires_grad=True)
    reference = torch.tensor([-3.0, -1e4, -2e5, 0.0, -1e-30])
    values = torch.tensor([1.0, -1.0, 0.0, 1.0, -1.0])
    strength = {"gpo": {"beta": 1e-6}, "sppo": {"eta": 1e6}}[name]
    objective = {"gpo": gpo_loss, "sppo": sppo_loss}[name]
    output = objective(logps, reference, values, centered=centered, **strength)
    output.loss.backward()
    assert output.loss.isfinite()
    assert output.log_ratios.tolist()[:2] == [3.0 - 1e4, 1e4 - 3.0]
    assert logps.grad.isfinite().all()


@each_objective
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_inputs_are_widened_first(name: str, dtype: torch.dtype) -> None:
    """With the papers' strengths the targets need more digits, and more range, than the inputs."""
    objective = {"gpo": gpo_loss, "sppo": sppo_loss}[name]
    logps, reference = (group(4, seed=i, scale=20).to(dtype) for i in range(2))
    values = (group(4, seed=2, scale=300) if name == "gpo" else group(4, seed=2).sigmoid()).to(
        dtype
    )
    leaf = logps.clone().requires_grad_()
    output = objective(leaf, reference, values)
    exact = objective(logps.double(), reference.double(), values.double())
    for got, expected in zip(tensors_of(output), tensors_of(exact), strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.detach().double(), expected, rtol=1e-5, atol=1e-5)
    output.loss.backward()
    assert leaf.grad.dtype == dtype


def test_result_dtypes() -> None:
    for dtype in (torch.float32, torch.float64):
        tensors = [group(2, seed=i).to(dtype) for i in range(3)]
        assert {x.dtype for x in tensors_of(gpo(*tensors))} == {dtype}
    # the policy decides where the inputs differ
    mixed = gpo(group().float(), group(seed=1), group(seed=2).bfloat16())
    assert {x.dtype for x in tensors_of(mixed)} == {torch.float32}


@each_objective
def test_compile_fullgraph(name: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(OBJECTIVES[name][0], fullgraph=True, backend="aot_eager")
    tensors = [group(3, seed=i) for i in range(3)]
    eager = OBJECTIVES[name][0](*tensors)
    for got, expected in zip(tensors_of(compiled(*tensors)), tensors_of(eager), strict=True):
        torch.testing.assert_close(got, expected)


# -- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "third"), [(gpo_loss, "scores"), (sppo_loss, "probabilities")]
)
def test_bad_tensors(objective: Any, third: str) -> None:
    good = torch.zeros(2, 3)
    with pytest.raises(TypeError, match=r"logps must be a floating-point tensor .*got torch.int64"):
        objective(good.long(), good, good)
    with pytest.raises(TypeError, match=r"reference_logps must be .*got list"):
        objective(good, [[0.0]], good)
    with pytest.raises(TypeError, match=f"{third} must be .*got float"):
        objective(good, good, 0.5)
    with pytest.raises(ValueError, match=r"reference_logps must have the shape .*got \(2, 1\)"):
        objective(good, torch.zeros(2, 1), good)
    with pytest.raises(ValueError, match=rf"{third} must have the shape .*got \(3,\) and \(2, 3\)"):
        objective(good, good, torch.zeros(3))
    with pytest.raises(ValueError, match=r"logps must have the shape \(\.\.\., K\)"):
        objective(*(torch.tensor(0.0) for _ in range(3)))
    with pytest.raises(ValueError, match=r"logps must hold at least one response; got .*\(2, 0\)"):
        objective(*(torch.zeros(2, 0) for _ in range(3)))
    with pytest.raises(RuntimeError, match=f"{third} and logps must be on the same device"):
        objective(good, good, good.to("meta"))
    with pytest.raises(ValueError, match="reduction must be 'mean', 'sum' or 'none'; got 'avg'"):
        objective(good, good, good, reduction="avg")


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_bad_strengths(value: float) -> None:
    good = torch.zeros(3)
    with pytest.raises(ValueError, match="beta must be finite and above zero"):
        gpo_loss(good, good, good, beta=value)
    with pytest.raises(ValueError, match="eta must be finite and above zero"):
        sppo_loss(good, good, good, eta=value)
    for limit in ("max_target", "max_log_ratio"):
        with pytest.raises(ValueError, match=f"{limit} must be finite and above zero"):
            gpo_loss(good, good, good, **{limit: value})
    with pytest.raises(TypeError, match="beta must be a number; got str"):
        gpo_loss(good, good, good, beta="0.1")
