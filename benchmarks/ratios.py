"""Ratios to all peers, from interleaved runs in one process: ``python -m benchmarks.ratios``.

Prints a Markdown table. A ratio is the peer's median time over ours: above 1 we are faster.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.rows import OURS, Row, check
from benchmarks.shapes import ROWS


def medians(
    contenders: dict[str, Callable[[], Any]], rounds: int, repeats: int
) -> dict[str, float]:
    """Median seconds of each contender; each round runs all of them once, in turn."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for i in range(rounds + 3):
        for name, call in contenders.items():
            start = time.perf_counter()
            for _ in range(repeats):
                call()
            if i >= 3:
                times[name].append((time.perf_counter() - start) / repeats)
    return {name: statistics.median(values) for name, values in times.items()}


def lines(row: Row) -> Iterator[str]:
    contenders = row.make()
    check(row, contenders)
    with torch.set_grad_enabled(row.differentiates):
        seconds = medians(contenders, row.rounds, row.repeats)
    ours = seconds.pop(OURS)
    for peer, value in seconds.items():
        target = row.targets.get(peer)
        verdict = "" if target is None else ("met" if value / ours >= target else "missed")
        aim = "" if target is None else f">= {target:.2f}"
        yield (
            f"| {row.name} | {peer} | {ours * 1e6:,.0f} | {value * 1e6:,.0f} | {value / ours:.2f} "
            f"| {aim} | {verdict} |"
        )
    for peer, package in row.missing().items():
        yield f"| {row.name} | {peer} | | | | | {package} is not installed |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="rows whose name contains this")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print("| work | peer | ours, us | peer, us | ratio | target | |")
    print("|---|---|---:|---:|---:|---:|---|")
    for row in ROWS:
        if arguments.only in row.name:
            for line in lines(row):
                print(line, flush=True)


if __name__ == "__main__":
    main()
