"""The page of all claims is what the cells in docs/results give, and every cell says which command made it."""

import json
import shutil
from pathlib import Path

import pytest

from jieyue.evidence.pages import publish

DOCS = Path(__file__).parents[2] / "docs"
CELLS = sorted((DOCS / "results").glob("*/*.jsonl"))


def test_the_page_is_written_from_the_kept_cells(tmp_path):
    shutil.copytree(DOCS / "results", tmp_path / "results")
    publish([], tmp_path)
    for name in ("reproduction.md", "reproduction.zh.md", "reproduction.html"):
        assert (tmp_path / name).read_text(encoding="utf-8") == (DOCS / name).read_text(encoding="utf-8"), (
            f"write docs/{name} anew: jieyue reproduce gelu --docs docs"
        )
    drawn = {path.name: path.read_bytes() for path in (tmp_path / "reproduction").iterdir()}
    assert drawn == {path.name: path.read_bytes() for path in (DOCS / "reproduction").iterdir()}


@pytest.mark.parametrize("path", CELLS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_cell_names_its_command_and_no_folder_of_the_machine(path):
    for line in path.read_text(encoding="utf-8").splitlines():
        cell = json.loads(line)
        assert cell["command"].startswith("jieyue reproduce")
        assert f"--scale {path.parent.name}" in cell["command"]
        assert "/" not in cell["command"]
        assert cell["machine"]["torch"]
