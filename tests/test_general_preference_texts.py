"""Texts and token ids: what of a conversation a preference model reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tiny_backbones import counted, expected_embedding, one_thread, tiny_model
from tiny_models import TEMPLATE, tiny_tokenizer

from gpm_core.models import GeneralPreferenceModel

__all__ = ["one_thread"]

PAD, BOS, EOS = 0, 2, 3
TURNS = [
    {"role": "user", "content": "w1 w2"},
    {"role": "assistant", "content": "w3"},
    {"role": "user", "content": "w4 w5 w6"},
]


def reader(backbone: str = "llama", *, chat: bool = True, **options: Any) -> Any:
    model = tiny_model(backbone, **options)
    model.tokenizer = tiny_tokenizer(causal=backbone == "llama")
    if chat:
        model.tokenizer.chat_template = TEMPLATE
    return model


def read(model: Any, prompt: Any, reply: str) -> tuple[list[str], list[str]]:
    """The tokens of the prompt and of the rest, as the model sees them."""
    row = model.rows([prompt], [reply])[0]
    words = model.tokenizer.convert_ids_to_tokens(row.ids)
    return words[: row.prompt_length], words[row.prompt_length :]


def test_a_chat_template_writes_the_conversation() -> None:
    model = reader()
    prompt, reply = read(model, TURNS, "w7 w8")
    expected = "<s> user w1 w2 </s> <s> assistant w3 </s> <s> user w4 w5 w6 </s> <s> assistant"
    assert " ".join(prompt) == expected
    assert reply == ["w7", "w8", "</s>"]
    assert read(model, "w1 w2", "w7") == (
        ["<s>", "user", "w1", "w2", "</s>", "<s>", "assistant"],
        ["w7", "</s>"],
    )
    system = [{"role": "system", "content": "w9"}, *TURNS[:1]]
    assert read(model, system, "w7")[0][:4] == ["<s>", "<unk>", "w9", "</s>"]
    assert read(model, None, "w7") == ([], ["w7", "</s>"])


def test_without_a_template_the_turns_are_written_out_and_end_in_eos() -> None:
    prompt, reply = read(reader(chat=False), TURNS, "w7")
    assert " ".join(prompt) == "Human : w1 w2 Assistant : w3 Human : w4 w5 w6 Assistant :"
    assert reply == ["w7", "</s>"]
    # An encoder's tokenizer adds its own special tokens; only a causal model's last one is read.
    prompt, reply = read(reader("bert", chat=False), "w1", "w7")
    assert (prompt, reply) == (["<s>", "Human", ":", "w1", "Assistant", ":"], ["w7", "</s>"])
    assert read(reader(chat=False, pooling="mean"), "w1", "w7")[1] == ["w7"]
    dialogue = "\n\nHuman: w1\n\nAssistant: w2\n\nHuman: w3\n\nAssistant:"
    prompt, _ = read(reader(chat=False), dialogue, "w7")
    assert " ".join(prompt) == "Human : w1 Assistant : w2 Human : w3 Assistant :"


def test_a_long_conversation_keeps_the_end_of_its_prompt_and_the_start_of_its_reply() -> None:
    model = reader(max_sequence_length=12)
    long_prompt = " ".join(f"w{i}" for i in range(20))
    long_reply = " ".join(f"w{i}" for i in range(30, 50))
    prompt, reply = read(model, long_prompt, long_reply)
    assert len(prompt) + len(reply) == 12
    assert prompt == ["<s>", "w18", "w19", "</s>", "<s>", "assistant"]
    assert reply[-1] == "</s>"
    assert reply[:5] == ["w30", "w31", "w32", "w33", "w34"]
    # Without an EOS of the template's, there is room for one all the same.
    model.config.text_format = "plain"
    prompt, reply = read(model, long_prompt, long_reply)
    assert len(prompt) + len(reply) == 12
    assert reply[-1] == "</s>"
    model.config.text_format = None
    # A short reply leaves its room to the prompt, and the other way around.
    assert [len(part) for part in read(model, long_prompt, "w30")] == [10, 2]
    prompt, reply = read(model, "w1", long_reply)
    assert prompt == ["<s>", "user", "w1", "</s>", "<s>", "assistant"]
    assert len(reply) == 6


@pytest.mark.parametrize("gate", [None, "softmax"])
def test_replies_of_which_one_is_too_long_are_still_antisymmetric(gate: str | None) -> None:
    model = reader(gate=gate, max_sequence_length=12)
    replies = [" ".join(f"w{i}" for i in range(n)) for n in (1, 4, 25)]
    scores = model.score_matrix("w1 w2 w3", replies)
    assert torch.equal(scores, -scores.T)
    assert scores.isfinite().all()
    assert scores[0, 1] != 0


def test_lengths_beyond_the_model_are_errors_and_not_shortened_in_silence() -> None:
    model = reader(max_sequence_length=65)
    with pytest.raises(ValueError, match="max_sequence_length must be at most 64"):
        model.rows(["w1"], ["w2"])
    long = " ".join(["w1"] * 100)
    assert len(reader().rows([long], [long])[0].ids) == 64
    # RoBERTa's 64 positions start behind that of padding, which is 1.
    model = reader("roberta", chat=False)
    model.tokenizer.model_max_length = 10**30
    assert len(model.rows([long], [long])[0].ids) == 62
    assert model.embed([long], [long]).isfinite().all()
    model.config.max_sequence_length = 63
    with pytest.raises(ValueError, match="at most 62"):
        model.rows([long], [long])


def test_texts_and_token_ids_give_the_same_numbers() -> None:
    model = reader(gate="softmax")
    rows = model.rows([TURNS] * 2, ["w7", "w8 w9"])
    prompt = rows[0].ids[: rows[0].prompt_length]
    replies = [row.ids[row.prompt_length :] for row in rows]
    expected = model.score_matrix(TURNS, ["w7", "w8 w9"])
    kinds = (
        list,
        tuple,
        torch.tensor,
        np.array,
        lambda ids: [np.int64(i) for i in ids],
        lambda ids: torch.tensor(ids, dtype=torch.int32),
    )
    for kind in kinds:
        assert torch.equal(model.score_matrix(kind(prompt), list(map(kind, replies))), expected)
    same = torch.tensor([[20, 21], [22, 23]])
    assert model.score_matrix(torch.tensor(prompt), same).shape == (2, 2)
    torch.testing.assert_close(
        model.embed([prompt], replies[:1])[0], expected_embedding(model, prompt, replies[0])
    )


@pytest.mark.parametrize(
    ("prompt", "response", "error", "message"),
    [
        ([5], [80], ValueError, r"must be in \[0, 80\).*got 5 to 80"),
        ([5], [-100], ValueError, "got -100 to 5"),
        ([], [], ValueError, "hold no token"),
        ("text", [5], TypeError, "prompt must be token ids, as the responses are; got str"),
        ([5], torch.ones(1, 2, dtype=torch.long), TypeError, r"token ids \(T,\)"),
        ([5], torch.ones(2), TypeError, "integer dtype.*float32"),
        ([5], torch.ones(2, dtype=torch.bool), TypeError, "integer dtype.*bool"),
        ([5], np.ones(2), TypeError, "integer dtype.*float64"),
        ("text", "text", ValueError, "texts need a tokenizer"),
        ([], [5], ValueError, "a prompt must hold at least one token"),
        (None, [5], ValueError, "a prompt must hold at least one token"),
    ],
)
def test_what_cannot_be_read(prompt: Any, response: Any, error: type, message: str) -> None:
    model = tiny_model(gate="softmax")
    with pytest.raises(error, match=message):
        model.embed([prompt], [response])


def test_empty_inputs_and_wrong_numbers() -> None:
    model = reader()
    for ask in (model.rank, model.score_matrix, model.preference_matrix):
        with pytest.raises(ValueError, match="at least one response"):
            ask("w1", [])
    with pytest.raises(ValueError, match="at least one response; got none"):
        model.embed([], [])
    with pytest.raises(ValueError, match="one prompt per response; got 1 prompts and 2"):
        model.embed(["w1"], ["w2", "w3"])
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        model.embed(["w1"], ["w2"], batch_size=0)
    # An empty reply is one that says nothing, not an error.
    assert model.embed(["w1", "w1"], ["", "w2"]).isfinite().all()


def test_one_response_and_equal_responses() -> None:
    model = reader()
    (only,) = model.rank("w1", ["w2"])
    assert (only.index, only.response, only.mean_probability, only.mean_score) == (0, "w2", 0.5, 0)
    assert model.preference_matrix("w1", ["w2"]).tolist() == [[0.5]]
    assert model.score_matrix("w1", ["w2", "w2"]).tolist() == [[0, 0], [0, 0]]
    assert [r.index for r in model.rank("w1", ["w2", "w3", "w2"]) if r.response == "w2"] == [0, 2]
    probability = model.preference_matrix("w1", ["w2", "w3", "w4"])
    assert torch.equal(probability + probability.T, torch.ones(3, 3))
    assert model.compare("w1", "w2", "w3") == pytest.approx(probability[0, 1].item(), abs=1e-6)


def test_tokenizers_without_eos_or_padding() -> None:
    model = reader(chat=False)
    expected = model.score_matrix("w1", ["w2", "w3 w4 w5"])
    model.tokenizer.pad_token = None
    model.config.backbone_config.pad_token_id = None
    assert torch.equal(model.score_matrix("w1", ["w2", "w3 w4 w5"]), expected)
    model.tokenizer.eos_token = None
    assert read(model, "w1", "w7")[1] == ["w7"]
    assert model.score_matrix("w1", ["w2", "w3 w4 w5"]).isfinite().all()


def test_a_tokenizer_without_character_offsets_is_an_error(tmp_path: Any) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "w1", "w2"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    model = tiny_model("bert")
    model.tokenizer = transformers.BertJapaneseTokenizer(
        str(tmp_path / "vocab.txt"), word_tokenizer_type="basic"
    )
    assert not model.tokenizer.is_fast
    with pytest.raises(ValueError, match=r"gives no character offsets.*a fast tokenizer"):
        model.embed(["w1"], ["w2"])


def test_formats_that_need_a_template() -> None:
    for text_format in ("chat", "published"):
        with pytest.raises(ValueError, match="needs a chat template"):
            reader(chat=False, text_format=text_format).rows(["w1"], ["w2"])
    model = reader(text_format="plain")
    assert read(model, "w1", "w7")[0] == ["Human", ":", "w1", "Assistant", ":"]
    model = reader()
    model.tokenizer.chat_template = "{{ raise_exception('no') }}"
    with pytest.raises(ValueError, match="chat template rejects"):
        model.rows(["w1"], ["w2"])


# -- modes -------------------------------------------------------------------------------------


class Failure(Exception):
    pass


@pytest.fixture
def failing() -> Iterator[GeneralPreferenceModel]:
    """In training mode but for a frozen backbone, and without memory for a second batch."""
    model = tiny_model("bert", standardize=True).train()
    model.model.eval()
    calls: list[int] = []

    def fail(*_: Any) -> None:
        calls.append(1)
        if len(calls) > 1:
            raise Failure

    handle = model.model.register_forward_pre_hook(fail)
    yield model
    handle.remove()


@pytest.mark.parametrize("ask", ["embed", "fit_standardization"])
def test_the_mode_of_each_module_comes_back_whatever_happens(failing: Any, ask: str) -> None:
    modes = [module.training for module in failing.modules()]
    assert any(modes)
    assert not all(modes)
    with pytest.raises(Failure):
        getattr(failing, ask)([[5], [6]], [[7], [8]], batch_size=1)
    assert [module.training for module in failing.modules()] == modes


def test_dropout_is_off_while_scoring_and_only_then() -> None:
    model = tiny_model("bert").train()
    first, second = (model.score_matrix([5], [[6], [7]]) for _ in range(2))
    assert torch.equal(first, second)
    assert all(module.training for module in model.modules())
    ids = torch.tensor([[5, 6, 7]])
    assert not torch.equal(model(ids).embeddings, model(ids).embeddings)


def test_groups_are_scored_lazily_and_leave_gradients_on() -> None:
    model = tiny_model()
    groups = model._score_many([[5], [6]], [[[7], [8]], [[9], [10]]], batch_size=4)
    with counted(model) as passes:
        for i, scores in enumerate(groups):
            assert torch.is_grad_enabled()
            prompt = [[5], [6]][i]
            replies = [[[7], [8]], [[9], [10]]][i]
            torch.testing.assert_close(scores.score, model.score_matrix(prompt, replies))
    assert passes[0] == (4, 2)
    assert not scores.score.requires_grad
    with pytest.raises(ValueError, match="a group without any"):
        list(model._score_many([[5], [6]], [[[7]], []], batch_size=4))
