"""Labelled and plain files, scores of labels, hidden tokens: what classification and masked-LM training stand on."""

import json

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jieyue.data.labelled import Columns, Labelled, read_labelled, shared_texts
from jieyue.data.plain import read_lines, shared_lines
from jieyue.decoding.slots import logits_at
from jieyue.errors import InputError
from jieyue.hf.classic_presets import CLASSIC_PRESETS, build_classic
from jieyue.hf.tokenizers import learn_vocabulary, make_tokenizer
from jieyue.metrics.classification import NaiveBayes, macro_f1, score_labels
from jieyue.run.batches import Visited, visits
from jieyue.tasks.classify.settings import ClassifySettings
from jieyue.tasks.classify.task import TASK as CLASSIFY
from jieyue.tasks.classify.task import label_set
from jieyue.tasks.mlm.masking import encode_lines, hide, num_hidden
from jieyue.tasks.mlm.settings import MaskSettings
from jieyue.tasks.mlm.task import TASK as MLM
from jieyue.tasks.mlm.task import masked_loss, pseudo_perplexity
from jieyue.tasks.sources import set_apart

EXPECTED = [Labelled("It rains, again", "weather"), Labelled("They won", "sport"), Labelled("Snow", "weather")]
FILES = {
    "tsv": "label\ttext_a\nweather\tIt rains, again\nsport\tThey won\nweather\tSnow\n",
    "bare.tsv": "It rains, again\tweather\nThey won\tsport\nSnow\tweather\n",
    "csv": 'text,category\n"It rains, again",weather\nThey won,sport\nSnow,weather\n',
    "jsonl": "".join(json.dumps({"sentence": one.text, "label": one.label}) + "\n" for one in EXPECTED),
    "json": json.dumps([{"content": one.text, "topic": one.label} for one in EXPECTED]),
    "crlf.tsv": "\ufefftext\tlabel\r\nIt rains, again\tweather\r\nThey won\tsport\r\nSnow\tweather\r\n",
}


def written(folder, name, text):
    path = folder / f"data.{name}"
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize("name", FILES)
def test_every_shape_of_file_gives_the_same_examples(name, tmp_path):
    examples, findings = read_labelled(written(tmp_path, name, FILES[name]))
    assert examples == EXPECTED
    assert findings.counts["labels"] == 2 and findings.counts["examples"] == 3


def test_columns_may_be_named_or_numbered(tmp_path):
    path = written(tmp_path, "tsv", "id\tbody\tkind\n1\tHello\ta\n2\tBye\tb\n")
    named, _ = read_labelled(path, columns=Columns(text="body", label="kind"))
    assert named == [Labelled("Hello", "a"), Labelled("Bye", "b")]
    bare = written(tmp_path, "n.tsv", "1\tHello\ta\n2\tBye\tb\n")
    assert read_labelled(bare, columns=Columns(text="2", label="3"))[0] == named
    with pytest.raises(InputError, match="--text-column"):
        read_labelled(path)
    with pytest.raises(InputError, match="'gone'"):
        read_labelled(path, columns=Columns(text="gone"))


def test_broken_records_stop_or_are_listed_and_doubts_are_counted(tmp_path):
    path = written(tmp_path, "tsv", "text\tlabel\nSame\ta\nSame\tb\nSame\ta\nno label\t\nshort\n\t a\n")
    with pytest.raises(InputError, match="line 6: found 1 cells, expected 2"):
        read_labelled(path)
    examples, findings = read_labelled(path, skip_bad=True)
    assert [one.label for one in examples] == ["a", "b", "a", None]
    assert findings.counts["records_skipped"] == 2 and "line 7" in findings.skipped[1]
    assert findings.counts["texts_repeated"] == 2 and findings.counts["texts_contradicted"] == 1
    assert findings.counts["labels_unknown"] == 1
    assert shared_texts([Labelled("ABC d", "x")], [Labelled("ａｂｃ D", "y"), Labelled("other", "x")]) == {"texts": 1}


