"""Preference pairs as batches of token ids: from records to what a model's ``forward`` takes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from gpm_core.data import (
    CriteriaPair,
    DataError,
    PreferencePair,
    parse_criteria_pair,
    parse_pair,
)
from gpm_core.models.conversations import encode_conversations, pad_rows
from gpm_core.models.pair_reading import rooms, together, whole
from gpm_core.models.text import Row

TooLong = Literal["cut", "drop"]

#: Enough for any conversation: the length of all of it must be known to leave long ones out.
_NO_LIMIT = 10**9


@dataclass(frozen=True)
class PreferenceCollator:
    """Makes batches of the rows of :func:`tokenize_pairs`, for a trainer or a ``DataLoader``.

    Args:
        pad_token_id: what rows are padded with, on the right; any token that the model knows.
        pad_to_multiple_of: make T a multiple of this.

    Calling it with B rows gives the arguments of ``GeneralPreferenceModel.forward``: ``input_ids``
    and ``attention_mask`` (B, 2, T) int64, chosen first; ``prompt_lengths`` (B, 2) int64;
    ``labels`` (B,) float32, 1 for rows without, or (B, C) where rows have one for each of C
    criteria, nan where there is none; and ``margin`` (B,) float32, nan for rows without, if any row
    has one.

    Raises:
        ValueError: if ``pad_to_multiple_of`` is below 1; when called, without rows, or for a row
            whose ``input_ids`` are not two lists of token ids.

    Example:
        >>> rows = [{"input_ids": [[5, 6, 7], [5, 8]], "prompt_lengths": [1, 1]}]
        >>> batch = PreferenceCollator(pad_token_id=0)(rows)
        >>> batch["input_ids"].tolist(), batch["labels"]
        ([[[5, 6, 7], [5, 8, 0]]], tensor([1.]))
    """

    pad_token_id: int
    pad_to_multiple_of: int | None = None

    def __post_init__(self) -> None:
        if self.pad_to_multiple_of is not None and self.pad_to_multiple_of < 1:
            raise ValueError(
                f"pad_to_multiple_of must be at least 1, or None; got {self.pad_to_multiple_of}"
            )

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """A batch of B >= 1 rows."""
        if not rows:
            raise ValueError("a batch needs at least one row; got none")
        flat = [row for pair in rows for row in _both(pair)]
        ids, mask, lengths = pad_rows(flat, self.pad_token_id)
        missing = -ids.shape[1] % (self.pad_to_multiple_of or 1)
        shape = (len(rows), 2, -1)
        batch = {
            "input_ids": pad(ids, (0, missing), value=self.pad_token_id).view(shape),
            "attention_mask": pad(mask, (0, missing)).view(shape),
            "prompt_lengths": lengths.view(len(rows), 2),
            "labels": _labels(rows),
        }
        if any(row.get("margin") is not None for row in rows):
            batch["margin"] = _numbers(rows, "margin", math.nan)
        return batch


def _both(row: Mapping[str, Any]) -> list[Row]:
    ids = row.get("input_ids")
    if ids is None or len(ids) != 2 or not all(len(side) for side in ids):
        raise ValueError(
            "a row needs input_ids, the token ids of the chosen and of the rejected conversation, "
            f"as tokenize_pairs makes them; got {sorted(row)}"
        )
    lengths = row.get("prompt_lengths") or (0, 0)
    return [
        Row([int(i) for i in side], int(length)) for side, length in zip(ids, lengths, strict=True)
    ]


def _labels(rows: Sequence[Mapping[str, Any]]) -> Tensor:
    """Labels (B,), or of several criteria (B, C), nan where there is none."""
    labels: list[Any] = [row.get("labels") for row in rows]
    if not any(np.ndim(label) for label in labels):
        return _numbers(rows, "labels", 1.0)
    if len({np.shape(label) for label in labels}) > 1:
        raise ValueError(
            f"labels must be a number in all rows, or one for each criterion; got {labels}"
        )
    return torch.tensor(
        [[math.nan if value is None else float(value) for value in label] for label in labels],
        dtype=torch.float32,
    )


def _numbers(rows: Sequence[Mapping[str, Any]], field: str, default: float) -> Tensor:
    values = [default if row.get(field) is None else row[field] for row in rows]
    return torch.tensor(values, dtype=torch.float32)


@dataclass(frozen=True)
class PairEncoder:
    """Rows from pairs, as one model reads them: what :func:`tokenize_pairs` maps over data.

    ``options`` are those of :func:`~gpm_core.models.encode_conversations`; ``gated`` says that each
    prompt must have a token; ``criteria`` are the model's, each of which has a label of its own;
    ``together`` that it reads both responses in one text, in either order.
    """

    tokenizer: Any
    options: dict[str, Any]
    gated: bool
    too_long: TooLong = "cut"
    criteria: tuple[str, ...] = ()
    together: bool = False

    def __call__(self, pairs: Sequence[PreferencePair]) -> list[dict[str, Any]]:
        """One row per pair, but for those that are left out because they are too long."""
        options = dict(self.options)
        if self.too_long == "drop":
            options["max_length"] = _NO_LIMIT
        pairs, replies = self._replies(pairs)
        prompts = [pair.prompt for pair in pairs for _ in range(2)]
        encoded = encode_conversations(self.tokenizer, prompts, replies, **options)
        rows = []
        for i, pair in enumerate(pairs):
            labels = pair.labels(self.criteria) if isinstance(pair, CriteriaPair) else None
            target = labels if self.criteria else pair.target
            row = self.row(*encoded[2 * i : 2 * i + 2], target=target, margin=pair.margin)
            rows += [] if row is None else [row]
        return rows

    def _replies(
        self, pairs: Sequence[PreferencePair]
    ) -> tuple[Sequence[PreferencePair], list[str]]:
        """The pairs that are kept, and for each what the model is to prefer, and to what."""
        if not self.together:
            return pairs, [reply for pair in pairs for reply in (pair.chosen, pair.rejected)]
        kept, replies = [], []
        # Room as in use, also where long pairs are left out: those that use would shorten.
        prompts = [pair.prompt for pair in pairs]
        for pair, room in zip(pairs, rooms(self.tokenizer, prompts, self.options), strict=True):
            both = pair.chosen, pair.rejected
            forth, back = (together(self.tokenizer, *o, room) for o in (both, both[::-1]))
            if self.too_long == "drop" and forth != whole(*both):
                continue
            kept.append(pair)
            replies += [forth, back]
        return kept, replies

    def row(
        self,
        chosen: Row,
        rejected: Row,
        *,
        target: float | list[float] | None,
        margin: float | None,
    ) -> dict[str, Any] | None:
        """The row of two conversations, or None where it is to be left out."""
        limit = self.options["max_length"]
        if max(len(chosen.ids), len(rejected.ids)) > limit:
            if self.too_long == "drop":
                return None
            chosen, rejected = (
                Row(side.ids[:limit], min(side.prompt_length, limit)) for side in (chosen, rejected)
            )
        if self.gated and not (chosen.prompt_length and rejected.prompt_length):
            raise ValueError(
                "this model has a gate, which is read at the prompt's end: each pair needs a "
                "prompt of at least one token (for token ids, prompt_length)"
            )
        return {
            "input_ids": [chosen.ids, rejected.ids],
            "prompt_lengths": [chosen.prompt_length, rejected.prompt_length],
            "labels": 1.0 if target is None else target,
            "margin": margin,
        }


def pair_encoder(
    model: Any,
    tokenizer: Any = None,
    *,
    max_length: int | None = None,
    too_long: TooLong = "cut",
) -> PairEncoder:
    """The encoder of a model's pairs; arguments and errors as :func:`tokenize_pairs`."""
    tokenizer = model.tokenizer if tokenizer is None else tokenizer
    if tokenizer is None:
        raise ValueError("texts need a tokenizer: pass one, or set model.tokenizer")
    if too_long not in ("cut", "drop"):
        raise ValueError(f"too_long must be 'cut' or 'drop'; got {too_long!r}")
    options = model.text_options(tokenizer)
    if max_length is not None:
        if max_length < 4:
            raise ValueError(f"max_length must be at least 4 tokens; got {max_length}")
        options["max_length"] = min(max_length, options["max_length"])
    gated, criteria = model.config.gate is not None, tuple(model.config.criteria or ())
    pairs = model.config.head == "pair"
    return PairEncoder(tokenizer, options, gated, too_long, criteria, pairs)


