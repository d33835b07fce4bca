"""Writes examples/notebooks/*.ipynb from examples/*.py: the same code, ``main`` laid open in cells of its own.

    python docs/write_notebooks.py

A notebook has four cells: what the example shows, its imports and functions, its arguments, and the body of ``main``.
"""

from __future__ import annotations

import ast
import json
import re
import textwrap
from pathlib import Path
from typing import Any

from jieyue.report import write_whole

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
KERNEL = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def cells(source: str) -> list[tuple[str, str]]:
    """(kind, text) of each cell of an example's notebook."""
    tree, lines = ast.parse(source), source.splitlines()
    main = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main")
    assert isinstance(tree.body[0], ast.Expr) and tree.body[0].end_lineno and main.end_lineno
    before = "\n".join(lines[tree.body[0].end_lineno : main.lineno - 1])
    body = textwrap.dedent("\n".join(lines[main.body[0].lineno - 1 : main.end_lineno]))
    (argument,), (value,) = main.args.args, main.args.defaults
    more = re.search(rf"^    main\({argument.arg}=(\d+)\)$", source, re.M)
    hint = f"{more[1]} to see it learn" if more else "or a folder or a name on the hub, for trained weights"
    return [
        ("markdown", ast.get_docstring(tree) or ""),
        ("code", before.strip()),
        ("code", f"{argument.arg} = {ast.unparse(value)}  # {hint}"),
        ("code", re.sub(r"^return .*$", "", body, flags=re.M).strip()),
    ]


def notebook(path: Path) -> str:
    """An example as a notebook of format 4.5, without output."""
    title = path.stem.replace("_", " ").capitalize()
    found: list[dict[str, Any]] = []
    for number, (kind, text) in enumerate(cells(path.read_text(encoding="utf-8"))):
        text = re.sub(r"  # fmt: skip", "", text if number else f"# {title}\n\n{text}")
        cell: dict[str, Any] = {"cell_type": kind, "id": f"{path.stem}-{number}"[:64], "metadata": {}}
        if kind == "code":
            cell |= {"execution_count": None, "outputs": []}
        found.append(cell | {"source": text.splitlines(keepends=True)})
    whole = {"cells": found, "metadata": KERNEL, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, ensure_ascii=False, indent=1) + "\n"


def main() -> None:
    (EXAMPLES / "notebooks").mkdir(exist_ok=True)
    for path in sorted(EXAMPLES.glob("*.py")):
        write_whole(EXAMPLES / "notebooks" / f"{path.stem}.ipynb", notebook(path))


if __name__ == "__main__":
    main()
