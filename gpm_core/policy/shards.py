"""Work that is divided into files: each is whole or not there, and a restart does what is missing.

Processes (accelerate, torchrun) share a folder, and each writes a part of the files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from tqdm import tqdm

from gpm_core.data.files import atomic_file
from gpm_core.data.messages import Message

#: How long processes wait for each other: some sample for hours while others have nothing left.
_PATIENCE = timedelta(days=7)


class Processes:
    """The processes of a run, of which there may be one; what accelerate knows of them."""

    def __init__(self) -> None:
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        patience: dict[str, Any] = {"timeout": _PATIENCE} if several else {}
        self._state = PartialState(cpu=not torch.cuda.is_available(), **patience)

    @property
    def index(self) -> int:
        """Number of this process, from 0."""
        return int(self._state.process_index)

    @property
    def count(self) -> int:
        """How many there are."""
        return int(self._state.num_processes)

    @property
    def first(self) -> bool:
        """Whether this is the one that writes what there is one of."""
        return self.index == 0

    @property
    def device(self) -> Any:
        """Where this process computes."""
        return self._state.device

    @property
    def local_index(self) -> int:
        """Number of this process on its machine."""
        return int(self._state.local_process_index)

    def wait(self) -> None:
        """Until all have come here."""
        self._state.wait_for_everyone()

    def agreed(self, value: Any) -> Any:
        """What the first process has, in all of them."""
        values = [value]
        if self.count > 1:
            broadcast_object_list(values)
        return values[0]


def shard_paths(folder: Path, prompts: int, shard_size: int, suffix: str) -> list[Path]:
    """The files of a stage, each about ``shard_size`` prompts in a row."""
    count = -(-prompts // shard_size)
    return [folder / f"{number:05d}{suffix}" for number in range(count)]


def missing_shards(paths: Sequence[Path], processes: Processes) -> list[int]:
    """Numbers of the files that are this process's to make.

    The first process looks for all, so that each missing file is made by one.
    """
    missing: list[int] = []
    if processes.first and paths:
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        missing = [number for number, path in enumerate(paths) if not path.exists()]
    missing = processes.agreed(missing)
    return missing[processes.index :: processes.count]


def check_shards(paths: Sequence[Path]) -> None:
    """Make sure that a stage has left all of its files.

    Raises:
        FileNotFoundError: if one is missing; names it.
    """
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(
                f"{path} is missing after its stage: do all processes share this file system?"
            )


def run_shards(
    paths: Sequence[Path],
    numbers: Sequence[int],
    work: Callable[[int, Path], None],
    *,
    title: str,
    progress: bool,
) -> None:
    """Make files by ``work(number, path to write to)``, with a progress bar."""
    for number in tqdm(numbers, desc=title, unit="file", disable=not progress or not numbers):
        with atomic_file(paths[number]) as partial:
            work(number, partial)


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows, dictionaries of the same keys, as parquet."""
    pq.write_table(pa.Table.from_pylist(list(rows)), path)


def write_in_groups(path: Path, groups: Iterable[Sequence[dict[str, Any]]]) -> int:
    """Write rows as parquet, each sequence of them as a row group; their number."""
    writer: Any = None
    count = 0
    try:
        for rows in groups:
            table = pa.Table.from_pylist(list(rows))
            if writer is None:
                writer = pq.ParquetWriter(path, table.schema)
            writer.write_table(table)
            count += len(rows)
    finally:
        if writer is not None:
            writer.close()
    return count


def write_chosen(source: Path, places: Sequence[int], output: Path, group_size: int) -> None:
    """Write some rows of a parquet file to another, in row groups of ``group_size``."""
    pq.write_table(pq.read_table(source).take(pa.array(places)), output, row_group_size=group_size)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a parquet file."""
    rows: list[dict[str, Any]] = pq.ParquetFile(path).read().to_pylist()
    return rows


def read_group(path: Path, number: int) -> list[dict[str, Any]]:
    """The rows of a row group of a parquet file."""
    rows: list[dict[str, Any]] = pq.ParquetFile(path).read_row_group(number).to_pylist()
    return rows


def count_rows(path: Path) -> int:
    """Number of rows of a parquet file."""
    return int(pq.ParquetFile(path).metadata.num_rows)


def all_rows(paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """The rows of several files, one file in memory at a time."""
    for path in paths:
        yield from read_rows(path)


def dump_messages(messages: Sequence[Message]) -> str:
    """Messages as JSON."""
    return json.dumps(
        [{"role": turn.role, "content": turn.content} for turn in messages], ensure_ascii=False
    )


def load_messages(text: str) -> tuple[Message, ...]:
    """What :func:`dump_messages` wrote."""
    return tuple(Message(**turn) for turn in json.loads(text))
