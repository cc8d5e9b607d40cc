"""What a run is asked for."""

from __future__ import annotations

import os
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
    tests: tuple[str, ...] = ("tests",)
    #: how compute-sanitizer is called; None: look for it
    sanitizer: tuple[str, ...] | None = None
    #: seconds that a subprocess may take
    timeout: float = 3600.0


def clean_environment(**added: str) -> dict[str, str]:
    """The environment without what would change who computes, and with a GPU for whom."""
    ours = {"TRITON_INTERPRET", "GPM_CORE_BACKEND"}
    return {name: value for name, value in os.environ.items() if name not in ours} | added
