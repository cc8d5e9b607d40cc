"""Learnable temperatures: the same loss and gradients as the plain formula, and they do learn."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import gpm_core
from gpm_core import ops, testing
from gpm_core.heads import HybridHead
from gpm_core.losses import (
    BradleyTerryLoss,
    GeneralPreferenceLoss,
    Temperature,
    bradley_terry_loss,
    general_preference_loss,
    regression_loss,
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


def blocks_of(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0::2] * b[..., 1::2] - a[..., 1::2] * b[..., 0::2]


def different(temperature: Temperature, seed: int = 9) -> Temperature:
    """The same, with a temperature of its own for each block."""
    with torch.no_grad():
        temperature.raw.add_(
            testing.make_tensor(*temperature.raw.shape, seed=seed).to(temperature.raw)
        )
    return temperature


# -- the formula -------------------------------------------------------------------------------

MARGINS: dict[str, Any] = {
    "no margin": None,
    "a number": 0.4,
    "an integer": 1,
    "one tensor": torch.tensor(0.4, dtype=torch.float64),
    "a margin per pair": numbers(5, 3, seed=5),
}


@pytest.mark.parametrize("scaled", [None, "per pair", "shared"])
@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("blocks", [None, 3])
def test_loss_and_gradients_are_the_formulas(
    blocks: int | None, margin: str, scaled: str | None, backend: str
) -> None:
    """z = sum_l (scale_l block_l - margin / k) / tau_l, differentiated by autograd."""
    temperature = different(Temperature(0.5, blocks, dtype=torch.float64))
    tensors = [numbers(5, 3, 6), numbers(5, 3, 6, seed=1)]
    if scaled is not None:
        tensors.append(numbers(*((5, 3, 3) if scaled == "per pair" else (3,)), seed=2).exp())
    if isinstance(MARGINS[margin], Tensor):
        tensors.append(MARGINS[margin])
    target = numbers(5, 3, seed=6).sigmoid()

    def inputs() -> tuple[list[Tensor], Tensor | None, Any]:
        leaves = [x.clone().requires_grad_() for x in tensors]
        scale = None if scaled is None else leaves[2]
        return leaves, scale, leaves[-1] if isinstance(MARGINS[margin], Tensor) else MARGINS[margin]

    leaves, scale, m = inputs()
    output = general_preference_loss(
        *leaves[:2], scale, margin=m, target=target, label_smoothing=0.1, tau=temperature
    )
    got = torch.autograd.grad(output.loss, [*leaves, temperature.raw])

    leaves, scale, m = inputs()
    tau = 0.01 + torch.log1p(torch.exp(temperature.raw))
    weighted = blocks_of(*leaves[:2]) * (1.0 if scale is None else scale)
    shared = 0.0 if m is None else (m if isinstance(m, Tensor) else torch.tensor(m)) / 3
    shared = shared[..., None] if isinstance(shared, Tensor) else shared
    z = ((weighted - shared) / tau).sum(-1)
    per_pair = F.binary_cross_entropy_with_logits(z, 0.9 * target + 0.05, reduction="none")
    expected = torch.autograd.grad(per_pair.mean(), [*leaves, temperature.raw])

    torch.testing.assert_close(output.loss, per_pair.mean())
    torch.testing.assert_close(output.probability, z.sigmoid().detach())
    side = (weighted / tau).sum(-1).sign() * (target - 0.5).sign()
    torch.testing.assert_close(output.accuracy, ((side + 1) / 2).mean().detach())
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("margin", [None, 0.3, numbers(7, seed=4)], ids=["none", "one", "each"])
@pytest.mark.parametrize("blocks", [None, 2])
def test_equal_temperatures_are_the_number(blocks: int | None, margin: Any) -> None:
    """One tau, or the same for all blocks, is tau=0.2, with margins in units of the score."""
    a, b = numbers(7, 4), numbers(7, 4, seed=1)
    gate = numbers(7, 2, seed=2).exp()
    temperature = Temperature(0.2, blocks, dtype=torch.float64)
    for scale in (None, gate):
        got = general_preference_loss(a, b, scale, margin=margin, tau=temperature)
        expected = general_preference_loss(a, b, scale, margin=margin, tau=0.2)
        for x, y in zip(got, expected, strict=True):
            torch.testing.assert_close(x.detach(), y)


def test_by_hand() -> None:
    """Blocks of score 1 and 2 by temperatures 0.5 and 4, margin 1: (1 - .5) / .5 + (2 - .5) / 4."""
    a, b = torch.tensor([[1.0, 0.0, 1.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0, 2.0]])
    tau = torch.tensor([0.5, 4.0])
    output = general_preference_loss(a, b, margin=1.0, tau=tau)
    assert output.loss.item() == pytest.approx(math.log1p(math.exp(-1.375)))
    assert general_preference_loss(a, b, tau=tau).loss.item() == pytest.approx(
        math.log1p(math.exp(-2.5))
    )
    assert regression_loss(a, b, tau=tau, target_margin=0.5).loss.item() == pytest.approx(2.0)


@pytest.mark.parametrize("tau", [Temperature(0.5), torch.tensor(0.5)], ids=["module", "tensor"])
def test_rewards(tau: Any) -> None:
    chosen, rejected = numbers(9).float(), numbers(9, seed=1).float()
    margin = numbers(9, seed=2).float()
    got = bradley_terry_loss(chosen, rejected, margin=margin, tau=tau)
    expected = -F.logsigmoid((chosen - rejected - margin) / 0.5).mean()
    torch.testing.assert_close(got.loss, expected)


@pytest.mark.parametrize("blocks", [None, 2])
def test_gradcheck(blocks: int | None, backend: str) -> None:
    temperature = different(Temperature(0.5, blocks, dtype=torch.float64))

    def function(raw: Tensor, *inputs: Tensor) -> Tensor:
        tau = torch.func.functional_call(temperature, {"raw": raw}, ())
        a, b, scale, margin = inputs
        loss = general_preference_loss(a, b, scale, margin=margin, tau=tau, reduction="none").loss
        return loss + regression_loss(a, b, scale, tau=tau, reduction="none").loss

    inputs = [numbers(2, 4), numbers(2, 4, seed=1), numbers(2, 2, seed=2).exp(), numbers(2, seed=3)]
    leaves = [x.clone().requires_grad_() for x in (temperature.raw.detach(), *inputs)]
    assert torch.autograd.gradcheck(function, leaves)


# -- the module --------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [None, 1, 5])
@pytest.mark.parametrize("initial", [0.011, 0.1, 1.0, 50.0])
def test_starts_at_its_initial_value(initial: float, blocks: int | None) -> None:
    temperature = Temperature(initial, blocks)
    tau = temperature()
    assert tau.shape == (() if blocks is None else (blocks,))
    torch.testing.assert_close(tau.detach(), torch.full_like(tau, initial), rtol=1e-5, atol=0)
    different(temperature).reset_parameters()
    assert torch.equal(temperature(), tau)


def test_is_never_below_its_minimum_and_comes_back_from_it() -> None:
    temperature = Temperature(0.1, 5, minimum=0.02)
    with torch.no_grad():
        temperature.raw.copy_(torch.tensor([-1e30, -1e3, -20.0, 0.0, 1e30]))
    tau = temperature()
    assert (tau >= 0.02).all()
    assert tau.isfinite().all()
    tau.sum().backward()
    # not yet underflown, so the floor can be left again, where the reference code's cannot
    assert temperature.raw.grad[2] > 0
    assert Temperature()().item() == pytest.approx(0.1)
    assert Temperature().minimum == 0.01


@pytest.mark.parametrize("first", ["right", "wrong"])
def test_stays_positive_whatever_the_optimizer_does(first: str) -> None:
    """Pairs on their right side ask for a lower temperature, on the wrong one for a higher."""
    a, b = testing.make_tensor(20, 4), testing.make_tensor(20, 4, seed=1)
    right = ops.score(a, b)[:, None] > 0
    chosen, rejected = torch.where(right, a, b), torch.where(right, b, a)
    loss = GeneralPreferenceLoss(tau=Temperature(0.1))
    optimizer = torch.optim.SGD(loss.parameters(), lr=1e4)
    for step in range(20):
        optimizer.zero_grad()
        right = (step % 2 == 0) == (first == "right")
        output = loss(chosen, rejected) if right else loss(rejected, chosen)
        output.loss.backward()
        optimizer.step()
        assert output.loss.isfinite()
        assert loss.tau() >= 0.01
        assert (loss.tau.raw < -100) == (first == "right")


@pytest.mark.parametrize("blocks", [None, 2])
@pytest.mark.parametrize("kind", ["general", "bradley-terry"])
def test_an_optimizer_over_the_losss_parameters_learns_it(kind: str, blocks: int | None) -> None:
    """Targets made at temperature 0.7: training from 0.1 finds 0.7, of every block."""
    temperature = Temperature(0.1, 1 if kind == "bradley-terry" and blocks else blocks)
    loss: Any = (GeneralPreferenceLoss if kind == "general" else BradleyTerryLoss)(tau=temperature)
    assert [x is temperature.raw for x in loss.parameters()] == [True]
    assert [name for name, _ in loss.named_parameters()] == ["tau.raw"]
    if kind == "general":
        a, b = testing.make_tensor(2000, 4, seed=1), testing.make_tensor(2000, 4, seed=2)
        score = blocks_of(a, b).sum(-1)
    else:
        a, b = testing.make_tensor(2000, seed=1), testing.make_tensor(2000, seed=2)
        score = a - b
    target = torch.sigmoid(score / 0.7)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        loss(a, b, target=target).loss.backward()
        optimizer.step()
    tau = temperature().detach()
    torch.testing.assert_close(tau, torch.full_like(tau, 0.7), rtol=1e-2, atol=0)


def test_a_hybrid_head_has_a_temperature_for_the_reward_and_one_for_each_cyclic_block() -> None:
    head = HybridHead(6, 4, "softmax", clip=0.5, scalar_weight=2.0, dtype=torch.float64)
    loss = GeneralPreferenceLoss(tau=different(Temperature(0.5, 3, dtype=torch.float64)))
    a, b, prompt = (numbers(9, 6, seed=seed) for seed in range(3))
    output = loss(head.embed(a), head.embed(b), head.scale(prompt))
    tau = loss.tau()
    u, v = head.embed(a), head.embed(b)
    gate = torch.softmax(head.prompt_head(prompt), dim=-1)
    blocks = blocks_of(u, v)
    z = 2.0 * blocks[:, 0] / tau[0] + (gate.square() * blocks[:, 1:] / tau[1:]).sum(-1)
    torch.testing.assert_close(output.loss, F.softplus(-z).mean())
    before = [x.detach().clone() for x in (*head.parameters(), *loss.parameters())]
    optimizer = torch.optim.SGD([*head.parameters(), *loss.parameters()], lr=0.1)
    output.loss.backward()
    optimizer.step()
    after = [*head.parameters(), *loss.parameters()]
    assert all((x != y).any() for x, y in zip(before, after, strict=True))
    assert (loss.tau() != tau).all()


def test_state_dict_and_printed_form() -> None:
    loss = GeneralPreferenceLoss(tau=different(Temperature(0.3, 2)), label_smoothing=0.1)
    other = GeneralPreferenceLoss(tau=Temperature(0.1, 2))
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other.tau(), loss.tau())
    text = repr(loss)
    assert "label_smoothing=0.1" in text
    assert text.count("tau") == 1
    assert "(tau): Temperature(initial=0.3, blocks=2, minimum=0.01)" in text
    assert list(GeneralPreferenceLoss(tau=0.1).parameters()) == []


def test_what_the_docstring_says_of_other_operations() -> None:
    v, gate = numbers(4, 6), numbers(3, seed=1).exp()
    one, each = Temperature(0.3), different(Temperature(0.3, 3, dtype=torch.float64))
    i, j = torch.tensor([0, 1]), torch.tensor([2, 3])
    got = ops.probability_matrix(v, gate, tau=one().item())[i, j]
    torch.testing.assert_close(
        got, general_preference_loss(v[i], v[j], gate.expand(2, 3), tau=one).probability
    )
    got = ops.probability_matrix(v, gate / each(), tau=1.0)[i, j].detach()
    torch.testing.assert_close(
        got, general_preference_loss(v[i], v[j], gate.expand(2, 3), tau=each).probability
    )
    got = ops.probability_matrix(v, 1 / each(), tau=1.0)[i, j].detach()
    torch.testing.assert_close(got, general_preference_loss(v[i], v[j], tau=each).probability)


# -- dtypes and compilation --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
@pytest.mark.parametrize("blocks", [None, 3])
def test_dtypes(dtype: torch.dtype, blocks: int | None, backend: str) -> None:
    """A temperature is not rounded to the embeddings' dtype: 1 / 0.3 is 3.328 in bfloat16."""
    wide = torch.promote_types(dtype, torch.float32)
    a, b = numbers(301, 6).to(dtype), numbers(301, 6, seed=1).to(dtype)
    scale = numbers(301, 3, seed=2).exp().to(dtype)
    temperature = different(Temperature(0.3, blocks))
    leaf = a.clone().requires_grad_()
    output = general_preference_loss(leaf, b, scale, margin=0.25, tau=temperature)
    tau = temperature().detach().double()
    z = (blocks_of(a.double(), b.double()) * scale.double() - 0.25 / 3) / tau
    loss = F.softplus(-z.sum(-1)).mean()
    assert output.loss.dtype == output.probability.dtype == output.accuracy.dtype == wide
    torch.testing.assert_close(output.loss.double(), loss, rtol=2e-6, atol=0)
    output.loss.backward()
    assert leaf.grad.dtype == dtype
    assert temperature.raw.grad.dtype == torch.float32
    assert (temperature.raw.grad != 0).all()


