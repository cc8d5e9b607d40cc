"""Rows of the registry: objectives of policies, and the targets that they regress on.

Their sizes are those of a step of training. The losses of our objectives come with metrics, so they
are compared with the bare formula and with the formula that computes the same metrics.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import objective_peers as peers
from benchmarks.rows import OURS, PEERS, Contenders, Row, compiled, unit
from gpm_core import objectives, ops
from gpm_core.objectives import groups, targets

BETA, ETA, DPO_BETA = 1e-3, 1e3, 0.1
_METRICS = ("eager, with metrics", "torch.compile, with metrics")
_COMPILED = "gpm_core, torch.compile"


def _drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _logps(*shape: int) -> tuple[Tensor, Tensor]:
    """Of the policy and of the reference: some hundred tokens of one or two nats each."""
    reference = -150 + 40 * _drawn(*shape, seed=1)
    return (reference + _drawn(*shape, seed=2)).requires_grad_(), reference


def _sizes(count: int, most: int) -> list[int]:
    """Of ragged groups: 1 to ``most``, both present."""
    draw = torch.Generator().manual_seed(3)
    drawn: list[int] = torch.randint(1, most + 1, (count - 2,), generator=draw).tolist()
    return [1, most, *drawn]


def _mask(sizes: list[int]) -> Tensor:
    return torch.arange(max(sizes)) < torch.tensor(sizes)[:, None]


def _step(function: Callable[..., Any], leaves: tuple[Tensor, ...], *rest: Any) -> Any:
    """The loss, and its gradients with respect to the leaves."""
    said = function(*leaves, *rest)
    loss = said if isinstance(said, Tensor) else said[0]
    return loss.detach(), *torch.autograd.grad(loss, leaves)


def _objective(
    ours: Callable[..., Any],
    formula: Callable[..., Any],
    with_metrics: Callable[..., Any],
    leaves: tuple[Tensor, ...],
    *rest: Any,
) -> Contenders:
    found = ours(*leaves, *rest[:-1])
    expected = with_metrics(*leaves, *rest)[1]
    torch.testing.assert_close(tuple(found.metrics.values()), expected, rtol=1e-4, atol=1e-5)
    contenders = {
        OURS: partial(_step, ours, leaves, *rest[:-1]),
        _COMPILED: partial(_step, compiled(ours), leaves, *rest[:-1]),
    }
    for name, function in (("eager", formula), ("eager, with metrics", with_metrics)):
        contenders[name] = partial(_step, function, leaves, *rest)
        contenders[name.replace("eager", "torch.compile")] = partial(
            _step, compiled(function), leaves, *rest
        )
    return contenders


def _gpo(*shape: int) -> Contenders:
    logps, reference = _logps(*shape)
    scores = 0.1 * _drawn(*shape, seed=4)
    loss = partial(objectives.gpo_loss, beta=BETA)
    functions = (loss, peers.gpo_formula, peers.gpo_with_metrics)
    return _objective(*functions, (logps,), reference, scores, BETA)


def _sppo(*shape: int) -> Contenders:
    logps, reference = _logps(*shape)
    probabilities = _drawn(*shape, seed=4).sigmoid()
    loss = partial(objectives.sppo_loss, eta=ETA)
    functions = (loss, peers.sppo_formula, peers.sppo_with_metrics)
    return _objective(*functions, (logps,), reference, probabilities, ETA)


def _dpo(pairs: int) -> Contenders:
    logps, reference = _logps(2, pairs)
    leaves = tuple(part.detach().clone().requires_grad_() for part in logps)
    loss = partial(objectives.dpo_loss, beta=DPO_BETA)
    functions = (loss, peers.dpo_formula, peers.dpo_with_metrics)
    return _objective(*functions, leaves, *reference, DPO_BETA)


def _best_and_worst(*shape: int) -> Contenders:
    logps, reference = _logps(*shape)
    scores = 0.1 * _drawn(*shape, seed=4)

    def ours(logps: Tensor) -> Any:
        return objectives.gpo_loss(
            *groups.select_pairs(scores, logps, reference, scores), beta=BETA
        )

    formula = peers.gpo_best_and_worst
    return {
        OURS: partial(_step, ours, (logps,)),
        "paper": partial(_step, formula, (logps,), reference, scores, BETA),
        "torch.compile": partial(_step, compiled(formula), (logps,), reference, scores, BETA),
    }


def _ragged_gpo(count: int, most: int) -> Contenders:
    sizes = _sizes(count, most)
    logps, reference = _logps(sum(sizes))
    scores, mask = 0.1 * _drawn(sum(sizes), seed=4), _mask(sizes)
    ours = partial(objectives.gpo_loss, beta=BETA, centered=True, group_sizes=sizes)
    return {
        OURS: partial(_step, ours, (logps,), reference, scores),
        "padded": partial(_step, peers.padded_gpo, (logps,), reference, scores, mask, BETA),
        "group after group": partial(
            _step, peers.split_gpo, (logps,), reference, scores, sizes, BETA
        ),
    }


def mean_scores(*shape: int) -> Contenders:
    v = unit(*shape)
    return {
        OURS: partial(targets.mean_scores, v),
        "score_matrix, then mean": lambda: ops.score_matrix(v).mean(dim=-1),
        "eager, matrix": partial(peers.matrix_mean_scores, v),
        "eager": partial(peers.linear_mean_scores, v),
        "torch.compile": partial(compiled(peers.linear_mean_scores), v),
    }


def mean_win_rates(*shape: int) -> Contenders:
    v = unit(*shape)
    return {
        OURS: partial(targets.mean_win_rates, v),
        "eager": partial(peers.matrix_mean_win_rates, v),
        "torch.compile": partial(compiled(peers.matrix_mean_win_rates), v),
    }


def _ragged_targets(
    ours: Callable[..., Tensor], padded: Callable[..., Tensor], count: int, most: int
) -> Contenders:
    sizes = _sizes(count, most)
    v, mask = unit(sum(sizes), 8), _mask(sizes)
    return {
        OURS: partial(ours, v, group_sizes=sizes),
        "padded": partial(padded, v, mask),
        "group after group": lambda: torch.cat([ours(part) for part in v.split(sizes)]),
    }


_GROUPS = ((64, 5), (1024, 16))
#: Those of a small step want to be averaged over more of them.
_REPEATS = {64: 20, 1024: 5}

ROWS = [
    *(
        Row(
            f"{name}, forward + backward, {count} groups x K = {size}",
            partial(make, count, size),
            {},
            (*PEERS, *_METRICS, _COMPILED),
            repeats=_REPEATS[count],
        )
        for name, make in (("gpo_loss", _gpo), ("sppo_loss", _sppo))
        for count, size in _GROUPS
    ),
    Row(
        "dpo_loss, forward + backward, 512 pairs",
        partial(_dpo, 512),
        {},
        (*PEERS, *_METRICS, _COMPILED),
        repeats=20,
    ),
    *(
        Row(
            f"gpo_loss of best and worst, forward + backward, {count} groups x K = {size}",
            partial(_best_and_worst, count, size),
            {},
            ("paper", "torch.compile"),
            repeats=_REPEATS[count],
        )
        for count, size in _GROUPS
    ),
    *(
        Row(
            f"gpo_loss, centred, forward + backward, {count} ragged groups, K = 1 to {size}",
            partial(_ragged_gpo, count, size),
            {},
            ("padded", "group after group"),
            repeats=_REPEATS[count] // 5,
        )
        for count, size in _GROUPS
    ),
    *(
        Row(
            f"targets.{name}, {label}",
            partial(make, *shape),
            {},
            peers_of,
            repeats=repeats,
            rounds=rounds,
        )
        for name, make, peers_of in (
            ("mean_scores", mean_scores, ("score_matrix, then mean", "eager, matrix", *PEERS)),
            ("mean_win_rates", mean_win_rates, PEERS),
        )
        for label, shape, repeats, rounds in (
            ("1024 prompts x K = 16", (1024, 16, 8), 5, 51),
            ("K = 4096", (4096, 8), 1, 21),
        )
    ),
    *(
        Row(
            f"targets.{name}, 1024 ragged groups, K = 1 to 16",
            partial(_ragged_targets, ours, padded, 1024, 16),
            {},
            ("padded", "group after group"),
            rounds=21,
        )
        for name, ours, padded in (
            ("mean_scores", targets.mean_scores, peers.padded_mean_scores),
            ("mean_win_rates", targets.mean_win_rates, peers.padded_mean_win_rates),
        )
    ),
]
