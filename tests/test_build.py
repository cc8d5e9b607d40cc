"""Building: the pure wheel, wrong wishes, and what the compiled module must not bring along."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from gpm_core import backends
from gpm_core._version import __version__

REPOSITORY = Path(__file__).resolve().parent.parent
MISSING = backends.why_not("native", "score", "cpu", torch.float32)
needs_module = pytest.mark.skipif(
    MISSING is not None, reason=f"needs the compiled module gpm_core._C: {MISSING}"
)
#: What makes a wheel crash on another processor, or changes the arithmetic of the whole process.
FORBIDDEN = re.compile(
    r"-march=native|-mcpu=native|-mtune=native|-ffast-math|-Ofast|-funsafe-math-optimizations"
    r"|-fassociative-math|-ffp-contract=(fast|on)"
)


def run(
    *command: str | Path, cwd: Path, path: Path | None = None, **environment: str
) -> tuple[int, str]:
    """Exit status and both output streams, without compiler flags or wishes from outside."""
    flags = ("CXXFLAGS", "CFLAGS", "CPPFLAGS", "LDFLAGS")
    drop = ("GPM_CORE_", "TRITON_", *flags, "CMAKE_", "PYTHONPATH")
    env = {k: v for k, v in os.environ.items() if not k.startswith(drop)}
    if path is not None:
        env["PYTHONPATH"] = str(path)
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**env, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    return result.returncode, result.stdout


def needs(*packages: str) -> None:
    for name in packages:
        try:
            # Not find_spec: looking for setuptools' modules replaces distutils in this process.
            importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"needs {name} in this environment: builds here are not isolated")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a source distribution holds, so that nothing is built in the checkout."""
    folder = tmp_path_factory.mktemp("source")
    ignore = shutil.ignore_patterns("*.so", "*.pyd", "__pycache__", "*.egg-info", "build")
    for name in ("gpm_core", "csrc", "python"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=ignore)
    files = ("pyproject.toml", "setup.py", "CMakeLists.txt", "MANIFEST.in", "README.md", "LICENSE")
    for name in files:
        shutil.copy(REPOSITORY / name, folder / name)
    return folder


def build_wheel(source: Path, into: Path, choice: str) -> tuple[int, str]:
    needs("pip", "setuptools")
    options = ("--no-deps", "--no-build-isolation", "--no-cache-dir", "--disable-pip-version-check")
    return run(
        *(sys.executable, "-m", "pip", "wheel", source, *options, "-w", into),
        cwd=into,
        GPM_CORE_BUILD=choice,
    )


@pytest.fixture(scope="module")
def pure_wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    status, output = build_wheel(source, folder, "none")
    assert status == 0, output
    (wheel,) = folder.glob("*.whl")
    return wheel


# -- GPM_CORE_BUILD=none -----------------------------------------------------------------------


def test_pure_wheel_holds_everything_but_the_module(pure_wheel: Path) -> None:
    assert pure_wheel.name == f"gpm_core-{__version__}-py3-none-any.whl"
    names = set(zipfile.ZipFile(pure_wheel).namelist())
    assert not {name for name in names if name.endswith((".so", ".pyd", ".cpp", ".h"))}
    source = REPOSITORY / "gpm_core"
    expected = {
        str(path.relative_to(REPOSITORY))
        for pattern in ("*.py", "*.pyi", "*.jsonl", "py.typed")
        for path in source.rglob(pattern)
    }
    assert "gpm_core/py.typed" in expected
    assert expected <= names, sorted(expected - names)
    outside = {name for name in names if not name.startswith("gpm_core")}
    assert not outside, "tests, benchmarks and the like stay out"
    assert any(name.endswith("licenses/LICENSE") for name in names)


PURE_SCRIPT = """
import sys
# An editable installation in this environment would lend its compiled module to the wheel.
sys.meta_path[:] = [x for x in sys.meta_path if "Editable" not in getattr(x, "__name__", "")]
import torch, gpm_core
from gpm_core import backends, ops
print(gpm_core.__file__)
print(backends.chosen("score", "cpu", torch.float32))
print(backends.why_not("native", "score", "cpu", torch.float32))
v = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
s = ops.score_matrix(v)
s[0, 1].backward()
print(s.tolist(), torch.equal(v.grad, torch.eye(2)), gpm_core.__version__)
"""


