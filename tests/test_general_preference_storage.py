"""Storing general preference models: nothing is lost, nothing is made up."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_backbones import CAUSAL, PROMPTS, RESPONSES, one_thread, tiny_model
from tiny_models import tiny_tokenizer

from gpm_core.models import GeneralPreferenceConfig, GeneralPreferenceModel, load_model

__all__ = ["one_thread"]

OPTIONS: list[dict[str, Any]] = [
    {"head": "gpm", "gate": "softmax", "init": "paper"},
    {"head": "gpm", "gate": "softplus", "dim": 6, "normalize": False, "tau": 0.5},
    {"head": "gpm", "init": "paper", "bias": True, "learn_tau": "per_block"},
    {"head": "bt", "bias": True, "learn_tau": "one", "pooling": "mean"},
    {"head": "hybrid", "gate": "softmax", "scalar_weight": 0.5, "cyclic_weight": 2, "clip": 3.0},
    {"head": "gpm", "gate": "softmax", "standardize": True, "label_smoothing": 0.1},
]


def same_weights(a: GeneralPreferenceModel, b: GeneralPreferenceModel) -> None:
    first, second = a.state_dict(), b.state_dict()
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert second[name].dtype == tensor.dtype
        assert torch.equal(second[name], tensor), name


def same(a: GeneralPreferenceModel, b: GeneralPreferenceModel) -> None:
    same_weights(a, b)
    assert torch.equal(a.embed(PROMPTS, RESPONSES), b.embed(PROMPTS, RESPONSES))
    assert torch.equal(
        a.preference_matrix(PROMPTS[0], RESPONSES), b.preference_matrix(PROMPTS[0], RESPONSES)
    )


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
@pytest.mark.parametrize("backbone", ["llama", "roberta"])
def test_every_option_comes_back_to_the_bit(
    tmp_path: Path, backbone: str, options: dict[str, Any]
) -> None:
    model = tiny_model(backbone, dtype=torch.float32, **options)
    if model.config.standardize:
        model.fit_standardization(PROMPTS, RESPONSES)
    model.save_pretrained(tmp_path)
    loaded = GeneralPreferenceModel.from_pretrained(tmp_path)
    same(model, loaded)
    assert not loaded.training
    for name, value in options.items():
        assert getattr(loaded.config, name) == value
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("backbone", [*CAUSAL, "modernbert"])
def test_backbones_come_back_to_the_bit_whole_or_in_shards(tmp_path: Path, backbone: str) -> None:
    model = tiny_model(backbone, dtype=torch.float32, gate="softmax")
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    same(model, GeneralPreferenceModel.from_pretrained(tmp_path))
    # A whole save takes the place of one in shards, and the other way around.
    model = tiny_model(backbone, dtype=torch.float32, gate="softmax", tau=0.2)
    model.save_pretrained(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors"]
    same(model, GeneralPreferenceModel.from_pretrained(tmp_path))
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    assert not (tmp_path / "model.safetensors").exists()
    same(model, GeneralPreferenceModel.from_pretrained(tmp_path))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    tiny_model(dtype=torch.float32, gate="softmax").save_pretrained(tmp_path)
    half = GeneralPreferenceModel.from_pretrained(tmp_path, dtype=dtype)
    assert {parameter.dtype for parameter in half.parameters()} == {dtype}
    half.save_pretrained(tmp_path / "half")
    same(half, GeneralPreferenceModel.from_pretrained(tmp_path / "half"))
    same(half, GeneralPreferenceModel.from_pretrained(tmp_path / "half", dtype="auto"))
    whole = GeneralPreferenceModel.from_pretrained(tmp_path / "half", dtype=torch.float32)
    assert whole.dtype == torch.float32
    probability = half.preference_matrix(PROMPTS[0], RESPONSES)
    assert probability.dtype == torch.float32
    assert torch.equal(probability + probability.T, torch.ones(4, 4))
    # s / tau moves by as much as 10 times the rounding of the embeddings.
    expected = whole.score_matrix(PROMPTS[0], RESPONSES)
    assert (half.score_matrix(PROMPTS[0], RESPONSES) - expected).abs().max() < 0.03


def test_statistics_keep_their_precision_in_a_model_of_half_precision(tmp_path: Path) -> None:
    model = tiny_model(dtype=torch.float32, standardize=True, gate="softmax")
    model.fit_standardization(PROMPTS, RESPONSES)
    model.save_pretrained(tmp_path)
    half = GeneralPreferenceModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.head.value_head.weight.dtype == torch.bfloat16
    assert torch.equal(half.feature_standardization.mean, model.feature_standardization.mean)
    assert torch.equal(half.prompt_standardization.std, model.prompt_standardization.std)
    half.save_pretrained(tmp_path / "half")
    same(half, GeneralPreferenceModel.from_pretrained(tmp_path / "half"))


def test_auto_classes_and_load_model_know_it(tmp_path: Path) -> None:
    model = tiny_model(dtype=torch.float32, gate="softmax")
    model.tokenizer = tiny_tokenizer(causal=True)
    model.save_pretrained(tmp_path)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, GeneralPreferenceConfig)
    assert config.to_diff_dict() == model.config.to_diff_dict()
    loaded = transformers.AutoModel.from_pretrained(tmp_path)
    assert isinstance(loaded, GeneralPreferenceModel)
    same(model, loaded)
    assert loaded.tokenizer.get_vocab() == model.tokenizer.get_vocab()
    assert loaded.compare("w1 w2", "good", "bad") == model.compare("w1 w2", "good", "bad")
    same(model, load_model(tmp_path))
    eager = transformers.AutoModel.from_pretrained(tmp_path, attn_implementation="eager")
    assert eager.model.config._attn_implementation == "eager"
    placed = GeneralPreferenceModel.from_pretrained(tmp_path, device_map={"": "cpu"})
    same(model, placed)
    model, report = GeneralPreferenceModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]


def test_options_in_place_of_the_stored_ones(tmp_path: Path) -> None:
    tiny_model(dtype=torch.float32).save_pretrained(tmp_path)
    loaded = GeneralPreferenceModel.from_pretrained(tmp_path, tau=0.5, max_sequence_length=8)
    assert (loaded.config.tau, loaded.config.max_sequence_length) == (0.5, 8)
    with pytest.raises(ValueError, match="label_smoothing must be"):
        GeneralPreferenceModel.from_pretrained(tmp_path, label_smoothing=2.0)
    with pytest.raises(TypeError, match="must be a GeneralPreferenceConfig; got LlamaConfig"):
        GeneralPreferenceModel.from_pretrained(tmp_path, config=CAUSAL["llama"]())
    with pytest.raises(ValueError, match=r"lacks the weights head\.prompt_head\.weight"):
        GeneralPreferenceModel.from_pretrained(tmp_path, gate="softmax")


@pytest.mark.parametrize("ignore", [True, False])
def test_weights_of_another_shape_are_an_error(tmp_path: Path, ignore: bool) -> None:
    tiny_model(dtype=torch.float32).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"head\.value_head\.weight \(4, 16\) instead of \(6, 16\)"
    ):
        GeneralPreferenceModel.from_pretrained(tmp_path, dim=6, ignore_mismatched_sizes=ignore)


FULL = {"gate": "softmax", "learn_tau": "one", "standardize": True}


@pytest.mark.parametrize(
    "key",
    [
        "head.value_head.weight",
        "head.value_head.bias",
        "head.prompt_head.weight",
        "temperature.raw",
        "feature_standardization.mean",
        "prompt_standardization.std",
        "model.norm.weight",
    ],
)
def test_what_is_missing_is_named_and_never_made_up(tmp_path: Path, key: str) -> None:
    tiny_model(dtype=torch.float32, **FULL).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors[key]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    for read in (GeneralPreferenceModel, transformers.AutoModel):
        with pytest.raises(ValueError, match=f"lacks the weights {key}"):
            read.from_pretrained(tmp_path)


def test_weights_that_the_configuration_does_not_know_are_an_error(tmp_path: Path) -> None:
    tiny_model(dtype=torch.float32, **FULL).save_pretrained(tmp_path)
    for options, key in (
        ({"gate": None}, "head.prompt_head.weight"),
        ({"learn_tau": None}, "temperature.raw"),
        ({"standardize": False}, "feature_standardization.mean"),
    ):
        with pytest.raises(ValueError, match=f"weights .*{key}.*knows nothing"):
            GeneralPreferenceModel.from_pretrained(tmp_path, **options)


@pytest.mark.parametrize("size", [0, 4, 100, -40])
def test_a_file_cut_short_is_an_error_that_names_it(tmp_path: Path, size: int) -> None:
    tiny_model(dtype=torch.float32).save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:size])
    with pytest.raises(ValueError, match=f"weights of {tmp_path} are damaged"):
        GeneralPreferenceModel.from_pretrained(tmp_path)


def test_folders_that_hold_something_else(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="config"):
        GeneralPreferenceModel.from_pretrained(tmp_path)
    transformers.LlamaForCausalLM(CAUSAL["llama"]()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"is a llama, not a preference model.*from_backbone"):
        GeneralPreferenceModel.from_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_type": "unheard"}))
    with pytest.raises(ValueError, match="is a unheard, not a preference model"):
        GeneralPreferenceModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"), [("head", "x"), ("pooling", "x"), ("gate", "x"), ("dim", 3), ("tau", -1)]
)
def test_a_configuration_with_unknown_values_is_an_error(
    tmp_path: Path, name: str, value: Any
) -> None:
    tiny_model(dtype=torch.float32).save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), name: value}))
    with pytest.raises(ValueError, match=rf"{name} must be .*got {value!r}"):
        GeneralPreferenceModel.from_pretrained(tmp_path)


# -- interrupted and repeated saves ------------------------------------------------------------


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "8KB"}])
@pytest.mark.parametrize("fails_at", [0, 1, 2, 3])
def test_a_save_that_fails_half_way_leaves_the_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: dict[str, Any], fails_at: int
) -> None:
    old = tiny_model(dtype=torch.float32, gate="softmax")
    old.tokenizer = tiny_tokenizer(causal=True)
    old.save_pretrained(tmp_path, **shards)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    new = tiny_model(dtype=torch.float32, dim=6)
    new.tokenizer = old.tokenizer
    real, calls = os.replace, []

    def replace(source: Any, target: Any) -> None:
        calls.append(source)
        if len(calls) == fails_at + 4:
            raise Interrupted
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(Interrupted):
        new.save_pretrained(tmp_path)
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    same(old, GeneralPreferenceModel.from_pretrained(tmp_path))


def test_a_tokenizer_that_cannot_be_written_leaves_the_earlier_save(tmp_path: Path) -> None:
    class Broken:
        def save_pretrained(self, folder: Any) -> None:
            raise Interrupted

    old = tiny_model(dtype=torch.float32)
    old.save_pretrained(tmp_path)
    new = tiny_model(dtype=torch.float32, dim=6)
    new.tokenizer = Broken()
    with pytest.raises(Interrupted):
        new.save_pretrained(tmp_path)
    same(old, GeneralPreferenceModel.from_pretrained(tmp_path))
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors"]


def test_other_files_and_other_variants_stay(tmp_path: Path) -> None:
    model = tiny_model(dtype=torch.float32)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "modelling.safetensors").write_text("mine")
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    half = tiny_model(dtype=torch.bfloat16)
    half.save_pretrained(tmp_path, variant="half", max_shard_size="4KB")
    same_weights(half, GeneralPreferenceModel.from_pretrained(tmp_path, variant="half"))
    half.save_pretrained(tmp_path, variant="half")
    assert {p.name for p in tmp_path.glob("*.half*")} == {"model.half.safetensors"}
    same_weights(half, GeneralPreferenceModel.from_pretrained(tmp_path, variant="half"))
    same(model, GeneralPreferenceModel.from_pretrained(tmp_path, dtype=torch.float32))
    assert (tmp_path / "notes.txt").exists()
    assert (tmp_path / "modelling.safetensors").exists()


def test_only_the_main_process_writes(tmp_path: Path) -> None:
    model = tiny_model(dtype=torch.float32)
    model.save_pretrained(tmp_path / "other", is_main_process=False)
    assert not (tmp_path / "other").exists()
    state = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=dict(state))
    loaded = GeneralPreferenceModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.head.value_head.weight, state["head.value_head.weight"])


def test_a_tokenizer_with_several_templates_is_saved_twice(tmp_path: Path) -> None:
    model = tiny_model(dtype=torch.float32)
    model.tokenizer = tiny_tokenizer(causal=True)
    model.tokenizer.chat_template = {"default": "{{ 1 }}", "tools": "{{ 2 }}"}
    model.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    loaded = GeneralPreferenceModel.from_pretrained(tmp_path)
    assert loaded.tokenizer.chat_template == model.tokenizer.chat_template
