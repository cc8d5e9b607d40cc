"""Tiny random preference models over many backbones, and what they must say, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

transformers = pytest.importorskip("transformers", reason="the extra 'train' is not installed")
tokenizers = pytest.importorskip("tokenizers", reason="the extra 'train' is not installed")

from gpm_core.models import GeneralPreferenceConfig, GeneralPreferenceModel  # noqa: E402

VOCABULARY = 80
#: Conversations of mixed lengths, as token ids: (prompt, response).
CONVERSATIONS = [
    ([5, 6, 7], [20, 21]),
    ([5, 6, 7, 8, 9, 10, 11], [22]),
    ([12, 13, 14, 15], [23, 24, 25, 26, 27, 28, 29]),
    ([30], [31, 32, 33]),
]
PROMPTS = [prompt for prompt, _ in CONVERSATIONS]
RESPONSES = [response for _, response in CONVERSATIONS]

_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GROUPED = {**_SIZES, "num_key_value_heads": 1, "head_dim": 8}
_ROBERTA = {**_SIZES, "pad_token_id": 1, "bos_token_id": 0}

CAUSAL: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**_GROUPED),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=64,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "qwen3": lambda: transformers.Qwen3Config(**_GROUPED),
    "mistral": lambda: transformers.MistralConfig(**_GROUPED, sliding_window=4),
    "gemma": lambda: transformers.GemmaConfig(**_GROUPED),
    "gemma2": lambda: transformers.Gemma2Config(
        **_GROUPED, sliding_window=4, query_pre_attn_scalar=8
    ),
    # Its experts have other names and shapes on disk than in memory.
    "mixtral": lambda: transformers.MixtralConfig(
        **_GROUPED, num_local_experts=2, num_experts_per_tok=2
    ),
}
ENCODERS: dict[str, Callable[[], Any]] = {
    "bert": lambda: transformers.BertConfig(**_SIZES),
    "roberta": lambda: transformers.RobertaConfig(**_ROBERTA),
    "distilbert": lambda: transformers.DistilBertConfig(
        vocab_size=VOCABULARY,
        dim=16,
        hidden_dim=32,
        n_layers=2,
        n_heads=2,
        max_position_embeddings=64,
    ),
    "modernbert": lambda: transformers.ModernBertConfig(
        **_SIZES, local_attention=4, cls_token_id=1, sep_token_id=2
    ),
    "deberta": lambda: transformers.DebertaV2Config(
        **_SIZES, relative_attention=True, pos_att_type=["p2c", "c2p"]
    ),
    # A language model whose tokens see each other both ways, as EmbeddingGemma.
    "bidirectional": lambda: transformers.Gemma3TextConfig(
        **_GROUPED, use_bidirectional_attention=True
    ),
}
BACKBONES = {**CAUSAL, **ENCODERS}
#: In double precision transformers' eager attention has no number for a token of padding that sees
#: nothing but padding within its window, and experts are not computed in it at all.
SINGLE = ("gemma2", "mixtral")


@pytest.fixture(autouse=True, name="two_threads")
def one_thread() -> Iterator[None]:
    """In the place of two threads, from which tiny tensors lose much where other tests run too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def spread(model: Any, seed: int = 0) -> Any:
    """Weights so large that every token, position and block shows in the result."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3
            parameter.copy_(noise if parameter.dim() > 1 else parameter + noise.to(parameter))
    return model


def tiny_model(
    backbone: str = "llama", *, dtype: torch.dtype | None = None, **options: Any
) -> GeneralPreferenceModel:
    if dtype is None:
        dtype = torch.float32 if backbone in SINGLE else torch.float64
    config = GeneralPreferenceConfig(BACKBONES[backbone](), **{"dim": 4, **options})
    model: GeneralPreferenceModel = spread(GeneralPreferenceModel(config)).to(dtype).eval()
    return model


@torch.no_grad()
def states(model: Any, ids: Sequence[int]) -> Tensor:
    """Hidden states (T, H) of one unpadded row, from the backbone alone."""
    hidden: Tensor = model.model(input_ids=torch.tensor([list(ids)])).last_hidden_state
    return hidden[0]


def expected_embedding(model: Any, prompt: Sequence[int], response: Sequence[int]) -> Tensor:
    """The preference embedding, from the formulas of the heads."""
    config, head = model.config, model.head
    hidden = states(model, [*prompt, *response])
    pooled = {"last": hidden[-1], "cls": hidden[0], "mean": hidden.mean(dim=0)}[config.pooling]
    value = head.value_head.weight.detach() @ pooled
    if head.value_head.bias is not None:
        value = value + head.value_head.bias.detach()
    one = torch.ones(1, dtype=value.dtype)
    if config.head == "bt":
        return torch.cat((one, -value))
    reward, cyclic = (value[:1], value[1:]) if config.head == "hybrid" else (None, value)
    if config.normalize:
        cyclic = cyclic / cyclic.norm()
    if reward is None:
        return cyclic
    if config.clip is not None:
        reward = reward.clamp(-config.clip, config.clip)
    return torch.cat((one, -reward, cyclic))


def expected_scale(model: Any, prompt: Sequence[int]) -> Tensor:
    """Weight (k,) of each block, from the prompt alone."""
    config = model.config
    blocks = 1 if config.head == "bt" else config.dim // 2
    gate = torch.ones(blocks, dtype=model.dtype)
    if config.gate is not None:
        logits = model.head.prompt_head.weight.detach() @ states(model, prompt)[-1]
        gate = logits.exp().log1p() if config.gate == "softplus" else logits.exp()
        if config.gate == "softmax":
            gate = gate / gate.sum()
    if config.head != "hybrid":
        return gate
    scalar = torch.tensor([config.scalar_weight], dtype=gate.dtype)
    return torch.cat((scalar, config.cyclic_weight * gate**2))


def expected_score(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """s(a > b) = sum_l scale_l (a[2l] b[2l+1] - a[2l+1] b[2l])."""
    return (scale * (a[0::2] * b[1::2] - a[1::2] * b[0::2])).sum()


def expected_scores(
    model: Any, prompt: Sequence[int], responses: Sequence[Sequence[int]]
) -> Tensor:
    """All scores (K, K), pair by pair."""
    scale = expected_scale(model, prompt)
    v = [expected_embedding(model, prompt, response) for response in responses]
    return torch.stack([torch.stack([expected_score(a, b, scale) for b in v]) for a in v])


def close(actual: Tensor, expected: Tensor) -> None:
    """Equal but for rounding, in the precision of what was computed."""
    tolerance = 1e-9 if actual.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(
        actual.double(), expected.double(), atol=tolerance, rtol=10 * tolerance
    )


@contextmanager
def counted(model: Any) -> Iterator[list[tuple[int, int]]]:
    """(rows, tokens) of each pass through the backbone within."""
    passes: list[tuple[int, int]] = []

    def note(_: Any, args: Any, kwargs: Any) -> None:
        passes.append(tuple(kwargs["input_ids"].shape))

    handle = model.model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield passes
    finally:
        handle.remove()


def padded(
    rows: Sequence[Sequence[int]], *, left: int = 0, right: int = 0, side: str = "right"
) -> tuple[Tensor, Tensor]:
    """Ids and mask with padding, of a token that would show if it were read."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), left + width + right), 77)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        start = left + (width - len(row) if side == "left" else 0)
        ids[i, start : start + len(row)] = torch.tensor(row)
        mask[i, start : start + len(row)] = 1
    return ids, mask
