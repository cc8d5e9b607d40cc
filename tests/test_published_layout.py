"""Reward models of OpenRLHF and published general preference models: read, written, read again."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from openrlhf_models import HIDDEN, adapter, backbone, one_thread
from safetensors.torch import load_file, save_file
from torch import Tensor

from gpm_core.integrations.openrlhf import (
    OpenRLHFRewardModel,
    load_reward_model,
    save_published_layout,
)
from gpm_core.models import GeneralPreferenceModel

__all__ = ["one_thread"]

PUBLISHED: dict[str, Any] = {"init": "paper", "text_format": "published", "dim": 6}


@pytest.mark.parametrize("gate", [None, "softmax"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_published_layout_round_trip(tmp_path: Path, gate: str | None, dtype: torch.dtype) -> None:
    model = adapter(gate=gate, **PUBLISHED).to(dtype)
    folder = tmp_path / "saved"
    save_published_layout(model, folder)
    config = json.loads((folder / "config.json").read_text())
    assert (config["architectures"], config["model_type"]) == (["CustomRewardModel"], "llama")
    assert config["add_prompt_head"] is (gate is not None)
    assert config["dtype"] == str(dtype).removeprefix("torch.")
    stored = load_file(folder / "model.safetensors")
    heads = {k: tuple(v.shape) for k, v in stored.items() if not k.startswith("model.")}
    wanted = {"value_head.weight": (6, HIDDEN), "prompt_head.weight": (3, HIDDEN)}
    assert heads == (wanted if gate else {"value_head.weight": (6, HIDDEN)})

    back = GeneralPreferenceModel.from_pretrained(str(folder))
    assert back.dtype == dtype
    for name, tensor in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor)
    ids, lengths = torch.tensor([[1, 5, 7, 2]]), torch.tensor([2])
    one, other = (GeneralPreferenceModel.forward(m, ids, None, lengths) for m in (model, back))
    assert torch.equal(one.embeddings, other.embeddings)
    assert gate is None or torch.equal(one.scale, other.scale)

    # What was read from that layout is written to it again, and over an earlier save.
    save_published_layout(back, folder)
    again = load_file(folder / "model.safetensors")
    assert again.keys() == stored.keys()
    assert all(torch.equal(again[name], stored[name]) for name in stored)
    save_published_layout(model, tmp_path / "other", is_main_process=False)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("gate", [None, "softmax"])
def test_published_layout_misses_its_gate(tmp_path: Path, gate: str | None) -> None:
    save_published_layout(adapter(gate=gate, **PUBLISHED), tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = GeneralPreferenceModel.from_pretrained(str(tmp_path))
    assert model.config.gate == gate
    assert not hasattr(model.config.backbone_config, "add_prompt_head")
    tensors = load_file(tmp_path / "model.safetensors")
    if gate is None:
        tensors["prompt_head.weight"] = torch.ones(3, HIDDEN)
    else:
        del tensors["prompt_head.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    said, found = ("false", "there all the same") if gate is None else ("true", "missing")
    with pytest.raises(
        ValueError, match=f"add_prompt_head: {said}, .*prompt_head.weight is {found}"
    ):
        GeneralPreferenceModel.from_pretrained(str(tmp_path))


def test_published_layout_from_a_gathered_state_dict(tmp_path: Path) -> None:
    model = adapter(**PUBLISHED)
    state = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    save_published_layout(model, tmp_path, state_dict=state)
    back = GeneralPreferenceModel.from_pretrained(str(tmp_path)).state_dict()
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"init": "anchored"}, "init='paper'"),
        ({"normalize": False}, "normalize=False"),
        ({"gate": "softplus"}, "softplus"),
        ({"learn_tau": "one"}, "learned temperature"),
        ({"tau": 0.2}, r"tau=0\.2"),
        ({"standardize": True}, "standardize"),
        ({"pooling": "mean"}, "pooling"),
        ({"text_format": "chat"}, "text_format='chat'"),
        ({"max_sequence_length": 16}, "max_sequence_length"),
        ({"head": "hybrid"}, "hybrid"),
    ],
)
def test_published_layout_refuses_what_it_cannot_hold(
    tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    model = OpenRLHFRewardModel.from_backbone(backbone(), **{**PUBLISHED, **options})
    with pytest.raises(ValueError, match=words):
        save_published_layout(model, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def save_reward_model(folder: Path, prefix: str, rows: int = 1) -> Tensor:
    """A scalar reward model as OpenRLHF saves it; returns the weight of its head."""
    base = backbone()
    base.config.value_head_prefix = prefix
    base.config.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["RewardModel"]
    (folder / "config.json").write_text(json.dumps(config))
    weights = {f"model.{name}": tensor for name, tensor in base.state_dict().items()}
    weights[f"{prefix}.weight"] = torch.randn(rows, HIDDEN)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return weights[f"{prefix}.weight"]


@pytest.mark.parametrize("prefix", ["value_head", "score"])
def test_reward_model_of_openrlhf(tmp_path: Path, prefix: str) -> None:
    weight = save_reward_model(tmp_path, prefix)
    model = load_reward_model(str(tmp_path))
    ids = torch.tensor([[1, 5, 7, 2], [1, 5, 8, 9]])
    hidden = backbone()(ids).last_hidden_state[:, -1]
    rewards = OpenRLHFRewardModel.from_model(model)(ids)
    torch.testing.assert_close(rewards, hidden @ weight[0])
    # Saved by this library, it is this library's.
    model.save_pretrained(tmp_path / "own")
    back = GeneralPreferenceModel.from_pretrained(str(tmp_path / "own"))
    assert torch.equal(back.head.value_head.weight, weight)


def test_reward_model_without_the_head_that_is_named(tmp_path: Path) -> None:
    save_reward_model(tmp_path, "score")
    with pytest.raises(ValueError, match=r"lacks the weights head\.value_head\.weight"):
        load_reward_model(str(tmp_path), value_head_prefix="value_head")


def test_reward_model_of_several_rows(tmp_path: Path) -> None:
    save_reward_model(tmp_path, "value_head", rows=4)
    with pytest.raises((RuntimeError, ValueError)):
        load_reward_model(str(tmp_path))
