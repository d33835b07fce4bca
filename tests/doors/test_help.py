"""What the command line says of itself: groups, examples that run, defaults, near names, flags from a file."""

import json
import re
import shlex
import sys
import tomllib

import pytest
import typer

from jieyue.cli import build, main
from jieyue.cli.examples import EXAMPLES
from jieyue.cli.help import FLAGS, VERBS
from jieyue.cli.optional import with_values
from jieyue.cli.settings_file import with_settings
from jieyue.cli.tasks import VERBS as TASK_VERBS
from jieyue.errors import InputError, near, near_file
from jieyue.hf.causal_presets import CAUSAL_PRESETS
from jieyue.hf.classic_presets import CLASSIC_PRESETS, refuse_misspelt
from jieyue.hf.presets import PRESETS, STARTS
from jieyue.tasks.config import RunConfig
from jieyue.tasks.read.curriculum import PRESET_CURRICULUM


@pytest.fixture(scope="module")
def root():
    return typer.main.get_command(build())


def verbs(command, path=()):
    yield path, command
    for name, own in getattr(command, "commands", {}).items():
        yield from verbs(own, (*path, name))


def context_of(command, words):
    """The context in which the last verb of the words would run, its arguments read and nothing called."""
    context, words = command.make_context("jieyue", []), with_values(words)
    while words and words[0] in getattr(command, "commands", {}):
        command, name, words = command.commands[words[0]], words[0], words[1:]
        context = command.make_context(name, list(words) if not hasattr(command, "commands") else [], parent=context)
    return context, command


def page_of(root, *words):
    """The help page of a verb."""
    context = root.make_context("jieyue", [], resilient_parsing=True)
    for word in words:
        context = context.command.commands[word].make_context(word, [], parent=context, resilient_parsing=True)
    return context.get_help() + "\n"


def test_every_verb_has_three_examples_that_it_reads(root, monkeypatch, tmp_path):
    root.no_args_is_help = False
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.toml").write_text("steps = 3\n", encoding="utf-8")
    paths = {" ".join(path): own for path, own in verbs(root)}
    assert {path for path, own in paths.items() if path != "verify"} <= set(EXAMPLES), "a verb without examples"
    assert set(EXAMPLES) <= set(paths), "examples of no verb"
    for own in paths.values():
        own.no_args_is_help = False
    for path, examples in EXAMPLES.items():
        assert len(examples) == 3 == len(set(examples)), path
        for line, does in examples:
            name, *words = shlex.split(line.partition(" < ")[0])
            assert name == "jieyue" and does.endswith((".", "?")), line
            assert " ".join(words).startswith(path), line
            _, found = context_of(root, words)
            assert not hasattr(found, "commands") or words == ["doctor"], line
    with pytest.raises(Exception, match="--no-such"):  # the broken twin
        context_of(root, ["train", "read", "--no-such", "3"])


def test_every_verb_speaks_json(root):
    leaves = [(path, own) for path, own in verbs(root) if not getattr(own, "commands", {})]
    assert len(leaves) >= 40
    for path, own in leaves:
        assert any("--json" in one.opts for one in own.params), " ".join(path)


def test_flags_stand_in_their_groups(root):
    for verb in ("train", "plan", "doctor", "compare"):
        for name in root.commands[verb].commands:
            page = page_of(root, verb, name)
            titles = re.findall(r"^(\w[\w ]*):$", page, re.M)
            assert titles[-1] == "Examples"
            assert [title for title in titles if title in FLAGS] == [t for t in FLAGS if t in titles]
            if (verb, name) != ("plan", "model"):
                left = page.partition("\nOptions:\n")[2].partition("\n\n")[0]
                assert re.findall(r"^  (--[\w-]+)", left, re.M) == ["--help"], f"{verb} {name}: flags in no group"
    page = page_of(root)
    for title, names in VERBS.items():
        assert f"\n{title}:\n" in page
        for name in set(names) & set(root.commands):
            assert re.search(rf"^  {name} ", page, re.M)


def test_the_defaults_of_presets_are_told_as_they_are(root):
    flat = {verb: " ".join(page_of(root, "train", verb).split()) for verb in ("read", "chat")}
    for name, sizes in PRESETS.items():
        told = re.search(rf"\b{name} \((\d+)[\w ]*? of (?:width )?(\d+)\)", flat["read"])
        assert told and [int(told[1]), int(told[2])] == [sizes["num_hidden_layers"], sizes["hidden_size"]], name
    for name, sizes in CAUSAL_PRESETS.items():
        told = re.search(rf"\b{name} \((\d+)[\w ]*? of (?:width )?(\d+)\)", flat["chat"])
        assert told and [int(told[1]), int(told[2])] == [sizes["num_hidden_layers"], sizes["hidden_size"]], name
    assert all(name in flat["read"] for name in CLASSIC_PRESETS)
    assert f"Default: {STARTS[0]}." in flat["read"]
    assert f"Default: {PRESET_CURRICULUM} for a preset" in flat["read"]
    assert {verb.name for verb in TASK_VERBS} == set(root.commands["train"].commands)


