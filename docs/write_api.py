"""Writes docs/api.md: every public name with its signature and docstring, read from the source, nothing typed by hand.

python docs/write_api.py
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path

from jieyue.report import write_whole

ROOT = Path(__file__).parents[1]
SOURCE, PAGE = ROOT / "src", ROOT / "docs" / "api.md"
MODULES = (  # after the face, in this order; a module offers what its __all__ names
    "jieyue.attention",
    "jieyue.linear",
    "jieyue.activations",
    "jieyue.training.objective",
    "jieyue.training.accumulation",
    "jieyue.training.microbatch",
    "jieyue.training.optimizer",
    "jieyue.training.vocabulary_loss",
    "jieyue.training.cached_gradients",
    "jieyue.training.in_backward",
    "jieyue.training.techniques",
    "jieyue.training.remedies.replacement",
    "jieyue.training.remedies.sampling",
    "jieyue.training.remedies.adversarial",
    "jieyue.training.remedies.consistency",
    "jieyue.training.remedies.remedy",
    "jieyue.training.remedies.texts",
    "jieyue.decoding.search",
    "jieyue.decoding.sampling",
    "jieyue.decoding.constraints",
    "jieyue.decoding.slots",
    "jieyue.decoding.vote",
    "jieyue.decoding.rerank",
    "jieyue.decoding.stream",
    "jieyue.metrics.extraction",
    "jieyue.metrics.generation",
    "jieyue.metrics.classification",
    "jieyue.metrics.calibration",
    "jieyue.metrics.intervals",
    "jieyue.hf.loading",
    "jieyue.hf.use",
    "jieyue.hf.albert",
    "jieyue.hf.sharing",
    "jieyue.hf.adapters",
    "jieyue.hf.prefix",
    "jieyue.hf.nezha",
    "jieyue.hf.vocabulary",
    "jieyue.hf.positions",
    "jieyue.hf.tokenizers",
    "jieyue.hf.trainer",
    "jieyue.hf.optimizers",
    "jieyue.hf.attention_check",
    "jieyue.hf.activation_check",
    "jieyue.run.predict",
    "jieyue.training.tiger",
    "jieyue.training.weightwise",
    "jieyue.errors",
)
OPENING = """# API