def test_pure_wheel_installs_and_works(pure_wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    status, output = run(
        *(sys.executable, "-m", "pip", "install", "--no-deps", "--no-index"),
        *("--disable-pip-version-check", "--target", target, pure_wheel),
        cwd=tmp_path,
    )
    assert status == 0, output
    status, output = run(sys.executable, "-c", PURE_SCRIPT, cwd=tmp_path, path=target)
    assert status == 0, output
    file, chosen, reason, values = output.splitlines()
    assert Path(file).is_relative_to(target)
    assert chosen == "reference"
    assert reason.startswith("gpm_core._C was not built (GPM_CORE_BUILD=none")
    assert values == f"[[0.0, 1.0], [-1.0, 0.0]] True {__version__}"


# -- source distributions ----------------------------------------------------------------------


def test_source_distribution_holds_what_is_compiled(source: Path, tmp_path: Path) -> None:
    """Who installs from one builds the module there."""
    needs("setuptools")
    command = (sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", tmp_path)
    status, output = run(*command, cwd=source, GPM_CORE_BUILD="none")
    assert status == 0, output
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = {name.split("/", 1)[1] for name in file.getnames() if "/" in name}
    expected = {
        str(path.relative_to(REPOSITORY))
        for folder in ("csrc", "python")
        for path in (REPOSITORY / folder).rglob("*")
        if path.is_file()
    }
    assert expected | {"CMakeLists.txt", "setup.py", "pyproject.toml"} <= names
    assert not {name for name in names if name.startswith("tests/")}


# -- wishes that cannot be granted -------------------------------------------------------------


def test_unknown_choice(source: Path, tmp_path: Path) -> None:
    status, output = build_wheel(source, tmp_path, "nonsense")
    assert status != 0
    assert "GPM_CORE_BUILD must be one of auto, cpu, cuda, none; got 'nonsense'" in output
    assert not list(tmp_path.glob("*.whl"))


def setup_py(source: Path, choice: str, **environment: str) -> tuple[int, str]:
    """The cheapest command that reads setup.py to its end."""
    needs("setuptools")
    return run(
        *(sys.executable, "setup.py", "--quiet", "--version"),
        cwd=source,
        GPM_CORE_BUILD=choice,
        **environment,
    )


def test_cuda_without_a_compiler_for_it(source: Path) -> None:
    status, output = setup_py(source, "cuda", CUDACXX="no-such-nvcc")
    assert status != 0
    assert "GPM_CORE_BUILD=cuda: no nvcc on PATH; set CUDACXX, or use cpu or auto" in output


def test_without_a_compiler(source: Path, tmp_path: Path) -> None:
    """auto leaves the module out and says so."""
    status, output = setup_py(source, "auto", PATH=str(tmp_path), CXX="no-such-compiler")
    assert status == 0, output
    assert "warning: no C++ compiler found, gpm_core._C is left out" in output
    assert __version__ in output


@pytest.mark.parametrize("choice", ["none", "cpu", ""])
def test_known_choices(source: Path, choice: str) -> None:
    status, output = setup_py(source, choice)
    assert status == 0, output
    assert output.splitlines()[-1] == __version__


# -- how it is compiled ------------------------------------------------------------------------


def without_comments(path: Path) -> str:
    return re.sub(r"#.*", "", path.read_text())


@pytest.mark.parametrize("name", ["CMakeLists.txt", "setup.py"])
def test_no_dangerous_flags_are_written_down(name: str) -> None:
    text = without_comments(REPOSITORY / name)
    assert len(text) > 500
    assert not FORBIDDEN.search(text)
    for path in REPOSITORY.glob("csrc/**/*"):
        if path.is_file():
            assert "fast-math" not in re.sub(r"//.*", "", path.read_text()), path


@pytest.fixture(scope="module")
def configured(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which CMake has prepared the build of the module."""
    for tool in ("cmake", "ninja"):
        if shutil.which(tool) is None and not (Path(sys.executable).parent / tool).exists():
            pytest.skip(f"needs {tool}")
    if not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++"))):
        pytest.skip("needs a C++ compiler")
    needs("pybind11")
    import pybind11

    build = tmp_path_factory.mktemp("build")
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    status, output = run(
        *(shutil.which("cmake", path=tools), "-S", source, "-B", build, "-G", "Ninja"),
        *("-DGPM_PYTHON=ON", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON"),
        *(f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DPython_EXECUTABLE={sys.executable}"),
        cwd=build,
        PATH=tools,
    )
    assert status == 0, output
    return build


@pytest.fixture(scope="module")
def commands(source: Path, configured: Path) -> dict[Path, list[str]]:
    """Source file -> the commands that compile it, as CMake hands them to the compiler."""
    result: dict[Path, list[str]] = {}
    for entry in json.loads((configured / "compile_commands.json").read_text()):
        file = Path(entry["file"]).resolve().relative_to(source.resolve())
        result.setdefault(file, []).append(entry["command"])
    return result


def test_compile_commands(commands: dict[Path, list[str]]) -> None:
    for file, lines in commands.items():
        for line in lines:
            assert not FORBIDDEN.search(line), line
            apart = "-fmad=false" if file.suffix == ".cu" else "-ffp-contract=off"
            assert apart in line, f"{file}: a fused product breaks antisymmetry"
            assert "-fvisibility=hidden" in line
            assert " -O3" in line


def test_every_source_is_compiled(commands: dict[Path, list[str]]) -> None:
    """CMakeLists.txt is the only list of sources; a file that is not in it would be dead."""
    compiled = ["*.cpp"] if shutil.which("nvcc") is None else ["*.cpp", "*.cu"]
    there = {p.relative_to(REPOSITORY) for c in compiled for p in REPOSITORY.glob(f"csrc/**/{c}")}
    assert there | {Path("python/bindings.cpp")} == set(commands)


def test_users_of_the_library_find_what_it_was_built_with(
    commands: dict[Path, list[str]], configured: Path
) -> None:
    """With CUDA kernels in it, the library's users link the CUDA runtime."""
    with_cuda = any(file.suffix == ".cu" for file in commands)
    config = (configured / "gpm_core-config.cmake").read_text()
    assert f"if({str(with_cuda).upper()})\n  find_dependency(CUDAToolkit)\nendif()" in config


def test_machine_code_for_every_generation(commands: dict[Path, list[str]]) -> None:
    """From Ampere on, and PTX that drivers compile for what comes later."""
    for line in (x for file, lines in commands.items() if file.suffix == ".cu" for x in lines):
        for code in ("sm_80", "sm_90", "sm_100", "compute_100"):
            assert re.search(rf"code=\[[^]]*\b{code}\b", line), line


def test_only_kernels_use_more_than_the_baseline(commands: dict[Path, list[str]]) -> None:
    """Code that runs before the processor is known must run on any of its kind."""
    for file, lines in commands.items():
        raised = [line for line in lines if re.search(r" -m(avx|fma|f16c|sse4)", line)]
        if file.parts[:3] != ("csrc", "cpu", "kernels"):
            assert not raised, file
        else:
            assert len(raised) < len(lines), f"{file} has no baseline version"


# -- the compiled module -----------------------------------------------------------------------


def module_path() -> Path:
    from gpm_core import _C

    return Path(_C.__file__)


def elf(*options: str) -> str:
    readelf = shutil.which("readelf")
    if readelf is None or sys.platform != "linux":
        pytest.skip("needs readelf, on Linux")
    status, output = run(readelf, "--wide", *options, module_path(), cwd=REPOSITORY)
    assert status == 0, output
    return output


@needs_module
def test_module_depends_on_the_system_only() -> None:
    """Neither libpython nor libtorch nor a C++ runtime: a wheel serves every torch version."""
    libraries = set(re.findall(r"\(NEEDED\).*\[(.*?)\]", elf("--dynamic")))
    allowed = r"(libc|libm|libpthread|libdl|libgomp|ld-linux.*|libomp|libiomp5)\.so(\.\d+)?"
    assert libraries
    assert not {name for name in libraries if not re.fullmatch(allowed, name)}
    assert "(RUNPATH)" not in elf("--dynamic")
    assert "(RPATH)" not in elf("--dynamic")


@needs_module
def test_module_exports_its_entry_point_only() -> None:
    defined = [
        line.split()[-1]
        for line in elf("--dyn-syms").splitlines()
        if re.search(r" (GLOBAL|WEAK) +DEFAULT +\d+ ", line)
    ]
    assert "PyInit__C" in defined
    assert not [name for name in defined if "gpm" in name or "pybind11" in name]


@needs_module
def test_module_has_no_fast_math_start_up_code() -> None:
    """crtfastmath.o brings set_fast_math, which runs when the module is loaded."""
    assert "set_fast_math" not in elf("--syms")
    assert "crtfastmath" not in elf("--syms")


SUBNORMAL_SCRIPT = """
import importlib.util, sys
least = 5e-324
assert least / 1 != 0 and 2.0**-1060 / 4 == 2.0**-1062
spec = importlib.util.spec_from_file_location("gpm_core._C", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
subnormal = 2.0**-1060 / 4 == 2.0**-1062 and least * 1.0 > 0
print(module.build_info()["version"], "torch" in sys.modules, subnormal)
"""


@needs_module
def test_loading_the_module_leaves_the_arithmetic_alone(tmp_path: Path) -> None:
    """Alone in a process, without torch: what it needs is in it, and subnormal numbers stay."""
    status, output = run(sys.executable, "-c", SUBNORMAL_SCRIPT, module_path(), cwd=tmp_path)
    assert status == 0, output
    assert output == f"{__version__} False True\n"
