"""Rewards and temperatures where weights have 16 bits."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl", reason="the extra 'train' is not installed")
pytest.importorskip("peft", reason="the extra 'train' is not installed")

import datasets
from head_kinds import random_head, states
from pair_models import learnable_pairs, pair_model, quiet, two_threads  # noqa: F401 (a fixture)
from peft import LoraConfig

from gpm_core.integrations.trl import PreferenceConfig, PreferenceTrainer

HALVES = (torch.bfloat16, torch.float16)


def expected_reward(head: Any, hidden: torch.Tensor) -> torch.Tensor:
    value = hidden.double() @ head.value_head.weight.double().T
    value = value if head.value_head.bias is None else value + head.value_head.bias.double()
    return value[..., 0].detach()


@pytest.mark.parametrize("kind", ["bradley-terry", "bradley-terry-bias", "hybrid"])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("chosen", [False, True], ids=["rows", "positions"])
def test_rewards_are_not_rounded_before_they_are_subtracted(
    kind: str, dtype: torch.dtype, chosen: bool
) -> None:
    head = random_head(kind).to(dtype)
    tokens, positions = (states(5, 3) * 30).to(dtype), torch.tensor([2, 0, 1, 2, 1])
    hidden = tokens[torch.arange(5), positions]
    v = head.embed(tokens, positions) if chosen else head.embed(hidden)
    assert v.dtype == torch.float32
    expected = expected_reward(head, hidden)
    assert expected.abs().max() > 16, "where bfloat16 counts in eighths"
    torch.testing.assert_close(-v[:, 1].double(), expected, atol=1e-5, rtol=1e-6)
    if kind != "hybrid":
        score = head.score(hidden[:4], hidden[1:])
        torch.testing.assert_close(
            score.double(), expected[:4] - expected[1:], atol=2e-5, rtol=1e-5
        )
    v.sum().backward()
    assert head.value_head.weight.grad.dtype == dtype


@pytest.mark.parametrize("kind", ["bradley-terry", "hybrid"])
def test_rewards_under_autocast_are_in_float32(kind: str) -> None:
    head, hidden = random_head(kind).float(), states(5, dtype=torch.float32) * 30
    expected = expected_reward(head, hidden)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        v = head.embed(hidden)
    torch.testing.assert_close(-v[:, 1].double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("head", ["bt", "hybrid"])
def test_scores_of_16_bit_models(head: str) -> None:
    """As far apart as the rewards of the same hidden states are in float64."""
    model = pair_model(head=head, dim=2).bfloat16()
    prompt, replies = "w1 w2", ["good w3", "bad", "w4 good w5"]
    with torch.no_grad():
        model.head.value_head.weight.mul_(200)
    v = model.embed([prompt] * 3, replies)
    assert v.dtype == torch.float32
    rewards = -v[:, 1].double()
    assert (rewards.bfloat16().double() - rewards).abs().max() > 1e-3, "these would be rounded"
    if head == "bt":
        score = model.score_matrix(prompt, replies).double()
        torch.testing.assert_close(score, rewards[:, None] - rewards, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "adapted", "learn_tau", "warned"),
    [
        ("bfloat16", False, "one", True),
        ("bfloat16", True, "one", False),
        ("bfloat16", False, None, False),
        ("float32", False, "one", False),
    ],
)
def test_a_temperature_that_cannot_move_is_warned_of(
    tmp_path: Path, dtype: str, adapted: bool, learn_tau: str | None, warned: bool
) -> None:
    model = pair_model(dim=4, learn_tau=learn_tau).to(getattr(torch, dtype))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        PreferenceTrainer(
            model,
            PreferenceConfig(str(tmp_path), bf16=False, gradient_checkpointing=False, **quiet),
            train_dataset=datasets.Dataset.from_list(learnable_pairs(8)),
            peft_config=LoraConfig(r=2) if adapted else None,
        )
    found = [str(one.message) for one in said if "learned temperature" in str(one.message)]
    assert len(found) == warned
    if warned:
        assert "the learned temperature is torch.bfloat16" in found[0]
