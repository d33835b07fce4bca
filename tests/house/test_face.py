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
    "Course",
    "Materials",
    "Plan",
    "Report",
    "Tally",
    "accumulate",
    "atrous",
    "attend",
    "attend_linear",
    "compare",
    "evaluate",
    "fgm",
    "fit",
    "full",
    "gelu",
    "load",
    "local",
    "parse",
    "plan",
    "replace_tokens",
    "reshare",
    "sparse",
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
    assert len(FACE) <= 28


@pytest.mark.parametrize("name", FACE)
def test_public_names_resolve_and_are_documented(name):
    assert getattr(jieyue, name).__doc__


def test_import_is_light():
    code = "import sys, jieyue; assert not {'torch', 'transformers', 'numpy', 'matplotlib'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_unknown_name_lists_the_known():
    with pytest.raises(AttributeError, match="Tally"):
        _ = jieyue.tally_


@pytest.mark.parametrize("name", modules())
def test_docstring_examples(name):
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} has no docstring"
    assert doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL).failed == 0