@pytest.mark.parametrize(("asked", "meant"), [("tinny", "tiny"), ("bert-smal", "bert-small"), ("Base", "base")])
def test_a_misspelt_preset_is_refused_before_the_hub_is_asked(asked, meant):
    with pytest.raises(InputError, match=f"did you mean '{meant}'"):
        refuse_misspelt(asked)


@pytest.mark.parametrize(
    "name", ["tiny", "bert-small", "bert-base-chinese", "t5-small", "gpt2", "someone/tiny", "hfl/rbt3"]
)
def test_other_names_are_left_to_the_hub(name):
    refuse_misspelt(name)


def test_near_names_and_files(tmp_path):
    (tmp_path / "train.json").write_text("", encoding="utf-8")
    assert near("stpes", ["steps", "seed"]) == ", did you mean 'steps'?"
    assert near("xyz", ["steps"]) == ""
    assert near_file(tmp_path / "trian.json") == f", did you mean '{tmp_path / 'train.json'}'?"
    assert near_file(tmp_path / "no" / "x") == ""
    with pytest.raises(InputError, match=re.escape("train.json'?")):
        RunConfig(data=[tmp_path / "trian.json"])


def called(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["jieyue", *map(str, arguments)])
    monkeypatch.setattr("jieyue.cli.start_again", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code or 0, *capsys.readouterr()


def test_show_tells_what_would_run_and_config_reads_it(monkeypatch, capsys, tmp_path):
    data = tmp_path / "a b.tsv"
    data.write_text("x\ty\n", encoding="utf-8")
    asked = ["--steps", 30, "--time", "2min", "--questions", 9, "--data", data, "--unshare", "--no-checkpointing"]
    asked = [one for one in asked if one not in ("--time", "2min")]
    code, shown, _ = called(monkeypatch, capsys, "train", "read", *asked, "--show")
    settings = tomllib.loads(shown)
    assert code == 0 and settings["steps"] == 30 and settings["questions"] == 9
    assert settings["data"] == [str(data)] and settings["checkpointing"] is False
    file = tmp_path / "run.toml"
    file.write_text(shown, encoding="utf-8")
    assert called(monkeypatch, capsys, "train", "read", "--config", file, "--show")[1] == shown
    later = tomllib.loads(called(monkeypatch, capsys, "train", "read", "--config", file, "--steps", 31, "--show")[1])
    assert later == {**settings, "steps": 31}
    told = json.loads(called(monkeypatch, capsys, "train", "read", f"--config={file}", "--show", "--json")[1])
    assert told["event"] == "settings" and told["steps"] == 30 and told["command"] == "train read"


def test_show_and_config_of_sparsify(monkeypatch, capsys, tmp_path):
    asked = ["sparsify", "DIR", "--attention", "first(4)+local(8)", "--full-layers", "1, 4", "--tokens", "2k"]
    code, shown, _ = called(monkeypatch, capsys, *asked, "--show")
    settings = tomllib.loads(shown)
    assert code == 0 and settings["full-layers"] == "1, 4" and settings["attention"] == "first(4)+local(8)"
    file = tmp_path / "run.toml"
    file.write_text(shown, encoding="utf-8")
    assert called(monkeypatch, capsys, "sparsify", "DIR", "--config", file, "--show")[1] == shown


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("stpes = 3", "did you mean 'steps'"),
        ("steps = [3]", "a list"),
        ("steps = true", "True"),
        ("skip-bad = 1", "true or false"),
        ("[training]\nsteps = 3", "'training'"),
        ("config = 'x'", "'config'"),
        ("steps 3", "not TOML"),
    ],
)
def test_a_file_of_other_things_is_refused(text, found, root, tmp_path):
    file, parameters = tmp_path / "run.toml", root.commands["train"].commands["read"].params
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=re.escape(found)):
        with_settings(["--config", str(file)], parameters)
    with pytest.raises(InputError, match=r"did you mean 'run\.toml'"):
        with_settings([f"--config={tmp_path / 'rum.toml'}"], parameters)
    assert with_settings(["--", "--config", str(file)], parameters) == ["--", "--config", str(file)]


def test_strict_ends_with_1_where_a_finding_is_an_error(monkeypatch, capsys, tmp_path):
    rows = "".join(f"text number {i}\t{'xy'[i % 2]}\n" for i in range(8))
    good, same, one = tmp_path / "good.tsv", tmp_path / "same.tsv", tmp_path / "one.tsv"
    good.write_text("text\tlabel\n" + rows, encoding="utf-8")
    same.write_text("text\tlabel\n" + rows[: rows.index("\n") + 1], encoding="utf-8")
    one.write_text("text\tlabel\n" + rows.replace("\ty", "\tx"), encoding="utf-8")
    leaking = ["doctor", "classify", good, "--held-out", same]
    code, out, _ = called(monkeypatch, capsys, *leaking, "--strict")
    assert code == 1 and "Leakage: 1 training texts also appear in held-out" in out
    assert called(monkeypatch, capsys, *leaking[:3], "--strict")[0] == 0
    code, out, _ = called(monkeypatch, capsys, "doctor", "classify", one, "--json")
    assert code == 0 and "One class" in json.loads(out)["sections"][0]["items"][0]["rows"][0][1]
