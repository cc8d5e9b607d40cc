"""Data sets of preference pairs (Hugging Face's ``datasets``) as token ids."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from gpm_core.data import DataError
from gpm_core.data.criteria import parse_targets
from gpm_core.models.collation import PairEncoder, TooLong, as_pair, pair_encoder
from gpm_core.models.text import Row

if TYPE_CHECKING:
    import datasets

AnyDataset = TypeVar("AnyDataset", "datasets.Dataset", "datasets.IterableDataset")

#: What a chat template would be given beside the messages, which no model here reads.
_UNREAD = ("tools", "chat_template_kwargs")


def tokenize_dataset(
    dataset: AnyDataset,
    model: Any,
    tokenizer: Any = None,
    *,
    max_length: int | None = None,
    too_long: TooLong = "cut",
    target_column: str = "target",
    num_proc: int | None = None,
    name: str = "the data set",
) -> AnyDataset:
    """A data set of pairs as one of rows that :class:`PreferenceCollator` makes batches of.

    What :func:`tokenize_pairs` does, for data that need not fit in memory: results are cached by
    ``datasets``, and streams stay streams.

    Args:
        dataset: its rows are records of pairs (TRL's preference formats: conversations or text,
            with a prompt of their own or within), or token ids: ``chosen_ids`` and
            ``rejected_ids`` of whole conversations, with ``prompt_length``, the number of tokens
            of the prompt that both start with, where the model has a gate. A column ``margin`` is
            used. A data set that is tokenized already is given back as it is.
        model: a ``GeneralPreferenceModel``, with adapters or without.
        tokenizer: None: the model's own.
        max_length: most tokens of a conversation; None, or more: the model's limit.
        too_long: "cut" longer ones, or "drop" their pairs.
        target_column: the probability in [0, 1] that the chosen reply is preferred, if there is
            such a column. For a model of several criteria there must be one, with a label for each:
            a mapping by name, or a list in their order; None or nan where there is no label.
        num_proc: processes to work with; streams use one.
        name: what errors and progress bars call it.

    Returns:
        The data set with the columns ``input_ids``, ``prompt_lengths``, ``labels``, ``margin``
        where the data have one, and ``length``, the tokens of the longer conversation, which
        samplers group by.

    Raises:
        TypeError: if it is no data set, or several splits.
        DataError: if a row is none of the forms; names it.
        ValueError: as :func:`tokenize_pairs`; for a row with tools, which are not read.
        ModuleNotFoundError: without the package ``datasets``.

    Example:
        >>> tokenize_dataset(load_dataset("owner/name", split="train"), model)  # doctest: +SKIP
        Dataset({features: ['input_ids', 'prompt_lengths', 'labels', 'length'], num_rows: 1000})
    """
    library: Any = importlib.import_module("datasets")
    if not isinstance(dataset, (library.Dataset, library.IterableDataset)):
        raise TypeError(
            f"{name} must be a datasets.Dataset or IterableDataset; got {type(dataset).__name__}. "
            "Of several splits, choose one"
        )
    columns = dataset.column_names or list(next(iter(dataset)))
    if "input_ids" in columns:
        return dataset
    has_margin = "margin" in columns
    number = library.Value("float64")
    criteria = model.config.criteria is not None
    features = {
        "input_ids": [[library.Value("int64")]],
        "prompt_lengths": [library.Value("int64")],
        "labels": [number] if criteria else number,
        "length": library.Value("int64"),
        **({"margin": number} if has_margin else {}),
    }
    options: dict[str, Any] = {}
    if isinstance(dataset, library.Dataset):
        options = {"num_proc": num_proc, "desc": f"tokenizing {name}"}
    return dataset.with_format(None).map(
        _encode_batch,
        batched=True,
        with_indices=True,
        remove_columns=columns,
        features=library.Features(features),
        fn_kwargs={
            "encoder": pair_encoder(model, tokenizer, max_length=max_length, too_long=too_long),
            "target_column": target_column,
            "has_margin": has_margin,
            "name": name,
        },
        **options,
    )


def _encode_batch(
    batch: dict[str, list[Any]],
    indices: Sequence[int],
    *,
    encoder: PairEncoder,
    target_column: str,
    has_margin: bool,
    name: str,
) -> dict[str, list[Any]]:
    records = [
        dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)
    ]
    for record in records:
        record["target"] = record.pop(target_column, None)
    if "chosen_ids" in batch:
        rows = _rows_of_ids(encoder, records)
    else:
        pairs = []
        for index, record in zip(indices, records, strict=True):
            _refuse_unread(record)
            try:
                pairs.append(as_pair(record, index + 1, encoder.criteria))
            except DataError as error:
                raise DataError(f"{name}, {error}") from error.__cause__
        rows = encoder(pairs)
    fields = ["input_ids", "prompt_lengths", "labels", *(["margin"] if has_margin else [])]
    columns = {field: [row[field] for row in rows] for field in fields}
    return {**columns, "length": [max(map(len, row["input_ids"])) for row in rows]}


def _rows_of_ids(encoder: PairEncoder, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if encoder.together:
        raise ValueError(
            "this model reads both responses of a pair in one text, which it writes itself: the "
            "data must be texts or messages, not token ids"
        )
    rows = []
    for record in records:
        target = record["target"]
        if encoder.criteria:
            target = list(parse_targets(target, encoder.criteria).values())
        length = record.get("prompt_length") or 0
        row = encoder.row(
            Row(record["chosen_ids"], length),
            Row(record["rejected_ids"], length),
            target=target,
            margin=record.get("margin"),
        )
        rows += [] if row is None else [row]
    return rows


def _refuse_unread(record: dict[str, Any]) -> None:
    for column in _UNREAD:
        if record.get(column):
            raise ValueError(
                f"the column {column!r} is not read by preference models here: write what matters "
                "of it into the messages, and remove the column"
            )
