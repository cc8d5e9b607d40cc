"""Peak memory of what saves it, and of its peers: ``python -m benchmarks.memory``.

``linear_logprob`` against the logits, and the targets of policies against the K x K matrix. Each
contender runs in a process of its own, twice: once so that libraries have what they keep, then with
the peak of the resident set (VmHWM of /proc, Linux) reset before. What a step returns is not
counted: everybody must have it. Prints a Markdown table in MiB, and the share of what is not to be
held in float32. The allocator asks the system for memory in larger steps than a small contender
needs, so tenths of a MiB say nothing.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.objective_shapes import mean_scores, mean_win_rates
from benchmarks.rows import Contenders
from benchmarks.shapes import logprob_step

MIB = 2**20
_LOGITS = 2048 * 49152 * 4
_EVERYDAY, _LARGE = (1024, 16, 8), (4096, 8)
#: name -> contenders, and the bytes of what is not to be held
WORKS: dict[str, tuple[Callable[[], Contenders], int]] = {
    "linear_logprob, projection trained": (partial(logprob_step, True), _LOGITS),
    "linear_logprob, projection frozen": (partial(logprob_step, False), _LOGITS),
    "targets.mean_scores, 1024 prompts x K = 16": (
        partial(mean_scores, *_EVERYDAY),
        1024 * 16 * 16 * 4,
    ),
    "targets.mean_scores, K = 4096": (partial(mean_scores, *_LARGE), 4096 * 4096 * 4),
    "targets.mean_win_rates, 1024 prompts x K = 16": (
        partial(mean_win_rates, *_EVERYDAY),
        1024 * 16 * 16 * 4,
    ),
    "targets.mean_win_rates, K = 4096": (partial(mean_win_rates, *_LARGE), 4096 * 4096 * 4),
}


def resident(field: str) -> int:
    """Bytes: VmRSS now, VmHWM at most since the reset."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def extra(contender: str, work: str) -> int:
    """Bytes at the peak of a step beyond what was there before and what it returns."""
    step = WORKS[work][0]()[contender]
    step()
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    results = step()
    returned = (results,) if isinstance(results, Tensor) else results
    return resident("VmHWM") - before - sum(result.nbytes for result in returned)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="works whose name contains this")
    parser.add_argument("--one", nargs=2, metavar=("CONTENDER", "WORK"))
    arguments = parser.parse_args()
    if arguments.one:
        torch.set_num_threads(arguments.threads)
        print(extra(*arguments.one))
        return
    print("| work | contender | peak extra, MiB | share |")
    print("|---|---|---:|---:|")
    for work, (make, bytes_avoided) in WORKS.items():
        if arguments.only not in work:
            continue
        for contender in make():
            command = [sys.executable, "-m", "benchmarks.memory", "--one", contender, work]
            command += ["--threads", str(arguments.threads)]
            found = subprocess.run(command, capture_output=True, text=True, check=True)
            used = int(found.stdout)
            print(
                f"| {work} | {contender} | {used / MIB:,.1f} | {used / bytes_avoided:.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
