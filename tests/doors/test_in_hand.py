"""A model and data in hand: trained, planned and answered as files and names are, and left as they were."""

import copy
import json

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

import jieyue as jy
from jieyue.errors import InputError
from jieyue.hf.tokenizers import learn_vocabulary, make_tokenizer
from jieyue.listener import SILENT

ROWS = [
    {"text": f"第{n}天的天气{'很好' if n % 2 else '不好'}。", "label": "good" if n % 2 else "bad"} for n in range(80)
]
HOW = {"task": "classify", "steps": 2, "effective_batch": 8, "listener": SILENT}


@pytest.fixture(scope="module")
def in_hand():
    torch.manual_seed(0)
    tokenizer = make_tokenizer(learn_vocabulary([row["text"] for row in ROWS]))
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    model = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **sizes))
    return model, tokenizer


def test_a_model_in_hand_is_trained_on_rows_and_answers(in_hand, tmp_path):
    model, tokenizer = in_hand
    before = copy.deepcopy(model.state_dict())
    found = jy.train(model, tokenizer, data=ROWS, out=tmp_path / "model", **HOW)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert found.folder == tmp_path / "model" and found.report == jy.Report.load(found.folder)
    assert type(found.model).__name__ == "BertForSequenceClassification"
    told = jy.predict(found.folder, [row["text"] for row in ROWS[:3]])
    assert {one["answer"] for one in told} <= {"good", "bad"} and set(told[0]) == {"text", "answer", "confidence"}
    again, _ = jy.load(found.folder)
    ids = tokenizer(ROWS[0]["text"], return_tensors="pt")
    assert torch.equal(again(**ids).logits, found.model(**ids).logits)  # the head that the checkpoint has
    with pytest.raises(InputError, match="--overwrite"):
        jy.train(model, tokenizer, data=ROWS, out=tmp_path / "model", **HOW)


@pytest.mark.slow
def test_rows_and_files_are_the_same(in_hand, tmp_path):
    model, tokenizer = in_hand
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS), encoding="utf-8")
    one = jy.train(model, tokenizer, data=ROWS, out=tmp_path / "one", **HOW)
    other = jy.train(model, tokenizer, data=file, out=tmp_path / "other", **HOW)
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True))


@pytest.mark.slow
def test_a_plan_is_obeyed(in_hand, tmp_path):
    model, tokenizer = in_hand
    plan = jy.plan(model, tokenizer, data=ROWS, task="classify", effective_batch=8, budget="2GiB")
    assert isinstance(plan, jy.Plan) and plan.effective_batch == 8 and "micro" in plan.report.text()
    found = jy.train(model, tokenizer, data=ROWS, out=tmp_path / "model", plan=plan, **HOW)
    assert found.report.title
    ids = tokenizer([row["text"] for row in ROWS[:8]], padding=True, return_tensors="pt")

    def objective(model, batch):
        return jy.Tally(model(**batch).logits.square().sum(), len(batch["input_ids"]))

    tally = jy.accumulate(objective, model, dict(ids), plan=plan)
    assert tally.weight == 8
    model.zero_grad()
    with pytest.raises(InputError, match="one of the two"):
        jy.accumulate(objective, model, dict(ids), plan=plan, micro_batch=2)


class _Classes:
    """A ``datasets.ClassLabel``, as far as it is used."""

    def int2str(self, number):
        return ("bad", "good")[number]


class _Dataset(list):
    features = {"text": None, "label": _Classes()}  # noqa: RUF012


@pytest.mark.slow
def test_class_numbers_of_a_dataset_become_names(in_hand, tmp_path):
    rows = _Dataset({"text": row["text"], "label": int(row["label"] == "good")} for row in ROWS)
    found = jy.train(*in_hand, data=rows, out=tmp_path / "model", **HOW)
    assert set(found.model.config.id2label.values()) == {"bad", "good"}


def test_mistakes_are_named_before_anything_runs(in_hand, tmp_path):
    model, tokenizer = in_hand
    for given, why in (
        ({"model": model}, "without tokenizer"),
        ({"model": "tiny", "tokenizer": tokenizer}, "beside a name"),
        ({"model": model, "tokenizer": tokenizer, "updates": 3}, "options: found updates"),
        ({"model": model, "tokenizer": tokenizer, "data": [*ROWS, "file.tsv"]}, "files, or dicts"),
    ):
        with pytest.raises(ValueError, match=why):
            jy.train(**{"data": ROWS, "out": tmp_path / "x", "task": "classify", **given})
    assert not (tmp_path / "x").exists()
