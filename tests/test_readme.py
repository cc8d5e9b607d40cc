"""The examples of README.md run as they stand, in order, in one session."""

from __future__ import annotations

import re

import torch
from conftest import REPOSITORY


def test_examples_run() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 4
    torch.manual_seed(0)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    for parameter in names["head"].parameters():
        assert parameter.grad is not None, "the loss reaches every parameter of the head"
    assert names["hidden"].grad.abs().sum() > 0


def test_continuous_integration_runs_the_test_command_of_the_readme() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert re.search(r"^make test\b", text, flags=re.MULTILINE)
    script = (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")
    commands = [
        line for line in script.splitlines() if line and not line.startswith(("#", "set", "cd"))
    ]
    assert commands == ["make test"]
