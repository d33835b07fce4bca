"""The examples run as they stand, and are short."""

import importlib.util
import json
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
TRAINS = ("read_own_data", "write_titles")  # half a minute each


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem in TRAINS else []) for path in EXAMPLES],
)
def test_it_runs(path):
    found = runpy.run_path(str(path))["main"]()
    assert found is not None and len(found) > 0


SPEC = importlib.util.spec_from_file_location("write_notebooks", ROOT / "docs" / "write_notebooks.py")
write_notebooks = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(write_notebooks)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_its_notebook_is_the_same_code(path):
    notebook = path.parent / "notebooks" / f"{path.stem}.ipynb"
    assert notebook.read_text(encoding="utf-8") == write_notebooks.notebook(path), (
        "stale: python docs/write_notebooks.py"
    )


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_its_notebook_runs(path, capsys):
    cells = json.loads((path.parent / "notebooks" / f"{path.stem}.ipynb").read_text(encoding="utf-8"))["cells"]
    code, space = [cell for cell in cells if cell["cell_type"] == "code"], {"__name__": "notebook"}
    assert len(code) == 3
    for cell in code:
        exec(compile("".join(cell["source"]), f"{path.stem}.ipynb", "exec"), space)
    assert capsys.readouterr().out


def test_there_are_six_and_each_is_short():
    assert len(EXAMPLES) == 6
    listed = (EXAMPLES[0].parent / "README.md").read_text(encoding="utf-8")
    for path in EXAMPLES:
        assert len(path.read_text(encoding="utf-8").splitlines()) < 40, path.name
        assert f"]({path.name})" in listed
