"""The Triton backend: why it cannot compute, and what its kernels become without a GPU to run them.

Values are tested with those of the other backends, in ``tests/ops``.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys
from typing import Any

import pytest
import torch

import gpm_core
from gpm_core import backends

triton = pytest.importorskip("triton")


def run(script: str, *arguments: str, interpret: bool) -> str:
    """What a script prints in a process of its own: kernels are either compiled or interpreted."""
    result = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, "TRITON_INTERPRET": "1" if interpret else "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


WHY_NOT = """
import json, sys, torch
from gpm_core.backends import triton
asked = json.loads(sys.argv[1])
print(json.dumps([triton.why_not("score", d, getattr(torch, t)) for d, t in asked]))
"""


def reasons(*asked: tuple[str, str], interpret: bool) -> list[Any]:
    return json.loads(run(WHY_NOT, json.dumps(asked), interpret=interpret))


def test_says_why_not() -> None:
    cpu, half, mps, integer = reasons(
        ("cpu", "float32"), ("cpu", "float16"), ("mps", "float32"), ("cpu", "int32"),
        interpret=False,
    )  # fmt: skip
    assert "TRITON_INTERPRET=1" in cpu
    assert half == cpu
    assert mps == "has no kernels for mps tensors"
    assert integer == "has no kernels for torch.int32"


def test_interpreter_computes_on_the_processor() -> None:
    asked = [("cpu", name) for name in ("float64", "float32", "bfloat16", "float16")]
    assert reasons(*asked, interpret=True) == [None] * 4


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_says_that_there_is_no_gpu() -> None:
    cuda, xpu = reasons(("cuda", "float32"), ("xpu", "float32"), interpret=False)
    assert cuda == "PyTorch finds no GPU"
    assert xpu == "PyTorch finds no Intel GPU"


def test_old_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "cc")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    reason = backends.why_not("triton", "score", "cuda", torch.float32)
    assert reason == "needs compute capability 8.0 or higher; this GPU has 7.5"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert backends.why_not("triton", "score", "cuda", torch.float32) is None


@pytest.mark.parametrize("device", ["cuda", "xpu"])
def test_needs_a_compiler(
    device: str, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    reason = backends.why_not("triton", "score", device, torch.float32)
    assert reason == "triton needs a C compiler (gcc or clang on PATH, or CC)"
    monkeypatch.setenv("CC", "/opt/compiler")
    assert backends.why_not("triton", "score", device, torch.float32) is None
    monkeypatch.delenv("CC")
    (tmp_path / "clang").touch(mode=0o755)
    assert backends.why_not("triton", "score", device, torch.float32) is None


def test_interpreter_needs_no_compiler() -> None:
    script = "import os; os.environ.pop('CC', None); os.environ['PATH'] = ''\n" + WHY_NOT
    asked = json.dumps([("cpu", "float32")])
    assert json.loads(run(script, asked, interpret=True)) == [None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_whole_numbers_are_numbers(dtype: torch.dtype) -> None:
    """A tau or eps of 1 is compiled and computed as one of 1.0."""
    from gpm_core.backends.triton import _layout

    number = _layout.number(1, dtype)
    assert number == _layout.number(1.0, dtype)
    assert type(number) is type(_layout.number(1.0, dtype))


MISSING = """
import sys
sys.modules["triton"] = None
import torch, gpm_core
from gpm_core import backends
assert backends.chosen("score", "cpu", torch.float32) in ("native", "reference")
print(backends.why_not("triton", "score", "cuda", torch.float32))
"""


def test_without_triton() -> None:
    assert run(MISSING, interpret=False).strip() == "triton is not installed"


def test_is_not_imported_unless_asked_for() -> None:
    script = "import sys, gpm_core; print('gpm_core.backends.triton' in sys.modules)"
    assert run(script, interpret=False).strip() == "False"


COMPILE = """
import json, sys, torch
from gpm_core.backends.triton.compile import compile_for, specializations
selected = specializations((getattr(torch, sys.argv[2]),))
for compiled in compile_for(int(sys.argv[1]), selected):
    print(json.dumps([compiled.name, compiled.resources()]))
"""


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_no_kernel_spills(capability: int, dtype: str) -> None:
    """All numbers stay in registers: no stack, no local memory."""
    lines = run(COMPILE, str(capability), dtype, interpret=False).splitlines()
    found = dict(json.loads(line) for line in lines)
    operations = {name.split()[0].rstrip(",") for name in found}
    assert operations == {name + way for name in gpm_core.ops.__all__ for way in ("", "_backward")}
    for name, used in found.items():
        assert used["stack"] == used["local"] == 0, (name, used)
        assert used["reg"] <= 168, (name, used)
        assert used["shared"] <= 48 * 1024, (name, used)


ASSEMBLY = """
import torch
from gpm_core.backends.triton.compile import specializations
chosen = {one.name: one for one in specializations((torch.float32,))}
for name in ("score", "score_matrix, 1024 x K = 5"):
    compiled = chosen[name].compile(90)
    assert not compiled.metadata.enable_fp_fusion
    print(compiled.asm["ptx"])
"""


def test_products_are_not_fused() -> None:
    """Both products of a block are rounded before they are subtracted, for exact antisymmetry.

    Without a scale nothing else is there to fuse.
    """
    ptx = run(ASSEMBLY, interpret=False)
    products, differences = (
        re.findall(r"mul(?:\.rn)?\.f32", ptx),
        re.findall(r"sub(?:\.rn)?\.f32", ptx),
    )
    assert len(products) == 2 * len(differences) > 0
    assert "fma" not in ptx
    assert ".ftz" not in ptx
