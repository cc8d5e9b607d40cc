"""How long operations take, and how close to the memory's limit they come."""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

import gpm_core
from benchmarks.gpu.environment import nvidia_smi
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.timing import (
    SMALL_REPEATS,
    Call,
    EventTimer,
    ProcessorTimer,
    Timer,
    interleaved,
)
from benchmarks.gpu.work import WORKS, Sizes, Work, cast, minimum_bytes
from gpm_core import backends

#: Fraction of the limit that is aimed at, at large sizes.
AIM = 0.8

#: Bytes that a fill writes, and a copy reads and writes, to measure the limit.
LIMIT_BYTES = {"cuda": 2**30, "cpu": 2**26}

#: Largest difference to plain PyTorch in float32, relative to the largest number of a result. In
#: bfloat16 plain PyTorch rounds blocks, sums and scores to 2^-9 each, and tau = 0.1 makes ten times
#: that of it: a probability may be 0.02 off, and its slope, in the gradients, twice as much.
ALLOWED = {torch.float32: 1e-4, torch.bfloat16: 0.05}


@dataclass(frozen=True)
class Row:
    """One line: an operation, a size, a dtype, and whether its backward pass is taken too."""

    work: Work
    size: str
    dtype: torch.dtype
    backward: bool

    @property
    def name(self) -> str:
        """What the row is called in messages."""
        passes = "forward + backward" if self.backward else "forward"
        return f"{self.work.op}, {self.size}, {str(self.dtype).removeprefix('torch.')}, {passes}"


@dataclass(frozen=True)
class Contender:
    """A call, and the backend that it is made with (None: plain PyTorch)."""

    call: Callable[[], list[Tensor]]
    backend: str | None

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """A block in which the backend computes."""
        with gpm_core.backend(self.backend) if self.backend else contextlib.nullcontext():
            yield


def rows(settings: Settings) -> list[Row]:
    return [
        Row(work, size, dtype, backward)
        for size in ("small", "large")
        for work in WORKS
        if settings.only in work.op
        for dtype in ALLOWED
        for backward in (False, True)
    ]


def sizes_of(row: Row, quick: bool) -> Sizes:
    if row.size == "small":
        return row.work.small
    return row.work.less if quick else row.work.large


def new_timer(settings: Settings) -> Timer:
    return EventTimer() if settings.device == "cuda" else ProcessorTimer()


def rounds_of(size: str, quick: bool) -> int:
    return {"small": (51, 5), "large": (21, 3)}[size][quick]


# -- bandwidth ---------------------------------------------------------------------------------


def bandwidth(bytes_moved: int, seconds: float) -> float:
    """Bytes per second."""
    return bytes_moved / seconds


def measure_limits(settings: Settings, timer: Timer) -> dict[str, float]:
    """Bytes per second of a copy (read and written) and of a fill (written), and the larger one.

    The larger is the limit that operations are measured by, whether they read or write most.
    """
    count = LIMIT_BYTES[settings.device] // 4
    source = torch.ones(count, dtype=torch.float32, device=settings.device)
    target = torch.empty_like(source)
    calls: dict[str, tuple[Call, int]] = {
        "copy": (lambda: target.copy_(source), 2 * source.nbytes),
        "fill": (lambda: target.fill_(1.0), target.nbytes),
    }
    samples = {name: partial(timer.once, call) for name, (call, _) in calls.items()}
    times = interleaved(samples, rounds_of("large", settings.quick))
    limits = {name: bandwidth(calls[name][1], times[name].median) for name in calls}
    return {**limits, "limit": max(limits.values())}


def verdict(fraction: float) -> str:
    return "met" if fraction >= AIM else "missed"


# -- contenders --------------------------------------------------------------------------------


