"""Articles 7 and 8 as experiments: a cell is trained and measured, and the judges read its numbers, right and wrong ways round."""

from dataclasses import replace

import pytest

from jieyue.evidence import dialogue, linear_attention
from jieyue.evidence.claims import FAILS, HOLDS, UNDECIDED, Cell, Place


def small(cell, tmp_path, **sizes):
    return replace(cell, settings={**cell.settings, **sizes}), Place(tmp_path, None, 1)


def test_a_dialogue_cell_is_trained_and_its_replies_are_drawn(tmp_path):
    claim = dialogue.CLAIMS[1]
    cells = claim.cells("minutes", (0, 1))
    assert [cell.settings["loss_on"] for cell in cells] == ["all", "last"] * 2
    numbers = claim.measure(*small(cells[0], tmp_path, updates=8, batch=2, limit=24, judged=6))
    assert numbers["dialogues"] == 6 and len(numbers["curve"]) == 8 and numbers["curve"][-1][0] > numbers["curve"][0][0]
    assert numbers["loss last"] > 0 and 0 < numbers["loss all"] < 10 and 0 <= numbers["top-p 0.9 dist_2"] <= 1


def dialogue_results(better):
    """``better``: the loss that training on all turns reaches; that on the last turn alone reaches 3."""
    for seed in (0, 1, 2):
        for loss_on, last in (("all", better + seed / 100), ("last", 3.0)):
            drawn = {"top-k 5 bleu_2": 0.2, "top-p 0.9 bleu_2": 0.1, "top-k 5 dist_2": 0.3, "top-p 0.9 dist_2": 0.5}
            drawn |= {"top-k 5 repetition": 0.0, "top-p 0.9 repetition": 0.0}
            curve = [(1.0, 4.0 + seed / 100), (2.0, better)]
            numbers = {"loss all": better, "loss last": last, "curve": curve, **drawn}
            yield Cell(dialogue.KEY, {"loss_on": loss_on}, seed), numbers


@pytest.mark.parametrize(("better", "word"), [(2.0, HOLDS), (3.5, FAILS)])
def test_all_turns_are_judged_by_the_last_turns_loss(better, word):
    found = list(dialogue_results(better))
    assert dialogue.CLAIMS[1].judge(found).word == word


def test_epochs_and_drawing_are_judged():
    all_turns = [pair for pair in dialogue_results(2.0) if pair[0].settings["loss_on"] == "all"]
    epochs, drawing = dialogue.CLAIMS[0].judge(all_turns), dialogue.CLAIMS[2].judge(all_turns)
    assert epochs.word == drawing.word == HOLDS and len(epochs.rows) == 3
    rising = [(cell, {**numbers, "curve": [(1.0, 2.0), (2.0, 2.5)]}) for cell, numbers in all_turns]
    assert dialogue.CLAIMS[0].judge(rising).word == FAILS


@pytest.mark.slow
def test_a_cell_of_linear_attention_is_trained(tmp_path):
    claim = linear_attention.CLAIMS[0]
    cells = {cell.settings["attention"]: cell for cell in claim.cells("minutes", (0, 1))}
    sizes = {"updates": 2, "talks": 40}
    numbers = claim.measure(*small(cells["full()"], tmp_path / "softmax", **sizes))
    entropies = numbers["entropies"]
    assert entropies["linear(elu)"] > entropies["softmax"] - 0.5 and entropies["uniform"] > 0
    numbers = claim.measure(*small(cells["local(8)+linear(elu)"], tmp_path / "hybrid", **sizes))
    assert 0 <= numbers["score"] <= 1 and "entropies" not in numbers


def linear_results(softmax, band):
    for seed in (0, 1, 2):
        for case in linear_attention.CASES:
            score = {linear_attention.SOFTMAX: softmax} | dict.fromkeys(linear_attention.BANDED, band)
            numbers = {"score": score.get(case, 0.3) + seed / 1000, "loss": 1.0, "seconds": 1.0}
            yield Cell(linear_attention.KEY, {"attention": case}, seed), numbers


@pytest.mark.parametrize(("softmax", "band", "words"), [(0.6, 0.4, (HOLDS, HOLDS)), (0.2, 0.3, (FAILS, UNDECIDED))])
def test_maps_and_bands_are_judged_by_their_scores(softmax, band, words):
    found = list(linear_results(softmax, band))
    assert tuple(claim.judge(found).word for claim in linear_attention.CLAIMS[:2]) == words
