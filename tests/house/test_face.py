"""The public face: frozen, lazy, documented; docstring examples run; optional packages may be absent."""

import doctest
import importlib
import pkgutil
import subprocess
import sys

import pytest

import jieyue

FACE = [
    "AccumulatedOptimizer",
    "Budget",
    "EffectiveBatchTrainer",
    "Plan",
    "Report",
    "RunConfig",
    "Tally",
    "TrainingConfig",
    "accumulate",
    "atrous",
    "attend",
    "attend_linear",
    "compare",
    "evaluate",
    "fgm",
    "first",
    "fit_activation",
    "full",
    "gelu",
    "global_tokens",
    "load",
    "local",
    "parse_pattern",
    "plan",
    "predict",
    "push",
    "replace_tokens",
    "reshare",
    "sparse",
    "sparsify",
    "train",
    "unshare",
    "use",
    "verify",
]


def modules():
    found = pkgutil.walk_packages(jieyue.__path__, "jieyue.")
    return sorted(m.name for m in found if not m.module_finder.find_spec(m.name).origin.endswith(".so"))


def test_public_names():
    assert sorted(jieyue.__all__) == sorted([*FACE, "__version__"])
    assert len(FACE) <= 36


@pytest.mark.parametrize("name", FACE)
def test_public_names_resolve_and_are_documented(name):
    assert getattr(jieyue, name).__doc__


HEAVY = ("torch", "transformers", "numpy", "matplotlib", "scipy", "sklearn", "fastapi", "uvicorn", "rich", "peft")
MATHEMATICS = ("attention", "linear", "activations", "decoding", "metrics", "training.accumulation")
LIGHT = [  # what is imported (or run), and what of the heavy packages comes with it
    ("import jieyue", ()),
    ("import jieyue.report, jieyue.budget, jieyue.machine, jieyue.tally", ()),
    ("import " + ", ".join(f"jieyue.{room}" for room in MATHEMATICS), ("torch", "numpy")),
    ("import jieyue.hf, jieyue.run.jobs", ("torch", "numpy", "transformers", "scipy", "peft")),
]


def alone(code):
    """Runs code in a process of its own, in which nothing was imported."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def imported(code, run=alone):
    """The heavy packages that a fresh process has loaded after ``code``."""
    done = run(f"import sys\n{code}\nsys.stderr.write(' '.join(sys.modules.keys() & set({HEAVY})))")
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


@pytest.mark.parametrize(("code", "allowed"), LIGHT, ids=[code for code, _ in LIGHT])
def test_imports_bring_no_more_than_they_need(code, allowed, request):
    """Beyond what this version of transformers brings itself, where transformers is needed."""
    if "transformers" not in allowed:
        assert imported(code) <= set(allowed)
        return
    knows_transformers = request.getfixturevalue("fresh")
    brought = imported("from transformers import Trainer", knows_transformers)
    assert imported(code, knows_transformers) <= {*allowed, *brought}


def test_a_heavy_import_is_noticed(fresh):
    """The broken twin, and each piece of code finds what the one before it did not bring."""
    assert "matplotlib" in imported("import jieyue.hf, matplotlib", fresh)
    assert "matplotlib" not in imported("import jieyue.hf", fresh)


def test_help_of_every_verb_imports_nothing_heavy():
    code = """
import typer
from typer.testing import CliRunner
from jieyue.cli import build

def verbs(command, path=()):
    yield path
    for name, inner in getattr(command, "commands", {}).items():
        yield from verbs(inner, (*path, name))

app = build()
every = list(verbs(typer.main.get_command(app)))
assert len(every) > 20
for path in every:
    assert CliRunner().invoke(app, [*path, "--help"]).exit_code == 0, path
"""
    assert imported(code) <= {"rich"}  # typer's own


def test_the_import_alarm_rings():
    assert imported("import jieyue.tally; jieyue.__getattr__('attend')") >= {"torch"}


def test_unknown_name_lists_the_known():
    with pytest.raises(AttributeError, match="Tally"):
        _ = jieyue.tally_


@pytest.mark.parametrize(
    ("earlier", "now"),
    [("Course", "TrainingConfig"), ("Materials", "RunConfig"), ("fit", "fit_activation"), ("parse", "parse_pattern")],
)
def test_an_earlier_name_says_the_new_one(earlier, now):
    with pytest.raises(AttributeError, match=f"called {now} now"):
        getattr(jieyue, earlier)
    assert getattr(jieyue, now)


@pytest.mark.parametrize("name", modules())
def test_docstring_examples(name):
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} has no docstring"
    assert doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL).failed == 0