def _as_list(output: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else list(output)


def prepare(
    function: Callable[..., Any], inputs: list[Tensor], incoming: Tensor | None
) -> Callable[[], list[Tensor]]:
    """A call that gives the results and, with an incoming gradient, those of the inputs."""
    if incoming is None:
        return lambda: _as_list(function(*inputs))
    leaves = [x for x in inputs if x.requires_grad]
    # Not every contender gives the loss the same dtype. Converting is no part of its work.
    gradient = incoming.to(_as_list(function(*inputs))[0].dtype)

    def call() -> list[Tensor]:
        outputs = _as_list(function(*inputs))
        return [*outputs, *torch.autograd.grad(outputs[0], leaves, gradient)]

    return call


def _leaves(inputs: list[Tensor], backward: bool) -> list[Tensor]:
    return [x.detach().requires_grad_(backward and x.is_floating_point()) for x in inputs]


def _candidates(
    row: Row, inputs: list[Tensor], incoming: Tensor | None, settings: Settings
) -> dict[str, Callable[[], Contender] | str]:
    """Ours and the peers, yet to be made; instead of one that cannot be there, the reason."""

    def ours(backend: str) -> Contender:
        with gpm_core.backend(backend):
            return Contender(prepare(row.work.ours, inputs, incoming), backend)

    def compiled() -> Contender:
        # fullgraph: what cannot be compiled is an error, and not eager under another name.
        function = torch.compile(
            row.work.peer, dynamic=False, fullgraph=True, backend=settings.compiler
        )
        return Contender(prepare(function, inputs, incoming), None)

    reasons = {
        name: backends.why_not(name, row.work.op, settings.device, row.dtype)
        for name in settings.backends
    }
    return {
        **{name: reason or partial(ours, name) for name, reason in reasons.items()},
        "eager": lambda: Contender(prepare(row.work.peer, inputs, incoming), None),
        "torch.compile": compiled,
    }


@torch.no_grad()
def difference(results: list[Tensor], expected: list[Tensor]) -> float:
    """The largest error of all results, each relative to the largest number of its tensor."""
    worst = 0.0
    for result, true in zip(results, expected, strict=True):
        if result.shape != true.shape:
            raise ValueError(f"a result has shape {tuple(result.shape)}, not {tuple(true.shape)}")
        scale = true.abs().max().clamp_min(torch.finfo(true.dtype).tiny)
        error = float((result.to(true.dtype) - true).abs().max() / scale)
        if math.isnan(error):
            return error
        worst = max(worst, error)
    return worst


# -- one row -----------------------------------------------------------------------------------


def _gradient_for(output: Tensor, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator(output.device).manual_seed(7)
    return torch.rand(output.shape, generator=generator, device=output.device).to(dtype)


def measure_row(row: Row, settings: Settings, timer: Timer, limit: float) -> dict[str, Any]:
    """Compare all contenders' results, then time those that are right."""
    torch.compiler.reset()  # of one function only so many versions are kept
    sizes = sizes_of(row, settings.quick)
    inputs = _leaves(cast(row.work.make(sizes, settings.device), row.dtype), row.backward)
    wide = _leaves(cast(inputs, torch.float32), row.backward)
    outputs = _as_list(row.work.peer(*wide))
    incoming = _gradient_for(outputs[0], row.dtype) if row.backward else None
    outputs = [output.detach() for output in outputs]
    expected = prepare(row.work.peer, wide, incoming)()
    entries, contenders = _check(row, _candidates(row, inputs, incoming, settings), expected)
    moved = minimum_bytes(row.work, inputs, outputs, row.backward)
    del expected, outputs, wide
    for name, timings in _time(row, contenders, settings, timer).items():
        entries[name] |= timings
        if row.size == "large":
            entries[name]["bytes per second"] = bandwidth(moved, timings["seconds"]["median"])
            entries[name]["of the limit"] = entries[name]["bytes per second"] / limit
    return {
        "row": row.name,
        "operation": row.work.op,
        "size": row.size,
        "dtype": str(row.dtype).removeprefix("torch."),
        "backward": row.backward,
        "sizes": {row.work.sizes: sizes},
        "bytes": moved,
        "contenders": entries,
    }


def _check(
    row: Row, candidates: dict[str, Callable[[], Contender] | str], expected: list[Tensor]
) -> tuple[dict[str, dict[str, Any]], dict[str, Contender]]:
    """What is known of each contender, and those whose results are right."""
    entries: dict[str, dict[str, Any]] = {}
    right: dict[str, Contender] = {}
    allowed = ALLOWED[row.dtype]
    for name, make in candidates.items():
        if isinstance(make, str):
            entries[name] = {"absent": make}
            continue
        try:
            contender = make()
            with contender.active():
                error = difference(contender.call(), expected)
        except Exception as problem:  # of one contender; the others go on
            entries[name] = {"failed": brief(problem)}
            continue
        if error <= allowed:
            entries[name] = {"difference": error}
            right[name] = contender
        else:
            entries[name] = {"failed": f"wrong result: {error:.1e} off, allowed {allowed:.0e}"}
    return entries, right


def _time(
    row: Row, contenders: dict[str, Contender], settings: Settings, timer: Timer
) -> dict[str, dict[str, Any]]:
    """Timings of each contender, from interleaved rounds."""
    rounds = rounds_of(row.size, settings.quick)

    def take(call: Call) -> float:
        return timer.once(call) if row.size == "large" else timer.repeated(call, SMALL_REPEATS)

    samples = {name: partial(_sample, x, take) for name, x in contenders.items()}
    entries = {name: {"seconds": asdict(t)} for name, t in interleaved(samples, rounds).items()}
    if row.size == "small":
        graphs = _capture(contenders, entries, timer)
        for name, timing in interleaved(graphs, rounds).items():
            entries[name]["seconds in a graph"] = asdict(timing)
    return entries


def _sample(contender: Contender, take: Callable[[Call], float]) -> float:
    with contender.active():
        return take(contender.call)


def _capture(
    contenders: dict[str, Contender], entries: dict[str, dict[str, Any]], timer: Timer
) -> dict[str, Callable[[], float]]:
    """A sample of each contender whose work a graph can hold; of the others, why not."""
    graphs: dict[str, Callable[[], float]] = {}
    for name, contender in contenders.items():
        try:
            with contender.active():
                sample = timer.capture(contender.call, SMALL_REPEATS)
        except Exception as error:  # a fault of ours, not of a peer: see _failures
            # What broke the capture, rather than that it then could not be ended.
            entries[name]["not captured"] = brief(error.__context__ or error)
            continue
        if sample is not None:
            graphs[name] = sample
    return graphs


def brief(error: BaseException) -> str:
    """An error in one line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


# -- all of them -------------------------------------------------------------------------------


def measure(settings: Settings) -> dict[str, Any]:
    """The limits and all rows. A row that fails is reported as such, and the others go on."""
    lines = rows(settings)
    if not lines:
        raise ValueError(f"no operation's name contains {settings.only!r}")
    # Containers of NVIDIA's set TF32, and what everything is compared with would not be float32.
    torch.set_float32_matmul_precision("highest")
    timer = new_timer(settings)
    limits = measure_limits(settings, timer)
    print(f"limit: {limits['limit'] / 1e9:,.0f} GB/s", flush=True)
    results = []
    for row in lines:
        print(row.name, flush=True)
        try:
            results.append(measure_row(row, settings, timer, limits["limit"]))
        except Exception as error:
            results.append({"row": row.name, "failed": brief(error)})
        _release(settings)
    summary = {"clock": timer.description, "bytes per second": limits, "aim": AIM, "rows": results}
    failed = [name for result in results for name in _failures(result, settings)]
    if settings.device == "cuda":
        summary["nvidia-smi"] = nvidia_smi()
    if failed:
        summary["failed step"] = "; ".join(failed)
    return summary


def _release(settings: Settings) -> None:
    """Give memory back, so that a row's size does not depend on the one before."""
    gc.collect()
    # After a fault in a kernel every call of CUDA fails; the next row will say so.
    with contextlib.suppress(RuntimeError):
        if settings.device == "cuda":
            torch.cuda.empty_cache()


def _failures(result: dict[str, Any], settings: Settings) -> Iterator[str]:
    if "failed" in result:
        yield f"{result['row']}: {result['failed']}"
    entries = result.get("contenders", {})
    for name, entry in entries.items():
        if "failed" in entry:
            yield f"{result['row']}, {name}: {entry['failed']}"
        elif "not captured" in entry and name in settings.backends:
            yield f"{result['row']}, {name}: not captured: {entry['not captured']}"
    if entries and all("absent" in entries[name] for name in settings.backends):
        yield f"{result['row']}: no backend of gpm_core computes it here"
