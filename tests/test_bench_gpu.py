"""The command for a machine with a GPU, rehearsed without one: what it measures and writes."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))  # benchmarks are not installed, and pytest may be called bare

from benchmarks.gpu import __main__ as command  # noqa: E402
from benchmarks.gpu import (  # noqa: E402
    environment,
    report,
    speed,
    timing,
    work,
)
from benchmarks.gpu.settings import Settings  # noqa: E402
from gpm_core import ops  # noqa: E402

CPU = Settings(device="cpu", quick=True, backends=("reference",), compiler="eager")
WORKS = {x.op: x for x in work.WORKS}


class FakeTimer:
    """Every call takes a second, and every graph holds half of the time."""

    description = "an hourglass"

    def __init__(self, refuse: Callable[[], bool] = lambda: False) -> None:
        self._refuse = refuse

    def once(self, call: timing.Call) -> float:
        call()
        return 1.0

    def repeated(self, call: timing.Call, repeats: int) -> float:
        return self.once(call)

    def capture(self, call: timing.Call, repeats: int) -> Callable[[], float] | None:
        if self._refuse():
            try:
                raise RuntimeError("operation not permitted when stream is capturing\nmore")
            finally:
                raise RuntimeError("and then it could not be ended")
        return lambda: 0.5


@pytest.fixture(autouse=True)
def one_thread(two_threads: None) -> None:
    """Nothing here is about threads, and on a busy machine they wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every operation in two rows that together take every path, at small sizes."""
    works = [dataclasses.replace(x, less=x.nasty[1], small=x.nasty[0]) for x in work.WORKS]
    monkeypatch.setattr(speed, "WORKS", works)
    everything = speed.rows
    monkeypatch.setattr(
        speed,
        "rows",
        lambda settings: [
            row
            for row in everything(settings)
            if (row.size == "large") == row.backward == (row.dtype == torch.bfloat16)
        ],
    )
    monkeypatch.setattr(speed, "LIMIT_BYTES", {"cpu": 2**16})
    monkeypatch.setattr(speed, "new_timer", lambda settings: timing.ProcessorTimer(2**10))


def run(folder: Path, *steps: str, settings: Settings = CPU) -> tuple[list[str], Any, str]:
    """What failed, the JSON and the Markdown."""
    failed = command.run(settings, steps, folder, "python -m benchmarks.gpu --quick")
    assert sorted(x.name for x in folder.iterdir()) == ["gpu.json", "gpu.md"]
    return failed, json.loads((folder / "gpu.json").read_text()), (folder / "gpu.md").read_text()


# -- the command -------------------------------------------------------------------------------


def test_without_a_gpu_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    assert command.main(["--output", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert "bench-gpu needs a GPU: PyTorch" in message
    assert "is not a CUDA build" in message
    assert not (tmp_path / "out").exists()


def test_limits_of_time_are_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(command, "run", lambda settings, *others: seen.append(settings) or [])
    arguments = ["--device", "cpu", "--output", str(tmp_path)]
    assert command.main(arguments) == 0
    assert command.main([*arguments, "--test-timeout", "7", "--sanitizer-timeout", "8.5"]) == 0
    assert [(x.test_timeout, x.sanitizer_timeout) for x in seen] == [(1800, 1800), (7, 8.5)]


def test_a_failed_step_is_told_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--device", "cpu", "--steps", "speed", "--only", "soup", "--output", str(tmp_path)]
    assert command.main(arguments) == 1
    expected = "speed: ValueError: no operation's name contains 'soup'"
    assert f"failed: {expected}" in capsys.readouterr().err
    text = (tmp_path / "gpu.md").read_text()
    assert f"- {expected}" in text
    assert report.REHEARSAL in text
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert written["rehearsal"] is True
    assert written["finished"] is True
    assert written["command"].startswith("python -m benchmarks.gpu --device cpu")
    assert f"speed: {written['speed']['failed step']}" == expected
    assert written["environment"]["versions"]["torch"] == torch.__version__


def test_a_step_that_fails_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what was done before the process was killed is in the files, as unfinished."""
    seen = []

    def broken(settings: Settings) -> dict[str, Any]:
        raise RuntimeError("out of | luck\nand more")

    def peek(settings: Settings) -> dict[str, Any]:
        seen.append((tmp_path / "gpu.md").read_text())
        return {"installed": False}

    monkeypatch.setitem(command.STEPS, "tests", broken)
    monkeypatch.setitem(command.STEPS, "sanitizer", peek)
    failed, written, text = run(tmp_path, "tests", "sanitizer")
    assert failed == ["tests: RuntimeError: out of | luck"]
    assert "**Not finished**" in seen[0]
    assert "Not finished" not in text
    assert "compute-sanitizer is not installed" in text
    assert written["tests"] == {"failed step": "RuntimeError: out of | luck"}


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "gpu.json").write_text("old")
    with pytest.raises(ValueError, match="Out of range"):
        report.write({"speed": float("nan")}, tmp_path)
    assert (tmp_path / "gpu.json").read_text() == "old"


