"""The three readers from the command line: train, evaluate, read, plan, serve; and what is refused."""

import json
from functools import cache

import pytest
from test_cli import SMALL, jieyue
from transformers import AutoModelForMaskedLM, AutoModelForQuestionAnswering, AutoModelForTokenClassification

from jieyue.bench.verify import verify
from jieyue.hf.loading import head_of, read_record
from jieyue.tasks.read.asking import open_reader

PASSAGES = ["The library opens at nine and closes at five.", "图书馆九点开门。"]


def train(out, *flags):
    done = jieyue("train", "read", "--steps", "2", "--budget", "3GiB", "--out", out, *SMALL, *flags, savings=False)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A trained reader's folder and what training said; each is trained when it is asked for first."""
    base = tmp_path_factory.mktemp("readers")
    return cache(lambda name: (base / name, train(base / name, "--reader", name)))


READERS = ["span", pytest.param("prefix", marks=pytest.mark.slow)]


@pytest.mark.parametrize("name", READERS)
def test_a_reader_is_trained_evaluated_and_asked(folders, name, tmp_path):
    folder, said = folders(name)
    assert read_record(folder)["settings"]["reader"] == name == head_of(folder)
    assert "exact match" in said.stdout and "greedy search" not in said.stdout
    paragraph = {"context": PASSAGES[0], "qas": [{"id": "1", "question": "When?", "answers": [
        {"text": "nine", "answer_start": PASSAGES[0].index("nine")}]}]}  # fmt: skip
    file = tmp_path / "questions.json"
    file.write_text(json.dumps({"data": [{"title": "t", "paragraphs": [paragraph]}]}), encoding="utf-8")
    done = jieyue("evaluate", folder, file)
    assert done.returncode == 0 and "reading speed" in done.stdout, done.stderr
    done = jieyue("read", folder, "--question", "When?", "--text", PASSAGES[0], "--text", PASSAGES[1], "--json")
    found = json.loads(done.stdout)
    text = PASSAGES[max(0, found["passage"])]
    assert found["answer"] == text[found["start"] : found["end"]] and 0 <= found["confidence"] <= 1
    assert open_reader(folder)("When?", ["", *PASSAGES])["answer"] == found["answer"]  # what a server answers


@pytest.mark.parametrize("name", READERS)
def test_the_folders_are_plain(folders, name):
    folder, _ = folders(name)
    if name == "span":
        assert AutoModelForTokenClassification.from_pretrained(folder).config.id2label == {0: "start", 1: "end"}
    else:
        assert AutoModelForMaskedLM.from_pretrained(folder).num_parameters() > 0


@pytest.mark.slow
def test_a_masked_lm_becomes_each_reader(tmp_path):
    """The same checkpoint under three heads; only the span head is new, and that is said."""
    train(tmp_path / "bert", "--model", "bert-tiny")
    for name in ("span", "prefix"):
        train(tmp_path / name, "--model", tmp_path / "bert", "--reader", name)
    model = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "span")
    assert model.qa_outputs.out_features == 2 and head_of(tmp_path / "span") == "span"
    wrong = jieyue("train", "read", "--model", tmp_path / "span", "--out", tmp_path / "no", "--steps", "1", *SMALL)
    assert wrong.returncode == 2 and "no weights for cls" in wrong.stderr, "a span reader is no masked LM"
    resumed = jieyue(
        "train", "read", "--reader", "prefix", "--resume", "--steps", "2", "--budget", "3GiB", "--out", tmp_path / "span",
        "--model", tmp_path / "bert", *SMALL,
    )  # fmt: skip
    assert resumed.returncode == 2 and "expected the same" in resumed.stderr, "the folder of another reader"


@pytest.mark.parametrize("name", ["span", "prefix"])
def test_plan_and_doctor(name):
    done = jieyue("plan", "read", "--reader", name, "--budget", "3GiB", *SMALL)
    assert done.returncode == 0 and "micro-batch" in done.stdout, done.stderr
    files = ["--questions", "200", "--answer-slots", "8", "--window-tokens", "96"]
    done = jieyue("doctor", "read", "--reader", name, *files)
    assert done.returncode == 0 and "rows that abstain" in " ".join(done.stdout.split()), done.stderr


@pytest.mark.parametrize("name", READERS)
def test_the_update_in_pieces_is_the_whole_update(folders, name):
    """``verify update`` of the folder checks the reader's own objective."""
    found = verify("update", folders(name)[0], rows=6, micro_batch=2, settings=("accumulation",), dtype="float64")
    assert found.settings[0].equal and found.rows == 6


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        (["--reader", "spam"], "one of masked, span, prefix"),
        (["--reader", "span", "--search", "greedy"], "the span reader, which has one way"),
        (["--reader", "prefix", "--search", "best"], "the prefix reader, which has one way"),
        (["--reader", "prefix", "--model", "albert-tiny"], "AlbertForMaskedLM"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(flags, found, tmp_path):
    done = jieyue("train", "read", *SMALL, *flags, "--out", tmp_path / "out")
    assert done.returncode == 2 and found in " ".join(done.stderr.split()), done.stderr
    assert "Traceback" not in done.stderr
