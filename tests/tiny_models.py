"""Tiny transformers models with random weights and small data, built where a test needs them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="the extra 'train' is not installed")
tokenizers = pytest.importorskip("tokenizers", reason="the extra 'train' is not installed")

WORDS = [f"w{i}" for i in range(60)] + ["good", "bad", "Human", "Assistant", ":"]
TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }} {{ m['content'] }}</s> {% endfor %}"
    "{% if add_generation_prompt %}<s>assistant {% endif %}"
)
HH_FILE = Path(__file__).parents[2] / "shared" / "data" / "hh_rlhf_harmless_test.jsonl.gz"

needs_hh = pytest.mark.skipif(not HH_FILE.is_file(), reason=f"{HH_FILE.name} is not at hand")


@pytest.fixture(autouse=True)
def one_thread(two_threads):
    """Tiny tensors gain nothing from threads and lose much where other tests run beside."""
    torch.set_num_threads(1)


def tiny_tokenizer(*, causal: bool):
    words = ["<pad>", "<unk>", "<s>", "</s>", "assistant", "user", *WORDS]
    vocabulary = {word: i for i, word in enumerate(words)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    if not causal:
        backend.post_processor = tokenizers.processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=64,
    )


def save_tiny_encoder(folder: Path) -> str:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=80,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    transformers.BertModel(config).save_pretrained(folder)
    tiny_tokenizer(causal=False).save_pretrained(folder)
    return str(folder)


def save_tiny_causal(folder: Path, *, chat: bool = False, most: int = 64) -> str:
    """A causal model that reads at most ``most`` tokens."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=80,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=32,
        max_position_embeddings=most,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = tiny_tokenizer(causal=True)
    tokenizer.model_max_length = most
    if chat:
        tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return str(folder)


def write_lines(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def learnable_pairs(count: int, seed: int = 0) -> list[dict]:
    """Pairs in which the reply that says "good" is chosen."""
    draw = random.Random(seed)

    def words(n: int) -> list[str]:
        return [f"w{draw.randrange(60)}" for _ in range(n)]

    return [
        {
            "prompt": " ".join(words(4)),
            "chosen": " ".join([*words(3), "good", "good"]),
            "rejected": " ".join([*words(3), "bad", "bad"]),
        }
        for _ in range(count)
    ]