def test_all_operations_from_inputs_to_files(small: None, tmp_path: Path) -> None:
    failed, written, text = run(tmp_path, "environment", "speed")
    assert failed == []
    rows = written["speed"]["rows"]
    assert {row["operation"] for row in rows} == set(ops.__all__)
    assert len(rows) == 2 * len(ops.__all__)
    for row in rows:
        assert set(row["contenders"]) == {"reference", "eager", "torch.compile"}
        for entry in row["contenders"].values():
            assert entry["seconds"]["low"] <= entry["seconds"]["median"] <= entry["seconds"]["high"]
            if row["size"] == "large":
                rate = row["bytes"] / entry["seconds"]["median"]
                limit = written["speed"]["bytes per second"]["limit"]
                assert entry["bytes per second"] == pytest.approx(rate)
                assert entry["of the limit"] == pytest.approx(rate / limit)
    assert "| score (B, d) = (17, 6), bfloat16, forward + backward |" in text
    assert "| score (B, d) = (1, 2), float32, forward |" in text
    assert ("met)" in text) or ("missed)" in text)


# -- results before speeds ---------------------------------------------------------------------


def contest(monkeypatch: pytest.MonkeyPatch, timer: Any = None, **changes: Any) -> Any:
    """The row of ``score`` with some of its parts exchanged, and what failed in it."""
    changed = dataclasses.replace(WORKS["score"], small=(3, 4), **changes)
    row = speed.Row(changed, "small", torch.float32, backward=True)
    monkeypatch.setattr(speed, "rows", lambda settings: [row])
    monkeypatch.setattr(speed, "LIMIT_BYTES", {"cpu": 2**10})
    monkeypatch.setattr(speed, "new_timer", lambda settings: timer or FakeTimer())
    summary = speed.measure(CPU)
    return summary["rows"][0]["contenders"], summary.get("failed step", "")


def test_a_wrong_result_has_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    entries, failed = contest(monkeypatch, peer=lambda a, b: work.eager_score(a, b) * 1.001)
    assert "seconds" in entries["eager"]
    assert entries["reference"]["failed"].startswith("wrong result: ")
    assert set(entries["reference"]) == {"failed"}
    assert "score, small, float32, forward + backward, reference: wrong result" in failed


def test_a_wrong_gradient_or_nan_is_a_wrong_result() -> None:
    right = [torch.tensor([1.0, -4.0]), torch.tensor([0.5])]
    assert speed.difference([right[0] + 0.5, right[1]], right) == 0.125
    assert speed.difference([right[0], right[1] * 2], right) == 1.0
    assert speed.difference([right[0], right[1] * float("nan")], right) != 0.0
    assert not speed.difference([right[0], right[1] * float("nan")], right) <= 0.05
    with pytest.raises(ValueError, match="zip"):
        speed.difference(right[:1], right)
    with pytest.raises(ValueError, match="shape"):
        speed.difference([right[0][:1], right[1]], right)


def test_a_contender_that_fails_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def peer(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) > 3:  # the expected result, its gradient, and the dtype of eager's
            raise RuntimeError("no more")
        return work.eager_score(a, b)

    entries, failed = contest(monkeypatch, peer=peer)
    assert entries["eager"] == {"failed": "RuntimeError: no more"}
    assert "seconds" in entries["reference"]
    assert "score, small, float32, forward + backward, eager: RuntimeError: no more" in failed


