"""The examples of docs/objectives.md run as they stand, in order, in one session."""

from __future__ import annotations

import re

import pytest
import torch
from conftest import REPOSITORY

from gpm_core import objectives

TEXT = (REPOSITORY / "docs" / "objectives.md").read_text(encoding="utf-8")


def test_examples_run() -> None:
    pytest.importorskip("scipy", reason="nash_mixture needs SciPy, of gpm_core[train]")
    blocks = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    assert len(blocks) >= 10
    torch.manual_seed(0)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "objectives.md", "exec"), names)


def test_every_objective_is_in_the_tables() -> None:
    for name in objectives.__all__:
        if name.endswith("_loss"):
            assert f"| `{name}` |" in TEXT, name
