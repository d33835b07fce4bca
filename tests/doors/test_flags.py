"""Settings as flags: what Typer sees is what the verb gets, and no flag is lost on the way."""

from dataclasses import dataclass, fields

import pytest
import typer
from typer.testing import CliRunner

from jieyue.cli import build
from jieyue.cli.flags import chosen, flags_of, verb_of
from jieyue.cli.optional import with_values
from jieyue.cli.tasks import VERBS
from jieyue.errors import InputError
from jieyue.options import option, options_of
from jieyue.run.config import TrainingConfig
from jieyue.tasks.config import RunConfig
from jieyue.tasks.table import TASKS, task


@dataclass(frozen=True, kw_only=True)
class Pair:
    left: "int" = option(1, "A number.")
    right: "str | None" = option(None, "A word.", flag="--to-the-right")
    inner: "int" = 7


def app_of(verb):
    app = typer.Typer(rich_markup_mode=None)
    app.command("verb")(verb)
    app.callback()(lambda: None)
    return app


def test_settings_become_flags_and_come_back_whole():
    found = []
    app = app_of(verb_of(lambda given: found.append(Pair(**chosen(Pair, given))), flags_of(Pair), "Says."))
    for given in (["verb"], ["verb", "--left", "2", "--to-the-right", "r"]):
        assert CliRunner().invoke(app, given).exit_code == 0
    assert found == [Pair(), Pair(left=2, right="r")]
    for wrong in (["--left", "x"], ["--inner", "2"], ["--right", "r"]):  # what is no option is no flag
        assert CliRunner().invoke(app, ["verb", *wrong]).exit_code == 2


def test_an_open_flag_that_is_not_given_is_left_to_the_task():
    found = []
    parameters = flags_of(Pair, is_open=True)
    app = app_of(verb_of(lambda given: found.append(chosen(Pair, given, is_open=True)), parameters, "Says."))
    for given in (["verb"], ["verb", "--left", "1"]):
        assert CliRunner().invoke(app, given).exit_code == 0
    assert found == [{}, {"left": 1}]
    assert "default: 1" in " ".join(CliRunner().invoke(app, ["verb", "--help"]).stdout.split())


def commands(command, path=()):
    for name, own in getattr(command, "commands", {}).items():
        yield from commands(own, (*path, name))
    if not hasattr(command, "commands"):
        yield path, command


def test_no_verb_has_a_flag_twice():
    for path, command in commands(typer.main.get_command(build())):
        flags = [flag for own in command.params for flag in (*own.opts, *own.secondary_opts)]
        assert len(flags) == len(set(flags)), path


def test_every_task_has_verbs_and_every_option_of_its_settings_a_flag():
    assert [*(verb.name for verb in VERBS), "sparsify"] == list(TASKS)  # which has a verb of its own
    group = typer.main.get_command(build())
    for verb in VERBS:
        assert verb.settings_class is task(verb.name).settings_class
        flags = {flag for own in group.commands["train"].commands[verb.name].params for flag in own.opts}
        assert {one.flag for one in options_of(verb.settings_class)} <= flags
        own = {one.name for one in (*fields(RunConfig), *fields(TrainingConfig))}
        assert {*verb.without, *verb.words, *verb.flags, *verb.defaults} <= own, "no words for what is not there"


def test_flags_become_values():
    assert TrainingConfig(**chosen(TrainingConfig, {"seconds": "2min", "seed": 3})).seconds == 120
    config = RunConfig(**chosen(RunConfig, {"unshare": "all", "attention": "local(4)", "data": None}))
    assert (config.unshare, config.attention, config.data) == (0, "local(4)", ())
    assert chosen(RunConfig, {"unshare": "3"}) == {"unshare": 3}
    with pytest.raises(InputError, match="a number of blocks, or all"):
        chosen(RunConfig, {"unshare": "0"})


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
