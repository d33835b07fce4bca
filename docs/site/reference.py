"""Fills the pages of the reference: mkdocs calls ``on_page_markdown`` for every page.

A line ``@ jieyue.linear`` on such a page becomes a heading, the module's first paragraph, and a directive for mkdocstrings
for every name that the module's ``__all__`` offers, there where it is defined. ``@ jieyue`` is the face. What the face offers is told
once, there. Read from the source alone: nothing is imported, so the site builds without torch.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).resolve().parents[2] / "src"
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@cache
def tree_of(module: str) -> ast.Module:
    path = SOURCE.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8"))


def literal(module: str, name: str) -> Any:
    """The value of a literal at the top of a module."""
    for node in tree_of(module).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if ast.unparse(target) == name:
                return ast.literal_eval(node.value)
    raise SystemExit(f"{module} has no literal {name}")


def home_of(module: str, name: str) -> str:
    """The module that defines a name, re-exports followed."""
    package = module if SOURCE.joinpath(*module.split("."), "__init__.py").exists() else module.rpartition(".")[0]
    for node in tree_of(module).body:
        if isinstance(node, ast.ImportFrom) and name in [alias.asname or alias.name for alias in node.names]:
            start = package.rsplit(".", node.level - 1)[0] if node.level else ""
            return home_of(".".join(filter(None, [start, node.module or ""])), name)
    return module


@cache
def face() -> dict[str, str]:
    """Every name of the face: its path, there where it is defined."""
    inside = literal("jieyue", "_INSIDE")
    found = {}
    for name, module in literal("jieyue", "_FACE").items():
        told = inside.get(name, name)
        found[name] = f"{home_of(module, told)}.{told}"
    return found


def paths(module: str) -> Iterator[str]:
    """The path of each public name of a module."""
    if module == "jieyue":
        yield from face().values()
        return
    for name in literal(module, "__all__"):
        path = f"{home_of(module, name)}.{name}"
        if path not in face().values():
            yield path


def section(module: str) -> str:
    """A module's part of its page."""
    opening = (ast.get_docstring(tree_of(module)) or "").split("\n\n")[0]
    title = "import jieyue as jy" if module == "jieyue" else module
    return "\n\n".join([f"## `{title}`", prose(opening), *(f"::: {path}" for path in paths(module))])


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """The page with every line ``@ module`` replaced by that module's part."""
    return re.sub(r"^@ ([\w.]+)$", lambda found: section(found[1]), markdown, flags=re.M)


def prose(document: str) -> str:
    """A docstring as Markdown: examples and formulas fenced; elsewhere stars and brackets that are meant as such escaped."""
    out = []
    for paragraph in re.split(r"\n{2,}", document.strip()):
        lines = paragraph.splitlines()
        if lines[0].lstrip().startswith(">>>"):
            out.append("```pycon\n" + textwrap.dedent(paragraph) + "\n```")
        elif all(line.startswith("    ") for line in lines):
            out.append("```text\n" + textwrap.dedent(paragraph) + "\n```")
        else:
            pieces = re.split(r"(``[^`]+``|`[^`]+`)", "\n".join(line.strip() for line in lines))
            out.append("".join(p.replace("``", "`") if p[:1] == "`" else escaped(p) for p in pieces))
    return "\n\n".join(out)


def escaped(text: str) -> str:
    text = re.sub(r"([<>\[\]]|(?<!\w)\*(?!\w)|(?<=\w)\*(?=\w)|(?<!\w)\*\*)", r"\\\1", text)
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)
