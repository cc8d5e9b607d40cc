"""Faults planted into kernels, and into what is around them, are caught by the tests.

Each one changes a line of the real sources. Kernels, CUDA's as the processor runs them and the
processor's own, are compiled with it, and the C++ test of the operation is run with them: it must
fail, and say what is wrong. What is written in Python is copied with it, and the operation's tests
are run on the copy.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from cuda_host import backend as cuda_host
from targets import CUDA_HOST, NATIVE

REPOSITORY = Path(__file__).resolve().parent.parent
BUILD = cuda_host.BUILD
#: The instruction set of faulty kernels of the processor: that which every one has.
LEVEL = "baseline"


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
    #: folder of the source: kernels of CUDA, or of the processor
    folder: str = "cuda"


_LOGPROB = ("linear_logprob", "linear_logprob")
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
    Fault(
        "maximum of one thread's logits alone",
        *_LOGPROB,
        "linear_logprob.cu",
        "const T now = block.reduce(largest, Larger());",
        "const T now = largest;",
        "not true",
    ),
    Fault(
        "target left in the sum of the rest",
        *_LOGPROB,
        "linear_logprob.cu",
        "        e = 0;\n",
        "",
        "not true",
    ),
    Fault(
        "slope of softcap without the temperature",
        *_LOGPROB,
        "linear_logprob.cu",
        "z * (temperature / softcap)",
        "z / softcap",
        "not true",
    ),
    *(
        Fault(name, *_LOGPROB, "linear_logprob.cpp", before, after, "not true", "cpu/kernels")
        for name, before, after in (
            (
                "sum not shrunk where the maximum grows",
                "factor * state[kRest] + sum_lanes",
                "state[kRest] + sum_lanes",
            ),
            ("pulled rows not shrunk with it", "pulled[i] *= factor", "pulled[i] *= T(1)"),
            (
                "moment not moved with it",
                "factor * (state[kMoment] + state[kRest] * (before - shift))",
                "factor * state[kMoment]",
            ),
            ("target left in the sum", "    row[t] = -infinity;\n", ""),
            (
                "lanes past the last column counted",
                "if (i >= n) z[i] = -T(__builtin_inf());",
                "if (i >= n) z[i] = T(0);",
            ),
            ("gradient of softcap forgotten", "grad *= logits.slope(z);", "grad *= T(1);"),
            (
                "gradient of the target's softcap forgotten",
                "at_target *= logits.slope(T(z[0]));",
                "at_target *= T(1);",
            ),
        )
    ),
]

_CHUNKED = "backends/_chunked_linear_logprob.py"
_REFERENCE = "backends/_reference_linear_logprob.py"
#: name -> file of gpm_core, what is changed in it; nothing in the first
IN_PYTHON = {
    "none": (_CHUNKED, "", ""),
    "bias of other columns": (
        _CHUNKED,
        "bias[first:last].to(wide)",
        "bias[: last - first].to(wide)",
    ),
    "gradient of the last tokens alone": (
        _CHUNKED,
        "if chunk.tokens.start == 0:",
        "if chunk.tokens.start >= 0:",
    ),
    "gradient of ignored tokens": (
        _CHUNKED,
        "    arriving[:, :2].masked_fill_(~counted.unsqueeze(1), 0)\n",
        "",
    ),
    "frozen gradient without temperature": (
        _CHUNKED,
        "total = total * temperature",
        "total = total * 1",
    ),
    "frozen gradient without softcap": (_CHUNKED, "(slope * rest / total)", "(rest / total)"),
    "entropy without the target": (
        _CHUNKED,
        "log_total - (moment + own) / total",
        "log_total - moment / total",
    ),
    "digits near zero lost": (
        _CHUNKED,
        "torch.where(distance == 0, rest.log1p(), total.log())",
        "total.log()",
    ),
    "reference reads padding": (
        _REFERENCE,
        "    hidden = hidden.masked_fill(ignored.unsqueeze(-1), 0)  # padding may be anything\n",
        "",
    ),
    "reference forgets the temperature": (_REFERENCE, "return grad / temperature", "return grad"),
}


@pytest.fixture(scope="module")
def objects() -> list[Path]:
    """What the C++ tests are linked from, without their own sources."""
    CUDA_HOST.need()
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    cuda_host.build(*{_program(fault) for fault in FAULTS})
    return [
        *(BUILD / "tests" / "cpp" / "CMakeFiles" / "gpm_test_main.dir").glob("*.o"),
        BUILD / "tests" / "cuda_host" / "libgpm_cuda_host.a",
        BUILD / "libgpm.a",
    ]


def _program(fault: Fault) -> str:
    """The C++ test that is run with the fault."""
    return f"test_cuda_host_{fault.test}" if fault.folder == "cuda" else f"test_{fault.test}"


def _compile(fault: Fault, sources: Path, into: Path) -> None:
    folder = sources / fault.folder
    text = (folder / fault.file).read_text()
    assert text.count(fault.before) == 1, f"{fault.file} has changed: name the line again"
    (folder / fault.file).write_text(text.replace(fault.before, fault.after))
    command = ["g++", "-std=c++17", "-O1", "-ffp-contract=off", "-fno-math-errno", "-Wno-psabi"]
    command += [f"-I{sources}", f"-I{sources / 'include'}"]
    if fault.folder == "cuda":
        tests = REPOSITORY / "tests" / "cuda_host"
        command += ["-x", "c++", "-fno-strict-aliasing", "-DGPM_CUDA_HOST", f"-I{tests}"]
        command += ["-isystem", str(cuda_host.toolkit_include())]
        command += ["-include", str(tests / "cuda_host" / "cuda_keywords.h")]
        command += [str(folder / f"{fault.source}.cu")]
    else:
        command += [f"-DGPM_SIMD_NAMESPACE={LEVEL}", str(folder / f"{fault.source}.cpp")]
    subprocess.run([*command, "-c", "-o", str(into)], check=True, capture_output=True)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_fault_is_caught(fault: Fault, objects: list[Path], tmp_path: Path) -> None:
    sources = tmp_path / "csrc"
    shutil.copytree(REPOSITORY / "csrc", sources)
    _compile(fault, sources, tmp_path / "faulty.o")
    (test,) = (BUILD / "tests").glob(f"*/CMakeFiles/{_program(fault)}.dir/**/*.o")
    program = tmp_path / "program"
    # Before the library, whose sound kernels of the same names are then left out.
    link = ["g++", test, tmp_path / "faulty.o", *objects, "-fopenmp", "-pthread", "-o", program]
    subprocess.run([str(part) for part in link], check=True, capture_output=True)
    environment = {**os.environ, "GPM_CORE_SIMD": LEVEL}
    result = subprocess.run(
        [program], capture_output=True, text=True, timeout=300, check=False, env=environment
    )
    assert result.returncode != 0, f"not caught:\n{result.stdout[-2000:]}"
    assert fault.message in result.stdout, result.stdout[-3000:]


@pytest.mark.parametrize("name", IN_PYTHON)
def test_fault_in_python_is_caught(name: str, tmp_path: Path) -> None:
    """Without a fault the same tests pass on the same copy."""
    NATIVE.need("linear_logprob")
    package = tmp_path / "gpm_core"
    ignored = shutil.ignore_patterns("__pycache__", "*.so")
    shutil.copytree(REPOSITORY / "gpm_core", package, ignore=ignored)
    for module in (REPOSITORY / "gpm_core").glob("*.so"):
        (package / module.name).symlink_to(module)
    file, before, after = IN_PYTHON[name]
    text = (package / file).read_text()
    assert not before or text.count(before) == 1, f"{file} has changed: name the line again"
    (package / file).write_text(text.replace(before, after) if before else text)
    tests = REPOSITORY / "tests" / "ops" / "test_linear_logprob.py"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(tests)]
    result = subprocess.run(
        [*command, "-k", "reference or native"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    # 1: tests ran, and some failed. Anything else did not come so far.
    assert result.returncode == (1 if before else 0), result.stdout[-3000:] + result.stderr[-500:]
