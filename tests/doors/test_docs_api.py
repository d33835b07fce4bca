"""docs/api.md is what the docstrings say, and the docstrings say what a reader needs."""

import ast
import importlib.util
import inspect
import re
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("write_api", ROOT / "docs" / "write_api.py")
write_api = importlib.util.module_from_spec(SPEC)
sys.modules["write_api"] = write_api  # dataclasses look their module up
SPEC.loader.exec_module(write_api)

ENTRIES = [entry for entry in write_api.entries() if isinstance(entry.node, write_api.Function | ast.ClassDef)]
FACE = [entry for entry in ENTRIES if entry.module == "jieyue"]


def named(entry):
    return f"{entry.module}.{entry.name}"


def parameters(node):
    return [a for a in node.args.posonlyargs + node.args.args + node.args.kwonlyargs if a.arg not in ("self", "cls")]


def unmentioned(node, text):
    """Parameters of a function that its text never names."""
    return [a.arg for a in parameters(node) if not re.search(rf"(?<![A-Za-z_]){a.arg}(?![A-Za-z_])", text)]


def takes_tensors(node):
    notes = [ast.unparse(a.annotation) for a in parameters(node) if a.annotation]
    return any(re.fullmatch(r"Tensor( \| None)?", note) for note in notes)


def test_the_page_is_what_the_docstrings_say():
    committed = write_api.PAGE.read_text(encoding="utf-8")
    assert committed == write_api.page(), "docs/api.md is stale: python docs/write_api.py"


def keyword_only(entry):
    """The parameters that the real object takes by name alone; a builtin's own constructor tells none."""
    try:
        found = inspect.signature(getattr(import_module(entry.module), entry.name)).parameters.values()
    except ValueError:
        return []
    return [one.name for one in found if one.kind is one.KEYWORD_ONLY]


@pytest.mark.parametrize("entry", ENTRIES, ids=named)
def test_keyword_only_parameters_stand_behind_a_star(entry):
    """What must be given by name is shown so: as the real signature has it, not as its fields stand in the source."""
    if not (names := keyword_only(entry)):
        return
    shown = write_api.signature(entry.name, entry.node)
    if "(" not in shown:  # a protocol, or an __init__ that is not its own
        return
    before, star, after = re.sub(r"\*\*?\w+", lambda m: m[0] if m[0].startswith("**") else "*", shown).partition("*")
    assert star, shown
    assert all(re.search(rf"(?<!\w){name}(?!\w)", after) for name in names), shown
    assert not any(re.search(rf"(?<!\w){name}:", before) for name in names), shown


def test_the_page_has_every_name():
    headings = set(re.findall(r"^### (\w+)$", write_api.PAGE.read_text(encoding="utf-8"), re.M))
    import jieyue

    assert {name for name in jieyue.__all__ if name != "__version__"} <= headings
    elsewhere = set(jieyue._INSIDE.values())  # told under their names on the face
    for module in write_api.MODULES:
        assert set(write_api.offered(module)) - elsewhere <= headings, module


@pytest.mark.parametrize("entry", ENTRIES, ids=named)
def test_first_paragraph_says_what_it_is(entry):
    first = entry.document.split("\n\n")[0].strip()
    assert len(first) > 10 and re.search(r"[.:!?]$", first), f"{named(entry)}: {first!r}"


@pytest.mark.parametrize("entry", FACE, ids=named)
def test_the_face_names_every_parameter_and_says_when_it_refuses(entry):
    calls = [entry.node] if isinstance(entry.node, write_api.Function) else list(write_api.methods(entry.node))
    if isinstance(entry.node, ast.ClassDef):
        undocumented = [part.name for part in entry.node.body if isinstance(part, write_api.Function)]
        documented = {call.name for call in calls}
        allowed = {
            "param_groups",
            "state",
            "add_param_group",
            "load_state_dict",
            "create_optimizer",
            "floating_point_ops",
            "training_step",
        }  # an optimizer's and a Trainer's own, told in the class
        assert {name for name in undocumented if not name.startswith("_")} <= documented | allowed
    for call in calls:
        text = entry.document + (ast.get_docstring(call) or "")
        inherited = (entry.name == "EffectiveBatchTrainer" and call.name != "__init__") or call.name == "zero_grad"
        if not inherited:  # their parameters are torch's and transformers'
            assert unmentioned(call, text) == [], call.name
        if any(isinstance(part, ast.Raise) for part in ast.walk(call)):
            assert re.search(r"Error|[Rr]efuse", text), f"{call.name} does not say when it refuses"


@pytest.mark.parametrize("entry", [e for e in ENTRIES if isinstance(e.node, write_api.Function)], ids=named)
def test_functions_of_tensors_say_shapes(entry):
    if takes_tensors(entry.node):
        text = entry.document + (ast.get_docstring(write_api.tree_of(entry.home)) or "")
        assert re.search(r"\[(\.\.\.|…|[A-Za-z_]+)(, [\w·… ]+)*\]", text), (
            f"{named(entry)} names no shape such as [B, N, D]"
        )


def test_the_alarm_rings():
    """The broken twin: a function that hides a parameter, and one that names no shape, are found."""
    node = ast.parse("def f(q: Tensor, scale: float = 1.0):\n    '''Scales q.'''").body[0]
    assert unmentioned(node, "Scales q.") == ["scale"]
    assert takes_tensors(node) and not takes_tensors(ast.parse("def f(text: str): ...").body[0])
