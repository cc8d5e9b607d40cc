"""The site: it builds without a warning, and every public name is in its reference."""

from __future__ import annotations

import html
import importlib
import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import REPOSITORY

TOOLS = ("mkdocs", "mkdocstrings", "mkdocstrings_handlers.python", "griffe")


def missing() -> str | None:
    for tool in TOOLS:
        try:
            importlib.import_module(tool)
        except ModuleNotFoundError as error:
            return f'{error.name} is not installed: pip install "gpm_core[docs]"'
    return None


pytestmark = pytest.mark.skipif(missing() is not None, reason=missing() or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    output = built.stdout + built.stderr
    assert built.returncode == 0, output
    assert "WARNING" not in output, output
    return folder


@pytest.fixture(scope="module")
def generate() -> Any:
    """The module that makes the reference."""
    path = REPOSITORY / "docs" / "reference" / "generate.py"
    spec = importlib.util.spec_from_file_location("reference_generate", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def visible(page: Path) -> str:
    """Text of a page as it is read, white space as one blank."""
    text = re.sub(r"<(script|style)\b.*?</\1>", "", page.read_text("utf-8"), flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", text)).split())


# -- the site ------------------------------------------------------------------------------------


def test_every_page_is_there_and_can_be_reached(site: Path) -> None:
    first = (site / "index.html").read_text("utf-8")
    pages = [page.relative_to(REPOSITORY / "docs") for page in REPOSITORY.glob("docs/**/*.md")]
    assert len(pages) >= 5
    for page in [*pages, Path("readme.md"), Path("contributing.md"), Path("reference/ops.md")]:
        folder = page.parent if page.name == "index.md" else page.with_suffix("")
        assert (site / folder / "index.html").is_file()
        link = "." if folder == Path() else f"{folder.as_posix()}/"
        assert f'href="{link}' in first, f"no link to {page}"
    assert not list(site.rglob("*.py*"))


def test_links_between_the_repository_and_the_site(site: Path) -> None:
    """Of a page to a file beside docs/, of the README to a page, and back."""
    assert 'href="../contributing/"' in (site / "backends" / "index.html").read_text("utf-8")
    assert 'href="../architecture/"' in (site / "readme" / "index.html").read_text("utf-8")
    assert 'href="readme/#for-whom"' in (site / "index.html").read_text("utf-8")


# -- the reference -------------------------------------------------------------------------------


def packages() -> list[str]:
    """Packages below the first that say what they offer, commands and kernels aside."""
    names = []
    for file in sorted(REPOSITORY.glob("gpm_core/*/**/__init__.py")):
        name = ".".join(file.parent.relative_to(REPOSITORY).parts)
        internal = re.match(r"gpm_core\.(backends\.|cli\b|demo\b)", name)
        if not internal and "__all__" in file.read_text("utf-8"):
            names.append(name)
    return names


def load(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if str(error.name).startswith("gpm_core"):
            raise
        pytest.skip(f"{name} needs {error.name}, of an extra")


def test_packages_are_found() -> None:
    assert {"gpm_core.ops", "gpm_core.heads", "gpm_core.losses", "gpm_core.data"} <= set(packages())


def summary(value: Any) -> str:
    """First paragraph of a docstring, without its mark-up."""
    text = (inspect.getdoc(value) or "").partition("\n\n")[0]
    return " ".join(re.sub(r":[a-z]+:`~?([^`]+)`", r"\1", text).replace("`", "").split())


@pytest.mark.parametrize("package", packages())
def test_every_public_name_is_in_the_reference(site: Path, package: str) -> None:
    module = load(package)
    page = site / "reference" / package.removeprefix("gpm_core.") / "index.html"
    source, text = page.read_text("utf-8"), visible(page)
    assert summary(module) in text
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.ismodule(value):
            assert (page.parent.parent / value.__name__.removeprefix("gpm_core.")).is_dir()
            continue
        assert f'id="{package}.{name}"' in source, f"{name} is not on the page of {package}"
        if inspect.isclass(value) or inspect.isroutine(value):
            assert summary(value), f"{name} has no docstring"
            assert summary(value) in text, f"the docstring of {name} is not on its page"


def test_nothing_is_left_of_the_mark_up_of_docstrings(site: Path) -> None:
    pages = list((site / "reference").rglob("index.html"))
    assert len(pages) >= 10
    for page in pages:
        left = re.findall(r":[a-z]+:`.{20}|.{20}``.{20}|={5,}|&(?:lt|gt);", visible(page))
        assert not left, f"{page.parent.name}: {left}"


def test_links_of_the_reference(site: Path) -> None:
    """Of a docstring to a name of another package, of its own, and to a method."""
    heads = (site / "reference" / "heads" / "index.html").read_text("utf-8")
    for target in ("../ops/#gpm_core.ops.preference_embedding", "#gpm_core.heads.HybridHead.embed"):
        assert f'href="{target}"' in heads


# -- how it is made ------------------------------------------------------------------------------


def test_a_new_public_name_needs_no_editing(
    generate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {
        "__init__.py": "",
        "ops/__init__.py": "from torch import Tensor\nfrom gpm_core.ops.score import score\n"
        "from gpm_core.ops._private import brand_new\n__all__ = ['score', 'brand_new']",
        "ops/score.py": "def score(): ...\ndef helper(): ...",
        "ops/_private.py": "def brand_new(): ...\ndef unexported(): ...",
        "ops/more.py": "from gpm_core.ops import score\n__all__ = ['deep', 'score']\n"
        "def deep(): ...",
        "plain.py": "import torch\nPUBLIC = 1\n_PRIVATE = 2\ndef function(): ...",
        "cli/__init__.py": "__all__ = ['main']\ndef main(): ...",
        "_hidden.py": "__all__ = ['hidden']\ndef hidden(): ...",
    }
    for name, text in files.items():
        path = tmp_path / "gpm_core" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    generate.load.cache_clear()
    assert {path: page.names for path, page in generate.load().items()} == {
        "gpm_core.ops": ["score", "brand_new"],
        "gpm_core.ops.more": ["deep"],
        "gpm_core.plain": ["PUBLIC", "function"],
    }


def test_docstrings_become_markdown(generate: Any) -> None:
    text = """Score of :func:`a.b` and :class:`Unknown`, ``x < y``, <R v_a, v_b>, B*H.

==========  ============
left        :func:`a.b`
==========  ============

Args:
    one, two: both of
        them.
    three: the last.

Returns:
    (...) scores: as said.

Parameters: ``weight`` (d,).

Example:
    >>> 1 < 2
    True"""
    expected = r"""Score of [`a.b`][A] and `Unknown`, ``x < y``, &lt;R v_a, v_b>, B\*H.

| | |
|---|---|
| left | [`a.b`][A] |

Args:
    one: both of
        them.
    two: both of
        them.
    three: the last.

Returns:
    : (...) scores: as said.

**Parameters**: ``weight`` (d,).

Examples:
    >>> 1 < 2
    True"""
    assert generate.convert(text, {"a.b": "A"}.get) == expected
