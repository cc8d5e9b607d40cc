"""Clocks: of a GPU, by events on its stream, and of the processor, to rehearse without one."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

Call = Callable[[], Any]

WARM_UP_ROUNDS = 3

#: Calls in a row at small sizes, where one alone is too short for a clock.
SMALL_REPEATS = 20


class Timer(Protocol):
    """How long calls take on a device."""

    #: for the report
    description: str

    def once(self, call: Call) -> float:
        """Seconds of one call whose inputs are in no cache."""

    def repeated(self, call: Call, repeats: int) -> float:
        """Seconds of one of so many calls in a row, caches warm, as called from Python."""

    def capture(self, call: Call, repeats: int) -> Call | None:
        """A call that launches the work of so many calls at once, or None where nothing can."""


class ProcessorTimer:
    """``time.perf_counter``. Only a rehearsal: its caches are flushed as well as can be."""

    description = "time.perf_counter on the processor: a rehearsal"

    def __init__(self, flush_bytes: int = 2**26) -> None:
        self._flush = torch.empty(flush_bytes, dtype=torch.uint8)

    def once(self, call: Call) -> float:
        """One call, caches flushed."""
        self._flush.zero_()
        return self.repeated(call, 1)

    def repeated(self, call: Call, repeats: int) -> float:
        """Calls in a row, caches warm."""
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - start) / repeats

    def capture(self, call: Call, repeats: int) -> Call | None:
        """Nothing to capture with."""
        return None


class EventTimer:
    """CUDA events on the current stream."""

    description = (
        "CUDA events. Large sizes: one call at a time, after 1 GiB was written, so that no input "
        "is in the L2 cache and the launch is queued while the GPU is still busy. Small sizes: "
        f"{SMALL_REPEATS} calls in a row, caches warm; as called from Python, and as one CUDA "
        "graph, which leaves the kernels without the launches"
    )

    def __init__(self, flush_bytes: int = 2**30) -> None:
        # Written, not read: the limits are measured after the same, and a kernel that starts with
        # a cache full of unwritten lines pays for as many as it leaves behind.
        self._flush = torch.empty(flush_bytes // 4, dtype=torch.float32, device="cuda")
        self._start = torch.cuda.Event(enable_timing=True)
        self._end = torch.cuda.Event(enable_timing=True)

    def once(self, call: Call) -> float:
        """One call, caches flushed."""
        torch.cuda.synchronize()
        self._flush.zero_()
        return self._time(call, 1)

    def repeated(self, call: Call, repeats: int) -> float:
        """Calls in a row, caches warm."""
        torch.cuda.synchronize()
        return self._time(call, repeats)

    def _time(self, call: Call, repeats: int) -> float:
        self._start.record()
        for _ in range(repeats):
            call()
        self._end.record()
        self._end.synchronize()
        return self._start.elapsed_time(self._end) / 1e3 / repeats

    def capture(self, call: Call, repeats: int) -> Call | None:
        """A CUDA graph of so many calls."""
        # Not on the current stream, where a capture cannot begin, and warm, since a first call may
        # compile, allocate or synchronize.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_ROUNDS):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(repeats):
                call()
        return graph.replay


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median of all rounds and the quartiles around it."""

    median: float
    low: float
    high: float


def interleaved(samples: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, Timing]:
    """Timings of each contender; each round takes one sample of all of them, in turn.

    What disturbs the machine for a while disturbs all alike.
    """
    times: dict[str, list[float]] = {name: [] for name in samples}
    for i in range(rounds + WARM_UP_ROUNDS):
        for name, sample in samples.items():
            seconds = sample()
            if i >= WARM_UP_ROUNDS:
                times[name].append(seconds)
    return {name: _summary(values) for name, values in times.items()}


def _summary(values: list[float]) -> Timing:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Timing(median, low, high)
