"""Article 5's experiment at toy size: its cells, one measured, and verdicts from numbers that are known."""

import pytest
import torch

from jieyue.evidence import exposure_bias
from jieyue.evidence.claims import FAILS, HOLDS, UNDECIDED, Cell, Place
from jieyue.evidence.exposure_bias import ARMS, BASELINE, CLAIMS, KEY, PENALTY, SEQUENCE, WIDTHS
from jieyue.evidence.running import digest
from jieyue.training.remedies.texts import parse_remedy

STEPS, REMEDIES, _ = CLAIMS
TOY = {"updates": 3, "batch": 4, "learning_rate": 1e-3, "source_tokens": 40, "limit": 40, "judged": 6}


def numbers_of(gains, seed):
    """As ``measure`` gives them; ``gains``: what is added to a baseline that differs between seeds."""
    exposure = {"gold": [0.5, 0.25], "own": [0.5, 0.0], "count": [4, 4], "beams": {"1": {"rouge_l": 0.2}}}
    scores = dict.fromkeys(exposure_bias.SCORES, 0.1)
    return {
        **{f"{name} {w}": 0.3 + 0.05 * seed + gains for name in scores for w in WIDTHS},
        "exposure": exposure, "beginning": scores, "another title": scores,
    }  # fmt: skip


def results(gains):
    return [
        (Cell(KEY, {"arm": arm}, seed), numbers_of(0.0 if arm == BASELINE else gains[arm] + 0.001 * seed, seed))
        for seed in range(3)
        for arm in (BASELINE, SEQUENCE, PENALTY)
    ]


def test_cells_are_declared_and_named():
    """Three arms on what ships, all six on the larger data; every arm's remedy can be read; no two cells are one."""
    hour, minutes = REMEDIES.cells("hour", (0, 1, 2)), REMEDIES.cells("minutes", (0, 1))
    assert {cell.settings["arm"] for cell in hour} == set(ARMS) and len(hour) == 18
    assert {cell.settings["arm"] for cell in minutes} == {BASELINE, SEQUENCE, PENALTY} and len(minutes) == 6
    assert "data" not in minutes[0].settings
    assert len({digest(REMEDIES, cell, None) for cell in minutes}) == 6
    assert [str(parse_remedy(text)) for text in ARMS.values() if text]


def test_a_cell_is_measured(tmp_path):
    cell = Cell(KEY, {"arm": SEQUENCE, "remedy": ARMS[SEQUENCE], **TOY}, 1)
    numbers = REMEDIES.measure(cell, Place(tmp_path, None, torch.get_num_threads()))
    assert numbers["steps"] == 3 and numbers["pairs"] == 6
    assert all(0 <= numbers[f"{name} {width}"] <= 1 for name in exposure_bias.SCORES for width in WIDTHS)
    assert set(numbers["exposure"]["beams"]) == {"1", "2", "3", "5", "10"}


@pytest.mark.slow
def test_the_model_is_pretrained_once_and_judged_pairs_are_left_out(tmp_path):
    """A training pair with a judged title is not trained on; the second cell finds the first one's model."""
    texts = [(f"title of number {n}", f"source text number {n} that says a few words about {n}") for n in range(80)]
    data = tmp_path / "data"
    data.mkdir()
    for name, own in (("train.tsv", [*texts, texts[0]]), ("judged.tsv", [texts[0], ("other", "another source")])):
        (data / name).write_text("".join(f"{a}\t{b}\n" for a, b in own), encoding="utf-8")
    settings = {**TOY, "data": ["train.tsv", "judged.tsv"], "pretraining": 2}
    for arm in (BASELINE, SEQUENCE):
        folder = tmp_path / "work" / arm
        folder.mkdir(parents=True)
        cell = Cell(KEY, {"arm": arm, "remedy": ARMS[arm], **settings}, 0)
        assert REMEDIES.measure(cell, Place(folder, data, 1))["pairs"] == 2
        lines = (folder / "training.tsv").read_text(encoding="utf-8").splitlines()
        assert len(lines) == 79 and not any(line.startswith(f"{texts[0][0]}\t") for line in lines)
    assert len(list((tmp_path / "work").glob("pretrained-*/model/model.safetensors"))) == 1


def test_verdicts():
    """Both remedies better at every width with clear intervals, or else the claim does not hold."""
    clear = REMEDIES.judge(results({SEQUENCE: 0.02, PENALTY: 0.03}))
    assert clear.word == HOLDS and clear.why.count("needs more than 0: holds") == 6
    assert REMEDIES.judge(results({SEQUENCE: -0.001, PENALTY: 0.03})).word == UNDECIDED
    assert REMEDIES.judge(results({SEQUENCE: -0.02, PENALTY: 0.03})).word == FAILS
    assert all(len(row) == len(clear.columns) for row in clear.rows)
    baseline = clear.rows[0]
    assert baseline[1].value == pytest.approx(0.35) and baseline[-1] == "63.81 · 64.44 · 64.75"
    assert baseline[-2].value == pytest.approx(0.125), "half of the tokens: a quarter fewer after own words"


def test_the_article_s_two_steps():
    found = STEPS.measure(Cell(STEPS.key, {}, 0), Place(None, None, 1))
    assert STEPS.judge([(Cell(STEPS.key, {}, 0), found)]).word == HOLDS
    found["2"]["text"] = "ab"
    assert STEPS.judge([(Cell(STEPS.key, {}, 0), found)]).word == FAILS