def test_plain_text(tmp_path):
    path = written(
        tmp_path, "txt", "one line of text, long enough\n\n second \none line of text, long enough\nbad \0\n"
    )
    with pytest.raises(InputError, match="line 5"):
        read_lines(path)
    lines, findings = read_lines(path, skip_bad=True)
    assert lines == ["one line of text, long enough", "second", "one line of text, long enough"]
    assert findings.counts["lines_repeated"] == 1 and findings.counts["records_skipped"] == 1
    many = [f"line {number}" for number in range(1000)]
    rest, held = set_apart(many, MLM.groups(many), 0.1, "held out")
    assert sorted(rest + held) == sorted(many) and 90 <= len(held) <= 100
    assert len({line.split()[1][:-1] for line in held}) <= 25, "neighbours stay together"


POEM = ["床前明月光，", "疑是地上霜。", "举头望明月，", "低头思故乡。"]
PASSAGE = "A line of running text that nobody writes twice by chance, since it says much."


@pytest.mark.parametrize(
    ("training", "held_out", "count"),
    [
        ([PASSAGE, "other"], ["new", PASSAGE.upper().replace(" ", "  "), "new too"], 1),
        (["= = = Critical reception and legacy = = =", "one"], ["= = = Critical reception and legacy = = =", "two"], 0),
        (POEM * 2, POEM, 4),
        ([POEM[0], "x", POEM[1], "y", *POEM[2:]], POEM, 0),
        (["yes", "no", "thanks"] * 9, ["thanks", "thanks", "no", "no", "yes", "yes"] * 9, 0),
        (["北国风光千里冰封万里雪飘望长城内外惟余莽莽"], ["北国风光千里冰封万里雪飘望长城内外惟余莽莽"], 1),
        ([PASSAGE], [PASSAGE, PASSAGE], 2),
        ([], [PASSAGE], 0),
        ([PASSAGE], [], 0),
    ],
)  # fmt: skip
def test_what_both_parts_share_is_passages_and_no_headings(training, held_out, count):
    """The fault: a heading of twenty characters that both parts have was told as an error, short lines of a shared poem were not."""
    assert shared_lines(training, held_out) == {"lines": count}


def slow_macro_f1(gold, own):
    values = []
    for label in set(gold):
        true = sum(a == b == label for a, b in zip(gold, own, strict=True))
        values.append(2 * true / (gold.count(label) + own.count(label)))
    return sum(values) / len(values)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=40))
def test_macro_f1_is_its_definition(pairs):
    gold, own = [a for a, _ in pairs], [b for _, b in pairs]
    assert macro_f1(gold, own) == pytest.approx(slow_macro_f1(gold, own), abs=1e-12)


def test_scores_and_the_baseline():
    golds = ["a"] * 30 + ["b"] * 10
    facts = score_labels(["a"] * 40, golds)
    assert facts["accuracy"] == 0.75 and facts["macro_f1"] == pytest.approx(0.75 / 1.75)
    low, high = facts["accuracy_interval"]
    assert 0.55 < low < 0.75 < high < 0.95
    predict = NaiveBayes.learned(
        ["rain and snow", "snow today", "they won the match", "a match"], ["w", "w", "s", "s"]
    ).predict
    assert predict(["more snow", "the match was won"]) == ["w", "s"]


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(learn_vocabulary(["the quick brown fox jumps over the lazy dog 天气很好"] * 3, 40))


LINES = ["the quick brown fox jumps over the lazy dog"] * 3 + ["天气很好 the dog"] * 4


def test_classification_rows(tokenizer):
    examples = [Labelled("the dog", "10"), Labelled("the quick brown fox jumps", "9"), Labelled("fox", None)]
    assert label_set(examples) == ("9", "10")
    settings = ClassifySettings(max_tokens=6, labels=("9", "10"))
    rows, counts = CLASSIFY.encode(examples, tokenizer, settings)
    assert [row["labels"].tolist() for row in rows] == [[1], [0]]
    assert counts["texts_truncated"] == 1 and counts["labels_unknown"] == 1 and len(rows[1]["input_ids"]) == 6
    assert ClassifySettings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    with pytest.raises(InputError, match="two different"):
        label_set(examples[:1])


