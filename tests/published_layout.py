"""Tiny checkpoints in the layout of those that the GPM paper published, and how they are read.

The reading is written down again here, step by step and in plain PyTorch: a left-padded batch,
position ids from the mask, and the prompt's place counted back from the end.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tiny_backbones import BACKBONES, VOCABULARY, spread, tokenizers, transformers
from torch import Tensor

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<turn> {{ m['role'] }} {{ m['content'] }} </turn> "
    "{% endfor %}{% if add_generation_prompt %}<turn> assistant {% endif %}"
)
BOS, EOS = 1, 2


def tokenizer() -> Any:
    """Adds BOS on its own, and its chat template writes one."""
    words = ["<pad>", "<bos>", "<eos>", "<unk>", "<turn>", "</turn>", "user", "assistant", "system"]
    words += [f"w{i}" for i in range(VOCABULARY - len(words))]
    vocabulary = {word: i for i, word in enumerate(words)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", BOS)]
    )
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
    )
    made.chat_template = TEMPLATE
    return made


def save_published(
    folder: Path,
    backbone: str,
    *,
    blocks: int = 3,
    gate: bool = True,
    shards: int = 1,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """A checkpoint as published: its configuration says neither width nor gate."""
    config = BACKBONES[backbone]()
    model = spread(transformers.AutoModel.from_config(config))
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    generator = torch.Generator().manual_seed(1)
    tensors["value_head.weight"] = torch.randn(2 * blocks, config.hidden_size, generator=generator)
    if gate:
        tensors["prompt_head.weight"] = torch.randn(blocks, config.hidden_size, generator=generator)
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}
    config.architectures = ["CustomRewardModel"]
    config.dtype = dtype
    config.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    names = sorted(tensors)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return folder
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in names[i::shards]}
        save_file(part, folder / file, {"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """All weights of a checkpoint, in double precision."""
    files = sorted(folder.glob("*.safetensors"))
    return {name: t.double() for file in files for name, t in load_file(file).items()}


@torch.no_grad()
def published_reading(
    folder: Path, conversations: list[list[dict[str, str]]], max_length: int = 2048
) -> tuple[Tensor, Tensor | None]:
    """Embeddings (N, 2k) and gates (N, k) of N conversations in one left-padded batch."""
    tensors = tensors_of(folder)
    config = transformers.AutoConfig.from_pretrained(folder)
    config._attn_implementation = "eager"
    # Double precision and eager attention do not go together where a window sees padding alone.
    dtype = torch.float32
    backbone = transformers.AutoModel.from_config(config, dtype=dtype).eval()
    weights = {k.removeprefix("model."): t for k, t in tensors.items() if k.startswith("model.")}
    backbone.load_state_dict(weights)
    reader = transformers.AutoTokenizer.from_pretrained(folder)

    def ids_of(messages: list[dict[str, str]]) -> list[int]:
        text = reader.apply_chat_template(messages, tokenize=False)
        ids: list[int] = reader(text, truncation=True, max_length=max_length)["input_ids"]
        return ids

    rows = [ids_of(messages) for messages in conversations]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    ids[:, -1] = reader.eos_token_id
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    hidden = backbone(
        input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False
    ).last_hidden_state.double()
    value = hidden[:, -1] @ tensors["value_head.weight"].T
    embeddings = value / value.norm(dim=1, keepdim=True)
    if "prompt_head.weight" not in tensors:
        return embeddings, None
    gates = []
    for i, messages in enumerate(conversations):
        response_length = len(rows[i]) - len(ids_of(messages[:1]))
        logits = tensors["prompt_head.weight"] @ hidden[i, width - response_length - 1]
        gates.append(logits.exp() / logits.exp().sum())
    return embeddings, torch.stack(gates)


def published_scores(embeddings: Tensor, gate: Tensor | None) -> Tensor:
    """s(i > j) (K, K), through the block matrix R of the paper."""
    blocks = embeddings.shape[1] // 2
    weight = torch.ones(blocks, dtype=embeddings.dtype) if gate is None else gate
    operator = torch.zeros(2 * blocks, 2 * blocks, dtype=embeddings.dtype)
    for i in range(blocks):
        operator[2 * i, 2 * i + 1], operator[2 * i + 1, 2 * i] = -weight[i], weight[i]
    return (embeddings @ operator.T) @ embeddings.T
