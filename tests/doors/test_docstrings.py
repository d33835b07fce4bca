"""The reference is made from the docstrings (docs/site/reference.py), and these say what a reader needs."""

import ast
import importlib.util
import inspect
import re
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "site" / "reference.py")
reference = importlib.util.module_from_spec(SPEC)
sys.modules["reference"] = reference
SPEC.loader.exec_module(reference)

Function = ast.FunctionDef | ast.AsyncFunctionDef
PAGES = [ROOT / "docs" / "api.md", *sorted((ROOT / "docs" / "api").glob("*.md"))]
PAGES = [page for page in PAGES if not page.name.endswith(".zh.md")]
MODULES = [module for page in PAGES for module in re.findall(r"^@ ([\w.]+)$", page.read_text(encoding="utf-8"), re.M)]


@dataclass(frozen=True)
class Entry:
    """One public name: where it is offered, where it is defined, and its piece of source."""

    module: str
    name: str
    home: str
    node: ast.stmt

    @property
    def document(self):
        return ast.get_docstring(self.node) or ""


def entries():
    """Every function and class of the reference; of overloads the last, which has the docstring."""
    for module in MODULES:
        for path in reference.paths(module):
            home, _, name = path.rpartition(".")
            found = [node for node in reference.tree_of(home).body if getattr(node, "name", None) == name]
            if found:
                yield Entry(module, name, home, found[-1])


def methods(node):
    """The documented public methods and properties of a class."""
    for part in node.body:
        if isinstance(part, Function) and not part.name.startswith("_") and ast.get_docstring(part):
            yield part


ENTRIES = list(entries())
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


def defined(module):
    """The names that the top of a module's source defines, each by a line of its own."""
    for node in ast.walk(reference.tree_of(module)):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        yield from (target.id for target in targets if isinstance(target, ast.Name))
        yield getattr(node, "name", "")


def test_the_reference_has_every_name():
    import jieyue

    assert list(reference.face()) == [name for name in jieyue.__all__ if name != "__version__"]
    assert len(MODULES) == len(set(MODULES)) > 40
    for module in MODULES:
        for path in reference.paths(module):
            home, _, name = path.rpartition(".")
            assert hasattr(import_module(home), name), path
            assert name in defined(home), f"{path}: the site finds what a line of its own defines"


def test_what_is_given_by_name_is_marked_so_in_the_source():
    """The site reads signatures from the source: what the real object takes by name alone must stand so there."""
    seen = 0
    for entry in ENTRIES:
        if isinstance(entry.node, Function):
            found = inspect.signature(getattr(import_module(entry.home), entry.name)).parameters.values()
            names = {one.name for one in found if one.kind is one.KEYWORD_ONLY}
            assert names == {one.arg for one in entry.node.args.kwonlyargs}, named(entry)
            seen += len(names)
    assert seen > 50


def test_prose_is_markdown():
    told = reference.prose("Shapes [B, N], *all* of them.\n\n>>> 1 + 1\n2\n\n    a = b\n\n``x[0]`` stays")
    assert (
        told
        == "Shapes \\[B, N\\], *all* of them.\n\n```pycon\n>>> 1 + 1\n2\n```\n\n```text\na = b\n```\n\n`x[0]` stays"
    )


@pytest.mark.parametrize("entry", ENTRIES, ids=named)
def test_first_paragraph_says_what_it_is(entry):
    first = entry.document.split("\n\n")[0].strip()
    assert len(first) > 10 and re.search(r"[.:!?]$", first), f"{named(entry)}: {first!r}"


@pytest.mark.parametrize("entry", FACE, ids=named)
def test_the_face_names_every_parameter_and_says_when_it_refuses(entry):
    calls = [entry.node] if isinstance(entry.node, Function) else list(methods(entry.node))
    if isinstance(entry.node, ast.ClassDef):
        undocumented = [part.name for part in entry.node.body if isinstance(part, Function)]
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


@pytest.mark.parametrize("entry", [e for e in ENTRIES if isinstance(e.node, Function)], ids=named)
def test_functions_of_tensors_say_shapes(entry):
    if takes_tensors(entry.node):
        text = entry.document + (ast.get_docstring(reference.tree_of(entry.home)) or "")
        assert re.search(r"\[(\.\.\.|…|[A-Za-z_]+)(, [\w·… ]+)*\]", text), (
            f"{named(entry)} names no shape such as [B, N, D]"
        )


def test_the_alarm_rings():
    """The broken twin: a function that hides a parameter, and one that names no shape, are found."""
    node = ast.parse("def f(q: Tensor, scale: float = 1.0):\n    '''Scales q.'''").body[0]
    assert unmentioned(node, "Scales q.") == ["scale"]
    assert takes_tensors(node) and not takes_tensors(ast.parse("def f(text: str): ...").body[0])
