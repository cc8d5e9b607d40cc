"""Checkpoints in the published layout, against their convention and the paper's own numbers."""

from __future__ import annotations

import json
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import published_layout
import pytest
import torch
from published_layout import BOS, EOS, published_reading, published_scores, save_published
from safetensors.torch import load_file, save_file
from tiny_backbones import counted, one_thread

from gpm_core.models import GeneralPreferenceModel, load_model

__all__ = ["one_thread"]

GOLDEN = Path(__file__).parent / "golden"
KINDS = ["llama", "gemma", "gemma2"]
PROMPT = "w1 w2 w3 w4"
REPLIES = ["w5", "w6 w7 w8 w9 w10 w11 w12 w13", "w14 w15 w16", "w5 w6"]
PROMPTS: dict[str, Any] = {
    "text": PROMPT,
    "one message": [{"role": "user", "content": PROMPT}],
    "several turns": [
        {"role": "user", "content": "w1 w2"},
        {"role": "assistant", "content": "w3 w4 w5"},
        {"role": "user", "content": "w6"},
    ],
    "system first": [
        {"role": "system", "content": "w20 w21"},
        {"role": "user", "content": "w22 w23 w24"},
    ],
}


def messages(prompt: Any) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def conversations(prompt: Any) -> list[list[dict[str, str]]]:
    return [[*messages(prompt), {"role": "assistant", "content": reply}] for reply in REPLIES]


def rewrite(folder: Path, change: Any, file: str = "model.safetensors") -> None:
    tensors = load_file(folder / file)
    change(tensors)
    save_file(tensors, folder / file, {"format": "pt"})


def check(model: GeneralPreferenceModel, folder: Path, prompt: Any, **options: Any) -> None:
    embeddings, gates = published_reading(folder, conversations(prompt), **options)
    tolerance: dict[str, float] = {"atol": 2e-5, "rtol": 2e-4}
    actual = model.embed([prompt] * len(REPLIES), REPLIES, batch_size=3)
    torch.testing.assert_close(actual.double(), embeddings, **tolerance)
    gate = None
    if gates is not None:
        gate = gates[0]
        torch.testing.assert_close(gates, gate.expand_as(gates), **tolerance)
    scores = published_scores(embeddings, gate)
    torch.testing.assert_close(model.score_matrix(prompt, REPLIES).double(), scores, **tolerance)
    torch.testing.assert_close(
        model.preference_matrix(prompt, REPLIES).double(),
        torch.sigmoid(scores / 0.1),
        atol=2e-4,
        rtol=1e-3,
    )
    best = torch.sigmoid(scores / 0.1).sum(dim=1).argmax().item()
    assert model.rank(prompt, REPLIES)[0].index == best


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_published(tmp_path_factory.mktemp(request.param), request.param)


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_scores_are_those_of_the_published_convention(folder: Path, prompt: Any) -> None:
    model = GeneralPreferenceModel.from_pretrained(folder)
    check(model, folder, prompt)


def test_what_the_configuration_does_not_say_is_read_from_the_weights(folder: Path) -> None:
    model = GeneralPreferenceModel.from_pretrained(folder)
    config = model.config
    assert (config.head, config.dim, config.gate, config.tau) == ("gpm", 6, "softmax", 0.1)
    assert (config.text_format, config.pooling, config.normalize) == ("published", "last", True)
    assert model.head.value_head.bias is None
    assert not model.training
    stored = published_layout.tensors_of(folder)
    assert torch.equal(model.head.value_head.weight.double(), stored["value_head.weight"])
    assert torch.equal(model.head.prompt_head.weight.double(), stored["prompt_head.weight"])


def test_a_row_has_bos_twice_and_ends_in_eos(folder: Path) -> None:
    model = GeneralPreferenceModel.from_pretrained(folder)
    vocabulary = model.tokenizer.get_vocab()
    row = model.rows([PROMPT], ["w5 w6"])[0]
    words = ["<turn>", "user", *PROMPT.split(), "</turn>", "<turn>", "assistant", "w5", "w6"]
    # EOS takes the place of the last token, which closes the turn; no generation prompt follows.
    assert row.ids == [BOS, BOS, *(vocabulary[word] for word in words), EOS]
    assert row.prompt_length == 2 + 7
    system_first = model.rows([PROMPTS["system first"]], ["w5"])[0]
    assert system_first.prompt_length == 2 + 5


