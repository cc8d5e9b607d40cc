"""How the command for a machine with a GPU takes times, in order of what it asks of a GPU."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))  # benchmarks are not installed, and pytest may be called bare

from benchmarks.gpu import (  # noqa: E402
    timing,
)


@pytest.fixture(autouse=True)
def one_thread(two_threads: None) -> None:
    """Nothing here is about threads, and on a busy machine they wait for each other."""
    torch.set_num_threads(1)


def test_rounds_take_turns() -> None:
    order = []
    times = {"a": iter(range(100)), "b": iter(range(100, 200))}

    def sample(name: str) -> float:
        order.append(name)
        return float(next(times[name]))

    timings = timing.interleaved({x: lambda x=x: sample(x) for x in times}, rounds=5)
    assert order == ["a", "b"] * (timing.WARM_UP_ROUNDS + 5)
    assert timings["a"] == timing.Timing(5.0, 4.0, 6.0), "of 3, 4, 5, 6, 7"
    assert timings["b"] == timing.Timing(105.0, 104.0, 106.0)


def test_the_processor_s_clock() -> None:
    calls = []
    timer = timing.ProcessorTimer(2**10)
    assert timer.repeated(lambda: calls.append(1), 7) > 0
    assert len(calls) == 7
    assert timer.once(lambda: calls.append(1)) > 0
    assert len(calls) == 8
    assert timer.capture(lambda: None, 3) is None


class FakeGpu:
    """What ``EventTimer`` asks of torch, and in which order. Streams have numbers; 0 is current."""

    float32 = torch.float32

    def __init__(self, broken: bool = False) -> None:
        self.log: list[str] = []
        self.cuda = self
        self.stream_now = "stream 0"
        self._streams = 0
        self._broken = broken

    def empty(self, *shape: int, dtype: torch.dtype, device: str) -> Any:
        return SimpleNamespace(zero_=lambda: self.log.append("fill"))

    def synchronize(self) -> None:
        self.log.append("synchronize")

    def _sleep(self, cycles: int) -> None:
        assert cycles >= 1_000_000
        self.log.append("sleep")

    def Event(self, enable_timing: bool) -> Any:
        return SimpleNamespace(
            record=lambda: self.log.append("event"),
            synchronize=lambda: self.log.append("wait"),
            elapsed_time=lambda other: 500.0,
        )

    def Stream(self) -> Any:
        self._streams += 1
        return SimpleNamespace(name=f"stream {self._streams}", wait_stream=lambda other: None)

    def current_stream(self) -> Any:
        return SimpleNamespace(name=self.stream_now, wait_stream=lambda other: None)

    def set_stream(self, stream: Any) -> None:
        self.stream_now = stream.name

    @contextlib.contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before, self.stream_now = self.stream_now, stream.name
        yield
        self.stream_now = before

    def CUDAGraph(self) -> Any:
        return SimpleNamespace(replay=lambda: self.log.append("replay"))

    @contextlib.contextmanager
    def graph(self, graph: Any, stream: Any) -> Iterator[None]:
        before, self.stream_now = self.stream_now, stream.name
        self.log.append("begin")
        yield
        self.log.append("end")
        if self._broken:  # as torch.cuda.graph, which goes back to no stream then
            raise RuntimeError("operation failed due to a previous error during capture")
        self.stream_now = before

    def call(self) -> None:
        self.log.append(self.stream_now)


def test_launches_are_hidden_behind_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu()
    monkeypatch.setattr(timing, "torch", gpu)
    timer = timing.EventTimer()
    assert timer.once(gpu.call) == 0.5
    assert gpu.log == ["synchronize", "fill", "sleep", "event", "stream 0", "event", "wait"]
    gpu.log.clear()
    assert timer.repeated(gpu.call, 2) == 0.25
    assert gpu.log == ["synchronize", "event", "stream 0", "stream 0", "event", "wait"]


def test_what_is_captured_is_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same call, at least twice, on the stream that captures: Triton has compiled all."""
    gpu = FakeGpu()
    monkeypatch.setattr(timing, "torch", gpu)
    sample = timing.EventTimer().capture(gpu.call, 2)
    assert gpu.log == [*["stream 1"] * 3, "begin", "stream 1", "stream 1", "end"]
    assert gpu.stream_now == "stream 0"
    gpu.log.clear()
    assert sample is not None
    assert sample() == 0.25
    assert gpu.log == ["synchronize", "sleep", "event", "replay", "event", "wait"]


def test_a_broken_capture_leaves_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu(broken=True)
    monkeypatch.setattr(timing, "torch", gpu)
    timer = timing.EventTimer()
    for stream in ("stream 1", "stream 2"):
        gpu.log.clear()
        with pytest.raises(RuntimeError, match="previous error"):
            timer.capture(gpu.call, 1)
        assert gpu.stream_now == "stream 0"
        assert gpu.log[0] == stream, "not the one of the broken capture"
