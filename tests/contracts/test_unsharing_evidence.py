"""The experiment on unsharing: its verdicts from numbers, and one small cell that is really trained."""

import pytest

from jieyue.evidence.claims import FAILS, HOLDS, UNTESTED, Cell, Place
from jieyue.evidence.unsharing import CLAIMS, WAYS

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
    [(0.0, HOLDS, FAILS), (0.1, FAILS, HOLDS), (-0.1, FAILS, FAILS)],
)
def test_verdicts(gap, tie, gain):
    assert [claim.judge(results(gap)).word for claim in CLAIMS] == [tie, gain]


def test_what_was_not_learned_is_not_judged():
    assert {claim.judge(results(0.1, constant=0.9)).word for claim in CLAIMS} == {UNTESTED}


@pytest.mark.parametrize("scale", ["minutes", "hour"])
def test_a_cell_a_seed(scale):
    assert all([cell.seed for cell in claim.cells(scale, (0, 1))] == [0, 1] for claim in CLAIMS)
    assert not any("data" in cell.settings for claim in CLAIMS for cell in claim.cells("minutes", (0, 1)))


def test_a_cell_is_trained(tmp_path):
    sizes = {"task": "classify", "pretraining": 2, "updates": 8, "limit": 60, "tokens": 24, "rate": 1e-3}
    found = TIE.measure(Cell(TIE.key, sizes, 0), Place(tmp_path, None, 1))
    assert set(found) == set(WAYS) and len({found[way]["constant"] for way in WAYS}) == 1
    assert found["shared"]["parameters"] < found["unshared"]["parameters"]
    assert found["shared"]["step_bytes"] < found["unshared"]["step_bytes"]
    assert all(0 <= found[way]["score"] <= 1 and len(found[way]["curve"]) == 8 for way in WAYS)
    assert TIE.measure(Cell(TIE.key, sizes, 0), Place(tmp_path, None, 1)) == found
