"""Batches of token ids: their forms, and where their padding is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode of a module within, and afterwards each of its parts in its own mode."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def group_size(input_ids: Tensor) -> int:
    """K of input ids (B, K, T), 1 of (N, T)."""
    return 1 if input_ids.dim() == 2 else input_ids.shape[1]


def flatten(
    ids: Tensor, mask: Tensor | None, lengths: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Rows (N, T) of ids and mask, and prompt lengths (N,), from either form of input."""
    if ids.dim() not in (2, 3) or 0 in ids.shape:
        raise ValueError(
            "input_ids must be (N, T), or (B, K, T) for K responses to each prompt, none of them "
            f"0; got {tuple(ids.shape)}"
        )
    if mask is None:
        mask = torch.ones_like(ids)
    if mask.shape != ids.shape:
        raise ValueError(
            f"attention_mask must have the shape of input_ids, {tuple(ids.shape)}; got "
            f"{tuple(mask.shape)}"
        )
    if lengths is not None:
        if lengths.shape not in (ids.shape[:1], ids.shape[:-1]):
            raise ValueError(
                f"prompt_lengths must be {tuple(ids.shape[:-1])}, one per conversation; got "
                f"{tuple(lengths.shape)}"
            )
        if lengths.dim() < ids.dim() - 1:
            lengths = lengths.unsqueeze(1).expand(ids.shape[:-1])
        lengths = lengths.reshape(-1)
    return ids.flatten(0, -2), mask.flatten(0, -2), lengths


def pad_on_the_right(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The same rows with their padding behind them: then all sides give the same numbers."""
    mask = (mask != 0).long()
    # A compiled graph cannot look at values and raise.
    if not torch.compiler.is_compiling() and not bool(mask.any(dim=1).all()):
        raise ValueError("each row needs at least one token: attention_mask has a row of zeros")
    mask, order = mask.sort(dim=1, descending=True, stable=True)
    return ids.gather(1, order), mask


def check_lengths(lengths: Tensor, mask: Tensor) -> None:
    """Raise ValueError unless each prompt (N,) has a token and no more than its row of ``mask``."""
    if torch.compiler.is_compiling():
        return
    if bool(((lengths < 1) | (lengths > mask.sum(dim=1))).any()):
        raise ValueError(
            "prompt_lengths must be from 1 to the number of tokens of the conversation; got "
            f"{lengths.tolist()}"
        )