@pytest.mark.parametrize(("shards", "gate"), [(1, False), (3, True), (4, False)])
@pytest.mark.parametrize("kind", KINDS)
def test_sharded_and_gateless_checkpoints(
    tmp_path: Path, kind: str, shards: int, gate: bool
) -> None:
    save_published(tmp_path, kind, blocks=2, gate=gate, shards=shards)
    with nullcontext() if gate else pytest.warns(UserWarning, match="without a gate"):
        model = load_model(tmp_path)
    assert isinstance(model, GeneralPreferenceModel)
    assert (model.config.dim, model.config.gate) == (4, "softmax" if gate else None)
    check(model, tmp_path, PROMPT)


def test_a_lost_gate_is_told_of(tmp_path: Path) -> None:
    """The layout says nothing of a gate: whoever knows says it, and is not warned."""
    folder = save_published(tmp_path, "llama", gate=False)
    with pytest.warns(
        UserWarning, match=r"gate=None if it was not, gate='softmax' if it was"
    ) as told:
        GeneralPreferenceModel.from_pretrained(folder)
    assert [Path(one.filename).name for one in told] == [Path(__file__).name], (
        "at the caller's line"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert GeneralPreferenceModel.from_pretrained(folder, gate=None).config.gate is None
        with pytest.raises(ValueError, match=r"lacks the weights head\.prompt_head\.weight"):
            GeneralPreferenceModel.from_pretrained(folder, gate="softmax")
        whole = save_published(tmp_path / "whole", "llama")
        assert GeneralPreferenceModel.from_pretrained(whole).config.gate == "softmax"
        with pytest.raises(ValueError, match=r"head\.prompt_head\.weight, of which"):
            GeneralPreferenceModel.from_pretrained(whole, gate=None)


def test_a_gate_of_one_block_is_one(tmp_path: Path) -> None:
    """The softmax of one number: with it or without it, it is the same model."""
    folder = save_published(tmp_path, "llama", blocks=1)
    gated = GeneralPreferenceModel.from_pretrained(folder).score_matrix(PROMPT, REPLIES)
    rewrite(folder, lambda tensors: tensors.pop("prompt_head.weight"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = GeneralPreferenceModel.from_pretrained(folder)
    assert model.config.gate is None
    torch.testing.assert_close(model.score_matrix(PROMPT, REPLIES), gated)


def test_a_shard_without_what_its_index_promises(tmp_path: Path) -> None:
    folder = save_published(tmp_path, "llama", shards=2)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    file = index["weight_map"]["prompt_head.weight"]
    rewrite(folder, lambda tensors: tensors.pop("prompt_head.weight"), file)
    with pytest.raises(
        ValueError, match=f"prompt_head.weight, which .*index.json promises in.*{file}"
    ):
        GeneralPreferenceModel.from_pretrained(folder)


def test_half_precision(tmp_path: Path) -> None:
    save_published(tmp_path, "llama", dtype=torch.bfloat16)
    half = GeneralPreferenceModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    whole = GeneralPreferenceModel.from_pretrained(tmp_path, dtype=torch.float32)
    check(whole, tmp_path, PROMPT)
    difference = half.score_matrix(PROMPT, REPLIES) - whole.score_matrix(PROMPT, REPLIES)
    assert 0 < difference.abs().max() < 0.05


def test_a_long_conversation_loses_its_end(folder: Path) -> None:
    model = GeneralPreferenceModel.from_pretrained(folder, max_sequence_length=12)
    row = model.rows([PROMPT], [REPLIES[1]])[0]
    assert len(row.ids) == 12
    assert row.ids[-1] == EOS
    check(model, folder, PROMPT, max_length=12)
    # A prompt that leaves no room for a reply has its gate read at the last token.
    model.config.max_sequence_length = 6
    assert model.rows([PROMPT], ["w5"])[0].prompt_length == 6
    check(model, folder, PROMPT, max_length=6)


def test_k_replies_cost_k_rows(folder: Path) -> None:
    model = GeneralPreferenceModel.from_pretrained(folder)
    with counted(model) as passes:
        model.preference_matrix(PROMPT, REPLIES)
    assert sum(rows for rows, _ in passes) == len(REPLIES)


def test_saved_again_it_reads_texts_the_same_way(folder: Path, tmp_path: Path) -> None:
    model = GeneralPreferenceModel.from_pretrained(folder)
    model.save_pretrained(tmp_path)
    assert "head.value_head.weight" in load_file(tmp_path / "model.safetensors")
    again = GeneralPreferenceModel.from_pretrained(tmp_path)
    assert again.config.text_format == "published"
    assert torch.equal(again.score_matrix(PROMPT, REPLIES), model.score_matrix(PROMPT, REPLIES))
    plain = GeneralPreferenceModel.from_pretrained(folder, text_format="plain")
    assert torch.equal(plain.head.value_head.weight, model.head.value_head.weight)
    again = GeneralPreferenceModel.from_pretrained(tmp_path, text_format="plain")
    assert torch.equal(again.embed([PROMPT], ["w5"]), plain.embed([PROMPT], ["w5"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("value_head.weight"), "lacks the weight value_head.weight"),
        (lambda t: t.pop("model.norm.weight"), "lacks the weights model.norm.weight"),
        (lambda t: t.update({"prompt_head.weight": torch.ones(2, 16)}), r"prompt_head.weight \[k"),
        (lambda t: t.update({"value_head.weight": torch.ones(6, 8)}), r"must be \[2k, 16\]"),
        (lambda t: t.update({"value_head.weight": torch.ones(5, 16)}), r"must be \[2k, 16\]|even"),
    ],
)
def test_damaged_checkpoints(tmp_path: Path, change: Any, message: str) -> None:
    save_published(tmp_path, "llama")
    rewrite(tmp_path, change)
    with pytest.raises(ValueError, match=message):
        GeneralPreferenceModel.from_pretrained(tmp_path)


def test_a_file_cut_short(tmp_path: Path) -> None:
    weights = save_published(tmp_path, "llama") / "model.safetensors"
    for size in (50, -40):
        weights.write_bytes(weights.read_bytes()[:size])
        with pytest.raises(ValueError, match="damaged"):
            GeneralPreferenceModel.from_pretrained(tmp_path)
    weights.unlink()
    with pytest.raises(OSError, match=r"model\.safetensors"):
        GeneralPreferenceModel.from_pretrained(tmp_path)


def test_what_the_convention_cannot_read(folder: Path) -> None:
    model = GeneralPreferenceModel.from_pretrained(folder)
    with pytest.raises(ValueError, match="needs a prompt"):
        model.embed([None], ["w5"])
    template = model.tokenizer.chat_template
    model.tokenizer.chat_template = "{{ raise_exception('no system turns') }}"
    with pytest.raises(ValueError, match=r"roles \['user', 'assistant'\]: no system turns"):
        model.embed([PROMPT], ["w5"])
    model.tokenizer.chat_template = None
    with pytest.raises(ValueError, match="needs a chat template"):
        model.embed([PROMPT], ["w5"])
    model.tokenizer.chat_template = template
    model.tokenizer.eos_token = None
    with pytest.raises(ValueError, match=r"the tokenizer has none: set tokenizer\.eos_token"):
        model.embed([PROMPT], ["w5"])


# -- the paper's own code ----------------------------------------------------------------------


@pytest.mark.parametrize("group", [0, 1])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_numbers_of_the_papers_own_code(group: int, attention: str) -> None:
    golden = json.loads((GOLDEN / "published_layout_llama.json").read_text())
    expected = golden["groups"][group]
    model = GeneralPreferenceModel.from_pretrained(
        GOLDEN / golden["checkpoint"], attn_implementation=attention
    )
    prompt, replies = expected["prompt"], expected["responses"]
    tolerance = {"atol": 1e-5, "rtol": 1e-4}
    embeddings = torch.tensor(expected["embeddings"])
    torch.testing.assert_close(model.embed([prompt] * 3, replies), embeddings, **tolerance)
    scores = torch.tensor(expected["scores"])
    torch.testing.assert_close(model.score_matrix(prompt, replies), scores, **tolerance)
    torch.testing.assert_close(
        model.preference_matrix(prompt, replies), torch.sigmoid(scores / 0.1), **tolerance
    )
    row = model.rows([prompt], replies[:1])[0]
    with torch.no_grad():
        output = model(torch.tensor([row.ids]), prompt_lengths=torch.tensor([row.prompt_length]))
    torch.testing.assert_close(output.scale[0], torch.tensor(expected["gate"]), **tolerance)
    # The reading that the other tests compare with is the paper's as well.
    turns = [{"role": "user", "content": prompt}]
    ours, gates = published_reading(
        GOLDEN / golden["checkpoint"],
        [[*turns, {"role": "assistant", "content": reply}] for reply in replies],
    )
    torch.testing.assert_close(ours.float(), embeddings, **tolerance)
    assert gates is not None
    torch.testing.assert_close(gates[0].float(), torch.tensor(expected["gate"]), **tolerance)
    torch.testing.assert_close(published_scores(ours, gates[0]).float(), scores, **tolerance)
