"""Work that is divided into files: each is whole or not there, and a restart does what is missing.

Processes (accelerate, torchrun) share a folder, and each writes a part of the files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gpm_core.data.files import atomic_file
from gpm_core.data.messages import Message


class Processes:
    """The processes of a run, of which there may be one; what accelerate knows of them."""

    def __init__(self) -> None:
        import torch
        from accelerate import PartialState

        self._state = PartialState(cpu=not torch.cuda.is_available())

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


def shard_paths(folder: Path, prompts: int, shard_size: int, suffix: str) -> list[Path]:
    """The files of a stage, each about ``shard_size`` prompts in a row."""
    count = -(-prompts // shard_size)
    return [folder / f"{number:05d}{suffix}" for number in range(count)]


def missing_shards(paths: Sequence[Path], processes: Processes) -> list[int]:
    """Numbers of the files that are this process's to make.

    All processes look at the same moment, so that each missing file is made by one.
    """
    if processes.first and paths:
        paths[0].parent.mkdir(parents=True, exist_ok=True)
    processes.wait()
    missing = [number for number, path in enumerate(paths) if not path.exists()]
    processes.wait()
    return missing[processes.index :: processes.count]


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
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(list(rows)), path)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a parquet file."""
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = pq.ParquetFile(path).read().to_pylist()
    return rows


def count_rows(path: Path) -> int:
    """Number of rows of a parquet file."""
    import pyarrow.parquet as pq

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
