"""What people hear while they wait: a line every half minute without a terminal, a bar on one, where pictures are."""

import io
import json

import pytest
from rich.console import Console as Terminal

from jieyue.cli import console as module
from jieyue.cli.console import Console, show
from jieyue.report import Picture, Report
from jieyue.run.watched import watched


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when told to."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def heard(console, *, terminal):
    console.terminal = Terminal(file=io.StringIO(), force_terminal=terminal, width=100, highlight=False)
    return lambda: console.terminal.file.getvalue()


def test_without_a_terminal_a_line_comes_every_half_minute_and_at_the_end(clock):
    console = Console()
    told = heard(console, terminal=False)
    with console.progress("training") as update:
        for step in range(1, 101):
            clock[0] += 1.0
            update(step, 100, {"loss": 2.5, "tokens_per_second": 1200.0, "remaining_seconds": 100.0 - step})
    lines = told().splitlines()
    assert [line.split()[1] for line in lines] == ["30/100", "60/100", "90/100", "100/100"]
    assert lines[0] == "training 30/100 · loss 2.500 · 1,200 tokens/s · 1 min 10 s left"
    assert lines[-1].endswith("done")


def test_reading_and_encoding_are_told_in_lines_or_as_a_bar(clock):
    console = Console()
    told = heard(console, terminal=False)
    for done in range(0, 200, 10):
        clock[0] += 10.0
        console.reading("talks.jsonl", done * 2**20, 200 * 2**20)
    assert told().splitlines()[0] == "reading talks.jsonl: 10% of 200.0 MiB" and len(told().splitlines()) == 6
    clock[0] += 31.0
    console.reading("encoding", 500, 2000)
    assert told().splitlines()[-1] == "encoding: 25% of 2,000"
    console = Console()
    told = heard(console, terminal=True)
    console.reading("encoding", 500, 2000)
    console.say("read")  # a sentence ends the bar
    assert "encoding" in told() and "25%" in told() and told().rstrip().endswith("read")


def test_examples_tell_how_far_they_were_read_and_stay_the_same():
    told = []
    examples = list(range(1000))
    one = watched(examples, "encoding", lambda *given: told.append(given))
    assert list(one) == examples and one[3] == 3 and one[2:4] == [2, 3] and len(one) == 1000
    assert told[0] == ("encoding", 0, 1000) and told[-1] == ("encoding", 1000, 1000) and len(told) <= 201
    assert watched(examples, "encoding", None) is examples
    assert watched(range(3), "encoding", print) == range(3)


def test_pictures_are_told_by_the_page_that_shows_them(tmp_path, capsys):
    report = Report("R")
    report.section("S").fact("a", 1).picture(Picture.lines("Loss", {"training": ([0, 1], [2.0, 1.0])}, x="update"))
    console = Console()
    told = heard(console, terminal=False)
    show(console, report, out=tmp_path)
    assert f"Loss: {tmp_path / 'report.html'}" in told().replace("\n", "") and (tmp_path / "report.html").is_file()
    console = Console()
    told = heard(console, terminal=False)
    show(console, report)
    assert "Loss" not in told() and "(picture)" not in told()
    show(Console(True), report)
    assert json.loads(capsys.readouterr().out)["event"] == "report"
