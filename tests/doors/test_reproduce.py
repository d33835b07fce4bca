"""``jieyue reproduce``: a claim from start to page, and what it says to mistakes."""

import json
import shlex
from typing import Any

import pytest
from test_cli import jieyue
from typer.main import get_command

from jieyue.cli import build
from jieyue.evidence.articles import choose


def test_a_claim_from_the_command_to_the_page(tmp_path):
    done = jieyue("reproduce", "gelu-constants", "--docs", "docs", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["verdict"] for event in events if event["event"] == "verdict"] == ["holds"]
    assert (tmp_path / "reproduction" / "reproduction.html").is_file()
    cells = (tmp_path / "docs" / "results" / "minutes" / "gelu-constants.jsonl").read_text().splitlines()
    assert len(cells) == 3
    assert {json.loads(cell)["command"] for cell in cells} == {
        "jieyue reproduce gelu-constants --scale minutes --seeds 3"
    }
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "reproduction" / "cells").iterdir()}
    again = jieyue("reproduce", "6", "--json", cwd=tmp_path)
    assert again.returncode == 0
    assert (
        before.items()
        <= {path: path.stat().st_mtime_ns for path in (tmp_path / "reproduction" / "cells").iterdir()}.items()
    )


@pytest.mark.parametrize("command", [line for claim in choose() for line in claim.full])
def test_the_commands_of_the_full_scale_are_understood(command):
    """Not run here (a GPU, the hub, full data), but every verb, flag and value is one that the command line takes."""
    program, *words = shlex.split(command)
    verb: Any = get_command(build())
    name = program
    while hasattr(verb, "commands"):
        name, *words = words
        verb = verb.commands[name]
    assert program == "jieyue" and verb.make_context(name, list(words)).params
    with pytest.raises(Exception, match="no-such-flag"):
        verb.make_context(name, [*words, "--no-such-flag"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["9"], "1 sparse_attention"),
        (["gelu", "gello"], "gello"),
        (["--scale", "days"], "minutes, hour, full"),
        (["--seeds", "1"], "at least 2"),
        (["6", "--data", "absent"], "no folder absent"),
        (["--weights", "absent"], "no folder absent"),
    ],
)
def test_mistakes_are_told_in_a_line(arguments, said, tmp_path):
    done = jieyue("reproduce", *arguments, cwd=tmp_path)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "reproduction").exists()
