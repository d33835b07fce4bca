"""Article 2's experiment: its verdict from invented numbers, and one cell measured for real on a model that learns nothing."""

from dataclasses import replace

import pytest

from jieyue.evidence.claims import FAILS, HOLDS, UNDECIDED, UNTESTED, Cell, Place
from jieyue.evidence.masked_reading import CLAIMS
from jieyue.tasks.read.task import READERS

(CLAIM,) = CLAIMS
NAMES = (*READERS, "prefix, no cache")


def invented(gains, speeds, level=0.5):
    """Seeds 0, 1, 2: Final of the masked reader over the written one, and how many times faster it is."""
    results = []
    for seed, (gain, speed) in enumerate(zip(gains, speeds, strict=True)):
        numbers = {f"{name} per_second": 100.0 for name in NAMES} | {"masked per_second": 100.0 * speed}
        for name in READERS:
            own = level + (gain if name == "masked" else 0)
            numbers |= {f"{name} {what}": own for what in ("final", "exact_match", "f1")}
        results.append((Cell(CLAIM.key, {}, seed), numbers))
    return CLAIM.judge(results)


@pytest.mark.parametrize(
    ("gains", "speeds", "word"),
    [
        ((0.0, 0.001, -0.001), (2.0, 2.1, 2.2), HOLDS),
        ((-0.1, -0.11, -0.09), (2.0, 2.1, 2.2), FAILS),
        ((-0.2, 0.2, 0.05), (2.0, 2.1, 2.2), UNDECIDED),  # an interval as wide as that shows nothing
        ((0.0, 0.001, -0.001), (0.8, 1.2, 1.1), UNDECIDED),
    ],
)
def test_the_verdict_is_the_intervals(gains, speeds, word):
    found = invented(gains, speeds)
    assert found.word == word and len(found.rows) == 4 and all(len(row) == len(found.columns) for row in found.rows)


def test_readers_that_learned_nothing_are_not_compared():
    assert invented((0.001, -0.001, 0.0), (2.0, 2.1, 2.2), level=0.002).word == UNTESTED


def test_a_cell_is_measured(tmp_path):
    """All three readers are trained (for two updates) and timed."""
    (cell,) = CLAIM.cells("minutes", (3,))
    small = replace(cell, settings={**cell.settings, "questions": 60, "updates": 2, "judged": 8, "timed": 4})
    numbers = CLAIM.measure(small, Place(tmp_path, None, 1))
    assert all(0 <= numbers[f"{name} final"] <= 1 for name in READERS)
    assert all(numbers[f"{name} per_second"] > 0 for name in NAMES)
    assert len(CLAIM.cells("hour", (0, 1, 2))) == 3 and not CLAIM.cells("full", (0, 1))
