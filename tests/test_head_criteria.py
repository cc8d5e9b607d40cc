"""Heads of several criteria: their formula, their start, their combinations, what they learn."""

from __future__ import annotations

import math
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from gpm_core import losses, ops, testing
from gpm_core.heads import CombinedHead, MultiCriteriaHead, PreferenceHead

HIDDEN = 6
NAMES = ["helpful", "honest", "short"]
Mode = Literal["gates", "heads"]

every_kind = pytest.mark.parametrize(
    ("mode", "gate"),
    [(mode, gate) for mode in ("gates", "heads") for gate in (None, "softmax", "softplus")],
)


def states(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return testing.make_tensor(*shape, HIDDEN, dtype=dtype, seed=seed)


def random_head(mode: Any, gate: Any, **options: Any) -> MultiCriteriaHead:
    head = MultiCriteriaHead(
        HIDDEN, 4, NAMES, mode, gate, **{"dtype": torch.float64, "tau": 0.3, **options}
    )
    with torch.no_grad():
        for i, parameter in enumerate(head.parameters()):
            noise = testing.make_tensor(*parameter.shape, seed=20 + i, scale=0.7)
            parameter.add_(noise.to(parameter))
    return head


def weights_of(head: MultiCriteriaHead, c: int, prompt: Tensor) -> Tensor:
    """lambda_c (..., k), as its docstring says."""
    if head.gate is None:
        if head.mode == "heads":
            return torch.ones(2, dtype=torch.float64)
        return nn.functional.softplus(head.prompt_head.weight[2 * c : 2 * c + 2, 0])
    logits = prompt @ head.prompt_head.weight[2 * c : 2 * c + 2].T
    if head.prompt_head.bias is not None:
        logits = logits + head.prompt_head.bias[2 * c : 2 * c + 2]
    return logits.softmax(-1) if head.gate == "softmax" else nn.functional.softplus(logits)


def embedding_of(head: MultiCriteriaHead, c: int, hidden: Tensor) -> Tensor:
    rows = slice(0, 4) if head.mode == "gates" else slice(4 * c, 4 * c + 4)
    u = hidden @ head.value_head.weight[rows].T
    if head.value_head.bias is not None:
        u = u + head.value_head.bias[rows]
    return u / u.norm(dim=-1, keepdim=True) if head.normalize else u


# -- the formula -------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("init", ["anchored", "paper"])
@every_kind
def test_scores_are_the_formula(mode: Mode, gate: Any, init: Any, normalize: bool) -> None:
    head = random_head(mode, gate, init=init, normalize=normalize)
    group, prompt = states(2, 5), states(2, seed=1)
    matrix, p = head.score_matrix(group, prompt), head.probability_matrix(group, prompt)
    assert matrix.shape == p.shape == (2, 3, 5, 5)
    scores = head.score(group[:, 0], group[:, 1], prompt)
    assert scores.shape == (2, 3)
    for c in range(3):
        v, weight = embedding_of(head, c, group), weights_of(head, c, prompt)
        weight = weight.expand(2, 2)
        expected = sum(
            weight[:, None, None, i]
            * (
                v[..., :, None, 2 * i] * v[..., None, :, 2 * i + 1]
                - v[..., :, None, 2 * i + 1] * v[..., None, :, 2 * i]
            )
            for i in range(2)
        )
        torch.testing.assert_close(matrix[:, c], expected)
        torch.testing.assert_close(p[:, c], torch.sigmoid(expected / 0.3))
        torch.testing.assert_close(scores[:, c], expected[:, 0, 1])
    torch.testing.assert_close(
        head.probability_matrix(group, prompt, tau=2.0), torch.sigmoid(matrix / 2)
    )


@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
@pytest.mark.parametrize("batch", [(), (3,), (2, 3), (0,)], ids=str)
@every_kind
def test_shapes_dtypes_and_exactness(
    mode: Mode, gate: Any, batch: tuple[int, ...], dtype: torch.dtype
) -> None:
    head = random_head(mode, gate, dtype=dtype)
    group, prompt = states(*batch, 5, dtype=dtype), states(*batch, seed=1, dtype=dtype)
    width = (4,) if mode == "gates" else (3, 4)
    assert head.embed(group).shape == (*batch, 5, *width)
    scale = head.scale(prompt)
    if gate is None:
        assert scale is None if mode == "heads" else scale.shape == (3, 2)
    else:
        assert scale.shape == (*batch, 3, 2)
    overall = head.combine([1.0, -2.0, 0.5])
    for head_, leading in ((head, (*batch, 3)), (overall, batch)):
        s = head_.score(group[..., 0, :], group[..., 1, :], prompt)
        matrix, p = head_.score_matrix(group, prompt), head_.probability_matrix(group, prompt)
        assert (s.shape, s.dtype) == (leading, dtype)
        assert (matrix.shape, matrix.dtype) == ((*leading, 5, 5), dtype)
        assert torch.equal(matrix, -matrix.mT)
        assert torch.equal(p + p.mT, torch.ones_like(p))
    back = head.score(group[..., 1, :], group[..., 0, :], prompt)
    assert torch.equal(head.score(group[..., 0, :], group[..., 1, :], prompt), -back)


@pytest.mark.parametrize("mode", ["gates", "heads"])
def test_tokens_at_positions(mode: Mode) -> None:
    head, hidden, positions = random_head(mode, None), states(2, 7), torch.tensor([6, 2])
    expected = head.embed(hidden)[torch.arange(2), positions]
    torch.testing.assert_close(head.embed(hidden, positions), expected)
    assert torch.equal(head(hidden, positions), head.embed(hidden, positions))
    flat = expected if mode == "gates" else expected.flatten(-2)
    torch.testing.assert_close(head.combine([1.0, 1.0, 1.0])(hidden, positions), flat)


# -- parameters, and how they start ------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"value_head.weight": (4, 6), "value_head.bias": (4,), "prompt_head.weight": (6, 1)}),
        ({"init": "paper"}, {"value_head.weight": (4, 6), "prompt_head.weight": (6, 1)}),
        (
            {"gate": "softmax"},
            {
                "value_head.weight": (4, 6),
                "value_head.bias": (4,),
                "prompt_head.weight": (6, 6),
                "prompt_head.bias": (6,),
            },
        ),
        ({"mode": "heads"}, {"value_head.weight": (12, 6), "value_head.bias": (12,)}),
        (
            {"mode": "heads", "gate": "softplus", "init": "paper"},
            {"value_head.weight": (12, 6), "prompt_head.weight": (6, 6)},
        ),
    ],
    ids=str,
)
def test_state_dict(options: dict[str, Any], expected: dict[str, tuple[int, ...]]) -> None:
    head = MultiCriteriaHead(HIDDEN, 4, NAMES, **options)
    assert {name: tuple(x.shape) for name, x in head.state_dict().items()} == expected
    for name, module in head.named_children():
        assert name in ("value_head", "prompt_head")
        assert isinstance(module, nn.Linear)


