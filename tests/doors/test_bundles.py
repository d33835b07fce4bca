"""Bundles of flags: what Typer sees is what the verb gets, and no flag is lost on the way."""

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from jieyue.cli import build
from jieyue.cli.bundles import Backbone, Lengths, Training, spread
from jieyue.cli.optional import with_values
from jieyue.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Pair:
    left: Annotated[int, typer.Option()] = 1
    right: Annotated[str | None, typer.Option()] = None


def app_of(verb):
    app = typer.Typer()
    app.command()(verb)
    app.callback()(lambda: None)
    return app


def test_a_bundle_becomes_flags_and_comes_back_whole():
    found = []

    def verb(name: Annotated[str, typer.Argument()], pair: Pair = Pair(left=5)) -> None:
        """Says."""
        found.append((name, pair))

    app = app_of(spread(verb))
    for given in (["verb", "a"], ["verb", "b", "--left", "2", "--right", "r"]):
        assert CliRunner().invoke(app, given).exit_code == 0
    assert found == [("a", Pair(left=5)), ("b", Pair(left=2, right="r"))]
    assert CliRunner().invoke(app, ["verb", "a", "--left", "x"]).exit_code == 2


def test_without_spread_the_bundle_is_no_flag():
    """The broken twin."""

    def verb(pair: Pair = Pair()) -> None:
        """Says."""

    assert CliRunner().invoke(app_of(verb), ["verb", "--left", "2"]).exit_code != 0


def commands(command, path=()):
    for name, own in getattr(command, "commands", {}).items():
        yield from commands(own, (*path, name))
    if not hasattr(command, "commands"):
        yield path, command


def test_no_verb_has_a_flag_twice():
    for path, command in commands(typer.main.get_command(build())):
        flags = [flag for own in command.params for flag in (*own.opts, *own.secondary_opts)]
        assert len(flags) == len(set(flags)), path


def test_flags_become_values():
    course = Training(time="2min", seed=3).course(start="normal")
    assert (course.seconds, course.seed, course.start, course.steps) == (120, 3, "normal", None)
    assert Lengths(steps=4).course().steps == 4
    materials = Backbone(unshare="all", attention="local(4)").materials(model="tiny", data=None, held_out=None)
    assert (materials.unshare, materials.attention, materials.data) == (0, "local(4)", ())
    assert Backbone(unshare="3").materials(data=None, held_out=None).unshare == 3
    with pytest.raises(InputError, match="a number of blocks, or all"):
        Backbone(unshare="0").materials(data=None, held_out=None)


def test_a_flag_without_its_value():
    every = [
        ["--unshare"],
        ["--unshare", "--steps", "3"],
        ["--unshare", "3"],
        ["--unshare=3"],
        ["--unshare-after", "3"],
    ]
    filled = [["--unshare", "all"], ["--unshare", "all", "--steps", "3"], *every[2:]]
    assert [with_values(one) for one in every] == filled
    assert with_values(["--", "--unshare"]) == ["--", "--unshare"]
