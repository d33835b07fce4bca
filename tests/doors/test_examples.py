"""The examples run as they stand, and are short."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))
TRAINS = ("read_own_data", "write_titles")  # half a minute each


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem in TRAINS else []) for path in EXAMPLES],
)
def test_it_runs(path):
    found = runpy.run_path(str(path))["main"]()
    assert found is not None and len(found) > 0


def test_there_are_six_and_each_is_short():
    assert len(EXAMPLES) == 6
    listed = (EXAMPLES[0].parent / "README.md").read_text(encoding="utf-8")
    for path in EXAMPLES:
        assert len(path.read_text(encoding="utf-8").splitlines()) < 40, path.name
        assert f"]({path.name})" in listed