Written by `python docs/write_api.py` from the docstrings. Letters: B batch, H heads, G key heads, N queries, M keys, D head size,
V vocabulary (of values in attention: their size). Users' mistakes raise `InputError`, a `ValueError`.
"""
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Entry:
    """One public name: where it is offered, where it is defined, and its piece of source."""

    module: str
    name: str
    home: str
    node: ast.stmt | None

    @property
    def document(self) -> str:
        """The docstring, without the indentation of the source."""
        assert isinstance(self.node, Function | ast.ClassDef)
        return ast.get_docstring(self.node) or ""


@cache
def tree_of(module: str) -> ast.Module:
    path = SOURCE.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8"))


def offered(module: str) -> list[str]:
    """The names in the literal ``__all__`` of a module."""
    for node in tree_of(module).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    raise SystemExit(f"{module} has no literal __all__")


def defined(module: str, name: str) -> tuple[str, ast.stmt | None]:
    """The module that defines a name, re-exports followed, and the definition."""
    package = module if SOURCE.joinpath(*module.split("."), "__init__.py").exists() else module.rpartition(".")[0]
    last = None
    for node in tree_of(module).body:
        if isinstance(node, Function | ast.ClassDef) and node.name == name:
            last = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if name in [ast.unparse(target) for target in targets]:
                return module, node
        elif isinstance(node, ast.ImportFrom) and name in [alias.asname or alias.name for alias in node.names]:
            start = package.rsplit(".", node.level - 1)[0] if node.level else ""
            return defined(".".join(filter(None, [start, node.module or ""])), name)
    return module, last


def entries() -> Iterator[Entry]:
    """Every public name; what the face offers is told once, there."""
    jieyue = import_module("jieyue")
    told = set()
    for name, module in jieyue._FACE.items():
        inside = jieyue._INSIDE.get(name, name)
        home, node = defined(module, inside)
        told.add((home, inside))
        yield Entry("jieyue", name, home, node)
    for module in MODULES:
        for name in offered(module):
            home, node = defined(module, name)
            if (home, name) not in told:
                told.add((home, name))
                yield Entry(module, name, home, node)


def methods(node: ast.ClassDef) -> Iterator[Function]:
    """The documented public methods and properties of a class."""
    for part in node.body:
        if isinstance(part, Function) and not part.name.startswith("_") and ast.get_docstring(part):
            yield part


def fields(node: ast.ClassDef) -> list[str]:
    """The annotated fields of a dataclass, as they stand in the source."""
    if not any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        return []
    found = [part for part in node.body if isinstance(part, ast.AnnAssign) and "ClassVar" not in ast.unparse(part)]
    texts = [ast.unparse(part) for part in found if not ast.unparse(part.target).startswith("_")]
    texts = [re.sub(r"field\(default(_factory)?=(.*)\)$", r"\2", text) for text in texts]
    keyword_only = any("kw_only=True" in ast.unparse(decorator) for decorator in node.decorator_list)
    return ["*", *texts] if keyword_only and texts else texts


def signature(name: str, node: Function | ast.ClassDef) -> str:
    """A call as one reads it in the source, ``self`` left out."""
    if isinstance(node, ast.ClassDef):
        if own := fields(node):
            return wrapped(name, own, "")
        built = [part for part in node.body if isinstance(part, Function) and part.name == "__init__"]
        return signature(name, built[0]) if built else name
    if any(ast.unparse(decorator) in ("property", "cached_property") for decorator in node.decorator_list):
        return f"{name}: {ast.unparse(node.returns)}" if node.returns else name
    parts = split_arguments(node.args)
    result = f" -> {ast.unparse(node.returns)}" if node.returns and node.name != "__init__" else ""
    return wrapped(name, parts, result)


def split_arguments(arguments: ast.arguments) -> list[str]:
    """Each parameter of a signature as text, ``self`` and ``cls`` left out."""
    text = ast.unparse(arguments)
    parts, depth, start = [], 0, 0
    for place, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            parts.append(text[start:place].strip())
            start = place + 1
    parts.append(text[start:].strip())
    return [spaced(part) for part in parts if part and part.split(":")[0] not in ("self", "cls")]


def spaced(part: str) -> str:
    """``x: int=0`` as ``x: int = 0``."""
    depth = 0
    for place, letter in enumerate(part):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "=" and not depth and ":" in part[:place]:
            return f"{part[:place].rstrip()} = {part[place + 1 :].lstrip()}"
    return part


def wrapped(name: str, parts: list[str], result: str) -> str:
    line = f"{name}({', '.join(parts)}){result}"
    return line if len(line) <= 110 else "\n".join([f"{name}(", *(f"    {part}," for part in parts), f"){result}"])


def prose(document: str) -> str:
    """A docstring as Markdown: what is not code or a formula gets its stars and angle brackets escaped."""
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


def constant(entry: Entry) -> str:
    """What a table or another value of a module holds."""
    value = getattr(import_module(entry.module), entry.name)
    if isinstance(value, dict):
        return "A table: " + ", ".join(f"`{key}`" for key in value) + "."
    if isinstance(value, tuple | list) and value:
        return "In this order: " + ", ".join(f"`{getattr(each, 'name', each)}`" for each in value) + "."
    assert isinstance(entry.node, ast.Assign | ast.AnnAssign) and entry.node.value
    text = ast.unparse(entry.node.value)
    return "```text\n" + (text if len(text) <= 200 else text[:200] + " …") + "\n```"


def told(entry: Entry) -> str:
    if not isinstance(entry.node, Function | ast.ClassDef):
        return f"### {entry.name}\n\n{constant(entry)}\n"
    parts = [f"### {entry.name}", f"```text\n{signature(entry.name, entry.node)}\n```", prose(entry.document)]
    if isinstance(entry.node, ast.ClassDef):
        for method in methods(entry.node):
            call = signature(method.name, method)
            one_line = f"`.{call}`" if "\n" not in call else f"```text\n.{call}\n```"
            parts += [one_line, prose(ast.get_docstring(method) or "")]
    return "\n\n".join(parts) + "\n"


def page() -> str:
    """The whole page."""
    sections: dict[str, list[str]] = {}
    for entry in entries():
        sections.setdefault(entry.module, []).append(told(entry))
    parts = [OPENING]
    for module, texts in sections.items():
        opening = (ast.get_docstring(tree_of(module)) or "").split("\n\n")[0]
        title = "`import jieyue as jy`" if module == "jieyue" else f"`{module}`"
        parts += [f"## {title}\n", prose(opening) + "\n", *texts]
    return "\n".join(parts)


def main() -> None:
    write_whole(PAGE, page())


if __name__ == "__main__":
    main()