def tokenize_pairs(
    pairs: Iterable[PreferencePair | Mapping[str, Any]],
    model: Any,
    tokenizer: Any = None,
    *,
    max_length: int | None = None,
    too_long: TooLong = "cut",
) -> list[dict[str, Any]]:
    """Pairs as the model reads them, in rows that :class:`PreferenceCollator` makes batches of.

    Args:
        pairs: pairs (:func:`gpm_core.data.read_pairs`) or records of them, as the rows of a data
            set in TRL's preference formats; see :func:`gpm_core.data.read_pairs` for all forms.
            For a model of several criteria, pairs of :func:`gpm_core.data.labelled_pairs`, or
            records whose ``target`` has a label for each
            (:func:`gpm_core.data.parse_criteria_pair`).
        model: a ``GeneralPreferenceModel``, with adapters or without; it says how a conversation
            becomes tokens, in training as in use.
        tokenizer: None: the model's own.
        max_length: most tokens of a conversation, at least 4; None, or more: the model's limit.
        too_long: of longer ones, "cut" the prompt's start and the reply's end, or "drop" the pair.

    Returns:
        Rows {"input_ids": [chosen, rejected], "prompt_lengths": [., .], "labels": target,
        "margin": margin or None}, named as the arguments of ``forward``.

    Raises:
        DataError: if a record is none of the forms; names its number, from 1.
        ValueError: without a tokenizer, for a wrong option, or a pair without prompt where the
            model has a gate.

    Example:
        >>> tokenize_pairs(read_pairs("pairs.jsonl"), model)  # doctest: +SKIP
        [{'input_ids': [[...], [...]], 'prompt_lengths': [12, 12], 'labels': 1.0, 'margin': None}]
    """
    encoder = pair_encoder(model, tokenizer, max_length=max_length, too_long=too_long)
    return encoder(
        [as_pair(pair, number, encoder.criteria) for number, pair in enumerate(pairs, start=1)]
    )


def as_pair(
    record: PreferencePair | Mapping[str, Any], number: int, criteria: Sequence[str] = ()
) -> PreferencePair:
    """The pair of a record, or itself; with several criteria, one that has a label for each.

    Raises:
        DataError: if it is none of the forms; names the number.
    """
    if isinstance(record, CriteriaPair if criteria else PreferencePair):
        return record
    if isinstance(record, PreferencePair):
        raise DataError(
            f"row {number}: the model has the criteria {', '.join(criteria)}, and this pair no "
            "labels of them: pass what gpm_core.data.labelled_pairs makes of ratings"
        )
    try:
        fields = dict(record) if isinstance(record, Mapping) else record
        return parse_criteria_pair(fields, criteria) if criteria else parse_pair(fields)
    except ValueError as error:
        raise DataError(f"row {number}: {error}") from error
