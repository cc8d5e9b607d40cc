"""Tests, sanitizers and speed on a GPU: ``python -m benchmarks.gpu --output docs/gpu``.

Writes gpu.json and gpu.md. Exit status: 0 when every step succeeded, 1 when one failed (both files
say which), 2 without a GPU (nothing is written). A missed aim is reported and is no failure.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.gpu import report as files
from benchmarks.gpu.checks import run_tests
from benchmarks.gpu.environment import environment, why_no_gpu
from benchmarks.gpu.sanitizer import run_sanitizers
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.speed import brief, measure

STEPS: dict[str, Callable[[Settings], dict[str, Any]]] = {
    "environment": environment,
    "tests": run_tests,
    "sanitizer": run_sanitizers,
    "speed": measure,
}


def run(settings: Settings, steps: Sequence[str], folder: Path, command: str) -> list[str]:
    """Run the steps and write the files after each of them; what failed.

    A machine that is lent for a while may be taken away: what was measured until then is kept, in
    files that say that they are not finished.
    """
    start = time.perf_counter()
    report: dict[str, Any] = {
        "what": "gpm_core on a GPU: tests, sanitizers, speed; times in seconds, sizes in bytes",
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "rehearsal": settings.device != "cuda",
        "quick": settings.quick,
        "finished": False,
    }
    for name in steps:
        try:
            report[name] = STEPS[name](settings)
        except Exception as error:  # told in both files and by the exit status
            report[name] = {"failed step": brief(error)}
        report["seconds"] = time.perf_counter() - start
        report["finished"] = name == steps[-1]
        files.write(report, folder)
    return files.failures(report)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("docs/gpu"), help="folder of the files")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, smaller inputs")
    parser.add_argument("--only", default="", help="operations whose name contains this")
    parser.add_argument(
        "--steps", nargs="+", choices=list(STEPS)[1:], default=list(STEPS)[1:], help="default: all"
    )
    parser.add_argument(
        "--device",
        choices=("cuda", "cpu"),
        default="cuda",
        help="cpu: a rehearsal without a GPU; the numbers are the processor's",
    )
    for name, what in (("test", "the tests of one file"), ("sanitizer", "one sanitizer")):
        default = getattr(Settings, f"{name}_timeout")
        parser.add_argument(
            f"--{name}-timeout",
            type=float,
            default=default,
            metavar="SECONDS",
            help=f"that {what} may take (default: {default:.0f})",
        )
    chosen = parser.parse_args(arguments)
    reason = why_no_gpu() if chosen.device == "cuda" else None
    if reason is not None:
        print(f"bench-gpu needs a GPU: {reason}. Nothing was written.", file=sys.stderr)
        return 2
    settings = Settings(
        device=chosen.device,
        quick=chosen.quick,
        only=chosen.only,
        test_timeout=chosen.test_timeout,
        sanitizer_timeout=chosen.sanitizer_timeout,
    )
    steps = ["environment", *(name for name in STEPS if name in chosen.steps)]
    command = shlex.join(["python", "-m", "benchmarks.gpu", *arguments])
    failed = run(settings, steps, chosen.output, command)
    print(f"wrote {chosen.output / 'gpu.json'} and {chosen.output / 'gpu.md'}")
    for text in failed:
        print(f"failed: {text}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    # An end like any other, so that no program that was started outlives this one.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sys.exit(main(sys.argv[1:]))
