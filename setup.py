"""Builds gpm_core._C with CMake and Ninja. All metadata is in pyproject.toml.

GPM_CORE_BUILD says what to build: ``auto`` (the default: compile if there is a C++ compiler, leave
the module out with a warning if not; with CUDA kernels if there is nvcc), ``cpu`` (without CUDA
kernels) and ``cuda`` (with them): that, or fail; ``none`` (pure Python).
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CHOICES = ("auto", "cpu", "cuda", "none")
#: GPM_CORE_BUILD -> GPM_CUDA of CMakeLists.txt
CUDA = {"auto": "AUTO", "cpu": "OFF", "cuda": "ON"}


def nvcc() -> str | None:
    """The CUDA compiler, also where its usual folders are not on PATH."""
    if command := os.environ.get("CUDACXX"):
        return command if shutil.which(shlex.split(command)[0]) else None
    folders = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    paths = [str(Path(folder) / "bin" / "nvcc") for folder in folders if folder]
    return next(filter(None, map(shutil.which, ("nvcc", *paths))), None)


def choice() -> str:
    """What GPM_CORE_BUILD asks for, ``none`` where ``auto`` finds no compiler."""
    value = os.environ.get("GPM_CORE_BUILD", "auto") or "auto"
    if value not in CHOICES:
        raise SystemExit(f"GPM_CORE_BUILD must be one of {', '.join(CHOICES)}; got {value!r}")
    if value == "cuda" and nvcc() is None:
        raise SystemExit("GPM_CORE_BUILD=cuda: no nvcc on PATH; set CUDACXX, or use cpu or auto")
    if value == "auto" and not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++"))):
        print("warning: no C++ compiler found, gpm_core._C is left out", file=sys.stderr)
        return "none"
    return value


class CMakeBuild(build_ext):
    """Configure, build and install the one module."""

    def build_extension(self, ext: Extension) -> None:
        """Build ``ext`` where setuptools expects it."""
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        cmake = shutil.which("cmake") or "cmake"
        configure = [
            cmake,
            "-S",
            str(ROOT),
            "-B",
            str(build),
            "-G",
            "Ninja",
            "-DCMAKE_BUILD_TYPE=Release",
            "-DGPM_PYTHON=ON",
            f"-DGPM_CUDA={CUDA[choice()]}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DPython_EXECUTABLE={sys.executable}",
        ]
        compiler = nvcc()
        environment = {**os.environ, **({"CUDACXX": compiler} if compiler else {})}
        subprocess.run(configure, check=True, env=environment)
        subprocess.run([cmake, "--build", str(build), "--target", "_C"], check=True)
        install = [cmake, "--install", str(build), "--component", "python", "--prefix", str(target)]
        subprocess.run([*install, "--strip"], check=True)


extensions = [] if choice() == "none" else [Extension("gpm_core._C", sources=[])]
setup(ext_modules=extensions, cmdclass={"build_ext": CMakeBuild})
