"""The command line as a user runs it: train, evaluate, read, and one clear line for each mistake."""

import io
import json
import os
import signal
import sys
import time
import weakref
from dataclasses import dataclass

import pytest
import typer
from transformers import AutoModelForMaskedLM, AutoTokenizer

from jieyue.cli import _terminated_gently, build, main
from jieyue.cli.help import VERBS
from jieyue.report import Examples, Report
from jieyue.run.waterfall import Step, Waterfall

SMALL = ["--questions", "200", "--effective-batch", "8", "--answer-slots", "8", "--window-tokens", "96"]


_LEFT_OUT = Step(added="not measured", update="exact", predicted_bytes=1)
NO_SAVINGS = Waterfall(steps=(_LEFT_OUT,), effective_batch=1, positions=1)


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


def jieyue(*arguments, stdin=None, cwd=None, rounds=0, savings=True):
    """``main()`` in this process, so that transformers is imported once; what it prints, and its exit code.

    ``rounds``: of what training times after a warm one; ``savings=False`` leaves out what each saving was worth, whose tracing takes
    longer than the few updates, where another test has it.
    """
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8")
    given = io.TextIOWrapper(io.BytesIO((stdin or "").encode()), "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["jieyue", *map(str, arguments)])
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        patch.setattr(sys, "stdin", given)
        patch.setattr("jieyue.run.little_room.give_back_freed_memory", lambda: True)
        patch.setattr("jieyue.run.measure.ROUNDS", rounds)
        if not savings:
            patch.setattr("jieyue.run.jobs.savings", lambda *_: NO_SAVINGS)
        patch.setattr("jieyue.cli.start_again", lambda *_: None)  # this process is the tests'
        if cwd is not None:
            patch.chdir(cwd)
        with pytest.raises(SystemExit) as ended:
            main()
    texts = [(stream.flush(), stream.buffer.getvalue().decode())[1] for stream in (out, err)]
    return Done(ended.value.code or 0, *texts)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "model"
    done = jieyue("train", "read", "--steps", "4", "--budget", "2GiB", "--out", folder, "--json", *SMALL)
    assert done.returncode == 0, done.stderr
    return folder, [json.loads(line) for line in done.stdout.splitlines()]


def test_verbs_are_registered_once():
    """The fault: every call in one process added all verbs again, and took longer than the one before."""
    for verb in ("", "train", "plan", "compare", ""):
        for group in build(verb).registered_groups:
            names = [one.name for one in group.typer_instance.registered_commands]
            assert len(names) == len(set(names)) > 0


def test_a_verb_is_made_alone_and_is_the_same_as_among_all():
    whole = typer.main.get_command(build()).commands
    assert set(whole) == {name for names in VERBS.values() for name in names}
    for verb, own in whole.items():
        made = typer.main.get_command(build(verb)).commands
        assert verb in made and len(made) <= 3, verb
        assert [one.opts for one in made[verb].params] == [one.opts for one in own.params], verb
        assert list(getattr(made[verb], "commands", ())) == list(getattr(own, "commands", ())), verb
    assert set(typer.main.get_command(build("reed")).commands) == set(whole)  # so that near names are told


def test_training_leaves_everything_in_one_folder(trained):
    folder, events = trained
    assert {"data", "plan", "training", "report", "saved"} <= {event["event"] for event in events}
    names = {path.name for path in folder.iterdir()}
    assert {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "jieyue.json",
        "report.html",
        "report.json",
        "README.md",
    } <= names
    assert not [name for name in names if name.startswith(".") or name.endswith((".bin", ".part"))]
    assert AutoModelForMaskedLM.from_pretrained(folder).num_parameters() > 0
    assert AutoTokenizer.from_pretrained(folder).mask_token_id is not None


def test_the_report_has_predicted_and_measured_memory(trained):
    report = Report.load(trained[0])
    (table,) = [
        item
        for item in next(s for s in report.sections if s.title == "Memory").items
        if "Predicted" in getattr(item, "title", "")
    ]
    predicted, measured = table.rows[0][1:3]
    assert abs(predicted - measured) <= 0.01 * measured
    card = (trained[0] / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\n")
    assert "jieyue train read" in card
    (examples,) = [item for section in report.sections for item in section.items if isinstance(item, Examples)]
    assert len(examples.examples) == 12 and not [one for one in examples.examples if one.question in card]
    loss = next(picture for picture in report.pictures() if picture.title == "Loss")
    assert [series.name for series in loss.series] == ["training", "set aside"] and len(loss.series[1].y) == 4


def test_evaluate_reads_the_recipe_from_the_folder(trained, tmp_path):
    context = "The library opens at nine. It closes at five."
    answers = [{"text": "nine", "answer_start": context.index("nine")}]
    paragraph = {
        "context": context,
        "qas": [{"id": "1", "question": "When does the library open?", "answers": answers}],
    }
    file = tmp_path / "questions.json"
    file.write_text(
        json.dumps({"version": "1.1", "data": [{"title": "t", "paragraphs": [paragraph]}]}), encoding="utf-8"
    )
    done = jieyue("evaluate", trained[0], file, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["event"] == "report"


def test_read_answers_with_a_slice_of_the_text(trained):
    passage = "会议在三楼举行。\nThe meeting is on the third floor."
    done = jieyue("read", trained[0], "--question", "会议在哪里举行？", "--json", stdin="\ufeff" + passage)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["answer"] == passage[answer["start"] : answer["end"]]
    assert 0 <= answer["confidence"] <= 1


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["train", "read", "--data", "missing.json"], "missing.json"),
        (["train", "read", "--budget", "lots"], "budget='lots'"),
        (["train", "read", "--steps", "0"], "steps=0"),
        (["train", "read", "--steps", "3", "--epochs", "1"], "steps and epochs"),
        (["plan", "read", "--budget", "20MiB", *SMALL], "too much"),
        (["evaluate", "nowhere"], "jieyue.json"),
        (["read", "nowhere", "--question", "Why?", "--text", "So."], "jieyue.json"),
        (["train", "read", "--model", "gigantic", *SMALL], "gigantic"),
        (["train", "walk"], "walk"),
        (["train", "read", "--steps", "x"], "--steps"),
        (["train", "read", "--budgett", "1GiB"], "; see `jieyue train read --help`"),
        (["train", "read", "--out"], "--out"),
        (["frobnicate"], "see `jieyue --help`"),
        (["--lang", "zh", "frobnicate"], "没有命令 'frobnicate'；见 `jieyue --help`"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, found, tmp_path):
    done = jieyue(*arguments, cwd=tmp_path)
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    assert found in done.stderr
    own = [line for line in done.stderr.splitlines() if line.startswith("jieyue: ")]
    assert len(own) == 1 and "Usage" not in done.stderr


def test_a_broken_record_stops_or_is_listed(tmp_path):
    good = {"id": "1", "question": "q?", "passages": [{"passage": "It is red.", "answer": "red"}]}
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in [good] * 30 + [{"id": "x"}]), encoding="utf-8")
    stopped = jieyue("doctor", "read", file)
    assert stopped.returncode == 2
    assert "record 31" in stopped.stderr
    listed = jieyue("doctor", "read", file, "--skip-bad")
    assert listed.returncode == 0, listed.stderr
    assert "record 31" in " ".join(listed.stdout.split())


