"""The page of all claims is what the cells in docs/results give, and every cell says which command made it."""

import json
import re
import shutil
from pathlib import Path

import pytest

from jieyue.evidence.pages import publish

DOCS = Path(__file__).parents[2] / "docs"
CELLS = sorted((DOCS / "results").glob("*/*.jsonl"))


def by_data(text):
    """A page or picture with what each drawing says in place of how it is drawn, which another matplotlib does otherwise."""

    def said(found):
        return "\n".join([found[1], *re.findall(r"<text[^>]*>([^<]*)", found[2])])

    return re.sub(r'<svg[^>]*aria-label="([^"]*)"[^>]*>(.*?)</svg>', said, text, flags=re.S)


def test_the_page_is_written_from_the_kept_cells(tmp_path):
    shutil.copytree(DOCS / "results", tmp_path / "results")
    publish([], tmp_path)
    for name in ("reproduction.md", "reproduction.zh.md", "reproduction.html"):
        made, kept = ((folder / name).read_text(encoding="utf-8") for folder in (tmp_path, DOCS))
        assert by_data(made) == by_data(kept), f"write docs/{name} anew: jieyue reproduce gelu --docs docs"
    made, kept = (
        {path.name: by_data(path.read_text(encoding="utf-8")) for path in (folder / "reproduction").iterdir()}
        for folder in (tmp_path, DOCS)
    )
    assert made == kept and all("<path" not in text and len(text) > 100 for text in made.values())


def test_a_picture_of_other_data_is_found():
    """The broken twin: one number of a drawing changed."""
    picture = (DOCS / "reproduction" / "1-0.svg").read_text(encoding="utf-8")
    assert by_data(picture.replace("19.26", "19.27")) != by_data(picture)
    assert by_data(picture.replace("<path", "<path id='x'")) == by_data(picture)


@pytest.mark.parametrize("path", CELLS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_cell_names_its_command_and_no_folder_of_the_machine(path):
    for line in path.read_text(encoding="utf-8").splitlines():
        cell = json.loads(line)
        assert cell["command"].startswith("jieyue reproduce")
        assert f"--scale {path.parent.name}" in cell["command"]
        assert "/" not in cell["command"]
        assert cell["machine"]["torch"]
