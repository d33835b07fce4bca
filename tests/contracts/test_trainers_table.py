"""Whose update is the undivided batch's: ours in every cell, transformers' not; the pages are what the command writes."""

import subprocess
import sys
from pathlib import Path

import pytest

from jieyue.bench.trainers import TrainerCheck, script_of, verdict, verify_trainer, write_scripts
from jieyue.errors import InputError
from jieyue.hf.peers import cells, run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def theirs():
    return list(cells("transformers", heads=("masked",)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "heads", [("masked", "answer"), pytest.param(("causal", "classification", "tokens"), marks=pytest.mark.slow)]
)
def test_ours_is_exact_in_every_cell(heads):
    found = list(cells("jieyue", heads=heads))
    assert len(found) == 6 * len(heads) and {verdict(cell) for cell in found} == {"exact"}


def test_a_wrong_update_is_noticed(theirs):
    """The broken twin: transformers' own accumulation, k times too large and turned where labels are ragged."""
    by_cell = {(cell["labels"], cell["k"]): verdict(cell) for cell in theirs}
    assert by_cell["even", 1] == by_cell["ragged", 1] == "exact"
    assert by_cell["even", 2] == "2 times the norm" and by_cell["even", 8] == "8 times the norm"
    assert by_cell["ragged", 8].startswith("turned (cosine 0.7")


def test_the_check_reports_and_writes_scripts(theirs, tmp_path):
    check = TrainerCheck.of("transformers", [{"peer": "transformers", "versions": {"transformers": "5"}}, *theirs])
    assert not check.exact and "8 times the norm" in check.report().markdown()
    written = write_scripts(check, tmp_path)
    assert len(written) == 4 and all(len(path.read_text().splitlines()) < 30 for path in written)
    for path in written:
        compile(path.read_text(), str(path), "exec")
    assert script_of({"peer": "setfit", "head": "masked", "k": 2}) is None
    with pytest.raises(InputError, match="expected one of jieyue, transformers"):
        verify_trainer("fairseq")


@pytest.mark.slow
def test_a_script_shows_what_its_cell_says(theirs, tmp_path):
    cell = next(one for one in theirs if one["labels"] == "ragged" and one["k"] == 2)
    done = subprocess.run(
        [sys.executable, "-c", script_of(cell)], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    ratio = float(done.stdout.split("norm ratio ")[1].split()[0])
    assert ratio > 1.5 and float(done.stdout.split("cosine ")[1].split()[0]) < 0.999


def test_a_trainer_that_is_not_installed_says_so():
    missing = [
        name
        for name in ("setfit", "bert4torch", "lightning")
        if next(run(name))["versions"].get(name) == "not installed"
    ]
    for name in missing:
        with pytest.raises(InputError, match=f"pip install {name}"):
            verify_trainer(name)


def test_the_pages_are_what_the_command_writes(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import trainers

    monkeypatch.setattr(
        sys, "argv", ["trainers.py", "--write", "--docs", str(tmp_path), "--scripts", str(tmp_path / "trainer_scripts")]
    )
    trainers.main()
    for name in ("trainers.md", "trainers.zh.md"):
        assert (tmp_path / name).read_text(encoding="utf-8") == (ROOT / "docs" / name).read_text(encoding="utf-8")
    made = sorted(path.name for path in (tmp_path / "trainer_scripts").glob("*.py"))
    assert made == sorted(path.name for path in (ROOT / "benchmarks" / "trainer_scripts").glob("*.py"))
    assert TrainerCheck.of("jieyue", trainers.read_results()["jieyue"]).exact
