"""Clocks: of a GPU, by events on its stream, and of the processor, to rehearse without one."""

from __future__ import annotations

import gc
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

#: About a millisecond at a GPU's clock: longer than a processor takes to launch a call.
SLEEP_CYCLES = 2_000_000


class Timer(Protocol):
    """How long calls take on a device."""

    #: for the report
    description: str

    def once(self, call: Call) -> float:
        """Seconds of one call whose inputs are in no cache."""

    def repeated(self, call: Call, repeats: int) -> float:
        """Seconds of one of so many calls in a row, caches warm, as called from Python."""

    def capture(self, call: Call, repeats: int) -> Callable[[], float] | None:
        """Takes the seconds of one of so many calls launched at once; None where nothing can."""


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

    def capture(self, call: Call, repeats: int) -> Callable[[], float] | None:
        """Nothing to capture with."""
        return None


class EventTimer:
    """CUDA events on the current stream."""

    description = (
        "CUDA events. Large sizes: one call at a time, after 1 GiB was written, so that no input "
        f"is in the L2 cache, and a wait of {SLEEP_CYCLES:,} cycles, in which all is launched. "
        f"Small sizes: {SMALL_REPEATS} calls in a row, caches warm; as called from Python, and as "
        "one CUDA graph, launched in such a wait, which leaves the kernels without the launches"
    )

    def __init__(self, flush_bytes: int = 2**30) -> None:
        # Written, not read: the limits are measured after the same, and a kernel that starts with
        # a cache full of unwritten lines pays for as many as it leaves behind.
        self._flush = torch.empty(flush_bytes // 4, dtype=torch.float32, device="cuda")
        self._start = torch.cuda.Event(enable_timing=True)
        self._end = torch.cuda.Event(enable_timing=True)
        self._side = torch.cuda.Stream()
        self._broken: list[torch.cuda.CUDAGraph] = []

    def once(self, call: Call) -> float:
        """One call, caches flushed."""
        torch.cuda.synchronize()
        self._flush.zero_()
        return self._queued(call)

    def repeated(self, call: Call, repeats: int) -> float:
        """Calls in a row, caches warm."""
        torch.cuda.synchronize()
        return self._time(call, repeats)

    def _queued(self, call: Call) -> float:
        """One call, all of it launched before the first event comes to pass.

        The events stand in the stream: were the GPU to wait for launches between them, the
        processor's time would count as its own. Writing 1 GiB takes 0.3 to 0.5 ms, and a forward
        and a backward pass of many kernels may take longer to launch on a slow processor.
        """
        torch.cuda._sleep(SLEEP_CYCLES)
        return self._time(call, 1)

    def _time(self, call: Call, repeats: int) -> float:
        self._start.record()
        for _ in range(repeats):
            call()
        self._end.record()
        self._end.synchronize()
        return self._start.elapsed_time(self._end) / 1e3 / repeats

    def capture(self, call: Call, repeats: int) -> Callable[[], float] | None:
        """A CUDA graph of so many calls, launched like one call."""
        # Not on the current stream, where a capture cannot begin. And warm: the same call on the
        # same tensors and stream, since a first one may compile, allocate or synchronize.
        current = torch.cuda.current_stream()
        self._side.wait_stream(current)
        with torch.cuda.stream(self._side):
            for _ in range(WARM_UP_ROUNDS):
                call()
        current.wait_stream(self._side)
        gc.collect()  # what is thrown away during a capture may call what is forbidden there
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self._side):
                for _ in range(repeats):
                    call()
        except Exception:
            # The allocator does not forget a graph that it was not told the end of.
            self._broken.append(graph)
            self._side = torch.cuda.Stream()
            raise
        finally:
            # A failed capture leaves its stream as the current one.
            torch.cuda.set_stream(current)

        def sample() -> float:
            torch.cuda.synchronize()
            return self._queued(graph.replay) / repeats

        return sample


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
