"""From and to Hugging Face's ``datasets``: what the hub has, and what TRL's trainers take."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from gpm_core.data.errors import DataError
from gpm_core.data.messages import Message
from gpm_core.data.pairs import PreferencePair, parse_pair
from gpm_core.data.rated import RatedGroup, parse_rated
from gpm_core.data.reading import read_pairs, read_records
from gpm_core.data.records import EXTENSIONS

if TYPE_CHECKING:
    import datasets

Record = TypeVar("Record")

#: Pairs that exist as Python dictionaries at a time while a data set is made.
_CHUNK = 1000
#: Other files that ``datasets`` reads, and its name for their format.
_BUILDERS = {".csv": "csv", ".arrow": "arrow"}


def to_dataset(
    pairs: Sequence[PreferencePair], *, missing_margin: float | None = 0.0
) -> datasets.Dataset:
    """Pairs as a data set in TRL's conversational preference format.

    Columns are ``prompt``, ``chosen`` and ``rejected``, lists of {"role", "content"} messages; the
    latter two hold the reply alone. If some pair has no prompt there is no such column (TRL cannot
    have it empty), and ``chosen`` and ``rejected`` are whole conversations. ``margin`` and
    ``target`` are there if any pair has one; a pair without has target 1, which means the same, and
    the margin that is said here. Lines are not kept. TRL's RewardTrainer uses ``margin`` and leaves
    out ``target``.

    Args:
        pairs: at least one.
        missing_margin: the margin of pairs without, where others have one. 0 means the same to
            every trainer whose loss is a cross-entropy, and TRL's must have a number. None leaves
            it null, as :class:`gpm_core.integrations.trl.PreferenceTrainer` takes it: for its
            ``loss="regression"`` 0 would say that the two are to be equally good.

    Raises:
        ValueError: without pairs.
        ModuleNotFoundError: without the package ``datasets``.

    Example:
        >>> to_dataset([parse_pair({"prompt": "q", "chosen": "a", "rejected": "b"})])[
        ...     0
        ... ]  # doctest: +SKIP
        {'prompt': [{'role': 'user', 'content': 'q'}], 'chosen': [{'role': 'assistant', ...}], ...}
    """
    library = _datasets()
    if not pairs:
        raise ValueError("there are no pairs to make a data set of")
    text = library.Value("string")
    messages = [{"role": text, "content": text}]
    number = library.Value("float64")
    columns: dict[str, Any] = {}
    explicit = all(pair.prompt for pair in pairs)
    if explicit:
        columns["prompt"] = messages
    columns.update(chosen=messages, rejected=messages)
    for field in ("margin", "target"):
        if any(getattr(pair, field) is not None for pair in pairs):
            columns[field] = number
    features = library.Features(columns)
    rows = (
        {name: _cell(pair, name, explicit, missing_margin) for name in columns} for pair in pairs
    )
    chunks = iter(lambda: list(islice(rows, _CHUNK)), [])
    made = [library.Dataset.from_list(chunk, features=features) for chunk in chunks]
    return library.concatenate_datasets(made)


def _cell(pair: PreferencePair, column: str, explicit: bool, missing_margin: float | None) -> Any:
    if column == "margin":
        return missing_margin if pair.margin is None else pair.margin
    if column == "target":
        return 1.0 if pair.target is None else pair.target
    turns: list[Message] = []
    if column == "prompt" or not explicit:
        turns += pair.prompt
    if column != "prompt":
        turns.append(Message("assistant", getattr(pair, column)))
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def from_dataset(
    dataset: datasets.Dataset | datasets.IterableDataset, *, score_margin: bool = False
) -> list[PreferencePair]:
    """Pairs of a data set whose rows are records as :func:`~gpm_core.data.read_pairs` has them.

    Args:
        dataset: one split; also one that streams. Rows are read one after the other.
        score_margin: as :func:`~gpm_core.data.read_pairs`.

    Returns:
        At least one pair; ``line`` counts the rows from 1.

    Raises:
        TypeError: if it is no data set, or several splits.
        DataError: if a row is none of the forms; names it.
        ModuleNotFoundError: without the package ``datasets``.
    """
    parse = _pair_parser(score_margin)
    return _parse_rows(dataset, parse, "the data set")


def load_pairs(
    source: str | os.PathLike[str],
    split: str | None = None,
    *,
    name: str | None = None,
    revision: str | None = None,
    score_margin: bool = False,
) -> list[PreferencePair]:
    """Pairs from a file, a folder, or a data set of the Hugging Face hub.

    Args:
        source: a file as :func:`~gpm_core.data.read_pairs` reads it, or .csv or .arrow; a folder
            of data files or one written by ``save_to_disk``; or a hub name, "owner/name". What
            exists locally is never looked for on the hub.
        split: such as "train" or "train[:1000]". It may be left out where there is only one. To
            test on, take the data set's own test split or :func:`~gpm_core.data.split_dataset`,
            never another part of its train split by rows: its prompts may be in both.
        name: of a configuration of the data set.
        revision: branch, tag or commit on the hub.
        score_margin: as :func:`~gpm_core.data.read_pairs`.

    Raises:
        FileNotFoundError: if there is no such file, folder or data set.
        ValueError: if a split must be chosen, or does not exist.
        DataError: if a record is none of the forms; names its line or row.
        ModuleNotFoundError: without the package ``datasets``, for what is not read without it.

    Example:
        >>> load_pairs("trl-lib/ultrafeedback_binarized", "test")  # doctest: +SKIP
        [PreferencePair(...), ...]
    """
    path = Path(source).expanduser()
    if _is_own(path):
        _refuse_split(path, split, name)
        return read_pairs(path, score_margin=score_margin)
    dataset = _load(source, split, name, revision)
    return _parse_rows(dataset, _pair_parser(score_margin), os.fspath(source))


def load_rated(
    source: str | os.PathLike[str],
    split: str | None = None,
    *,
    name: str | None = None,
    revision: str | None = None,
) -> list[RatedGroup]:
    """Rated responses from a file, a folder, or a data set of the Hugging Face hub.

    Arguments and errors are those of :func:`load_pairs`, forms of records those of
    :func:`~gpm_core.data.read_rated`.

    Example:
        >>> load_rated("openbmb/UltraFeedback", "train")  # doctest: +SKIP
        [RatedGroup(...), ...]
    """
    return load_records(source, parse_rated, split, name=name, revision=revision)


def load_records(
    source: str | os.PathLike[str],
    parse: Callable[[Any, int], Record],
    split: str | None = None,
    *,
    name: str | None = None,
    revision: str | None = None,
) -> list[Record]:
    """What ``parse(record, number from 1)`` makes of each record of a file, folder or data set.

    Other arguments and errors are those of :func:`load_pairs`.
    """
    path = Path(source).expanduser()
    if _is_own(path):
        _refuse_split(path, split, name)
        return read_records(path, parse)
    return _parse_rows(_load(source, split, name, revision), parse, os.fspath(source))


def _datasets() -> Any:
    try:
        return importlib.import_module("datasets")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'this needs the package {error.name}: pip install "gpm_core[train]"', name=error.name
        ) from error


def _pair_parser(score_margin: bool) -> Callable[[Any, int], PreferencePair]:
    return lambda record, line: parse_pair(record, line, score_margin=score_margin)


def _parse_rows(dataset: Any, parse: Callable[[Any, int], Record], source: str) -> list[Record]:
    library = _datasets()
    if isinstance(dataset, (library.DatasetDict, library.IterableDatasetDict)):
        names = ", ".join(map(repr, dataset))
        raise TypeError(f"choose one of the splits {names}, as in dataset[{next(iter(dataset))!r}]")
    if not isinstance(dataset, (library.Dataset, library.IterableDataset)):
        raise TypeError(f"expected a datasets.Dataset; got {type(dataset).__name__}")
    result = []
    # In another format, numbers would come as tensors.
    for number, row in enumerate(_plain(dataset), start=1):
        try:
            result.append(parse(row, number))
        except ValueError as error:
            raise DataError(f"{source}, row {number}: {error}") from error
    if not result:
        raise DataError(f"{source}: there are no rows; expected at least one")
    return result


def _plain(dataset: Any) -> Iterator[Any]:
    return iter(dataset.with_format(None))


def _is_own(path: Path) -> bool:
    return path.name.lower().endswith(EXTENSIONS) and not path.is_dir()


def _refuse_split(path: Path, split: str | None, name: str | None) -> None:
    if split is not None or name is not None:
        raise ValueError(f"{path} is a single file, which has no splits and no name to choose")


def _load(
    source: str | os.PathLike[str], split: str | None, name: str | None, revision: str | None
) -> Any:
    library = _datasets()
    path = Path(source).expanduser()
    if path.is_dir() and any(
        (path / file).is_file() for file in ("state.json", "dataset_dict.json")
    ):
        saved = library.load_from_disk(str(path))
        if isinstance(saved, library.DatasetDict):
            return saved[_choose(source, split, list(saved))]
        _refuse_split(path, split, name)
        return saved
    if path.is_file():
        builder = _BUILDERS.get(path.suffix.lower())
        if builder is None:
            raise DataError(
                f"{path}: unknown kind of file; expected a name that ends with "
                f"{', '.join((*EXTENSIONS, *_BUILDERS))}"
            )
        _refuse_split(path, split, name)
        return _fetch(library, builder, data_files=str(path), split="train")
    if not path.is_dir() and looks_local(source):
        raise FileNotFoundError(f"{path}: no such file or folder")
    where = str(path) if path.is_dir() else os.fspath(source)
    if split is None:
        names = library.get_dataset_split_names(where, name, revision=revision)
        split = _choose(source, None, names)
    return _fetch(library, where, name=name, split=split, revision=revision)


def _fetch(library: Any, source: str, **arguments: Any) -> Any:
    try:
        return library.load_dataset(source, **arguments)
    except library.exceptions.DatasetGenerationError as error:
        reason = error.__cause__ or error
        raise DataError(f"{arguments.get('data_files', source)}: {reason}") from error


def looks_local(source: str | os.PathLike[str]) -> bool:
    """Whether a source is a file or a folder, there or not, rather than a name of the hub."""
    # Names of the hub have dots, too: "owner/data-v1.1".
    if not isinstance(source, str) or source.lower().endswith((*EXTENSIONS, *_BUILDERS)):
        return True
    # A hub name is "name" or "owner/name".
    return source.startswith((".", "~", "/", "\\")) or source.count("/") > 1 or "\\" in source


def _choose(source: str | os.PathLike[str], split: str | None, names: Sequence[str]) -> str:
    if split is None and len(names) == 1:
        return names[0]
    if split is None or split not in names:
        given = "" if split is None else f"; got {split!r}"
        raise ValueError(
            f"{os.fspath(source)} has the splits {', '.join(map(repr, names))}: choose one{given}"
        )
    return split
