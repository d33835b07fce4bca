"""Files of at most 400 lines, functions of at most 60 and 8 parameters; no print, exit or environment out of place."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src" / "jieyue"
FILES = sorted(PACKAGE.rglob("*.py"))
DOORS = {"cli"}  # may print, exit and read JIEYUE_DATA


def named(path):
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", FILES, ids=named)
def test_sizes(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400, f"{named(path)} has {text.count(chr(10))} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.body[0].lineno + 1
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):  # docstring
                length -= first.end_lineno - first.lineno + 1
            arguments = [
                a for a in node.args.posonlyargs + node.args.args + node.args.kwonlyargs if a.arg not in ("self", "cls")
            ]
            assert length <= 60, f"{named(path)}:{node.lineno} {node.name} has {length} lines"
            is_verb = path.relative_to(PACKAGE).parts[0] in ("cli", "cli.py", "run.py")  # flags are parameters there
            kernel = any(part in ("engines", "attention", "linear") for part in path.relative_to(PACKAGE).parts)
            assert len(arguments) <= 8 or is_verb or kernel, (
                f"{named(path)}:{node.lineno} {node.name} has {len(arguments)} parameters"
            )


@pytest.mark.parametrize("path", FILES, ids=named)
def test_manners(path):
    room = path.relative_to(PACKAGE).with_suffix("").parts[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("print", "exit", "input") or room in DOORS, (
                f"{named(path)}:{node.lineno} {node.func.id}()"
            )
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv"):
            assert room in DOORS, f"{named(path)}:{node.lineno} reads the environment"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{named(path)}:{node.lineno} bare except"
        if isinstance(node, ast.ImportFrom):
            assert all(alias.name != "*" for alias in node.names), f"{named(path)}:{node.lineno} import *"


def test_words_not_used_for_files():
    forbidden = {"utils", "util", "common", "helpers", "helper", "base", "manager", "misc"}
    assert not [named(p) for p in PACKAGE.rglob("*") if p.stem in forbidden]


UPSTAIRS = ("tasks", "run", "planning", "report", "serving", "data", "cli")


def count_of(pattern, paths):
    return sum(len(re.findall(pattern, path.read_text(encoding="utf-8"))) for path in paths)


def test_types_are_said():
    """``Any`` only where a value's type is nobody's to say; neither ``object`` nor ``cast`` stands in for it."""
    assert count_of(r"\bAny\b", FILES) <= 430
    assert count_of(r"\bAny\b", [path for path in FILES if path.relative_to(PACKAGE).parts[0] in UPSTAIRS]) <= 100
    assert count_of(r"(: |-> |\[|\| )object\b", FILES) <= 32
    assert count_of(r"(?<!ctypes\.)\bcast\(", FILES) <= 21
