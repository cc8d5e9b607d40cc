"""The one registry of what is timed: inputs, contenders, targets. Here those of the operations."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import objective_shapes, peers
from benchmarks.rows import OURS, PEERS, Contenders, Row, compiled, installed, unit
from gpm_core import ops


def _matrix(*shape: int) -> Contenders:
    v = unit(*shape)
    return {
        OURS: partial(ops.probability_matrix, v),
        "eager": partial(peers.eager_probability_matrix, v),
        "torch.compile": partial(compiled(peers.eager_probability_matrix), v),
    }


def _large_matrix(size: int) -> Contenders:
    return {**_matrix(size, 8), "torch.full": partial(torch.full, (size, size), 1.0)}


def _matrix_into(size: int) -> Contenders:
    contenders, out = _matrix(size, 8), torch.empty(size, size)
    v = unit(size, 8)
    return {
        **contenders,
        OURS: partial(ops.probability_matrix, v, out=out),
        "fill_": partial(torch.empty(size, size).fill_, 1.0),
    }


def _training_step(
    loss: Callable[..., tuple[Tensor, Tensor]], chosen: Tensor, rejected: Tensor
) -> Any:
    losses, _ = loss(chosen, rejected)
    return torch.autograd.grad(losses.mean(), (chosen, rejected))


def _loss(batch: int) -> Contenders:
    chosen, rejected = (unit(2 * batch, 6)[i::2].clone().requires_grad_() for i in (0, 1))
    contenders = {
        OURS: ops.preference_loss,
        "paper": peers.paper_preference_loss,
        "eager": peers.eager_preference_loss,
        "torch.compile": compiled(peers.eager_preference_loss),
    }
    return {name: partial(_training_step, f, chosen, rejected) for name, f in contenders.items()}


def _embedding(batch: int, length: int, size: int) -> Contenders:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn((batch, length, size), generator=generator)
    weight = torch.randn((8, size), generator=generator) / size**0.5
    positions = torch.randint(0, length, (batch,), generator=generator)
    contenders = {
        OURS: ops.preference_embedding,
        "paper": peers.paper_preference_embedding,
        "gather + linear + normalize": peers.eager_preference_embedding,
    }
    return {name: partial(f, hidden, weight, positions) for name, f in contenders.items()}


_LIBRARIES = {"TRL": "trl", "Liger": "liger_kernel"}


def logprob_step(trained: bool) -> Contenders:
    """Gradients of sum(weight of its sequence * log-probability) over the tokens of 8 sequences.

    Cut-cross-entropy is not among the contenders: what it is about runs on GPUs only.
    """
    sequences, length, size, vocabulary = 8, 256, 576, 49152
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn((sequences, length, size), generator=generator).requires_grad_()
    weight = torch.randn((vocabulary, size), generator=generator) / size**0.5
    weight.requires_grad_(trained)
    target = torch.randint(0, vocabulary, (sequences, length), generator=generator)
    advantages = torch.randn(sequences, generator=generator)
    leaves = (hidden, weight) if trained else (hidden,)
    incoming = -advantages.repeat_interleave(length)

    def step(function: Callable[..., Tensor]) -> Any:
        logp = function(hidden.flatten(0, 1), weight, target.flatten())
        return torch.autograd.grad(logp, leaves, incoming)

    def liger() -> Any:
        loss = peers.liger_policy_gradient(hidden, weight, target, advantages)
        return torch.autograd.grad(loss, leaves)

    contenders = {
        OURS: partial(step, ops.linear_logprob),
        "eager": partial(step, peers.eager_linear_logprob),
        "torch.compile": partial(step, compiled(peers.eager_linear_logprob)),
        "TRL": partial(step, peers.trl_linear_logprob),
        "Liger": liger,
    }
    return {
        name: call
        for name, call in contenders.items()
        if name not in _LIBRARIES or installed(_LIBRARIES[name])
    }


_EVERYDAY = {"eager": 5.0, "torch.compile": 3.0}

ROWS = [
    Row(
        "probability_matrix, 1024 prompts x K = 16",
        partial(_matrix, 1024, 16, 8),
        _EVERYDAY,
        PEERS,
        repeats=5,
    ),
    Row("probability_matrix, K = 1024", partial(_matrix, 1024, 8), _EVERYDAY, PEERS, repeats=2),
    Row("probability_matrix, K = 2048", partial(_matrix, 2048, 8), _EVERYDAY, PEERS),
    Row(
        "probability_matrix, K = 4096",
        partial(_large_matrix, 4096),
        {"torch.full": 1 / 1.3},
        PEERS,
        rounds=15,
    ),
    Row(
        "probability_matrix, K = 8192",
        partial(_large_matrix, 8192),
        {"torch.full": 1 / 1.3},
        PEERS,
        rounds=7,
    ),
    Row(
        "probability_matrix(out=), K = 4096",
        partial(_matrix_into, 4096),
        {"fill_": 1 / 2, "torch.compile": 5.0, "eager": 10.0},
        PEERS,
        rounds=15,
    ),
    Row(
        "probability_matrix(out=), K = 8192",
        partial(_matrix_into, 8192),
        {"fill_": 1 / 2, "torch.compile": 5.0, "eager": 10.0},
        PEERS,
        rounds=7,
    ),
    *(
        Row(
            f"preference_loss, forward + backward, B = {batch}",
            partial(_loss, batch),
            {"paper": 2.5, "eager": 1.5},
            ("paper", "eager", "torch.compile"),
            repeats=20,
        )
        for batch in (64, 512)
    ),
    Row(
        "preference_embedding, B = 8, T = 512, H = 2048",
        partial(_embedding, 8, 512, 2048),
        {"paper": 50.0, "gather + linear + normalize": 1.0},
        ("paper", "gather + linear + normalize"),
        repeats=5,
    ),
    *(
        Row(
            f"linear_logprob, forward + backward, N = 2048, H = 576, V = 49152, {label}",
            partial(logprob_step, trained),
            {"eager": target},
            (*PEERS, *_LIBRARIES),
            _LIBRARIES,
            rounds=5,
        )
        for trained, label, target in (
            (True, "projection trained", 1 / 1.1),
            (False, "projection frozen", 1 / 0.8),
        )
    ),
    *objective_shapes.ROWS,
]