def test_a_half_precision_temperature_computes_in_float32() -> None:
    temperature = Temperature(0.3, dtype=torch.bfloat16)
    assert temperature().dtype == torch.float32
    assert temperature().item() == pytest.approx(0.3, rel=2e-2)


def test_under_autocast_nothing_is_rounded() -> None:
    a, b = testing.make_tensor(5, 4), testing.make_tensor(5, 4, seed=1)
    gate = testing.make_tensor(5, 2, seed=2).bfloat16()
    temperature = different(Temperature(0.3, 2))
    expected = general_preference_loss(a, b, gate.float(), margin=0.1, tau=temperature)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = general_preference_loss(a, b, gate, margin=0.1, tau=temperature)
    assert torch.equal(got.loss, expected.loss)


@pytest.mark.parametrize("blocks", [None, 2])
def test_compile_fullgraph(blocks: int | None) -> None:
    torch._dynamo.reset()
    loss = GeneralPreferenceLoss(tau=different(Temperature(0.3, blocks)))

    def step(a: Tensor, b: Tensor, margin: Tensor) -> Tensor:
        regression = regression_loss(a, b, tau=loss.tau).loss
        return loss(a, b, margin=margin).loss + loss(a, b, margin=0.1).loss + regression

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    results = []
    for function in (step, compiled):
        loss.zero_grad()
        a = testing.make_tensor(5, 4).requires_grad_()
        value = function(a, testing.make_tensor(5, 4, seed=1), testing.make_tensor(5, seed=3))
        value.backward()
        results.append([value.detach(), a.grad, loss.tau.raw.grad.clone()])
    torch.testing.assert_close(results[0], results[1])


