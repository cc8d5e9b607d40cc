"""Programs in processes of their own, of which nothing is left when their time is over."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.settings import REPOSITORY

#: Seconds that an interrupted program has to write down what it knows.
GRACE = 10.0

#: Who computes, and how exactly; pytest's options.
_DROPPED = {
    "TRITON_INTERPRET",
    "GPM_CORE_BACKEND",
    "NVIDIA_TF32_OVERRIDE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "PYTEST_ADDOPTS",
}


@dataclass(frozen=True)
class Ended:
    """What became of a program."""

    #: None where it did not end in time
    status: int | None
    #: what it printed, where that was kept
    output: str = ""
    seconds: float = 0.0


def clean_environment(**added: str) -> dict[str, str]:
    """The environment without what would change results or what is run."""
    return {name: value for name, value in os.environ.items() if name not in _DROPPED} | added


def run_process(
    command: Sequence[str],
    timeout: float,
    *,
    keep: bool = False,
    folder: Path = REPOSITORY,
    **variables: str,
) -> Ended:
    """Run a program, and keep what it prints or let it be seen.

    Its children are killed with it: compute-sanitizer's would otherwise go on, on the GPU on which
    speed is measured next. They print into a file, since one that holds a pipe open is waited for.
    """
    start = time.perf_counter()
    status = None
    with tempfile.TemporaryFile() as printed:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=clean_environment(**variables),
            stdout=printed if keep else None,
            stderr=subprocess.STDOUT if keep else None,
            start_new_session=True,
        )
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = process.wait(timeout)
            if status is None:
                _signal(process, signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(GRACE)
        finally:
            _signal(process, signal.SIGKILL)
            process.wait()
        printed.seek(0)
        output = printed.read().decode(errors="replace")
    return Ended(status, output, time.perf_counter() - start)


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
