"""Compilation ahead of time, without a GPU: what a kernel needs of one, known before it runs.

    for compiled in compile_for(90):
        print(compiled.name, compiled.resources())

What is compiled are the launches of real calls, recorded on tensors without data, so it cannot
differ from what runs. Needs a process in which kernels are not interpreted.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from gpm_core.backends import triton as ops
from gpm_core.backends._chunked_linear_logprob import GRADIENTS, STATES, Options
from gpm_core.backends.triton._launch import Launch, compiler_options, recording

_POINTERS = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
}


@dataclass(frozen=True)
class Specialization:
    """A kernel with the types, the constants and the alignment of its arguments."""

    name: str
    dtype: torch.dtype
    kernel: Any
    signature: dict[str, str]
    constexprs: dict[str, Any]
    attributes: dict[tuple[int], list[list[Any]]]
    num_warps: int

    def compile(self, capability: int) -> Any:
        """Machine code for an NVIDIA GPU, in ``.asm`` of what is returned."""
        source = ASTSource(self.kernel, self.signature, self.constexprs, self.attributes)
        options = compiler_options(self.num_warps, nvidia=True)
        return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


@dataclass(frozen=True)
class Compiled:
    """A specialization and its machine code."""

    specialization: Specialization
    kernel: Any

    @property
    def name(self) -> str:
        """Operation, case and dtype."""
        return f"{self.specialization.name} {str(self.specialization.dtype).rpartition('.')[2]}"

    def resources(self) -> dict[str, int]:
        """Registers and bytes of stack (spills) a thread, bytes of shared memory a program."""
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(self.kernel.asm["cubin"])
            file.flush()
            command = [str(tool), "--dump-resource-usage", file.name]
            text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found = {key.lower(): int(n) for key, n in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
        return {**found, "shared": self.kernel.metadata.shared}


def _attributes(launch: Launch) -> tuple[dict[str, str], dict[str, Any], dict[Any, Any]]:
    """Types, constants and alignment, as Triton finds them at a call."""
    signature, constants, attributes = {}, dict(launch.constants), {}
    free = launch.kernel.do_not_specialize
    names = launch.kernel.arg_names
    for i, (name, value) in enumerate(zip(names, launch.arguments, strict=False)):
        aligned = isinstance(value, Tensor)
        if isinstance(value, Tensor):
            signature[name] = _POINTERS[value.dtype]
        elif value is None or (value == 1 and name not in free):
            constants[name] = value
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            aligned = value % 16 == 0 and name not in free
        if aligned:
            attributes[(i,)] = [["tt.divisibility", 16]]
    types = {name: signature.get(name, "constexpr") for name in names}
    return types, constants, attributes


def _empty(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _rows(dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    """Calls of the operations on rows: everything optional given, then nothing of it."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    a, scale = _empty(dtype, 512, 8), _empty(dtype, 512, 4)
    number = _empty(wide, 512)
    long = _empty(dtype, 64, 4096)
    return {
        "normalize, d = 8": lambda: ops.normalize(a, 1e-12),
        "normalize, d = 4096": lambda: ops.normalize(long, 1e-12),
        "normalize_backward, d = 8": lambda: ops.normalize_backward(a, a, 1e-12),
        "normalize_backward, d = 4096": lambda: ops.normalize_backward(long, long, 1e-12),
        "score": lambda: ops.score(a, a, None),
        "score, scale": lambda: ops.score(a, a, scale),
        "score_backward": lambda: ops.score_backward(scale[:, 0], a, a, None),
        "score_backward, scale": lambda: ops.score_backward(scale[:, 0], a, a, scale),
        "preference_loss": lambda: ops.preference_loss(a, a, None, None, None, 0.1),
        "preference_loss, all": lambda: ops.preference_loss(a, a, scale, number, number, 0.1),
        "preference_loss_backward": lambda: ops.preference_loss_backward(
            number, None, a, a, None, None, None, 0.1
        ),
        "preference_loss_backward, all": lambda: ops.preference_loss_backward(
            number, number, a, a, scale, number, number, 0.1
        ),
    }


