"""Faults planted into the CUDA kernels are caught where the kernels run on the processor.

Each one changes a line of the real sources, compiles the kernels that it is in, and runs the C++
test of the operation with them: it must fail, and say what is wrong.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from cuda_host import backend as cuda_host
from targets import CUDA_HOST

REPOSITORY = Path(__file__).resolve().parent.parent
BUILD = cuda_host.BUILD


@dataclass(frozen=True)
class Fault:
    name: str
    #: kernel source that is compiled, and C++ test that must fail
    source: str
    test: str
    #: what is changed, and where
    file: str
    before: str
    after: str
    #: what the test says
    message: str


FAULTS = [
    Fault(
        "barrier removed before shared memory is read",
        "score",
        "score",
        "pairs.cuh",
        "__syncthreads();\n    if (int(threadIdx.x) < count)",
        "if (int(threadIdx.x) < count)",
        "not true",
    ),
    Fault(
        "barrier removed before gradients are summed",
        "score_matrix",
        "square",
        "pull.cuh",
        "__syncthreads();\n    work.accumulate",
        "work.accumulate",
        "not true",
    ),
    Fault(
        "barrier removed before other threads' gradients are read",
        "preference_loss",
        "preference_loss",
        "preference_loss.cu",
        "__syncthreads();\n  // Again as neighbours",
        "// Again as neighbours",
        "not true",
    ),
    Fault(
        "barrier removed between two reductions of a block",
        "normalize",
        "normalize",
        "reduce.cuh",
        "__syncthreads();  // the parts of the last reduction have been read\n",
        "",
        "not true",
    ),
    Fault(
        "barrier that some threads do not reach",
        "preference_loss",
        "preference_loss",
        "preference_loss.cu",
        "const T z = logit<S>(args, mine);\n",
        "const T z = logit<S>(args, mine);\n  if (mine >= args.rows) return;\n",
        "__syncthreads",
    ),
    Fault(
        "one pair too many",
        "score",
        "score",
        "score.cu",
        "if (r < args.rows) write",
        "if (r <= args.rows) write",
        "written outside of it",
    ),
    Fault(
        "one column too many",
        "cross_score_matrix",
        "cross",
        "tile.cuh",
        "if (c < columns) write",
        "if (c <= columns) write",
        "written outside of it",
    ),
    Fault(
        "shuffle mask that names lanes which are gone",
        "normalize",
        "normalize",
        "reduce.cuh",
        "return count == kWarp ? ~0u",
        "return count > 0 ? ~0u",
        "mask",
    ),
    Fault(
        "shuffle mask of the wrong lanes",
        "normalize",
        "normalize",
        "reduce.cuh",
        "threadIdx.x & (kWarp - count)",
        "threadIdx.x & (kWarp - 1)",
        "mask",
    ),
    Fault(
        "shared memory asked for too little",
        "preference_loss",
        "preference_loss",
        "pairs.cuh",
        "return columns * kPairPitch",
        "return (columns - 1) * kPairPitch",
        "shared memory",
    ),
    Fault(
        "128 bits where they are not aligned",
        "normalize",
        "normalize",
        "memory.cuh",
        "16 ==\n         0;",
        "16 <\n         16;",
        "misaligned",
    ),
]


@pytest.fixture(scope="module", autouse=True)
def _needs_the_kernels() -> None:
    CUDA_HOST.need()
    if shutil.which("g++") is None:
        pytest.skip("needs g++")


def _objects() -> list[Path]:
    """What the C++ tests are linked from, without their own sources."""
    names = [f"test_cuda_host_{name}" for name in {fault.test for fault in FAULTS}]
    cuda_host.build(*names)
    return [
        *(BUILD / "tests" / "cpp" / "CMakeFiles" / "gpm_test_main.dir").glob("*.o"),
        BUILD / "tests" / "cuda_host" / "libgpm_cuda_host.a",
        BUILD / "libgpm.a",
    ]


def _compile(fault: Fault, sources: Path, into: Path) -> None:
    text = (sources / "cuda" / fault.file).read_text()
    assert text.count(fault.before) == 1, f"{fault.file} has changed: name the line again"
    (sources / "cuda" / fault.file).write_text(text.replace(fault.before, fault.after))
    include = cuda_host.toolkit_include()
    command = ["g++", "-x", "c++", "-std=c++17", "-O1", "-fno-strict-aliasing", "-ffp-contract=off"]
    command += ["-DGPM_CUDA_HOST", f"-I{sources}", f"-I{sources / 'include'}"]
    command += [f"-I{REPOSITORY / 'tests' / 'cuda_host'}", "-isystem", str(include)]
    command += ["-include", str(REPOSITORY / "tests/cuda_host/cuda_host/cuda_keywords.h")]
    command += ["-c", str(sources / "cuda" / f"{fault.source}.cu"), "-o", str(into)]
    subprocess.run(command, check=True, capture_output=True)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_fault_is_caught(fault: Fault, tmp_path: Path) -> None:
    objects = _objects()
    sources = tmp_path / "csrc"
    shutil.copytree(REPOSITORY / "csrc", sources)
    _compile(fault, sources, tmp_path / "faulty.o")
    folder = BUILD / "tests" / "cuda_host" / "CMakeFiles" / f"test_cuda_host_{fault.test}.dir"
    (test,) = folder.rglob("*.o")
    program = tmp_path / "program"
    # Before the library, whose sound kernels of the same names are then left out.
    link = ["g++", test, tmp_path / "faulty.o", *objects, "-fopenmp", "-pthread", "-o", program]
    subprocess.run([str(part) for part in link], check=True, capture_output=True)
    result = subprocess.run([program], capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode != 0, f"not caught:\n{result.stdout[-2000:]}"
    assert fault.message in result.stdout, result.stdout[-3000:]
