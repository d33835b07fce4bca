"""What mkdocstrings reads the docstrings by: they are Markdown but for examples, formulas and brackets, which are marked here."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import griffe

SPEC = importlib.util.spec_from_file_location("reference", Path(__file__).with_name("reference.py"))
assert SPEC is not None and SPEC.loader is not None
reference = sys.modules[SPEC.name] = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(reference)


class Prose(griffe.Extension):
    """Every docstring as the Markdown that it is meant to be."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = reference.prose(obj.docstring.value)