def test_verify_attention_of_a_folder(trained, tmp_path):
    """Entropies and losses of two candidates on a text, as tables and as a report in a folder."""
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"第{i}行是一小段话，讲的是注意力。" for i in range(9)), encoding="utf-8")
    tried = ["--attention", "linear(elu)", "--attention", "local(4)+linear(relu)", "--out", tmp_path / "report"]
    done = jieyue("verify", "attention", trained[0], "--text", text, *tried)
    assert done.returncode == 0, done.stderr
    for part in ("softmax", "linear(elu)", "local(4)+linear(relu)", "uniform"):
        assert part in done.stdout, part
    report = Report.load(next((tmp_path / "report").glob("*.json")))
    assert "local(4)+linear(relu)" in report.markdown()
    told = jieyue(
        "verify", "attention", trained[0], "--text", text, "--attention", "local(2)", "--json", "--share", 0.9
    )
    assert told.returncode == 0, told.stderr
    heads = [json.loads(line) for line in told.stdout.splitlines() if '"event": "deviation"' in line]
    assert heads and all(head["violations"] == 0 and head["deviation"] <= head["bound"] for head in heads)
    assert {"layer", "head", "m", "bound", "deviation", "violations"} <= set(heads[0])
    short = jieyue("verify", "attention", trained[0], "--text", text, "--attention", "first(4)+local(512)")
    assert short.returncode == 2 and "drops no key of rows of" in " ".join(short.stderr.split()), "m would be 0 of all"
    wrong = jieyue("verify", "attention", trained[0], "--text", text, "--attention", "linear(elo)")
    assert wrong.returncode == 2 and "did you mean 'elu'" in wrong.stderr


@pytest.mark.skipif(os.name != "posix", reason="no such signals here")
@pytest.mark.parametrize(("number", "ends"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_that_python_ignores_comes_again(number, ends, monkeypatch):
    """The fault: one that came while a tensor's weak reference was told of its end, as in a trace, was lost."""
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell in the background starts all with it ignored

    def work():
        gone = Done(0, "", "")
        reference = weakref.ref(gone, lambda _: (os.kill(os.getpid(), number), time.sleep(0.01)))
        del gone
        assert reference() is None
        for _ in range(200):
            time.sleep(0.01)

    try:
        with pytest.raises(ends), _terminated_gently():
            work()
    finally:
        signal.signal(signal.SIGINT, before)
    assert told == [] and sys.unraisablehook == told.append
