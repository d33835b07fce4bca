"""Numbers that a page shows of a run of its own are those of the run's report, which lies in docs/results."""

import re
from pathlib import Path

import pytest

from jieyue.report import Report

ROOT = Path(__file__).parents[2]
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?%?")
SHOWN = {"README.md": ["demo.json"], "README.zh.md": ["demo.json"], "docs/chat.md": ["chat.json", "lccc.json"]}


def shown(page):
    """The numbers of the README's block of output, or of the section "Measured"."""
    text = (ROOT / page).read_text(encoding="utf-8")
    if page.startswith("README"):
        return NUMBER.findall(text.partition("<!-- demo -->")[2].partition("<!-- end of demo -->")[0])
    return re.findall(
        r"(?<=[Pp]erplexity )[\d.]+|[\d.]+(?= per character)|[\d.]+ %", text.partition("## Measured\n")[2]
    )


def measured(*names):
    texts = [Report.load(ROOT / "docs" / "results" / name).markdown() for name in names]
    return {number for text in texts for number in NUMBER.findall(text.replace("\\", ""))}


@pytest.mark.parametrize("page", SHOWN)
def test_every_number_is_the_reports(page):
    numbers = [number.replace(" ", "") for number in shown(page)]
    assert numbers
    assert not set(numbers) - measured(*SHOWN[page])


def test_another_number_is_noticed():
    assert "61.7%" not in measured("demo.json") and "1500" in measured("demo.json")
