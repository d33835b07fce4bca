"""The exposure gap against brute force, and comparisons: cells are kept, resumed, and never mixed up."""

import json

import pytest
from test_cli import jieyue
from test_title import PAIRS, TOKENIZER, model_of, train

from jieyue import run
from jieyue.errors import InputError
from jieyue.run import comparison
from jieyue.tasks.title.exposure import measure_exposure
from jieyue.tasks.title.settings import TitleSettings
from jieyue.tasks.title.task import TASK
from jieyue.tasks.title.writing import collate_titles
from jieyue.training.remedies.replacement import replace_tokens

SETTINGS = {"source_tokens": 24, "title_tokens": 12}


@pytest.mark.parametrize("kind", ["prefix", "encoder-decoder"])
def test_exposure_against_brute_force(kind):
    """A half-trained model: each place's accuracy, counted title by title."""
    settings = TitleSettings(kind=kind, **SETTINGS)
    model = model_of(kind)
    train(model, settings, steps=12)
    model.eval()
    found = measure_exposure(model, TOKENIZER, PAIRS, settings, batch_size=3, widths=(1, 2), rates=(0.0, 1.0))
    greedy = TASK.answer(model, TOKENIZER, PAIRS, TitleSettings(kind=kind, beams=1, **SETTINGS))
    gold, own, count = [0] * 12, [0] * 12, [0] * 12
    for pair, written in zip(PAIRS, greedy, strict=True):
        (row,), _ = TASK.encode([pair], TOKENIZER, settings)
        batch = collate_titles([row], TOKENIZER, settings)
        labels = batch.pop("labels")
        if kind == "encoder-decoder":
            logits = model(**batch, decoder_input_ids=model.prepare_decoder_input_ids_from_labels(labels=labels)).logits
        else:
            logits, labels = model(**batch).logits[:, :-1], labels[:, 1:]
        asked = labels[0] != -100
        said, wanted = logits[0].argmax(-1)[asked].tolist(), labels[0][asked].tolist()
        mine = [*written.tokens, TOKENIZER.sep_token_id]
        for place, token in enumerate(wanted):
            count[place] += 1
            gold[place] += said[place] == token
            own[place] += place < len(mine) and mine[place] == token
    assert found["count"] == count
    assert found["gold"] == [a / max(1, b) for a, b in zip(gold, count, strict=True)]
    assert found["own"] == [a / max(1, b) for a, b in zip(own, count, strict=True)]
    assert found["corruption"]["0.0"] == sum(gold) / sum(count) and sum(gold) > 0
    assert set(found["beams"]) == {"1", "2"}
    again = measure_exposure(model, TOKENIZER, PAIRS, settings, batch_size=1, widths=(1,), rates=(0.0, 1.0))
    assert again["corruption"] == found["corruption"], (
        "the same pairs are corrupted in the same way, whatever the batch"
    )


def test_wrong_words_before_hurt_a_model_that_knows_its_titles():
    settings = TitleSettings(**SETTINGS)
    model = model_of("prefix")
    train(model, settings)
    found = measure_exposure(model, TOKENIZER, PAIRS, settings, widths=(1, 3), rates=(0.0, 0.9))
    assert found["corruption"]["0.0"] == 1 > found["corruption"]["0.9"]
    assert all(one in (0, 1) for one in found["gold"]) and found["gold"] == found["own"]
    assert found["beams"]["3"]["rouge_l"] == 1


@pytest.fixture
def given(tmp_path):
    data = tmp_path / "titles.tsv"
    data.write_text("".join(f"{pair.title} {n}\t{n}：{pair.source}\n" for n in range(8) for pair in PAIRS))
    settings = TitleSettings(**SETTINGS, beams=2)
    return tmp_path / "out", run.RunConfig(data=(data,), settings=settings)


def test_comparison_is_resumed_cell_by_cell(given, monkeypatch):
    out, materials = given
    variants = {"plain": run.Variant(), "replaced": run.Variant(remedies=(replace_tokens(0.3),))}
    trained = []
    fit = comparison.fit

    def counting(prepared, planned, training, folder, **options):
        trained.append((training.seed, [str(one) for one in training.remedies]))
        if len(trained) in (3, 6):
            raise KeyboardInterrupt
        return fit(prepared, planned, training, folder, **options)

    monkeypatch.setattr(comparison, "fit", counting)
    settings = {"seeds": (0, 1), "training": run.TrainingConfig(steps=2, effective_batch=4), "budget": "2GiB"}
    with pytest.raises(KeyboardInterrupt):
        run.compare("title", variants, materials, out, **settings)
    kept = sorted((out / "cells").iterdir())
    assert len(kept) == 2
    report = run.compare("title", variants, materials, out, **settings)
    assert trained == [(0, []), (0, ["replace_tokens(0.3, 0.5, 'target')"]), (1, []), (1, []), (1, trained[1][1])]
    assert len(list((out / "cells").iterdir())) == 4 and not list((out / "work").iterdir())
    again = run.compare("title", variants, materials, out, **settings)
    assert again.sections[:2] == report.sections[:2] and len(trained) == 5
    assert (out / "report.html").is_file()
    scores = {path: json.loads(path.read_text())["numbers"]["rouge_l"] for path in (out / "cells").iterdir()}
    assert {"Comparison", "Exposure gap"} <= {section.title for section in report.sections}
    assert len(scores) == 4
    other = settings | {"training": run.TrainingConfig(steps=1, effective_batch=4)}
    with pytest.raises(KeyboardInterrupt):  # it trains anew: other settings, other cells
        run.compare("title", variants, materials, out, **other)


def test_what_is_no_comparison(given):
    out, materials = given
    one = {"plain": run.Variant(), "other": run.Variant()}
    for variants, seeds in (({"plain": run.Variant()}, (0, 1)), (one, (0,)), (one, (1, 1))):
        with pytest.raises(InputError, match="at least two of each"):
            run.compare("title", variants, materials, out, seeds=seeds)
    done = jieyue("compare", "title", "--variant", "a=nothing(3)", "--variant", "b", "--out", out)
    assert done.returncode == 2 and "no such remedy" in done.stderr
    done = jieyue("compare", "title", "--variant", "a", "--variant", "a", "--out", out)
    assert done.returncode == 2 and "stands before" in done.stderr