@pytest.mark.parametrize("whole", [False, True])
def test_masks_are_drawn_from_seed_row_and_visit_alone(tokenizer, whole):
    settings = MaskSettings(max_tokens=24, share=0.3, whole_words=whole, seed=5)
    rows, _ = encode_lines(LINES, tokenizer, settings)
    assert all(len(row["input_ids"]) <= 24 for row in rows)
    seen = Visited(rows)
    numbers = visits([[0, 1], [1, 0], [0, 1]], len(rows))
    alone = [MLM.collate([seen[number]], tokenizer, settings) for batch in numbers for number in batch]
    together = MLM.collate([seen[number] for batch in numbers for number in batch], tokenizer, settings)
    for at, one in enumerate(alone):
        length = one["input_ids"].shape[1]
        assert torch.equal(together["input_ids"][at, :length], one["input_ids"][0])
    first, other = seen[numbers[0][0]], seen[numbers[1][1]]
    assert first["row"] == other["row"] and (first["visit"], other["visit"]) == (0, 1)
    draws = {tuple(hide({**first, "visit": visit}, tokenizer, settings)["places"]) for visit in range(12)}
    assert len(draws) > 3
    for visit in range(12):
        hidden = hide({**first, "visit": visit}, tokenizer, settings)
        places, words = hidden["places"], first["words"]
        assert numpy.array_equal(first["input_ids"][places], hidden["labels"])
        assert (words[places] >= 0).all() and 0 < len(places) <= num_hidden(len(words), 0.3)
        if whole and len(set(words[places])) > 1:
            assert len(places) == numpy.isin(words, words[places]).sum()


@pytest.mark.parametrize("name", [name for name in CLASSIC_PRESETS if name.endswith("tiny")])
def test_logits_at_places_are_the_whole_models_logits(name, tokenizer):
    model = (
        build_classic(name, tokenizer, seed=1, hidden_size=16, num_hidden_layers=2, intermediate_size=24)
        .double()
        .eval()
    )
    settings = MaskSettings(max_tokens=24)
    rows, _ = encode_lines(LINES, tokenizer, settings)
    batch = MLM.collate(rows, tokenizer, settings)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        whole = model(**inputs).logits
        own = logits_at(model, inputs, batch["places"])
        expected = torch.stack([whole[at, places] for at, places in enumerate(batch["places"])])
        assert torch.allclose(own, expected, atol=1e-12, rtol=0)
        kept = batch["labels"] >= 0
        slow = -torch.log_softmax(expected, -1)[kept].gather(-1, batch["labels"][kept][:, None]).sum()
        tally = masked_loss(model, batch)
    assert float(tally.total) == pytest.approx(float(slow), rel=1e-12) and int(tally.weight) == int(kept.sum())


def test_pseudo_perplexity_hides_one_token_at_a_time(tokenizer):
    model = (
        build_classic("bert-tiny", tokenizer, hidden_size=16, num_hidden_layers=1, intermediate_size=24).double().eval()
    )
    settings = MaskSettings(max_tokens=24, pseudo_rows=1)
    found, count = pseudo_perplexity(model, tokenizer, LINES[:1], settings)
    ids = torch.tensor(tokenizer(LINES[0])["input_ids"])
    total = 0.0
    with torch.no_grad():
        for place in range(1, len(ids) - 1):
            one = ids.clone()
            one[place] = tokenizer.mask_token_id
            total -= float(model(input_ids=one[None]).logits[0, place].log_softmax(-1)[ids[place]])
    assert count == len(ids) - 2 and found == pytest.approx(numpy.exp(total / count), rel=1e-5)
