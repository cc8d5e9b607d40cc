"""One gate for all pairs of a group, also where truncation cuts the prompts of some replies."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_backbones import (
    close,
    expected_embedding,
    expected_scale,
    expected_score,
    one_thread,
    tiny_model,
)
from tiny_models import TEMPLATE, tiny_tokenizer
from torch import Tensor

from gpm_core.data import ResponseGroup
from gpm_core.data.messages import as_messages

__all__ = ["one_thread"]

PROMPT = " ".join(f"w{i}" for i in range(9))
SHORT, MIDDLE, LONG = "w40", "w41 w42 w43 w44", " ".join(f"w{i}" for i in range(30, 50))
TAU = 0.5


def reader(backbone: str, gate: str = "softmax", **options: Any) -> Any:
    """A model that reads 14 tokens: a long reply takes half of them, and the prompt loses some."""
    options = {"dim": 6, "gate": gate, "tau": TAU, "max_sequence_length": 14, **options}
    model = tiny_model(backbone, **options)
    model.tokenizer = tiny_tokenizer(causal=backbone == "llama")
    if backbone == "llama":
        model.tokenizer.chat_template = TEMPLATE
    return model


def parts(model: Any, reply: str, prompt: str = PROMPT) -> tuple[list[int], list[int]]:
    """Token ids of what remains of the prompt, and of the rest."""
    row = model.rows([prompt], [reply])[0]
    return row.ids[: row.prompt_length], row.ids[row.prompt_length :]


def expected(model: Any, replies: list[str], gate_of: str, prompt: str = PROMPT) -> Tensor:
    """Each reply behind what remains of its own prompt; one gate, of the prompt of ``gate_of``."""
    scale = expected_scale(model, parts(model, gate_of, prompt)[0])
    v = [expected_embedding(model, *parts(model, reply, prompt)) for reply in replies]
    return torch.stack([torch.stack([expected_score(a, b, scale) for b in v]) for a in v])


def check(model: Any, replies: list[str], gate_of: str) -> None:
    scores = expected(model, replies, gate_of)
    close(model.score_matrix(PROMPT, replies), scores.float())
    close(model.preference_matrix(PROMPT, replies), (scores / TAU).sigmoid().float())


@pytest.mark.parametrize("gate", ["softmax", "softplus"])
@pytest.mark.parametrize("backbone", ["llama", "bert"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_gate_is_that_of_the_longest_prompt(backbone: str, gate: str, place: int) -> None:
    """Wherever in the group the shortest reply is, whose row keeps most of the prompt."""
    model = reader(backbone, gate)
    lengths = [len(parts(model, reply)[0]) for reply in (SHORT, MIDDLE, LONG)]
    assert lengths[0] > lengths[1] > lengths[2] > 0, "the replies must cut the prompt differently"
    replies = [MIDDLE, LONG]
    replies.insert(place, SHORT)
    check(model, replies, gate_of=SHORT)
    gates = [expected_scale(model, parts(model, reply)[0]) for reply in replies]
    assert (gates[0] - gates[1]).abs().max() > 0.01, "other gates would give other scores"
    assert (gates[1] - gates[2]).abs().max() > 0.01


@pytest.mark.parametrize("backbone", ["llama", "bert"])
def test_without_the_shortest_reply_it_is_the_next_ones(backbone: str) -> None:
    check(reader(backbone), [LONG, MIDDLE], gate_of=MIDDLE)


@pytest.mark.parametrize("batch_size", [1, 32])
def test_each_group_has_a_gate_of_its_own(batch_size: int) -> None:
    """Groups are read together, longest rows first, and taken apart again."""
    model = reader("llama")
    other = " ".join(f"w{i}" for i in range(50, 59))
    groups = [
        ResponseGroup(prompt=as_messages(PROMPT), responses=(LONG, MIDDLE)),
        ResponseGroup(prompt=as_messages(other), responses=(MIDDLE, LONG, SHORT)),
        ResponseGroup(prompt=as_messages(PROMPT), responses=(SHORT, LONG)),
    ]
    found = list(model.score_groups(groups, batch_size=batch_size))
    for group, scores, gate_of in zip(groups, found, (MIDDLE, SHORT, SHORT), strict=True):
        wanted = expected(model, list(group.responses), gate_of, group.prompt[0].content)
        close(scores.score, wanted.float())


@pytest.mark.parametrize("backbone", ["llama", "bert"])
def test_order_does_not_matter_and_scores_are_antisymmetric(backbone: str) -> None:
    model = reader(backbone)
    matrix = model.score_matrix(PROMPT, [SHORT, MIDDLE, LONG])
    assert torch.equal(matrix, -matrix.T)
    assert matrix.abs().sum() > 0
    turned = model.score_matrix(PROMPT, [LONG, SHORT, MIDDLE])
    order = torch.tensor([2, 0, 1])
    close(turned, matrix[order][:, order])
