"""The folder of a run: whose it is, and whether a run may start or continue in it."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from gpm_core._version import __version__
from gpm_core.data.files import PARTIAL, check_writable, read_json, write_json
from gpm_core.data.hub import looks_local
from gpm_core.training.checkpoint import remove_partial

RUN = "run.json"
FORMAT = "gpm_core.run"


def check_run_folder(
    output: Path,
    settings: dict[str, Any],
    data: str | os.PathLike[str],
    eval_data: str | os.PathLike[str] | None,
    resume: bool,
) -> dict[str, Any]:
    """Make sure that a run may start or continue in ``output``, before any work is done.

    Returns:
        What identifies the run, for :func:`claim_run_folder`.

    Raises:
        FileExistsError: if it holds a run and ``resume`` is false, or files that are not a run's.
        FileNotFoundError: if a data file does not exist.
        OSError: if it cannot be written to.
        ValueError: if ``resume`` is true and a setting or the data differ; names them.
    """
    description = {
        "format": FORMAT,
        "gpm_core_version": __version__,
        # As they are read back: a tuple becomes a list.
        "settings": json.loads(json.dumps(settings)),
        "data": _digest(data),
        "eval_data": None if eval_data is None else _digest(eval_data),
    }
    if output.exists() and not output.is_dir():
        raise FileExistsError(f"{output} is a file; name a folder for the run")
    check_writable(output)
    if not (output / RUN).exists():
        others = sorted(p.name for p in output.iterdir() if not p.name.startswith(PARTIAL))
        if others:
            raise FileExistsError(
                f"{output} holds files that are not a run's ({', '.join(others[:3])}); name a new "
                "or an empty folder"
            )
        return description
    if not resume:
        raise FileExistsError(
            f"{output} already holds a run: continue it with --resume (resume=True), or name "
            "another folder"
        )
    _check_same(output / RUN, read_json(output / RUN), description)
    return description


def claim_run_folder(output: Path, description: dict[str, Any]) -> None:
    """Mark ``output`` as this run's and delete what a killed process left half written."""
    remove_partial(output)
    if not (output / RUN).exists():
        write_json(output / RUN, description)


def _check_same(path: Path, before: Any, now: dict[str, Any]) -> None:
    if not isinstance(before, dict) or before.get("format") != FORMAT:
        raise ValueError(f"{path}: not the description of a run")
    for name in ("data", "eval_data"):
        if before.get(name) != now[name]:
            raise ValueError(
                f"cannot resume: the contents of {name} differ from those the run in "
                f"{path.parent} was started with"
            )
    for name, old, new in _differences(before.get("settings"), now["settings"]):
        raise ValueError(
            f"cannot resume: setting {name} was {old!r} when the run in {path.parent} was started "
            f"and is {new!r} now; give it the same value, or start a run in another folder"
        )


def _differences(before: Any, now: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            difference
            for key in sorted(set(before) | set(now))
            for difference in _differences(
                before.get(key), now.get(key), f"{name}.{key}" if name else key
            )
        ]
    return [] if before == now else [(name, before, now)]


def _digest(source: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, or of all files of a folder; or the name of a data set of the hub."""
    path = Path(source)
    if path.is_dir():
        digest = hashlib.sha256()
        for inner in sorted(path.rglob("*")):
            if inner.is_file():
                digest.update(f"{inner.relative_to(path)} {_digest(inner)}\n".encode())
        return digest.hexdigest()
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        if not looks_local(source):
            return f"hub: {source}"
        raise FileNotFoundError(f"{path}: no such file") from error