# -- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"initial": 0.01},
            ValueError,
            "initial must be finite and above minimum = 0.01; got 0.01",
        ),
        ({"initial": -1.0}, ValueError, "initial must be .*got -1.0"),
        ({"initial": math.inf}, ValueError, "initial must be finite"),
        ({"initial": math.nan}, ValueError, "initial must be finite"),
        ({"minimum": 0.0}, ValueError, "minimum must be finite and above zero; got 0.0"),
        ({"minimum": math.nan}, ValueError, "minimum must be finite"),
        ({"blocks": 0}, ValueError, "blocks must be at least 1; got 0"),
        ({"blocks": 2.0}, TypeError, "blocks must be an int or None; got float"),
        ({"blocks": True}, TypeError, "blocks must be an int or None; got bool"),
    ],
)
def test_bad_options(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Temperature(**arguments)


@pytest.mark.parametrize("loss", [general_preference_loss, regression_loss])
def test_temperatures_that_do_not_fit(loss: Any) -> None:
    a = torch.zeros(3, 4)
    for wrong in (torch.ones(3), torch.ones(3, 1), torch.ones(1), torch.ones(1, 2)):
        with pytest.raises(ValueError, match=r"k = 2 blocks of chosen \(3, 4\), shape \(\) or"):
            loss(a, a, tau=wrong)
    with pytest.raises(ValueError, match=r"got shape \(3,\)"):
        loss(a, a, tau=Temperature(blocks=3))
    with pytest.raises(TypeError, match=r"tau must be .*got torch.int64"):
        loss(a, a, tau=torch.tensor(1))
    with pytest.raises(TypeError, match=r"tau must be a float; got str"):
        loss(a, a, tau="0.1")
    with pytest.raises(RuntimeError, match=r"tau and chosen must be on the same device; got meta"):
        loss(a, a, tau=torch.ones((), device="meta"))


@pytest.mark.parametrize("loss", [general_preference_loss, regression_loss])
def test_other_bad_input_is_the_same_error_as_without(loss: Any) -> None:
    """Nothing that widening or dividing would hide: dtypes, shapes and values are checked first."""
    a = torch.zeros(3, 4)
    temperature = Temperature(0.3)
    wrong: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((a, a.bfloat16()), {}),
        ((a.bfloat16(), a.bfloat16(), torch.ones(3, 2)), {}),
        ((a, a, torch.ones(3, 4)), {}),
        ((a, a, torch.ones(5, 3, 2)), {}),
        ((a, a[:1]), {}),
        ((a[:, :3], a[:, :3]), {}),
        ((a.long(), a.long()), {}),
        (([0.0], a), {}),
    ]
    if loss is general_preference_loss:
        for margin in (math.nan, torch.zeros(3, 1), torch.ones(3).long(), "1", True):
            wrong.append(((a, a), {"margin": margin}))
    for arguments, options in wrong:
        with pytest.raises((TypeError, ValueError)) as expected:
            loss(*arguments, **options)
        with pytest.raises(expected.type) as got:
            loss(*arguments, **options, tau=temperature)
        assert str(got.value) == str(expected.value)
