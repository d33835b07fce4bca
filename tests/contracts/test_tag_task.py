"""Entities: files read alike, tags repaired and counted, every word in one window, exact sums, seqeval's scores, a whole run."""

import json

import pytest
import seqeval.metrics
import torch
from hypothesis import given
from hypothesis import strategies as st

from jieyue.data.tagged import read_tagged, words_of
from jieyue.data.tags import bio_of, spans_of
from jieyue.errors import InputError
from jieyue.hf.classic_presets import build_classic
from jieyue.hf.tokenizers import learn_vocabulary, make_tokenizer
from jieyue.metrics.entities import score_entities
from jieyue.run import RunConfig, TrainingConfig
from jieyue.run.jobs import doctor, evaluate, train
from jieyue.run.predict import predict
from jieyue.tasks.tag.settings import TagSettings
from jieyue.tasks.tag.task import TASK, tag_loss
from jieyue.tasks.tag.windows import windows_of

MARKS = st.sampled_from(["O", *(f"{mark}-{kind}" for mark in "BIES" for kind in "XY")])


def written(folder, text, name="data.conll"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@given(st.lists(MARKS, max_size=12))
def test_repaired_tags_are_bio_and_mean_the_same(tags):
    spans = spans_of(tags)
    repaired = bio_of(spans, len(tags))
    assert spans_of(repaired) == spans and bio_of(spans_of(repaired), len(tags)) == repaired
    assert [tag == "O" for tag in tags] == [tag == "O" for tag in repaired]
    for before, tag in zip(["O", *repaired], repaired, strict=False):
        assert tag[0] != "I" or before[1:] == tag[1:], "I only goes on with its own type"


@given(st.lists(st.lists(st.tuples(MARKS, MARKS), min_size=1, max_size=6), min_size=2, max_size=3))
def test_scores_are_seqevals(texts):
    golds, own = [[a for a, _ in one] for one in texts], [[b for _, b in one] for one in texts]
    facts = score_entities([spans_of(one) for one in own], [spans_of(one) for one in golds])
    for name, found in (
        ("precision", seqeval.metrics.precision_score),
        ("recall", seqeval.metrics.recall_score),
        ("f1", seqeval.metrics.f1_score),
    ):
        assert facts[name] == pytest.approx(found(golds, own, zero_division=0))


def test_files_of_every_shape(tmp_path):
    columns = "-DOCSTART- -X- O\n\nAnn NNP {0}\nin IN O\nNew NNP {1}\nYork NNP {2}\n\nBob NNP {0}\n"
    for tags, repaired in (
        (("B-PER", "B-LOC", "I-LOC"), 0),
        (("S-PER", "B-LOC", "E-LOC"), 0),
        (("I-PER", "I-LOC", "I-LOC"), 3),
    ):
        for text in (columns.format(*tags), columns.format(*tags).replace(" ", "\t")):
            found, findings = read_tagged(written(tmp_path, text))
            assert [one.spans for one in found] == [(("PER", 0, 1), ("LOC", 2, 4)), (("PER", 0, 1),)]
            assert findings.counts["tags_repaired"] == repaired
    row = {"text": "Ann in 北京市.", "entities": [[7, 9, "LOC"], {"start": 0, "end": 2, "label": "PER"}]}
    (one,), findings = read_tagged(written(tmp_path, json.dumps(row), "a.jsonl"))
    assert one.spans == (("PER", 0, 1), ("LOC", 2, 4)) and findings.counts["entities_off_words"] == 1
    for wrong in ("a O\nb\n", "a B-X\nb Q\n"):
        with pytest.raises(InputError, match="line 1"):
            read_tagged(written(tmp_path, wrong))
    for spans in ([[0, 99, "X"]], [[0, 2, "X"], [1, 3, "Y"]], [[2, 1, "X"]]):
        with pytest.raises(InputError, match="entit"):
            read_tagged(written(tmp_path, json.dumps({"text": "abc", "entities": spans}), "b.jsonl"))


@pytest.mark.parametrize(
    "text",
    ["ID\tword\tner\n1\tAnn\tB-PER\n2\t#\tO\n", "# global.columns = ID FORM ner\n# text = Ann #\n1 Ann B-PER\n2 # O\n"],
)
def test_the_tags_column_may_be_named(tmp_path, text):
    path = written(tmp_path, text)
    for settings in (
        TagSettings(tag_column="ner"),
        TagSettings.from_dict({**TagSettings().to_dict(), "tag_column": "ner"}),
    ):
        (one,), _ = TASK.read([path], settings)
        assert one.words == ["Ann", "#"] and one.spans == (("PER", 0, 1),)
    with pytest.raises(InputError, match=r"tag_column='pos'.*ner"):
        TASK.read([path], TagSettings(tag_column="pos"))
    with pytest.raises(InputError, match="expected 2 or more"):
        TagSettings(tag_column="1")
    assert TagSettings.from_dict({"max_tokens": 64, "tag_column": 3}).tag_column == "3"  # as older folders have it


def test_a_hash_is_a_word(tmp_path):
    (one, other), _ = read_tagged(written(tmp_path, "# id = 1\nAnn B-PER\n# O\n\n# O\nBob B-PER\n"))
    assert (one.words, other.words) == (["Ann", "#"], ["#", "Bob"])


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(learn_vocabulary(["Ann lives in a town called Springfield 北京"] * 3, 40))


@given(words=st.lists(st.sampled_from(["Ann", "Springfield", "in", "北", "unheardof"]), min_size=1, max_size=30))
def test_every_word_belongs_to_one_window(tokenizer, words):
    one = words_of(" ".join(words))
    windows = windows_of(one, tokenizer, 12)
    assert sorted(word for window in windows for word, _ in window.first) == list(range(len(one.places)))
    assert all(len(window.ids) <= 12 for window in windows)
    encoded = tokenizer(one.words, add_special_tokens=False)["input_ids"]
    for window in windows:
        assert all(window.ids[place] == encoded[word][0] for word, place in window.first)


def test_parts_add_up_to_the_whole(tokenizer):
    settings = TagSettings(max_tokens=12, types=("PER",))
    texts = ["Ann lives", "Ann lives in Springfield town", "in a town called Ann"]
    examples = [type(one)(one.text, one.places, (("PER", 0, 1),)) for one in map(words_of, texts)]
    rows, _ = TASK.encode(examples, tokenizer, settings)
    batch = TASK.collate(rows, tokenizer, settings)
    torch.manual_seed(0)
    own = TASK.model_config(settings)
    model = build_classic("bert-tiny", tokenizer, head="token-classification", **own).double().eval()
    whole = tag_loss(model, batch)
    parts = [tag_loss(model, {name: value[at : at + 1] for name, value in batch.items()}) for at in range(len(rows))]
    assert float(sum(parts).mean().detach()) == pytest.approx(float(whole.detach().mean()), rel=1e-12)
    assert int(whole.weight) == sum(len(one.places) for one in examples)
    means = sum(float(one.detach().mean()) for one in parts) / len(parts)
    assert abs(means - float(whole.detach().mean())) > 1e-6, "the broken twin, a mean of means, is another number"


@pytest.mark.slow
def test_a_run_from_files_to_answers(tmp_path):
    rows = [{"text": f"Ann{at} went to Springfield", "entities": [[0, 3 + len(str(at)), "PER"]]} for at in range(60)]
    data = written(tmp_path, "".join(json.dumps(row) + "\n" for row in rows), "d.jsonl")
    config = RunConfig(model="bert-tiny", data=[data], settings=TagSettings(max_tokens=16))
    train("tag", config, tmp_path / "m", training=TrainingConfig(steps=30, effective_batch=8, learning_rate=1e-3))
    text = "Ann7 went to Springfield"
    (found,) = predict(tmp_path / "m", [text])
    assert found["answer"] == ({"start": 0, "end": 4, "type": "PER", "text": "Ann7"},) and 0 < found["confidence"] <= 1
    json.dumps(found)
    evaluate(tmp_path / "m", [data])
    doctor("tag", config)
    with pytest.raises(InputError, match="no corpus of entities ships"):
        doctor("tag", RunConfig(model="bert-tiny"))
