"""Who may import whom, read from the source (imports inside functions too). The table is docs/architecture.md's."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src" / "jieyue"

GROUND = {
    "autograd", "budget", "errors", "json_values", "listener", "machine", "malloc", "options", "record", "report", "tally", "text",
    "timer",
}  # fmt: skip
MAY_IMPORT = {
    **dict.fromkeys(GROUND, GROUND),
    "attention": GROUND,
    "linear": GROUND | {"attention"},
    "activations": GROUND,
    "metrics": GROUND,
    "data": GROUND,
    "decoding": GROUND,
    "training": GROUND,
    "hf": GROUND | {"attention", "linear", "activations", "decoding", "training"},
    "tasks": GROUND | {"attention", "linear", "activations", "metrics", "data", "decoding", "training", "hf"},
    "planning": GROUND | {"attention", "linear", "activations", "metrics", "data", "decoding", "training", "hf"},
}
MAY_IMPORT["run"] = set().union(*MAY_IMPORT.values(), {"tasks", "planning"})
BELOW_DOORS = MAY_IMPORT["run"] | {"run"}
MAY_IMPORT |= {"bench": BELOW_DOORS, "evidence": BELOW_DOORS | {"bench"}, "serving": BELOW_DOORS}
MAY_IMPORT["cli"] = BELOW_DOORS | {"bench", "evidence", "serving"}
MAY_IMPORT["__main__"] = {"cli"}
ONLY_IN = {"transformers": {"hf"}, "typer": {"cli"}, "rich": {"cli"}}


def rooms():
    return sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def room_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path):
    """(top package, jieyue room or None, line) of each import in the file."""
    package = path.relative_to(PACKAGE.parent).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                yield parts[0], parts[1] if parts[0] == "jieyue" and len(parts) > 1 else None, node.lineno
        elif isinstance(node, ast.ImportFrom):
            parts = list(package[: len(package) - node.level + 1]) if node.level else []
            parts += (node.module or "").split(".") if node.module else []
            if parts[0] != "jieyue":
                yield parts[0], None, node.lineno
            elif len(parts) > 1:
                yield "jieyue", parts[1], node.lineno
            else:
                for alias in node.names:
                    yield "jieyue", None if alias.name == "__version__" else alias.name, node.lineno


def offences(path):
    own = room_of(path)
    for top, room, line in imports(path):
        if room is not None and room != own and room not in MAY_IMPORT[own]:
            yield f"{path.relative_to(PACKAGE)}:{line} imports jieyue.{room}"
        if own not in ONLY_IN.get(top, {own}):
            yield f"{path.relative_to(PACKAGE)}:{line} imports {top}, which only {sorted(ONLY_IN[top])} may"


def test_every_room_has_a_floor():
    assert {room_of(path) for path in rooms()} <= set(MAY_IMPORT)


@pytest.mark.parametrize("path", rooms(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_downwards(path):
    assert list(offences(path)) == []


def tasks_known(path):
    """The folders of tasks that the file imports from."""
    text = path.read_text(encoding="utf-8")
    return set(re.findall(r"^\s*from jieyue\.tasks\.(\w+)\.\w+ import", text, flags=re.MULTILINE))


def test_the_pipeline_knows_no_task():
    """Talking is chat's, giving sparse attention is sparsify's (in_hand: from Python); nothing else below the doors knows a task."""
    known = {
        path.name: tasks_known(path) for room in ("run", "planning", "hf") for path in (PACKAGE / room).rglob("*.py")
    }
    own = {name: found for name, found in known.items() if found}
    assert own.pop("conversation.py") == {"chat"}
    sparse = {
        name for name in own if name in ("in_hand.py", "sparsify.py", "sparse_sections.py") or name.startswith("layer_")
    }
    assert set(own) == sparse and set().union(*own.values()) == {"sparsify"}


def test_the_alarm_rings(tmp_path, monkeypatch):
    """The broken twin: forbidden imports, lazy ones too, are found."""
    twin = tmp_path / "jieyue"
    (twin / "attention").mkdir(parents=True)
    bad = twin / "attention" / "bad.py"
    bad.write_text("def f():\n    from ..training import x\n    import transformers\n", encoding="utf-8")
    monkeypatch.setattr(f"{__name__}.PACKAGE", twin)
    assert len(list(offences(bad))) == 2
