"""A mistake is one line and exit code 2, before anything slow; a run says what it decided, and its folder what it was trained on."""

import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from test_cli import jieyue
from transformers import AutoTokenizer

from jieyue.budget import Budget
from jieyue.errors import BudgetError, InputError
from jieyue.hf.checkpoints import room_for
from jieyue.planning.search import fixed_cost
from jieyue.report import Report
from jieyue.run import jobs
from jieyue.run.config import TrainingConfig
from jieyue.run.folder import MEMORY
from jieyue.run.plan import plan_for
from jieyue.run.prepare import prepare
from jieyue.run.waterfall import Step, Waterfall
from jieyue.tasks import RunConfig
from jieyue.tasks.read.settings import ReadSettings
from jieyue.tasks.table import task

SMALL = ["--effective-batch", "8", "--max-tokens", "24", "--budget", "3GiB", "--model", "bert-tiny"]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name, first in (("train", 0), ("held", 200)):
        rows = [
            f"the {('red', 'blue')[n % 2]} thing number {n}\t{('warm', 'cold')[n % 2]}"
            for n in range(first, first + 120)
        ]
        (folder / f"{name}.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def trained(labelled, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "model"
    files = ["--data", labelled / "train.tsv", "--held-out", labelled / "held.tsv"]
    done = jieyue("train", "classify", "--steps", "2", "--out", out, *files, *SMALL, rounds=3)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture
def copied(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "model", ignore=shutil.ignore_patterns("checkpoints"))


def refused(done, *parts):
    """One line that names these, and no traceback."""
    assert done.returncode == 2, (done.stdout, done.stderr)
    (line,) = [one for one in done.stderr.splitlines() if one.startswith("jieyue: ")]
    assert all(part in line for part in parts), line
    return True


def table(report, title):
    items = [item for section in report.sections for item in section.items]
    return next(item.rows for item in items if getattr(item, "title", "") == title)


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["train", "read", "--seed", "-1"], ["seed=-1"]),
        (["train", "read", "--learning-rate", "nan"], ["learning_rate=nan"]),
        (["train", "read", "--epochs", "inf"], ["epochs=inf"]),
        (["train", "read", "--effective-batch", "0"], ["effective_batch=0"]),
        (["train", "read", "--device", "gpu"], ["'gpu'", "cuda"]),
        (["plan", "read", "--device", "banana"], ["'banana'"]),
        (["train", "read", "--start", "sideways"], ["start", "orthogonal-copy"]),
        (["train", "read", "--curriculum", "hard"], ["curriculum='hard'"]),
        (["train", "read", "--vocabulary", "missing.txt"], ["vocabulary", "missing.txt"]),
        (["train", "read", "--held-out", "missing.json"], ["held_out", "missing.json"]),
        (["train", "classify", "--data", "."], ["data", "the folder"]),
        (["train", "mlm", "--share", "nan"], ["share=nan"]),
        (["train", "read", "--model", "tinny"], ["model='tinny'", "'tiny'"]),
        (["train", "read", "--model", "./models/mine"], ["./models/mine", "no such folder"]),
        (["train", "read", "--attention", "locl(3)"], ["locl(3)"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0] in ("train", "plan") else "",
)
def test_flags_are_refused_before_anything_is_read(flags, parts, tmp_path, monkeypatch):
    monkeypatch.setattr("jieyue.run.prepare.Prepared", None)  # nothing may come so far
    assert refused(jieyue(*flags, cwd=tmp_path), *parts)
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_a_wrong_folder_is_told_before_torch_is_imported(tmp_path):
    (tmp_path / "finished").mkdir()
    for name in ("jieyue.json", "report.json", "rows.jsonl"):
        (tmp_path / "finished" / name).write_text('{"recipe": "tag"}', encoding="utf-8")
    rows, project = str(tmp_path / "finished" / "rows.jsonl"), tmp_path / "project"
    project.mkdir()
    (project / "README.md").write_text("mine", encoding="utf-8")
    lines = [
        ["train", "read", "--out", rows],
        ["train", "read", "--out", str(tmp_path / "finished")],
        ["train", "read", "--out", str(project)],
        ["train", "read", "--resume", "--overwrite"],
        ["train", "read", "--questions", "0"],
        ["chat", "nowhere", "--max-tokens", "0"],
        ["sparsify", "model", "--attention", "local(3)", "--data", rows, "--out", str(tmp_path / "finished")],
        ["evaluate", "nowhere"],
        ["evaluate", str(tmp_path / "finished"), "--out", str(tmp_path / "finished")],
        ["evaluate", str(tmp_path / "finished"), "--out", rows],
        ["fit", "gelu", "--out", rows],
        ["plan", "model", "tiny", "--out", rows],
        ["predict", "nowhere", rows, "--out", "out.csv"],
        ["read", "nowhere", "--question", "Why?", "--text", "So."],
        ["read", str(tmp_path / "finished"), "--question", "Why?", "--text", "So."],
        ["classify", str(tmp_path / "finished"), "--text", "So."],
        ["title", rows, "--text", "So."],
        ["export", "nowhere", "--out", "model.onnx"],
        ["push", str(tmp_path), "owner/name"],
    ]
    code = (
        "import sys\nfrom jieyue.cli import main\n"
        f"for line in {lines!r}:\n"
        "    sys.argv = ['jieyue', *line]\n"
        "    try: main()\n"
        "    except SystemExit as end: print(end.code, 'torch' in sys.modules, *line[:2])\n"
    )
    environment = os.environ | {"MALLOC_ARENA_MAX": "2"}  # so that training does not start again under another malloc
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [f"2 False {' '.join(line[:2])}" for line in lines]
    assert len(done.stderr.splitlines()) == len(lines), done.stderr
    assert "--questions=0" in done.stderr and "max_tokens=0" in done.stderr
    assert [one.name for one in project.iterdir()] == ["README.md"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_device_that_is_not_here_is_not_replaced_by_another(tmp_path):
    for device in ("cuda", "cuda:3", "mps"):
        assert refused(
            jieyue("train", "read", "--device", device, "--out", tmp_path / "m"), f"device='{device}'", "cpu"
        )
    assert refused(jieyue("plan", "read", "--device", "cuda"), "device='cuda'", "plan on the cpu")


def test_out_that_is_a_file_or_cannot_be_written_is_told_first(tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    assert refused(jieyue("train", "read", "--out", file), "out", "file")
    assert refused(jieyue("train", "read", "--out", file / "below"), "out")
    assert file.read_text() == "mine"


def test_a_masked_reader_under_too_small_a_budget_hears_of_the_budget():
    """The fault: on the way to what would fit, short rows had fewer positions than answer slots."""
    config = RunConfig(limit=60, settings=ReadSettings(window_tokens=40, overlap_tokens=9, answer_slots=20))
    training = TrainingConfig(effective_batch=4)
    prepared = prepare(task("read"), config, training)
    with pytest.raises(BudgetError, match=r"too much.*What would fit"):
        plan_for(prepared, Budget(memory_bytes=fixed_cost()), training)


@pytest.mark.parametrize("verb", ["train", "plan"])
def test_a_budget_below_the_process_itself_is_refused_before_data_are_read(verb, tmp_path, monkeypatch):
    monkeypatch.setattr("jieyue.run.jobs.prepare", None)
    out = ["--out", tmp_path / "m"] if verb == "train" else []
    assert refused(jieyue(verb, "read", "--budget", "20MiB", *out), "budget=20.0 MiB", "too much", "What would fit")


def test_evaluate_knows_what_training_showed(trained, labelled):
    """The fault: files of one's own came without the baselines that the training's own report had."""
    before = Report.load(trained)
    done = jieyue("evaluate", trained, labelled / "held.tsv", "--out", trained / "again", "--json")
    assert done.returncode == 0, done.stderr
    after = Report.load(trained / "again")
    own = table(before, "Beside the baselines")
    assert table(after, "Beside the baselines") == own and [row[0] for row in own][1:] == [
        "most frequent label",
        "naive Bayes",
    ]
    for wrong in ("0", "-3"):
        assert refused(jieyue("evaluate", trained, labelled / "held.tsv", "--batch-size", wrong), f"batch_size={wrong}")


def test_an_older_folder_opens_and_says_what_it_lacks(copied, labelled):
    (copied / MEMORY).unlink()
    record = json.loads((copied / "jieyue.json").read_text())
    del record["decided"]
    (copied / "jieyue.json").write_text(json.dumps(record))
    before = json.loads((copied / "training.json").read_text())
    values = {name: value for name, value in before.items() if name not in ("training", "updates", "tokens")}
    values |= {"course": before["training"], "steps": before["updates"], "tokens": None}
    (copied / "training.json").write_text(json.dumps(values))
    done = jieyue("evaluate", copied, labelled / "held.tsv")
    assert done.returncode == 0 and MEMORY in " ".join(done.stdout.split()), done.stderr
    files = ["--data", labelled / "train.tsv", "--held-out", labelled / "held.tsv", "--out", copied]
    assert refused(jieyue("train", "classify", "--steps", "4", "--resume", *files, *SMALL), "steps is 4", "had 2")


def test_questions_without_known_answers_cannot_judge(copied, labelled, tmp_path):
    file = tmp_path / "unknown.jsonl"
    file.write_text('{"text": "one"}\n{"text": "two"}\n', encoding="utf-8")
    assert refused(jieyue("evaluate", copied, file), "none whose right answer is known")


@pytest.mark.parametrize("what", ["pointer", "truncated"])
def test_weights_that_are_none_are_one_line(copied, what):
    weights = copied / "model.safetensors"
    if what == "pointer":
        weights.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 123456\n")
    else:
        weights.write_bytes(weights.read_bytes()[:1000])
    assert refused(jieyue("evaluate", copied), "git lfs pull" if what == "pointer" else "cannot be loaded")


def test_a_tokenizer_larger_than_its_model_is_refused(copied, labelled):
    tokenizer = AutoTokenizer.from_pretrained(copied)
    tokenizer.add_tokens([f"extra{n}" for n in range(9)])
    tokenizer.save_pretrained(copied)
    found = f"a tokenizer of {len(tokenizer)} tokens and a model of {len(tokenizer) - 9}"
    assert refused(jieyue("evaluate", copied, labelled / "held.tsv"), found)
    train = ["train", "classify", "--data", labelled / "train.tsv", *SMALL[:-1]]
    assert refused(jieyue(*train, copied, "--out", copied / "out"), found)


def test_a_tokenizer_without_padding_is_refused(copied, labelled):
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (copied / name).is_file():
            values = {
                key: value for key, value in json.loads((copied / name).read_text()).items() if key != "pad_token"
            }
            (copied / name).write_text(json.dumps(values))
    train = ["train", "classify", "--data", labelled / "train.tsv", *SMALL[:-1]]
    assert refused(jieyue(*train, copied, "--out", copied / "out"), "no padding token")


@pytest.mark.slow
def test_a_run_goes_on_only_as_it_began(copied, labelled, tmp_path):
    """The faults: another number of updates, and other rows of the same lengths, were accepted."""
    data = tmp_path / "train.tsv"
    shutil.copy(labelled / "train.tsv", data)
    flags = ["train", "classify", "--data", data, "--held-out", labelled / "held.tsv", "--out", copied, *SMALL]
    again = json.loads((copied / "training.json").read_text())
    assert again["updates"] == 2
    assert refused(jieyue(*flags, "--steps", "4", "--resume"), "steps is 4", "had 2")
    data.write_text(data.read_text().replace("red", "RED").replace("blue", "red").replace("RED", "blue"))
    assert refused(jieyue(*flags, "--steps", "2", "--resume"), "tokens is", "expected the same")


def test_the_report_says_what_was_decided(trained):
    report = Report.load(trained)
    (section,) = [one for one in report.sections if one.title == "Settings"]
    facts = {item.what: item.value for item in section.items}
    assert facts["learning rate"] == 1e-3 and facts["warmup steps"] == 1 and facts["checkpointing"] is False
    assert "decided by jieyue" not in report.markdown()


def test_savings_are_timed_more_than_once(trained):
    """The fault: one cold call, which made checkpointing look seven times as slow."""
    report = Report.load(trained)
    rows = table(report, "Each row keeps what those above it do")
    assert all("…" in str(row[4]) for row in rows), "each with its spread"


@pytest.mark.slow
def test_ctrl_c_outside_of_the_updates_says_what_is_left(labelled, tmp_path, monkeypatch):
    step = Step(added="s", update="exact", predicted_bytes=1)
    monkeypatch.setattr(jobs, "savings", lambda *_: Waterfall(steps=(step,), effective_batch=4, positions=24))
    flags = ["train", "classify", "--data", labelled / "train.tsv", "--steps", "1", "--out", tmp_path / "m", *SMALL]

    def stopped(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "decide", stopped)
        done = jieyue(*flags)
    assert done.returncode == 130 and "before the first update; the same command starts anew" in " ".join(
        done.stdout.split()
    )
    with monkeypatch.context() as patch:
        patch.setattr("jieyue.tasks.classify.task.ClassifyTask.judge", stopped)
        done = jieyue(*flags)
    assert done.returncode == 130 and "stopped while judging" in " ".join(done.stdout.split()), done.stderr
    assert (tmp_path / "m" / "model.safetensors").is_file() and load_file(tmp_path / "m" / "model.safetensors")
    assert jieyue("evaluate", tmp_path / "m", labelled / "held.tsv").returncode == 0


@pytest.mark.slow
def test_a_full_disk_leaves_nothing_half_written(copied, labelled, monkeypatch):
    weights = (copied / "model.safetensors").read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    flags = [
        "train",
        "classify",
        "--data",
        labelled / "train.tsv",
        "--steps",
        "1",
        "--out",
        copied,
        "--overwrite",
        *SMALL,
    ]
    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full)
    assert refused(jieyue(*flags), "No space left on device")
    assert (copied / "model.safetensors").read_bytes() == weights
    assert not [path for path in copied.rglob("*") if "saving" in path.name or "partial" in path.name]


def test_a_checkpoint_that_has_no_room_is_one_line(tmp_path, monkeypatch):
    """The fault: torch's own error about its zip file, with a traceback. Other errors stay what they are."""
    for free in (0, 2**30):
        monkeypatch.setattr("shutil.disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        error, found = (RuntimeError, "unexpected pos") if free else (InputError, "no room left")
        with pytest.raises(error, match=found), room_for(tmp_path):
            raise RuntimeError("unexpected pos 62080 vs 61968")
