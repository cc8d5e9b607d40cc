"""The CUDA kernels as a backend of CPU tensors: built for the processor, registered for tests only.

The module is a target of the C++ tests' build. It is brought up to date here, which takes no time
where ``make test-cpp`` has done so already.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from gpm_core import backends
from gpm_core.backends.native import Kernels, Library
from gpm_core.backends.native.library import CODES

REPOSITORY = Path(__file__).resolve().parent.parent.parent
BUILD = REPOSITORY / "build" / "cpp"
NAME = "cuda_host"


class HostLibrary(Library):
    """Launches on the stand-in for a GPU, which shares its memory with the processor."""

    def run(self, name: str, like: Tensor, *arguments: float) -> None:
        getattr(self._module.cuda, name)(CODES[like.dtype], *arguments, 0, 0)

    def partial_sums(self, scale: Tensor | None, rows: int) -> Tensor | None:
        return None if scale is None else self.new_partial_sums(scale, rows)


class HostKernels(Kernels):
    def why_not(self, op: str, device_type: str, dtype: torch.dtype) -> str | None:
        if device_type != "cpu":
            return f"stands in for a GPU on the processor and has no kernels for {device_type}"
        return None if dtype in CODES else f"has no kernels for {dtype}"


@cache
def configure() -> str | None:
    """Prepare the build; why that cannot be, or None."""
    try:
        import cmake
        import ninja
        import pybind11
    except ImportError as error:
        return f"{error} (pip install cmake ninja pybind11)"
    if not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++"))):
        return "no C++ compiler was found"
    _run(
        Path(cmake.CMAKE_BIN_DIR) / "cmake",
        *("-S", REPOSITORY, "-B", BUILD, "-G", "Ninja", "-DGPM_TESTS=ON"),
        f"-DCMAKE_MAKE_PROGRAM={Path(ninja.BIN_DIR) / 'ninja'}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        f"-DPython_EXECUTABLE={sys.executable}",
    )
    if toolkit_include() is None:
        return "no CUDA toolkit was found (its headers are needed)"
    return None


def toolkit_include() -> Path | None:
    """Where the CUDA toolkit's headers are, as CMake found them."""
    note = BUILD / "tests" / "cuda_host" / "toolkit_include"
    return Path(note.read_text()) if note.exists() else None


def build(*targets: str) -> None:
    """Bring targets of the C++ tests up to date."""
    import cmake

    _run(Path(cmake.CMAKE_BIN_DIR) / "cmake", "--build", BUILD, "--target", *targets)


def _run(*command: str | Path) -> None:
    result = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        raise RuntimeError(f"{command} failed:\n{result.stdout}\n{result.stderr}")


@cache
def module() -> ModuleType | str:
    """The compiled module, or the reason why there is none."""
    reason = configure()
    if reason is not None:
        return reason
    build("cuda_host_module")
    (path,) = (BUILD / "tests" / "cuda_host").glob("gpm_cuda_host.*.so")
    spec = importlib.util.spec_from_file_location("gpm_cuda_host", path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def register() -> str | None:
    """Make the backend known; why that cannot be, or None."""
    loaded = module()
    if isinstance(loaded, str):
        return loaded
    if NAME not in backends.names():
        backends.register(NAME, HostKernels(HostLibrary(loaded)))  # type: ignore[arg-type]
    return None
