"""What a run is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent

#: Backends of gpm_core that have kernels for GPUs.
OURS = ("native", "triton")


@dataclass(frozen=True)
class Settings:
    """Options of the command, and what only the tests of it choose otherwise."""

    device: str = "cuda"
    #: fewer rounds, smaller inputs
    quick: bool = False
    #: operations whose name contains this
    only: str = ""
    backends: tuple[str, ...] = OURS
    #: what torch.compile compiles with
    compiler: str = "inductor"
    #: where pytest is called, and for what
    root: Path = REPOSITORY
    tests: tuple[str, ...] = ("tests",)
    #: seconds that the tests of one file may take
    test_timeout: float = 1800.0
    #: how compute-sanitizer is called; None: look for it
    sanitizer: tuple[str, ...] | None = None
    #: seconds that one of its tools may take
    sanitizer_timeout: float = 1800.0
