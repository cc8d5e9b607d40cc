"""The machine and what is installed on it."""

from __future__ import annotations

import csv
import importlib.metadata
import io
import platform
import shutil
import subprocess
from typing import Any

import torch

from benchmarks.gpu.settings import REPOSITORY, Settings
from gpm_core import backends, ops
from gpm_core._version import __version__
from gpm_core.backends import native

_QUESTIONS = (
    "name",
    "driver_version",
    "clocks.sm",
    "clocks.mem",
    "clocks.max.sm",
    "clocks.max.mem",
    "power.limit",
    "temperature.gpu",
)
_DTYPES = (torch.float32, torch.bfloat16)


def why_no_gpu() -> str | None:
    """Why nothing can be measured here, or None."""
    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None and torch.version.hip is None:
        return f"PyTorch {torch.__version__} is not a CUDA build (pip install torch of one)"
    try:
        torch.cuda.init()
    except Exception as error:  # the driver's words, whatever they are
        return f"PyTorch {torch.__version__} finds no GPU: {error}"
    return f"PyTorch {torch.__version__} finds no GPU"


def environment(settings: Settings) -> dict[str, Any]:
    """Device, versions, clocks, and which of our backends compute on it."""
    build = native.build_info()
    on_gpu = settings.device == "cuda"
    return {
        "device": _gpu() if on_gpu else {"name": f"processor ({platform.machine()})"},
        "nvidia-smi": nvidia_smi() if on_gpu else "not asked: a rehearsal on the processor",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "CUDA of torch": torch.version.cuda,
            "triton": _version("triton"),
            "gpm_core": __version__,
            "commit": _commit(),
            "CUDA of gpm_core._C": None if build is None else build["cuda"],
            "architectures of gpm_core._C": None
            if build is None
            else list(build["cuda_architectures"]),
        },
        "backends": {name: _why_not(name, settings.device) for name in settings.backends},
    }


def _gpu() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "name": properties.name,
        "compute capability": f"{properties.major}.{properties.minor}",
        "memory in MiB": properties.total_memory // 2**20,
        "L2 cache in MiB": properties.L2_cache_size / 2**20,
        "multiprocessors": properties.multi_processor_count,
    }


def _why_not(backend: str, device: str) -> str | None:
    """The first reason why a backend does not compute everything that is timed, or None."""
    for op in ops.__all__:
        for dtype in _DTYPES:
            reason = backends.why_not(backend, op, device, dtype)
            if reason is not None:
                return reason
    return None


def nvidia_smi() -> dict[str, str] | str:
    """Driver, clocks (MHz), power limit (W) and temperature (C) now, or why they are not known."""
    if shutil.which("nvidia-smi") is None:
        return "nvidia-smi is not installed"
    try:
        # The same GPU as PyTorch's, whatever CUDA_VISIBLE_DEVICES hides from it.
        uuid = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
        identity = f"GPU-{uuid.removeprefix('GPU-')}"
        command = ["nvidia-smi", f"--id={identity}", f"--query-gpu={','.join(_QUESTIONS)}"]
        result = subprocess.run(
            [*command, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return parse_nvidia_smi(result.stdout)
    except Exception as error:  # after a fault in a kernel, CUDA's: what was measured is kept
        return f"nvidia-smi failed: {error}"


def parse_nvidia_smi(output: str) -> dict[str, str]:
    (answers,) = csv.reader(io.StringIO(output.strip()), skipinitialspace=True)
    return dict(zip(_QUESTIONS, answers, strict=True))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """What was measured; None outside of a checkout."""
    try:
        result = subprocess.run(
            ["git", "-C", REPOSITORY, "describe", "--always", "--dirty", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