@pytest.mark.parametrize("mode", ["gates", "heads"])
def test_every_criterion_starts_as_a_preference_head(mode: Mode) -> None:
    """With the same weights: anchored at (1, 0) in the first block, weights of blocks 1."""
    head = MultiCriteriaHead(HIDDEN, 4, NAMES, mode, dtype=torch.float64)
    group = states(5)
    for c in range(3):
        one = PreferenceHead(HIDDEN, 4, dtype=torch.float64)
        assert one.value_head.bias.tolist() == [1, 0, 0, 0]
        rows = slice(0, 4) if mode == "gates" else slice(4 * c, 4 * c + 4)
        with torch.no_grad():
            one.value_head.weight.copy_(head.value_head.weight[rows])
        torch.testing.assert_close(head.score_matrix(group)[c], one.score_matrix(group))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.fill_(math.pi)
    head.reset_parameters()
    assert head.value_head.bias.view(-1, 4).tolist() == [[1, 0, 0, 0]] * (
        1 if mode == "gates" else 3
    )
    assert 0 < head.value_head.weight.abs().max() < 1
    if mode == "gates":
        torch.testing.assert_close(head.scale(), torch.ones(3, 2, dtype=torch.float64))


# -- one preference of all ---------------------------------------------------------------------


@every_kind
def test_combination_is_the_weighted_sum_of_scores(mode: Mode, gate: Any) -> None:
    head = random_head(mode, gate)
    group, prompt, tau = states(2, 5), states(2, seed=1), 0.7
    each = torch.tensor([[1.0, 0.0, -2.0], [0.3, 5.0, 1.0]], dtype=torch.float64)
    for weights, numbers in (
        ({"short": -2.0, "helpful": 1}, each[:1].expand(2, 3)),
        ([1.0, 0, -2.0], each[:1].expand(2, 3)),
        (each, each),
    ):
        overall = head.combine(weights)
        expected = (numbers[:, :, None, None] * head.score_matrix(group, prompt)).sum(1)
        torch.testing.assert_close(overall.score_matrix(group, prompt), expected)
        torch.testing.assert_close(
            overall.probability_matrix(group, prompt), torch.sigmoid(expected / 0.3)
        )
        torch.testing.assert_close(
            overall.score(group[:, 0], group[:, 3], prompt), expected[:, 0, 3]
        )
        v, scale = overall.embed(group), overall.scale(prompt)
        torch.testing.assert_close(
            ops.probability_matrix(v, scale, tau=tau), torch.sigmoid(expected / tau)
        )


