"""No circle of imports between modules, those inside functions and under TYPE_CHECKING included."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "src" / "jieyue"


def modules(package):
    """Dotted name -> file of every module."""
    found = {}
    for path in package.rglob("*.py"):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(package):
    """Module -> the modules that it imports, wherever in its file."""
    known, graph = modules(package), {}

    def nearest(name):
        while name and name not in known:
            name = name.rpartition(".")[0]
        return name

    for module, path in known.items():
        home = module if path.name == "__init__.py" else module.rpartition(".")[0]
        found = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {nearest(alias.name) for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                parts = home.split(".")
                start = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
                full = ".".join(filter(None, (start, node.module)))
                for alias in node.names:
                    found.add(f"{full}.{alias.name}" if f"{full}.{alias.name}" in known else nearest(full))
        graph[module] = found - {module, "", package.name}  # the face is lazy, and imports nothing
    return graph


def circles(graph):
    """The groups of modules that import one another, directly or not."""
    reached = {}
    for start in graph:
        seen, todo = set(), [start]
        while todo:
            for name in graph.get(todo.pop(), ()):
                if name not in seen:
                    seen.add(name)
                    todo.append(name)
        reached[start] = seen
    rings = {frozenset({a, *(b for b in reached[a] if a in reached.get(b, ()))}) for a in graph if a in reached[a]}
    return sorted(sorted(ring) for ring in rings)


def test_no_module_imports_itself_by_way_of_others():
    assert circles(imports(PACKAGE)) == []


def test_the_alarm_rings(tmp_path):
    """The broken twin: a circle of three, one import lazy, one for types alone, is found."""
    package = tmp_path / "jieyue"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("from .b import x\n")
    (package / "b.py").write_text("def f():\n    from jieyue import c\n")
    (package / "c.py").write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import jieyue.a\n")
    assert circles(imports(package)) == [["jieyue.a", "jieyue.b", "jieyue.c"]]
