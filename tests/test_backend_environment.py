"""Backends in fresh processes: environment variables, and what is missing there."""

from __future__ import annotations

import importlib.machinery
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gpm_core
from gpm_core import backends, ops

OPS = ops.__all__
MISSING = backends.why_not("native", "score", "cpu", torch.float32)
needs_native = pytest.mark.skipif(
    MISSING is not None, reason=f"needs the compiled module gpm_core._C: {MISSING}"
)


def python(script: str, *, path: Path | None = None, **environment: str) -> str:
    """What a fresh interpreter prints, both streams."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("GPM_CORE_", "TRITON_"))}
    if path is not None:
        env["PYTHONPATH"] = str(path)
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        env={**env, **environment},
        cwd=path,
        check=False,
    )
    return result.stdout + result.stderr


# -- environment variables ---------------------------------------------------------------------

REPORT = """
import torch, gpm_core
from gpm_core import backends
print("current", backends.current())
print("chosen", backends.chosen("score", "cpu", torch.float32))
print("score", gpm_core.ops.score(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])).item())
"""


@pytest.mark.parametrize("name", ["reference", pytest.param("native", marks=needs_native), ""])
def test_environment_variable(name: str) -> None:
    chosen = name or ("reference" if MISSING else "native")
    expected = f"current {name or None}\nchosen {chosen}\nscore 1.0\n"
    assert python(REPORT, GPM_CORE_BACKEND=name) == expected


def test_environment_variable_that_names_no_backend() -> None:
    output = python(REPORT, GPM_CORE_BACKEND="fast")
    assert (
        "ValueError: GPM_CORE_BACKEND names the unknown backend 'fast'; known backends: native, "
        "triton, reference"
    ) in output
    assert "score" not in output.splitlines()[-1]


def test_environment_variable_holds_in_threads_and_gives_way_to_a_block() -> None:
    script = """
import threading
from gpm_core import backend, backends
def show(): print(backends.current())
thread = threading.Thread(target=show); thread.start(); thread.join()
with backend(None): show()
with backend("native"): show()
show()
"""
    output = python(script, GPM_CORE_BACKEND="reference")
    assert output.split() == ["reference", "None", "native", "reference"]


def test_environment_variable_may_name_a_backend_that_is_registered_later() -> None:
    script = """
import torch, gpm_core
from gpm_core.backends import reference, register
class Mine:
    why_not = reference.why_not
    def score(*args):
        print("mine")
        return reference.score(*args)
register("mine", Mine)
gpm_core.ops.score(torch.ones(2), torch.ones(2))
"""
    assert python(script, GPM_CORE_BACKEND="mine") == "mine\n"


@needs_native
def test_simd_level_of_the_environment() -> None:
    """The wish is honoured, and a wrong one is a clear error at the first use."""
    script = "from gpm_core.backends import native; print(native.build_info())"
    assert "baseline" in python(script, GPM_CORE_SIMD="baseline")
    wrong = "ValueError: GPM_CORE_SIMD must be baseline, avx2 or avx512; got sse9"
    assert python(script, GPM_CORE_SIMD="sse9").endswith(f"{wrong}\n")
    output = python(REPORT, GPM_CORE_SIMD="sse9")
    assert output.endswith(f"{wrong}\n"), "not computed in some other way"


# -- without the compiled module ---------------------------------------------------------------

WITHOUT_MODULE = """
import sys
sys.modules["gpm_core._C"] = None  # an import of it raises
import torch, gpm_core
from gpm_core import backends, heads, losses, ops
from gpm_core.backends import native
assert native.build_info() is None
for op in ops.__all__:
    assert backends.chosen(op, "cpu", torch.float32) == "reference", op
head = heads.PreferenceHead(6, 4, "softmax")
hidden, prompt = torch.randn(2, 3, 6), torch.randn(2, 6)
assert ops.cross_score_matrix(hidden, hidden).shape == (2, 3, 3)
assert ops.cross_probability_matrix(hidden, hidden).shape == (2, 3, 3)
p = head.probability_matrix(hidden, prompt)
assert torch.equal(p + p.mT, torch.ones_like(p))
v = head.embed(hidden, torch.tensor([2, 0]))
loss = losses.general_preference_loss(v[:1], v[1:], head.scale(prompt[:1])).loss
(loss + head.score(hidden[:, 0], hidden[:, 1], prompt).sum() + p[..., 0].sum()).backward()
assert all(x.grad.isfinite().all() and x.grad.abs().sum() > 0 for x in head.parameters())
print("why not:", backends.why_not("native", "score", "cpu", torch.float32))
try:
    with gpm_core.backend("native"):
        ops.score(v[:1], v[1:])
except RuntimeError as error:
    print("refused:", error)
"""


def test_the_library_works_without_the_compiled_module() -> None:
    output = python(WITHOUT_MODULE)
    reason = "gpm_core._C was not built (GPM_CORE_BUILD=none, or no compiler at install time)"
    assert f"why not: {reason}\n" in output, output
    assert "refused: backend 'native' was asked for but cannot compute 'score' on cpu" in output
    assert reason in output.split("refused:")[1]


def test_a_compiled_module_that_does_not_load_says_so(tmp_path: Path) -> None:
    """A module for another machine, or with a library missing, was built: that is the reason."""
    shutil.copytree(
        Path(gpm_core.__file__).parent,
        tmp_path / "gpm_core",
        ignore=shutil.ignore_patterns("*.so", "*.pyd", "__pycache__"),
    )
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    (tmp_path / "gpm_core" / f"_C{suffix}").write_bytes(b"not a shared object")
    script = (
        "import torch; from gpm_core import backends; "
        "print(backends.why_not('native', 'score', 'cpu', torch.float32))"
    )
    output = python(script, path=tmp_path)
    assert "cannot be loaded: " in output, output
    assert f"_C{suffix}" in output
    assert "was not built" not in output