def test_launches_and_kernels_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    entries, failed = contest(monkeypatch)
    assert failed == ""
    for entry in entries.values():
        assert entry["seconds"]["median"] == 1.0
        assert entry["seconds in a graph"]["median"] == 0.5


def test_what_cannot_be_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a peer it is said, of ours it is a fault."""
    entries, failed = contest(monkeypatch, FakeTimer(lambda: True))
    reason = "RuntimeError: operation not permitted when stream is capturing"
    assert all(entry["not captured"] == reason for entry in entries.values())
    assert failed == f"score, small, float32, forward + backward, reference: not captured: {reason}"


def test_float32_means_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """TF32 in what results are compared with would make right ones wrong."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        contest(monkeypatch)
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision(before)


def test_without_a_backend_there_is_nothing_to_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed.backends, "why_not", lambda *asked: "has no kernels")
    entries, failed = contest(monkeypatch)
    assert entries["reference"] == {"absent": "has no kernels"}
    assert failed.endswith("no backend of gpm_core computes it here")


# -- bandwidth ---------------------------------------------------------------------------------


def least_bytes(op: str, sizes: tuple[int, ...], dtype: torch.dtype, backward: bool) -> int:
    inputs = work.cast(WORKS[op].make(sizes, "cpu"), dtype)
    inputs = [x.requires_grad_(x.is_floating_point()) for x in inputs]
    outputs = WORKS[op].ours(*inputs)
    outputs = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
    return work.minimum_bytes(WORKS[op], inputs, outputs, backward)


@pytest.mark.parametrize(
    ("op", "sizes", "dtype", "forward", "backward"),
    [
        # two of 3 x 4 read, 3 written; 3 read, again both, both gradients written
        ("score", (3, 4), torch.float32, 96 + 12, 12 + 96 + 96),
        # results are float32: 3 losses and 3 probabilities; only the loss has a gradient
        ("preference_loss", (3, 4), torch.bfloat16, 48 + 24, 12 + 48 + 48),
        ("normalize", (5, 3), torch.float32, 60 + 60, 60 + 60 + 60),
        ("score_matrix", (5, 4), torch.bfloat16, 40 + 50, 50 + 40 + 40),
        ("cross_score_matrix", (5, 3, 2), torch.float32, 64 + 60, 60 + 64 + 64),
        # of 2 x 7 x 10 only 2 x 10 read, weight 6 x 10, two positions of 8 bytes; 2 x 6 written;
        # the gradient of all 2 x 7 x 10 is written
        (
            "preference_embedding",
            (2, 7, 10, 6),
            torch.float32,
            80 + 240 + 16 + 48,
            48 + 80 + 240 + 16 + 560 + 240,
        ),
    ],
)
def test_least_bytes_by_hand(
    op: str, sizes: tuple[int, ...], dtype: torch.dtype, forward: int, backward: int
) -> None:
    assert least_bytes(op, sizes, dtype, backward=False) == forward
    assert least_bytes(op, sizes, dtype, backward=True) == forward + backward


def test_bandwidth_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    assert speed.bandwidth(3_000, 1.5) == 2_000
    monkeypatch.setattr(speed, "LIMIT_BYTES", {"cpu": 4_000})
    limits = speed.measure_limits(CPU, FakeTimer())
    assert limits == {"copy": 8_000, "fill": 4_000, "limit": 8_000}, "a copy reads and writes"
    assert speed.verdict(0.8) == "met"
    assert speed.verdict(0.79) == "missed"


# -- the machine -------------------------------------------------------------------------------


def test_nvidia_smi() -> None:
    answer = "NVIDIA H100 80GB HBM3, 570.133.20, 1980, 2619, 1980, 2619, 700.00, 34\n"
    asked = environment.parse_nvidia_smi(answer)
    assert asked["name"] == "NVIDIA H100 80GB HBM3"
    assert asked["driver_version"] == "570.133.20"
    assert asked["temperature.gpu"] == "34"
    with pytest.raises(ValueError, match="zip"):
        environment.parse_nvidia_smi("No devices were found\n")


def test_a_lost_gpu_loses_no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a fault in a kernel every question to CUDA is an error."""

    def lost() -> int:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(environment.shutil, "which", lambda name: name)
    monkeypatch.setattr(torch.cuda, "current_device", lost)
    assert "illegal memory access" in environment.nvidia_smi()
