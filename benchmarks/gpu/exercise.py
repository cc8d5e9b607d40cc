"""Every operation, forward and backward, in all dtypes, for a sanitizer to watch.

``python -m benchmarks.gpu.exercise``: it compares nothing, which the tests do, and touches all that
the kernels touch. Its last line says how many calls it made.
"""

from __future__ import annotations

import argparse

import torch

from benchmarks.gpu.settings import OURS
from benchmarks.gpu.work import WORKS, Work, cast
from gpm_core import backends, testing

LAST_LINE = "exercise: {} calls"


def exercise(work: Work, backend: str, device: str) -> int:
    """Number of calls, all of which have ended."""
    variants = ((work.ours, work.make), (work.call_all, work.make_all))
    calls = 0
    for dtype in testing.DTYPES:
        if backends.why_not(backend, work.op, device, dtype) is not None:
            continue
        for sizes in work.nasty:
            # Made on the processor: a sanitizer has no other kernels to watch than ours.
            for function, make in dict.fromkeys(variants):
                inputs = cast(make(sizes, "cpu"), dtype)
                testing.run(function, [x.to(device) for x in inputs], backend=backend)
                calls += 1
    if device == "cuda":
        torch.cuda.synchronize()
    return calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--backends", nargs="+", default=OURS)
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    calls = 0
    for work in WORKS:
        if arguments.only in work.op:
            for backend in arguments.backends:
                calls += exercise(work, backend, arguments.device)
    print(LAST_LINE.format(calls))


if __name__ == "__main__":
    main()
