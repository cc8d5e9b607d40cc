"""The reference: a page for each public module, from what the package exports and its docstrings.

For MkDocs this file is a hook, which adds the pages and orders all of them; for Griffe, which reads
the docstrings, an extension, which turns their reStructuredText into Markdown. A new public name
needs nothing here: it is on the page of the module whose ``__all__`` has it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

PACKAGE = "gpm_core"
ROOT = Path(__file__).resolve().parents[2]

#: Modules without a page: what is behind the commands and the kernels, where names may change.
INTERNAL = ("gpm_core.cli", "gpm_core.demo", "gpm_core.backends.triton", "gpm_core.backends.native")

#: Pages in the order in which to read them; others follow by name, and then the reference.
ORDER = (
    "index.md",
    "readme.md",
    "training.md",
    "cli.md",
    "data.md",
    "evaluation.md",
    "ranking.md",
    "objectives.md",
    "policy_training.md",
    "alignment.md",
    "openrlhf.md",
    "distributed.md",
    "backends.md",
    "architecture.md",
    "kernels.md",
    "contributing.md",
)

#: Files beside docs/ that are pages too.
BESIDE = {"README.md": "readme.md", "CONTRIBUTING.md": "contributing.md"}

#: A link to a file, not to a site or within the page.
_LINK = re.compile(
    r"(?<!!)\[(?P<text>[^\]]+)\]\((?P<path>(?!https?:|mailto:)[^)#\s]+)(?P<anchor>#[^)]*)?\)"
)


class Documented(NamedTuple):
    """A module that gets a page."""

    module: griffe.Module
    #: What is on it, in the order of ``__all__``.
    names: list[str]


def exported(module: griffe.Module) -> list[str]:
    """Public names of a module: its ``__all__``, or where it has none, what it defines."""
    if module.exports is not None:
        return [str(name) for name in module.exports]
    return [
        name
        for name, member in module.members.items()
        if not name.startswith("_") and not member.is_alias and not member.is_module
    ]


def offered(module: griffe.Module, name: str) -> Any:
    """What a module means by a name: of a function and the file that it is in, the function."""
    member = module.members[name]
    inner = member.members.get(name) if member.is_module else None
    return inner or (member.final_target if is_ours(member) else member)


def is_ours(member: Any) -> bool:
    """Whether it is an alias of something of the package, and not of what is not read."""
    return bool(member.is_alias and member.target_path.startswith(f"{PACKAGE}."))


def documented(package: griffe.Module) -> dict[str, Documented]:
    """What gets a page, by path: modules of the package, and deeper ones whose ``__all__`` has
    names that the modules above do not offer.
    """
    found: dict[str, Documented] = {}

    def visit(module: griffe.Module, above: frozenset[str]) -> None:
        for name, child in sorted(module.modules.items()):
            if child.is_alias or name.startswith("_") or child.path in INTERNAL:
                continue
            own = {name: offered(child, name) for name in exported(child)}
            own = {name: member for name, member in own.items() if not member.is_alias}
            names = [x for x, m in own.items() if m.path not in above and not m.is_module]
            if names and (child.exports is not None or module is package):
                found[child.path] = Documented(child, names)
            visit(child, above | {member.path for member in own.values()})

    visit(package, frozenset())
    return found


@functools.cache
def load() -> dict[str, Documented]:
    """The modules with a page. Read as text: nothing is imported."""
    package = griffe.load(
        PACKAGE, search_paths=[ROOT], try_relative_path=False, allow_inspection=False
    )
    assert isinstance(package, griffe.Module)
    return documented(package)


# -- pages, for MkDocs ---------------------------------------------------------------------------


def page_of(path: str) -> str:
    """File of a module's page, beside this one."""
    return f"{path.removeprefix(PACKAGE + '.')}.md"


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add a page for each module, and put all pages in their order."""
    load.cache_clear()  # `mkdocs serve` builds again when something has changed
    for path, (_, names) in load().items():
        text = f"---\ntitle: {path}\n---\n\n::: {path}\n    options:\n      members: {names}\n"
        files.append(File.generated(config, f"reference/{page_of(path)}", content=text))

    for name, uri in BESIDE.items():
        files.append(File.generated(config, uri, content=(ROOT / name).read_text("utf-8")))

    def place(file: File) -> tuple[Any, ...]:
        uri = file.src_uri
        last = uri.startswith("reference/")
        known = ORDER.index(uri) if uri in ORDER else len(ORDER)
        return last, known, uri != "reference/index.md", uri

    return Files(sorted(files, key=place))


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to what is outside of docs/, and the list of modules."""
    uri = page.file.src_uri
    base = ROOT if uri in BESIDE.values() else ROOT / "docs" / Path(uri).parent
    markdown = _LINK.sub(lambda match: relink(match, base), markdown)
    if uri != "reference/index.md":
        return markdown
    lines = []
    for path, (module, _) in load().items():
        summary = module.docstring.value.partition("\n")[0] if module.docstring else ""
        lines.append(f"- [{path}]({page_of(path)}): {markdown_of(summary, lambda name: None)}")
    return "\n".join([markdown, "", *lines, ""])


def relink(match: re.Match[str], base: Path) -> str:
    """A link as the site has it: pages find each other, other files of the repository are text."""
    target = (base / match["path"]).resolve()
    docs = ROOT / "docs"
    within = base.is_relative_to(docs) and target.is_relative_to(docs)
    if within or not target.is_relative_to(ROOT):
        return match[0]  # as it is; MkDocs warns where nothing is there
    if str(target.relative_to(ROOT)) in BESIDE:
        up = "../" * len(base.relative_to(docs).parts) if base.is_relative_to(docs) else ""
        return f"[{match['text']}]({up}{BESIDE[target.name]}{match['anchor'] or ''})"
    if target.is_relative_to(docs):
        return f"[{match['text']}]({target.relative_to(docs).as_posix()}{match['anchor'] or ''})"
    return match["text"] if target.exists() else match[0]


