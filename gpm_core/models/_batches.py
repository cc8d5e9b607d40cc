"""Batches of token ids: their forms, and where their padding is."""

from __future__ import annotations

import torch
from torch import Tensor


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
    if not bool(mask.any(dim=1).all()):
        raise ValueError("each row needs at least one token: attention_mask has a row of zeros")
    first = mask.long().argmax(dim=1, keepdim=True)
    place = torch.arange(ids.shape[1], device=ids.device)
    order = (place + first) % ids.shape[1]
    return ids.gather(1, order), mask.gather(1, order)


def check_lengths(lengths: Tensor, mask: Tensor) -> None:
    """Raise ValueError unless each prompt (N,) has a token and no more than its row of ``mask``."""
    if bool(((lengths < 1) | (lengths > mask.sum(dim=1))).any()):
        raise ValueError(
            "prompt_lengths must be from 1 to the number of tokens of the conversation; got "
            f"{lengths.tolist()}"
        )
