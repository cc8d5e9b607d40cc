"""Peak memory of ``linear_logprob`` and its peers: ``python -m benchmarks.memory``.

Each contender runs in a process of its own, twice: once so that libraries have what they keep, then
with the peak of the resident set (VmHWM of /proc, Linux) reset before. What a step returns, the
gradients, is not counted: everybody must have it. Prints a Markdown table in MiB, and the share of
the logits in float32.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.shapes import logprob_step

LOGITS = 2048 * 49152 * 4
MIB = 2**20


def resident(field: str) -> int:
    """Bytes: VmRSS now, VmHWM at most since the reset."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def extra(contender: str, trained: bool) -> int:
    """Bytes at the peak of a step beyond what was there before and what it returns."""
    step = logprob_step(trained)[contender]
    step()
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    results = step()
    return resident("VmHWM") - before - sum(result.nbytes for result in results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", nargs=2, metavar=("CONTENDER", "PROJECTION"))
    arguments = parser.parse_args()
    if arguments.one:
        torch.set_num_threads(arguments.threads)
        contender, projection = arguments.one
        print(extra(contender, projection == "trained"))
        return
    print("| projection | contender | peak extra, MiB | share of the logits |")
    print("|---|---|---:|---:|")
    for projection in ("trained", "frozen"):
        for contender in logprob_step(False):
            command = [sys.executable, "-m", "benchmarks.memory", "--one", contender, projection]
            command += ["--threads", str(arguments.threads)]
            found = subprocess.run(command, capture_output=True, text=True, check=True)
            used = int(found.stdout)
            print(f"| {projection} | {contender} | {used / MIB:,.0f} | {used / LOGITS:.3f} |")


if __name__ == "__main__":
    main()