# -- docstrings, for Griffe ----------------------------------------------------------------------

#: Where a name is shown, or None.
Link = Callable[[str], str | None]

#: A role, `:func:`name``, or inline code, in which nothing is changed.
_INLINE = re.compile(r":[a-z]+:`~?(?P<target>[^`]+)`|(?P<code>``.+?``|`[^`\n]+`)|(?P<text>[<*])")
#: `one, another: text` in a section, which Griffe takes for one name.
_SEVERAL = re.compile(r"^(?P<indent> {4})(?P<names>\w+(?:, \w+)+): ")


def markdown_of(text: str, link: Link) -> str:
    """Prose with links in place of roles, and without what Markdown or HTML would make of it."""

    def replace(match: re.Match[str]) -> str:
        if match["target"]:
            path, name = link(match["target"]), match["target"]
            return f"[`{name}`][{path}]" if path else f"`{name}`"
        if match["text"] == "<":
            return "&lt;"
        if match["text"]:
            inside = match.start() > 0 and not match.string[match.start() - 1].isspace()
            return "\\*" if inside else "*"
        return match["code"]

    return _INLINE.sub(replace, text)


def split_names(lines: list[str]) -> list[str]:
    """An entry for each of several names that share one."""
    result: list[str] = []
    while lines:
        line = lines.pop(0)
        match = _SEVERAL.match(line)
        if not match:
            result.append(line)
            continue
        rest = [line[match.end() :]]
        while lines and lines[0].startswith(" " * 5):
            rest.append(lines.pop(0))
        for name in match["names"].split(", "):
            result += [f"{match['indent']}{name}: {rest[0]}", *rest[1:]]
    return result


def table(lines: list[str]) -> list[str]:
    """A simple table of reStructuredText as a Markdown table."""
    column = lines[0].index(" =")
    rows = [(line[:column].strip(), line[column:].strip()) for line in lines if line[0] != "="]
    return ["| | |", "|---|---|", *(f"| {left} | {right} |" for left, right in rows)]


def convert(text: str, link: Link) -> str:
    """A docstring with Markdown in place of reStructuredText."""
    lines = split_names(text.split("\n"))
    result: list[str] = []
    example = False
    while lines:
        line = lines.pop(0)
        example = line.lstrip().startswith(">>>") or (example and bool(line.strip()))
        if example:
            result.append(line)
        elif line.startswith("==="):
            block = [line]
            while not lines[0].startswith("==="):
                block.append(lines.pop(0))
            lines.pop(0)
            result += [markdown_of(row, link) for row in table(block)]
        elif line == "Example:":
            result.append("Examples:")  # what Griffe calls the section
        elif result and result[-1] in ("Returns:", "Yields:"):
            # A colon would end what Griffe takes for the type: here nothing is before it.
            result.append(f"    : {markdown_of(line.strip(), link)}")
        elif line.startswith("Parameters: "):
            # Of a module, after which Griffe would look for arguments.
            result.append(f"**Parameters**: {markdown_of(line[12:], link)}")
        else:
            result.append(markdown_of(line, link))
    return "\n".join(result)


def comment_above(attribute: griffe.Attribute) -> str | None:
    """The ``#:`` comment above an attribute, in which modules document constants and fields."""
    if attribute.lineno is None or not isinstance(attribute.filepath, Path):
        return None
    source = attribute.filepath.read_text(encoding="utf-8").split("\n")
    lines: list[str] = []
    for line in reversed(source[: attribute.lineno - 1]):
        if not line.strip().startswith("#:"):
            break
        lines.insert(0, line.strip().removeprefix("#:").strip())
    return "\n".join(lines) or None


class Docstrings(griffe.Extension):
    """All docstrings in Markdown, and comments of attributes as theirs."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Once everything is known, so that links find their targets."""
        if pkg.path != PACKAGE:
            return
        self.public: dict[str, str] = {}
        pages = documented(pkg)
        for path, (module, names) in pages.items():
            self.public[path] = path
            for name in names:
                self._publish(f"{path}.{name}", offered(module, name))
        self._convert(pkg)
        for module, names in pages.values():
            for name in names:
                if module.members[name].is_module:  # the file hides the function in it
                    module.members[name] = griffe.Alias(name, offered(module, name), parent=module)

    def _publish(self, path: str, member: Any) -> None:
        """Where an object is shown, by each of its paths."""
        self.public[path] = self.public[member.path] = path
        if member.is_class:
            for name, inner in member.all_members.items():
                if not name.startswith("_"):
                    self.public[f"{path}.{name}"] = f"{path}.{name}"
                    self.public.setdefault(inner.path, f"{path}.{name}")

    def _find(self, target: str, scope: Any) -> str | None:
        """Where ``target`` is shown, as the docstring of ``scope`` calls it."""
        while scope is not None:
            path = self.public.get(f"{scope.path}.{target}")
            if path:
                return path
            scope = scope.parent
        named = {path for known, path in self.public.items() if known.endswith(f".{target}")}
        return self.public.get(target) or (named.pop() if len(named) == 1 else None)

    def _convert(self, scope: Any) -> None:
        if scope.is_attribute and scope.docstring is None:
            comment = comment_above(scope)
            if comment:
                scope.docstring = griffe.Docstring(comment, parent=scope)
        if scope.docstring is not None:
            scope.docstring.value = convert(
                scope.docstring.value, lambda target: self._find(target, scope)
            )
        for member in list(scope.members.values()):
            if not member.is_alias:
                self._convert(member)
