"""Log-probabilities of whole responses under a causal language model."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor
from torch.nn.functional import cross_entropy

__all__ = ["sequence_logps"]


def sequence_logps(model: Any, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
    """Log-probabilities (N,) of N responses, summed over their tokens.

    ``log pi(y | x) = sum_t log pi(y_t | x, y_<t)`` over positions whose label is not -100.
    Logits are computed from the shortest prompt's end on, and widened at responses alone.

    Args:
        model: a causal language model of transformers, wrapped by PEFT or DDP or not.
        input_ids: (N, T) int64, prompt and response, padded on the right.
        attention_mask: (N, T), 1 for tokens and 0 for padding.
        labels: (N, T) int64, the token ids at responses, -100 elsewhere.

    Returns:
        (N,) float32 at least, with gradients of the model.

    Raises:
        ValueError: if shapes differ, or a response has no token, or no token before it.
    """
    if input_ids.dim() != 2 or not input_ids.shape == attention_mask.shape == labels.shape:
        raise ValueError(
            "input_ids, attention_mask and labels must all be (N, T); got "
            f"{tuple(input_ids.shape)}, {tuple(attention_mask.shape)} and {tuple(labels.shape)}"
        )
    said = labels != -100
    if not bool(said.any(dim=1).all()) or bool(said[:, 0].any()):
        raise ValueError("each response needs a token, and a token before it")
    first = int(said.any(dim=0).nonzero()[0])
    # Logits at t are of the token at t + 1.
    kept = labels.shape[1] - first + 1
    options = {"logits_to_keep": kept} if _keeps_logits(model) else {}
    with contiguous_head(model):
        logits = model(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **options
        ).logits
    logits, labels, said = logits[:, -kept:-1], labels[:, first:], said[:, first:]
    chosen = logits[said]
    wide = torch.promote_types(chosen.dtype, torch.float32)
    logps = chosen.new_zeros(labels.shape, dtype=wide)
    logps[said] = -cross_entropy(chosen.to(wide), labels[said], reduction="none")
    return logps.sum(dim=1)


@contextmanager
def contiguous_head(model: Any) -> Iterator[None]:
    """Have the output projection of a model read contiguous hidden states.

    What is kept of hidden states is a slice, and of a slice without gradient PyTorch multiplies
    each row of the batch with a copy of the projection: 55 MB a row, where V x H is 49152 x 576.
    """
    inner = extract_model_from_parallel(model)
    head = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
    if head is None:
        yield
        return
    handle = head.register_forward_pre_hook(lambda _, args: (args[0].contiguous(), *args[1:]))
    try:
        yield
    finally:
        handle.remove()


def _keeps_logits(model: Any) -> bool:
    inner = extract_model_from_parallel(model)
    inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
    return "logits_to_keep" in inspect.signature(type(inner).forward).parameters


def present(batch: Mapping[str, Tensor]) -> Tensor:
    """(B, K) bool: which places of a batch of groups hold a response."""
    sizes, places = batch["group_sizes"], batch["input_ids"].shape[1]
    return torch.arange(places, device=sizes.device) < sizes[:, None]


def responses(batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """``input_ids``, ``attention_mask`` and ``labels`` (N, T) of all responses of a batch."""
    there = present(batch)
    return batch["input_ids"][there], batch["attention_mask"][there], batch["labels"][there]
