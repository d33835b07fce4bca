"""Python's face used wrongly: refused in one line that names the argument, never answered by something else."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import jieyue as jy
from jieyue.bench.activation import bench_activation
from jieyue.data.labelled import Columns, read_labelled
from jieyue.errors import InputError
from jieyue.options import check_kinds, options_of
from jieyue.planning.setting import Setting
from jieyue.run.any_model import plan_model
from jieyue.run.in_hand import _files
from jieyue.tasks.classify.settings import ClassifySettings
from jieyue.tasks.read.settings import ReadSettings
from jieyue.tasks.table import task
from jieyue.training.remedies.consistency import rdrop, unlikelihood
from jieyue.training.remedies.texts import parse_remedy

ROWS = torch.ones(4, 3)


def objective(model, batch):
    return jy.Tally(model(batch["x"]).sum(), len(batch["x"]))


class Frame:
    """As a pandas table is gone through: by the names of its columns."""

    def __iter__(self):
        return iter(["text"])

    def iterrows(self):
        return iter([(0, {"text": "a"})])


@pytest.mark.parametrize(
    "rows", ["one text", {"text": "a"}, 5, None, Frame()], ids=["text", "row", "number", "none", "frame"]
)
def test_rows_that_would_be_gone_through_otherwise_are_refused(rows, tmp_path):
    with pytest.raises(InputError, match=r"^predict\(rows\): found"):
        jy.predict(nn.Linear(1, 1), rows, tokenizer=object(), task_name="classify")
    if not isinstance(rows, str):  # the name of a file
        with pytest.raises(InputError, match=r"^data: found"):
            _files("data", rows, tmp_path)


def test_rows_of_numbers_and_no_rows_are_refused(tmp_path):
    with pytest.raises(InputError, match="a row that is int"):
        jy.predict(nn.Linear(1, 1), [1, 2], tokenizer=object(), task_name="classify")
    with pytest.raises(InputError, match="held_out: found no rows"):  # and not the corpus that ships in their place
        _files("held_out", [], tmp_path)
    assert _files("held_out", (), tmp_path) == []


@pytest.mark.parametrize("name", ["data", "held_out"])
@pytest.mark.parametrize("given", ["rows.csv", Path("rows.csv")])
def test_one_name_in_place_of_a_list_is_said(name, given):
    with pytest.raises(InputError, match=f"^{name}: found one name, 'rows.csv', expected a list of files"):
        jy.RunConfig(**{name: given})


@pytest.mark.parametrize(
    ("settings", "given", "told"),
    [
        (jy.TrainingConfig, {"steps": "10"}, "steps: found '10', expected a whole number or None"),
        (jy.TrainingConfig, {"steps": 1.5}, "steps: found 1.5"),
        (jy.TrainingConfig, {"effective_batch": True}, "effective_batch: found True"),
        (jy.TrainingConfig, {"learning_rate": "1e-3"}, "learning_rate: found '1e-3', expected a number"),
        (jy.TrainingConfig, {"remedies": ("fgm(0.5)",)}, "remedies: found 'fgm"),
        (jy.RunConfig, {"limit": "5"}, "limit: found '5'"),
        (jy.RunConfig, {"skip_bad": "no"}, "skip_bad: found 'no', expected True or False"),
        (jy.Budget, {"memory_bytes": "4GiB"}, "Budget.parse"),
        (jy.Budget, {"memory_bytes": -1}, "memory_bytes=-1"),
        (jy.Budget, {"seconds": float("nan")}, "seconds=nan"),
        (jy.Plan, {"effective_batch": 2, "micro_batch": 1.5}, "micro_batch=1.5"),
    ],
)
def test_values_of_another_kind_are_refused(settings, given, told):
    with pytest.raises(InputError) as refused:
        settings(**given)
    assert told in str(refused.value)


@pytest.mark.parametrize("settings", [jy.RunConfig, jy.TrainingConfig, ReadSettings])
def test_defaults_are_of_their_kind(settings):
    assert options_of(settings)
    check_kinds(settings())


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"micro_batch": 2, "nonfinite": "skip"}, "nonfinite.*did you mean 'non_finite'"),
        ({"micro_batch": 1.5}, "micro_batch=1.5"),
        ({"micro_batch": "2"}, "micro_batch='2'"),
    ],
)
def test_accumulate_takes_what_it_knows(how, told):
    model = nn.Linear(3, 1)
    with pytest.raises(InputError, match=told):
        jy.accumulate(objective, model, {"x": ROWS}, **how)
    assert model.weight.grad is None


def test_accumulate_in_another_order_is_refused():
    model = nn.Linear(3, 1)
    with pytest.raises(InputError, match="objective, model and batch"):
        jy.accumulate(model, objective, {"x": ROWS}, micro_batch=2)
    with pytest.raises(InputError, match="batch: found Tensor"):
        jy.accumulate(objective, model, ROWS, micro_batch=2)


@pytest.mark.parametrize("strength", [-0.5, float("nan"), float("inf"), "0.5", True])
@pytest.mark.parametrize("remedy", [jy.fgm, rdrop, unlikelihood])
def test_strengths_are_numbers(remedy, strength):
    with pytest.raises(InputError, match="expected a finite number, at least 0"):
        remedy(strength)


@pytest.mark.slow
def test_measuring_bytes_is_silent():
    code = "import torch; from jieyue.timer import peak_bytes; print(peak_bytes(lambda: torch.ones(2**20)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == 4 * 2**20 and done.stderr == ""


def test_other_wrong_values():
    q = torch.ones(1, 1, 4, 2)
    for call, told in (
        (lambda: jy.replace_tokens("a"), "replace_tokens"),
        (lambda: jy.gelu(torch.ones(2, dtype=torch.int64)), "torch.int64"),
        (lambda: jy.attend(q, q, q, jy.full(), scale="x"), "scale='x'"),
        (lambda: jy.local(2).mask(-1, 3), "n=-1"),
        (lambda: plan_model("tiny", length=0), "length=0"),
        (lambda: plan_model("tiny", effective_batch=0), "effective_batch=0"),
        (lambda: Setting(micro_batch=1, attention="locl(3)"), "locl(3)"),
        (lambda: jy.use((nn.Linear(1, 1), None), attention="local(3)"), "use(model): found tuple"),
        (lambda: jy.load(__file__), "a file"),
        (lambda: jy.train("bert-tiny", resume=True, overwrite=True), "resume and overwrite"),
        (lambda: jy.load("bert-tiny"), "a preset, which has no weights yet"),
        (lambda: bench_activation(device="gpu"), "name a GPU cuda"),
        (lambda: parse_remedy("fgmm(0.5)"), "did you mean 'fgm'"),
        (lambda: jy.plan("bert-tiny", task="classify", settings={"max_tokns": 9}), "did you mean 'max_tokens'"),
        (lambda: jy.EffectiveBatchTrainer(None, None, colator=None), "colator"),
    ):
        with pytest.raises(InputError) as refused:
            call()
        assert told in str(refused.value)
    with pytest.raises(TypeError):
        jy.Tally(1.0, 1) + 1
    with pytest.raises(AttributeError, match="did you mean 'local'"):
        _ = jy.locl


@pytest.mark.parametrize("columns", [Columns(label="lable"), Columns(pair="second")])
def test_a_named_column_that_no_record_has_is_refused(columns, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "one", "label": "a"}\n{"text": "two", "label": "b"}\n', encoding="utf-8")
    with pytest.raises(InputError, match="expected a field of some record"):  # all labels were unknown, all pairs empty
        read_labelled(file, columns=columns)
    with file.open("a", encoding="utf-8") as stream:
        stream.write('{"text": "three", "lable": "c", "second": "more"}\n')
    assert len(read_labelled(file, columns=columns)[0]) == 3


def test_what_cannot_be_parted_says_why(tmp_path):
    same, other, bare = (tmp_path / name for name in ("same.jsonl", "other.jsonl", "bare.jsonl"))
    same.write_text('{"text": "one", "label": "a"}\n' * 50, encoding="utf-8")
    other.write_text("".join(f'{{"text": "t {n}", "label": "{n % 2}"}}\n' for n in range(50)), encoding="utf-8")
    bare.write_text('{"text": "one"}\n' * 50, encoding="utf-8")
    job = task("classify")
    for config, told in (
        (jy.RunConfig(data=[same]), "1 different texts whose answers are known are too few"),
        (jy.RunConfig(data=[other], held_out=[bare]), "bare.jsonl: found no examples whose answers are known"),
    ):
        with pytest.raises(InputError) as refused:
            job.sources(config, job.default_settings(config, 0), 0)
        assert told in str(refused.value)


def test_a_model_of_other_labels_is_not_judged_by_the_corpus_that_ships():
    settings = ClassifySettings(labels=("bad", "good"), problem="single-label")
    with pytest.raises(InputError, match="no label of this model, expected files to judge by"):  # the score was 0.0 %
        task("classify").judging_sources((), settings)
