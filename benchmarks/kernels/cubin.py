"""What the assembler assigned to kernels, as ``cuobjdump`` reads it from machine code."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path


class Missing(Exception):
    """Something is not installed or not built; the text says what to do."""


#: Where toolkits are that are not on PATH.
PLACES = (Path("/usr/local/cuda/bin"),)


@dataclass(frozen=True)
class Usage:
    """Of a kernel on an architecture. Spilled registers lie in the stack, in local memory."""

    registers: int  # of a thread
    stack: int  # bytes of a thread
    shared: int  # bytes of a block, without those asked for at the launch
    local: int  # bytes of a thread

    @property
    def off_chip(self) -> int:
        """Bytes a thread keeps in memory because they fit nowhere else. Must be zero."""
        return self.stack + self.local


@dataclass(frozen=True)
class Function:
    """A kernel by the name that the linker knows."""

    capability: int
    symbol: str
    usage: Usage


def cuobjdump() -> str:
    """Path of the tool: that of the CUDA toolkit, or the one that comes with triton."""
    found = shutil.which("cuobjdump")
    if found is not None:
        return found
    places = list(PLACES)
    spec = find_spec("triton")
    if spec is not None and spec.origin is not None:
        places.append(Path(spec.origin).parent / "backends" / "nvidia" / "bin")
    for place in places:
        if (place / "cuobjdump").is_file():
            return str(place / "cuobjdump")
    raise Missing("no cuobjdump: install a CUDA toolkit and put its bin on PATH, or install triton")


def _run(*arguments: str) -> str:
    command = [cuobjdump(), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Missing(f"{' '.join(command)} failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def version() -> str:
    """Version of the tool."""
    return re.findall(r"release ([\d.]+)", _run("--version"))[0]


_NUMBERS = ("registers", "stack", "shared", "local")
# From 9.0 on, what the system keeps of each block is among what is listed.
SHARED_OF_SYSTEM = 1024
_LINE = re.compile(
    r"arch = sm_(?P<capability>\d+)"
    r"|Function (?P<symbol>[^\s:]+):"
    r"|REG:(?P<registers>\d+) STACK:(?P<stack>\d+) SHARED:(?P<shared>\d+) LOCAL:(?P<local>\d+)"
)


def parse(text: str, capability: int = 0) -> Iterator[Function]:
    """The functions in what ``cuobjdump --dump-resource-usage`` prints.

    It names the architecture in a module, and not in a cubin, which has only one.
    """
    symbol = ""
    for found in _LINE.finditer(text):
        fields = found.groupdict()
        if fields["capability"] is not None:
            capability = int(fields["capability"])
        elif fields["symbol"] is not None:
            symbol = fields["symbol"]
        else:
            registers, stack, shared, local = map(int, found.group(*_NUMBERS))
            own = shared if capability < 90 else max(shared - SHARED_OF_SYSTEM, 0)
            yield Function(capability, symbol, Usage(registers, stack, own, local))


def functions(file: Path, capability: int = 0) -> list[Function]:
    """All kernels in a module, or in a cubin for a compute capability."""
    return list(parse(_run("--dump-resource-usage", str(file)), capability))


def has_ptx(module: Path) -> bool:
    """Whether a shared library has code that drivers compile for later GPUs."""
    return "PTX file" in _run("--list-ptx", str(module))
