"""Writing files and folders so that a reader never sees half of one."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: Prefix of unfinished files and folders; what carries it after a crash is safe to delete.
PARTIAL = ".partial-"


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path beside ``path`` to write to, which becomes ``path`` if the block ends without error.

    Raises:
        OSError: if the folder does not exist or cannot be written to.
    """
    path = Path(path)
    handle, name = tempfile.mkstemp(prefix=PARTIAL, suffix=path.suffix, dir=path.parent)
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        _flush(partial)
        # mkstemp makes files private to the user; what is published has the usual mode.
        partial.chmod(0o666 & ~_umask())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str], *, replace: bool = False) -> Iterator[Path]:
    """A folder beside ``path`` to fill, which becomes ``path`` if the block ends without error.

    Args:
        path: the folder to make.
        replace: put it in the place of a folder that is there already.

    Raises:
        FileExistsError: if ``path`` exists and ``replace`` is false.
        OSError: if the parent folder does not exist or cannot be written to.
    """
    path = Path(path)
    if path.exists() and not replace:
        raise FileExistsError(f"{path} exists already")
    partial = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=path.parent))
    try:
        yield partial
        for file in partial.rglob("*"):
            if file.is_file():
                _flush(file)
                file.chmod(0o666 & ~_umask())
        partial.chmod(0o777 & ~_umask())
        if path.exists():
            retired = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=path.parent))
            os.replace(path, retired / path.name)
            os.rename(partial, path)
            shutil.rmtree(retired)
        else:
            os.rename(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` as indented JSON, whole or not at all. Not-a-number is refused."""
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is not JSON; names the file and the line.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: not valid JSON: {error.msg}") from error


def check_writable(folder: str | os.PathLike[str]) -> None:
    """Make ``folder`` if needed and prove that files can be written there.

    Raises:
        OSError: if not; names the folder.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(prefix=PARTIAL, dir=folder):
            pass
    except OSError as error:
        raise type(error)(
            f"cannot write to the output folder {folder}: {error.strerror or error}"
        ) from error


def _flush(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _umask() -> int:
    # The mask can only be read by setting it; there is no other portable way.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