def test_combination_shares_the_head_and_weights_can_be_learned() -> None:
    head = random_head("gates", None)
    weights = nn.Parameter(torch.ones(3, dtype=torch.float64))
    overall = CombinedHead(head, weights)
    assert overall.head.value_head is head.value_head
    loss = losses.general_preference_loss(
        overall(states(4)), overall(states(4, seed=1)), overall.scale()
    ).loss
    loss.backward()
    assert {name for name, _ in overall.named_parameters()} == {
        "weights",
        *(f"head.{name}" for name, _ in head.named_parameters()),
    }
    assert all(x.grad is not None and x.grad.abs().sum() > 0 for x in overall.parameters())
    fixed = head.combine([1.0, 2.0, 3.0])
    assert set(fixed.state_dict()) == {f"head.{name}" for name in head.state_dict()}
    assert "weights=[1.0, 2.0, 3.0]" in repr(fixed)


@pytest.mark.parametrize("gate", [None, "softmax"])
def test_autocast_keeps_scores_in_float32(gate: Any) -> None:
    head = random_head("heads", gate, dtype=torch.float32)
    group, prompt = states(5).float(), states(seed=1).float()
    expected = head.combine([1.0, 1.0, 1.0]).score_matrix(group, prompt)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        each = head.score_matrix(group, prompt)
        overall = head.combine([1.0, 1.0, 1.0]).score_matrix(group, prompt)
    assert each.dtype == overall.dtype == torch.float32
    torch.testing.assert_close(overall, expected, atol=0.1, rtol=0.05)


# -- learning ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "gate"), [("gates", None), ("gates", "softplus"), ("heads", None)]
)
def test_learns_opposed_criteria_from_partial_labels(mode: Mode, gate: Any) -> None:
    """The second criterion is the first reversed, the third another; a third of labels is there."""
    torch.manual_seed(0)
    head = MultiCriteriaHead(HIDDEN, 6, NAMES, mode, gate)
    generator = torch.Generator().manual_seed(1)
    chosen, rejected, direction, prompt = (
        torch.randn(n, HIDDEN, generator=generator) for n in (600, 600, 3, 600)
    )
    direction[1] = -direction[0]
    truth = ((chosen - rejected) @ direction.T > 0).float()
    unlabelled = torch.rand(600, 3, generator=generator) > 1 / 3
    target = truth.masked_fill(unlabelled, math.nan)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        losses.multi_criteria_loss(
            head(chosen[:400]), head(rejected[:400]), head.scale(prompt[:400]), target[:400]
        ).loss.backward()
        optimizer.step()
    with torch.no_grad():
        held_out = losses.multi_criteria_loss(
            head(chosen[400:]), head(rejected[400:]), head.scale(prompt[400:]), truth[400:]
        )
    assert (held_out.criterion_accuracy > 0.85).all()
    assert (head.scale(prompt) > 0).all() if mode == "gates" else head.scale() is None


# -- bad arguments -----------------------------------------------------------------------------


def make(*args: Any, **options: Any) -> MultiCriteriaHead:
    return MultiCriteriaHead(8, *args, **options)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: make(3, NAMES), ValueError, "dim must be even and at least 2.*got 3"),
        (lambda: make(4, []), ValueError, "at least one criterion"),
        (lambda: make(4, ["a", "a"]), ValueError, r"different names; got \['a', 'a'\]"),
        (lambda: make(4, "helpful"), TypeError, "sequence of names.*'helpful'"),
        (lambda: make(4, [1, 2]), TypeError, "sequence of names"),
        (lambda: make(4, {"a", "b"}), TypeError, "sequence of names"),
        (lambda: make(4, NAMES, "both"), ValueError, "mode must be 'gates' or 'heads'; got 'both'"),
        (lambda: make(4, NAMES, gate="tanh"), ValueError, "gate must be None, 'softmax'"),
        (lambda: make(4, NAMES, init="zeros"), ValueError, "init must be 'anchored' or 'paper'"),
        (lambda: make(4, NAMES, tau=0.0), ValueError, "tau must be finite and above zero"),
        (lambda: make(4, NAMES, gate="softmax").scale(), ValueError, "softmax gate: pass prompt_h"),
        (
            lambda: make(4, NAMES).combine({"kind": 1.0}),
            ValueError,
            r"criteria \['kind'\]; the.*ho",
        ),
        (lambda: make(4, NAMES).combine([1.0]), ValueError, "one number for each of .*; got 1"),
        (lambda: make(4, NAMES).combine([1.0, 1.0, math.nan]), ValueError, "short must be finite"),
        (
            lambda: make(4, NAMES).combine([1.0, "1", 1]),
            TypeError,
            "honest must be a number; .*str",
        ),
        (lambda: make(4, NAMES).combine("abc"), TypeError, "mapping by name.*got str"),
        (lambda: make(4, NAMES).combine(1.0), TypeError, "mapping by name.*got float"),
        (lambda: make(4, NAMES).combine(torch.ones(2)), ValueError, r"C = 3.*got shape \(2,\)"),
        (lambda: make(4, NAMES).combine(torch.ones(3).long()), TypeError, "got torch.int64"),
    ],
)
def test_bad_arguments(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