def _embeddings(dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    """Calls of ``preference_embedding``, the widest that is normalized in one launch included."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    positions = torch.empty(64, dtype=torch.int64, device="meta")
    calls: dict[str, Callable[[], Any]] = {}
    for width in (8, 128):
        weight, bias = _empty(dtype, width, 2048), _empty(dtype, width)
        hidden, rows = _empty(dtype, 64, 512, 2048), _empty(dtype, 64, 2048)
        unit, grad = _empty(wide, 64, width), _empty(dtype, 64, width)

        name = f"preference_embedding, d = {width}"
        calls[name] = partial(
            ops.preference_embedding, hidden, weight, positions, bias, True, 1e-12
        )
        calls[f"{name}, raw"] = partial(
            ops.preference_embedding, rows, weight, None, None, False, 1e-12
        )
        calls[f"preference_embedding_backward, d = {width}"] = partial(
            ops.preference_embedding_backward,
            grad, hidden, weight, positions, bias, unit, True, 1e-12, [True, True, True],
        )  # fmt: skip
    return calls


def _logprobs(dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    """What ``linear_logprob`` launches for a chunk: everything optional given, then nothing."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    logits, out = _empty(wide, 64, 2048), _empty(dtype, 64, 2048)
    target = torch.empty(64, dtype=torch.int64, device="meta")
    bias, pulled = _empty(wide, 2048), _empty(wide, 64, 512)
    state, given = _empty(wide, 64, STATES), _empty(wide, 64, GRADIENTS)
    calls: dict[str, Callable[[], Any]] = {}
    for label, biases, options, results in (
        ("", None, Options(1.0, None, False), (None, None)),
        (", all", bias, Options(0.7, 30.0, True), (out, pulled)),
    ):
        arguments = (logits, 2048, target, biases, options)
        calls[f"linear_logprob{label}"] = partial(
            ops.linear_logprob_chunk, *arguments, state, *results
        )
        calls[f"linear_logprob_backward{label}"] = partial(
            ops.linear_logprob_chunk_backward, *arguments, given, out
        )
    return calls


def _matrices(dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    """Calls of the matrices: small ones side by side, tiles of large ones, wide embeddings."""
    calls: dict[str, Callable[[], Any]] = {}
    for batch, rows, width, scaled in (
        (1024, 5, 6, False),
        (1024, 16, 8, True),
        (2, 1024, 64, True),
    ):
        v, grad = _empty(dtype, batch, rows, width), _empty(dtype, batch, rows, rows)
        scale = _empty(dtype, batch, width // 2) if scaled else None
        label = f"{batch} x K = {rows}" + (", scale" if scaled else "")
        for name, taus in (("score_matrix", ()), ("probability_matrix", (0.1,))):
            for op, sets in ((name, (v,)), (f"cross_{name}", (v, v))):
                forward, backward = getattr(ops, op), getattr(ops, f"{op}_backward")
                calls[f"{op}, {label}"] = partial(forward, *sets, scale, *taus)
                calls[f"{op}_backward, {label}"] = partial(backward, grad, *sets, scale, *taus)
    return calls


def specializations(
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16, torch.float64),
) -> list[Specialization]:
    """Every kernel as representative calls of every operation launch it."""
    found = []
    for dtype in dtypes:
        calls = {**_rows(dtype), **_embeddings(dtype), **_logprobs(dtype), **_matrices(dtype)}
        for name, call in calls.items():
            with recording() as launches:
                call()
            for launch in launches:
                signature, constants, attributes = _attributes(launch)
                found.append(
                    Specialization(
                        name, dtype, launch.kernel, signature, constants, attributes, launch.warps
                    )
                )
    return found


def compile_for(
    capability: int, selected: list[Specialization] | None = None
) -> Iterator[Compiled]:
    """Machine code for compute capability 80, 90, 100, ... of the selected specializations."""
    for one in specializations() if selected is None else selected:
        yield Compiled(one, one.compile(capability))
