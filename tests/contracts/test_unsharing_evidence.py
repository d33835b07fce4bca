"""The experiment on unsharing: its verdicts from numbers, and one small cell that is really trained."""

import pytest
import torch

from jieyue.evidence.claims import FAILS, HOLDS, UNDECIDED, UNTESTED, Cell, Place
from jieyue.evidence.unsharing import CLAIMS, POINTS, WAYS, _constant, _files, _pretrained
from jieyue.run.config import TrainingConfig
from jieyue.run.prepare import prepare
from jieyue.tasks import RunConfig
from jieyue.tasks.classify.settings import ClassifySettings
from jieyue.tasks.table import task

TIE, GAIN = CLAIMS


def numbers(shared, unshared, constant=0.3):
    def way(score):
        curve = [[step, score * step / 8] for step in range(1, 9)]
        return {"score": score, "constant": constant, "curve": curve, "seconds": 1, "step_bytes": 1, "parameters": 1}

    return {"shared": way(shared), "unshared": way(unshared), "BERT": way(0.5)}


def results(gap, constant=0.3):
    return [
        (Cell(TIE.key, {}, seed), numbers(0.6 + seed / 50, 0.6 + seed / 50 + gap + seed / 1000, constant))
        for seed in range(4)
    ]


@pytest.mark.parametrize(
    ("gap", "tie", "gain"),
    [(0.0, HOLDS, UNDECIDED), (0.1, FAILS, HOLDS), (-0.1, FAILS, FAILS)],
)
def test_verdicts(gap, tie, gain):
    assert [claim.judge(results(gap)).word for claim in CLAIMS] == [tie, gain]


def test_what_was_not_learned_is_not_judged():
    assert {claim.judge(results(0.1, constant=0.9)).word for claim in CLAIMS} == {UNTESTED}


@pytest.mark.parametrize("scale", ["minutes", "hour"])
def test_a_cell_a_seed(scale):
    assert all([cell.seed for cell in claim.cells(scale, (0, 1))] == [0, 1] for claim in CLAIMS)
    assert not any("data" in cell.settings for claim in CLAIMS for cell in claim.cells("minutes", (0, 1)))


PRETRAINING = {"updates": 2, "tokens": 24, "rate": 1e-3}
SIZES = {
    "pretraining": PRETRAINING,
    "questions": 60,
    "updates": 8,
    "tokens": 24,
    "rate": 1e-3,
    "sentences": 3,
    "judged": 20,
}


@pytest.mark.slow
@pytest.mark.parametrize("claim", [TIE, pytest.param(GAIN, marks=pytest.mark.slow)])
def test_a_cell_is_trained(claim, tmp_path):
    cell = Cell(claim.key, {**claim.cells("minutes", (0, 1))[0].settings, **SIZES}, 0)
    found = claim.measure(cell, Place(tmp_path / "cell", None, 1))
    assert set(found) == set(WAYS) and len({found[way]["constant"] for way in WAYS}) == 1
    assert found["shared"]["parameters"] < found["unshared"]["parameters"]
    assert found["shared"]["step_bytes"] < found["unshared"]["step_bytes"]
    for own in found.values():
        assert [step for step, _ in own["curve"]] == list(range(1, 9))
        assert own["curve"][-1][1] == own["score"], "the curve and the score are of the same examples"
        assert 0 < own["constant"] < 0.5 and own["seconds"] > 0
    pretrained = sorted(folder.name for folder in tmp_path.glob("pretrained-*"))
    assert len(pretrained) == 2, "one ALBERT and one BERT, beside the cells"
    assert claim.measure(cell, Place(tmp_path / "cell", None, 1)) == found
    (tmp_path / "cell" / "BERT.json").unlink()  # as if interrupted: the same again, from the same checkpoint
    again = claim.measure(cell, Place(tmp_path / "cell", None, 1))
    assert [again["BERT"][name] for name in ("score", "curve")] == [found["BERT"][name] for name in ("score", "curve")]
    assert sorted(folder.name for folder in tmp_path.glob("pretrained-*")) == pretrained


@pytest.mark.parametrize(("claim", "scale"), [(claim, scale) for claim in CLAIMS for scale in ("minutes", "hour")])
def test_the_curve_has_its_points(claim, scale):
    """The early score is the second of eight points; the last one is at the end."""
    (cell, _) = claim.cells(scale, (0, 1))
    assert cell.settings["updates"] % POINTS == 0


def test_the_best_constant_answer(tmp_path):
    path = tmp_path / "labels.tsv"
    path.write_text("text\tlabel\n" + "".join(f"a text {n}\t{'ab'[n % 3 == 0]}\n" for n in range(60)))
    sources = task("classify").sources(RunConfig(data=[path], held_out=[path]), ClassifySettings(), 0)
    assert _constant(sources, 60) == 40 / 60 and _constant(sources, 2) == 1 / 2


def test_a_new_head_comes_from_the_seed(tmp_path):
    """Two ways of one seed begin alike, two seeds do not, whatever was drawn before."""
    claim, place = TIE, Place(tmp_path / "cell", None, 1)
    place.folder.mkdir()
    sizes = {**claim.cells("minutes", (0, 1))[0].settings, **SIZES}
    train, held_out, texts = _files(sizes, place)
    folder = _pretrained("albert-tiny", texts, PRETRAINING, place)
    heads = []
    for seed in (0, 0, 1):
        torch.rand(3)
        materials = RunConfig(model=str(folder), data=(train,), held_out=(held_out,))
        heads.append(prepare(task("classify"), materials, TrainingConfig(seed=seed)).model.build().classifier.weight)
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
