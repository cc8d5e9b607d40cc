"""Features of preference pairs, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gpm_core.data.files import atomic_file
from gpm_core.data.messages import Message
from gpm_core.data.pairs import PreferencePair
from gpm_core.models.preference_model import PreferenceModel
from gpm_core.models.storage import load_tensors, save_tensors
from gpm_core.training.objective import PairIndex


@dataclass(frozen=True)
class PairTexts:
    """The texts of P pairs: responses 2i and 2i + 1 are pair i's chosen and rejected."""

    prompts: list[tuple[Message, ...]]
    responses: list[str]
    pair_prompts: list[tuple[Message, ...]]


def pair_texts(pairs: Sequence[PreferencePair]) -> PairTexts:
    """The texts of ``pairs``, each prompt twice in ``prompts`` and once in ``pair_prompts``."""
    return PairTexts(
        [pair.prompt for pair in pairs for _ in range(2)],
        [text for pair in pairs for text in (pair.chosen, pair.rejected)],
        [pair.prompt for pair in pairs],
    )


def pair_index(pairs: Sequence[PreferencePair], rows: Sequence[int]) -> PairIndex:
    """The pairs ``rows`` of ``pairs``, as rows of the features of :func:`pair_texts`.

    Where some have a margin, those without have nan.
    """
    index = torch.tensor(rows, dtype=torch.long)
    margin = target = None
    if any(pairs[i].margin is not None for i in rows):
        given = [pairs[i].margin for i in rows]
        margin = torch.tensor([math.nan if value is None else value for value in given])
    if any(pairs[i].target is not None for i in rows):
        values = [pairs[i].target for i in rows]
        target = torch.tensor([1.0 if value is None else value for value in values])
    return PairIndex(2 * index, 2 * index + 1, index, margin, target)


def pair_features(
    model: PreferenceModel,
    pairs: Sequence[PreferencePair],
    *,
    with_prompts: bool,
    cache: Path | None = None,
    batch_size: int = 32,
    progress: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Features (2P, F) of the responses of P pairs and (P, F) of their prompts, or None.

    Args:
        model: whose frozen backbone and view are used.
        pairs: P pairs.
        with_prompts: also compute the prompts'.
        cache: folder of files named by a digest of all that decides the features; a file that is
            there is read instead.
        batch_size: texts per forward pass.
        progress: show a progress bar on stderr.
    """
    path = None
    if cache is not None:
        path = cache / f"{_key(model, pairs, with_prompts)}.safetensors"
        try:
            stored = load_tensors(path)
            return stored["features"], stored.get("prompt_features")
        except (OSError, ValueError, KeyError):
            # Not there yet, or damaged: either way it is computed and written below.
            pass
    texts = pair_texts(pairs)
    features = model.features(
        texts.prompts, texts.responses, batch_size=batch_size, progress=progress
    )
    result = {"features": features}
    if with_prompts:
        result["prompt_features"] = model.prompt_features(
            texts.pair_prompts, batch_size=batch_size, progress=progress
        )
    if path is not None:
        path.parent.mkdir(exist_ok=True)
        with atomic_file(path) as partial:
            save_tensors(partial, result)
    return features, result.get("prompt_features")


def _key(model: PreferenceModel, pairs: Sequence[PreferencePair], with_prompts: bool) -> str:
    digest = hashlib.sha256(model.backbone.fingerprint().encode())
    digest.update(f"{model.view} {with_prompts} {torch.__version__}".encode())
    for pair in pairs:
        turns = [(message.role, message.content) for message in pair.prompt]
        digest.update(json.dumps([turns, pair.chosen, pair.rejected]).encode())
    return digest.hexdigest()
