"""Answers to rows without labels: every task, files of every kind, order and columns kept, bounded, resumable."""

import bz2
import csv
import io
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from test_cli import jieyue

from jieyue.data.tables import read_table
from jieyue.errors import InputError
from jieyue.run import RunConfig, TrainingConfig
from jieyue.run.jobs import train
from jieyue.run.predict import Predictor, predict, predict_file
from jieyue.run.row_files import RowReader, RowWriter
from jieyue.tasks import Prediction
from jieyue.tasks.mlm.settings import MaskSettings
from jieyue.tasks.table import task

TEXTS = [f"第{n}号通知：图书馆周{n % 7}闭馆。" + "请早点来。" * (n % 5) for n in range(90)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A classifier of a few updates."""
    place = tmp_path_factory.mktemp("predict") / "model"
    train("classify", RunConfig(limit=120), place, training=TrainingConfig(steps=2, effective_batch=8))
    return place


@pytest.fixture(scope="module")
def answering(folder):
    return Predictor(folder)


def written(path, rows):
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path):
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as stream:
            return list(csv.DictReader(stream))
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def given():
    return [{"id": str(n), "text": text, "note": 'a "b",\nc'} for n, text in enumerate(TEXTS)]


def test_tables_are_cut_as_in_training(tmp_path):
    """Between tabs a quote is a letter, so that none swallows the lines after it; a .csv may be parted as Excel does it."""
    tabs, excel = tmp_path / "in.tsv", tmp_path / "in.csv"
    tabs.write_text('text\tid\n"Great\t1\nso "good"\t2\nplain"\t3\n', encoding="utf-8")
    excel.write_text('text;id\r\n"one; two";1\r\n', encoding="utf-8")
    assert [row["text"] for _, row in RowReader(tabs)] == ['"Great', 'so "good"', 'plain"']
    assert [row["text"] for _, row in RowReader(tabs)] == [
        cells[0] for _, cells in read_table("t", tabs.read_text(), {"text": ["text"], "id": ["id"]}).rows
    ]
    assert [row for _, row in RowReader(excel)] == [{"text": "one; two", "id": "1"}]


@pytest.mark.parametrize(
    ("name", "packed", "encoding"), [("in.csv.bz2", bz2.compress, "utf-8"), ("in.csv", bytes, "gb18030")]
)
def test_files_are_opened_as_in_training(tmp_path, name, packed, encoding):
    """Any packing, any encoding that is told by its characters, and texts of any length."""
    text = "今天的天气很好，我们去公园里散步，看见了很多人在那里唱歌跳舞。" * 5000
    (tmp_path / name).write_bytes(packed(f"text,id\n{text},1\n".encode(encoding)))
    assert [row for _, row in RowReader(tmp_path / name)] == [{"text": text, "id": "1"}]


def test_bytes_that_do_not_decode_are_named_with_their_line(tmp_path):
    for stream in (None, io.BytesIO(b'{"text": "a"}\n{"text": "\xff\xfe"}\n')):
        (tmp_path / "in.jsonl").write_bytes('{"text": "年"}\n'.encode() * 50 + b'{"text": "\xff"}\n')
        with pytest.raises(InputError, match=r"line (51|2).*do not decode"):
            list(RowReader(tmp_path / "in.jsonl", stream))


@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
@pytest.mark.parametrize("wanted", [".csv", ".jsonl"])
def test_rows_come_back_in_order_with_their_columns(answering, tmp_path, ending, wanted):
    source, out = written(tmp_path / f"in{ending}", given()), tmp_path / f"out{wanted}"
    done = predict_file(answering, source, out, batch_size=4)
    found = read(out)
    assert done.rows == len(found) == 90 and list(tmp_path.glob("*.part")) == []
    assert [{name: row[name] for name in ("id", "text", "note")} for row in found] == given()
    alone = predict(answering.model, [TEXTS[33]], tokenizer=answering.tokenizer, task_name="classify")
    assert found[33]["answer"] == alone[0]["answer"]
    assert float(found[33]["confidence"]) == pytest.approx(alone[0]["confidence"], abs=1e-5)


def test_an_interrupted_run_goes_on(answering, tmp_path):
    """Cut anywhere, inside a quoted line break too, what is there is kept and the rest is added; other input is refused."""
    source, whole = written(tmp_path / "in.csv", given()), tmp_path / "whole.csv"
    predict_file(answering, source, whole, batch_size=4)
    content, out = whole.read_bytes(), tmp_path / "out.csv"
    for cut in (0, 10, len(content) // 2, content.index(b'"a ""b"",\nc"', 900) + 10, len(content) - 1, len(content)):
        (tmp_path / "out.csv.part").write_bytes(content[:cut])
        with pytest.raises(InputError, match="--resume"):
            predict_file(answering, source, out, batch_size=4)
        done = predict_file(answering, source, out, batch_size=4, resume=True)
        assert out.read_bytes() == content, cut
        assert done.rows + done.kept == 90 and done.kept == (64 if cut >= len(content) - 1 else 0)
        out.unlink()
    (tmp_path / "out.csv.part").write_bytes(content[: len(content) // 2])
    other = written(tmp_path / "other.csv", [{**row, "id": "x"} for row in given()])
    with pytest.raises(InputError, match="the same input"):
        predict_file(answering, other, out, resume=True)


class _Placed(Predictor):
    """Answers a row by its place among those that are answered together, as the last bits of a real model do."""

    def __init__(self):
        pass

    def __call__(self, rows, *, batch_size=32):
        return [Prediction("a", at / 1000) for at in range(len(rows))]


@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
def test_a_resumed_file_is_that_of_a_run_without_a_stop(tmp_path, ending):
    """Whatever depends on the rows beside it too: the groups are the same."""
    source, whole = written(tmp_path / f"in{ending}", given()), tmp_path / f"whole{ending}"
    predict_file(_Placed(), source, whole, batch_size=2)
    content, out = whole.read_bytes(), tmp_path / f"out{ending}"
    for cut in range(0, len(content), 997):
        (tmp_path / f"out{ending}.part").write_bytes(content[:cut])
        done = predict_file(_Placed(), source, out, batch_size=2, resume=True)
        assert out.read_bytes() == content, cut
        assert done.kept % 32 == 0 and done.rows + done.kept == 90
        out.unlink()


def test_a_full_disk_is_told_and_nothing_but_whole_rows_stays(answering, tmp_path, monkeypatch):
    source, out = written(tmp_path / "in.jsonl", given()), tmp_path / "out.jsonl"
    writing = RowWriter.write

    def full(self, rows):
        if any(row["id"] == "64" for row in rows):
            raise OSError(28, "No space left on device")
        writing(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(RowWriter, "write", full)
        with pytest.raises(InputError, match=r"out\.jsonl\.part.*No space left on device.*--resume"):
            predict_file(answering, source, out, batch_size=4)
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", "out.jsonl.part"}
    assert predict_file(answering, source, out, batch_size=4, resume=True).kept == 64
    broken = written(tmp_path / "broken.jsonl", [{"id": 1}])
    with pytest.raises(InputError, match="a text"):
        predict_file(answering, broken, tmp_path / "none.jsonl")
    assert not list(tmp_path.glob("none*")), "nothing stays where no row was answered"


def test_nothing_is_written_over(answering, tmp_path):
    source, out = written(tmp_path / "in.jsonl", given()[:3]), tmp_path / "out.jsonl"
    out.write_text("mine")
    for resume in (False, True):
        with pytest.raises(InputError, match="--overwrite"):
            predict_file(answering, source, out, resume=resume)
    assert out.read_text() == "mine"
    predict_file(answering, source, out, overwrite=True)
    assert len(read(out)) == 3


@pytest.mark.parametrize("name", ["out.csv.gz", "out.jsonl.xz"])
def test_a_packed_output_is_refused(answering, tmp_path, name):
    """Its name would promise what it is not: rows are written as they are."""
    with pytest.raises(InputError, match="packed"):
        predict_file(answering, written(tmp_path / "in.jsonl", given()[:2]), tmp_path / name)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("name", ["answer", "confidence"])
def test_a_column_of_an_added_name_is_refused(answering, tmp_path, name):
    source = written(tmp_path / "in.jsonl", [given()[0], {**given()[1], name: 1}])
    with pytest.raises(ValueError, match=f"row 2.*column '{name}'"):
        predict_file(answering, source, tmp_path / "out.jsonl")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "no row"),
        ("text,id\na\n", "line 2.*1 cells"),
        ("text,text\na,b\n", "name twice"),
        ('{"text": "a"}\nnothing\n', "row 2.*JSON"),
        ('{"text": "a"}\n[1]\n', "row 2.*object"),
        ('{"id": 3}\n', "row 1.*a text"),
        ('{"text": "  "}\n', "row 1.*not empty"),
    ],
)
def test_what_is_no_row_is_named_with_its_place(answering, tmp_path, content, why):
    source = tmp_path / "in.txt"
    source.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=why):
        predict_file(answering, source, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_streams_and_mistakes_on_the_command_line(folder, tmp_path):
    rows = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in given()[:5])
    piped = jieyue("predict", folder, "-", "--out", "-", stdin=rows)
    assert piped.returncode == 0, piped.stderr
    assert [json.loads(line)["id"] for line in piped.stdout.splitlines()] == ["0", "1", "2", "3", "4"]
    told = jieyue("classify", folder, "--text", TEXTS[0], "--json")
    assert set(json.loads(told.stdout)) == {"text", "answer", "confidence"}
    for wrong, why in (
        (("predict", folder, tmp_path / "none.csv", "--out", tmp_path / "o.csv"), "no such file"),
        (("predict", folder, "-", "--out", tmp_path / "a" / "o.csv"), "folder that is there"),
        (("predict", folder, "-", "--out", "-", "--resume"), "expected a file"),
        (("classify", folder, "--text", " "), "empty text"),
        (("chat", folder), "expected one that writes"),
    ):
        done = jieyue(*wrong, stdin="")
        assert done.returncode == 2 and why in done.stderr, done.stderr


class _Masked(torch.nn.Module):
    """Finds the token 7 at every mask."""

    def __init__(self, size):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.nn.functional.one_hot(torch.tensor(7), size) * 9.0)

    def forward(self, input_ids, attention_mask):
        from types import SimpleNamespace

        return SimpleNamespace(logits=self.bias.expand(*input_ids.shape, -1))


def test_masks_are_filled_in_place(answering):
    from jieyue.tasks.mlm.filling import fill_masks

    tokenizer = answering.tokenizer
    word = tokenizer.decode([7]).removeprefix("##").strip()
    found = fill_masks(_Masked(len(tokenizer)), tokenizer, ["图 [MASK] 馆", "a[MASK]b[MASK]"])
    assert [one.answer for one in found] == [f"图 {word} 馆", f"a{word}b{word}"]
    assert all(0.5 < one.confidence < 1 for one in found)
    with pytest.raises(InputError, match="without a mask"):
        fill_masks(_Masked(len(tokenizer)), tokenizer, ["no mask"])


def test_what_only_the_model_refuses_is_named_with_its_place_too(answering, tmp_path):
    filling = Predictor.of(_Masked(len(answering.tokenizer)), answering.tokenizer, task("mlm"), MaskSettings())
    source = written(tmp_path / "in.jsonl", [{"text": "a [MASK]"}, {"text": "none"}])
    with pytest.raises(InputError, match=r"row 2.*without a mask"):
        predict_file(filling, source, tmp_path / "out.jsonl")


def test_every_task_understands_its_rows():
    from jieyue.tasks.chat.settings import ChatSettings
    from jieyue.tasks.read.settings import ReadSettings
    from jieyue.tasks.title.settings import TitleSettings

    question = task("read").from_row({"question": "q?", "passages": ["a", {"passage": "b"}]}, ReadSettings())
    assert [one.text for one in question.passages] == ["a", "b"]
    assert task("read").from_row({"Question": "q?", "context": "c"}, ReadSettings()).passages[0].text == "c"
    assert task("title").from_row({"text": "long"}, TitleSettings()).source == "long"
    talk = task("chat").from_row({"messages": [{"role": "user", "content": "hi"}]}, ChatSettings())
    assert talk[0].text == "hi" and task("chat").from_row({"text": "hi"}, ChatSettings())[0].role == "user"
    for name, row in (
        ("read", {"question": "q?"}),
        ("read", {"question": "q?", "passages": []}),
        ("chat", {"messages": [{"role": "assistant", "content": "hi"}]}),
        ("chat", {"messages": [{"role": "tool", "content": "hi"}]}),
        ("title", {"name": "x"}),
    ):
        with pytest.raises(InputError, match="row"):
            task(name).from_row(row, task(name).settings_class())


@pytest.mark.slow
def test_a_killed_process_is_resumed(folder, tmp_path):
    source = written(tmp_path / "in.jsonl", [{"id": n, "text": TEXTS[n % 90]} for n in range(6000)])
    command = [
        sys.executable,
        "-m",
        "jieyue",
        "predict",
        str(folder),
        str(source),
        "--out",
        str(tmp_path / "out.jsonl"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command += ["--batch-size", "2"]
    running = subprocess.Popen(command, env=environment)
    part = tmp_path / "out.jsonl.part"
    while running.poll() is None and not (part.exists() and part.stat().st_size > 5000):
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert part.exists() and not (tmp_path / "out.jsonl").exists()
    done = subprocess.run([*command, "--resume", "--json"], env=environment, capture_output=True, text=True, check=True)
    assert '"kept": 0' not in done.stdout
    assert [row["id"] for row in read(tmp_path / "out.jsonl")] == list(range(6000))
    whole = tmp_path / "whole.jsonl"
    predict_file(Predictor(folder), source, whole, batch_size=2)
    assert whole.read_bytes() == (tmp_path / "out.jsonl").read_bytes()
