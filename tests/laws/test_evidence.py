"""Verdicts come from intervals over seeds, cells are measured once, whoever asks and however often it was interrupted."""

import json
import math
import multiprocessing
import statistics

import pytest
from hypothesis import assume, given
from hypothesis import strategies as some

from jieyue.errors import InputError, MissingExtra
from jieyue.evidence.articles import ARTICLES, choose, claims_of
from jieyue.evidence.claims import FAILS, HOLDS, UNDECIDED, UNTESTED, Cell, Claim, Result, Untestable, Verdict
from jieyue.evidence.judging import by_seed, decide, difference, factor, verdict_of
from jieyue.evidence.pages import build, publish, published, write
from jieyue.evidence.running import Outcome, digest, measure
from jieyue.report import Estimate

NUMBERS = some.lists(some.floats(-1e3, 1e3), min_size=2, max_size=6)


def judge(results):
    gain = difference(by_seed(results, "score", arm="new"), by_seed(results, "score", arm="old"))
    return decide({"new over old": gain}, columns=["gain"], rows=[[gain]])


def score(cell, place):
    return {"score": cell.seed + (5.0 if cell.settings["arm"] == "new" else 0.0) + 0.01 * cell.seed**2}


def claim(measured=score, **changes):
    def cells(scale, seeds):
        return [Cell("demo", {"arm": arm}, seed) for seed in seeds for arm in ("old", "new")]

    given = {"key": "demo", "article": 1, "sentence": "new is better", "articles_number": "none", "judge": judge}
    return Claim(**{**given, "cells": cells, "measure": measured, **changes})


def results_of(gains):
    found = []
    for seed, gain in enumerate(gains):
        for arm, value in (("old", 0.0), ("new", gain)):
            found.append(Result(Cell("demo", {"arm": arm}, seed), {"score": value}, 1.0, "", {}, ""))
    return found


def holds_by_means(results):
    """The broken twin: looks at means alone, as a single run does."""
    pairs = [(result.cell, result.numbers) for result in results]
    means = [statistics.mean(by_seed(pairs, "score", arm=arm).values()) for arm in ("new", "old")]
    return HOLDS if means[0] > means[1] else FAILS


def lawful(word, gains):
    """Nothing holds, and nothing fails, whose 95 % interval reaches 0, written out anew with Student's table."""
    quantile = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571}[len(gains)]
    half = quantile * statistics.stdev(gains) / math.sqrt(len(gains)) * (1 - 1e-3)
    if word == HOLDS:
        return statistics.mean(gains) - half > 0
    return word != FAILS or statistics.mean(gains) + half < 0


@given(NUMBERS)
def test_nothing_holds_whose_interval_reaches_zero(gains):
    verdict = verdict_of(claim(), results_of(gains))
    assert verdict.word in (HOLDS, FAILS, UNDECIDED)
    assert lawful(verdict.word, gains)


@given(some.lists(some.floats(1, 2), min_size=2, max_size=6))
def test_a_clear_gain_holds_and_its_opposite_does_not(gains):
    assume(lawful(HOLDS, [gain + 100 for gain in gains]))
    assert verdict_of(claim(), results_of([gain + 100 for gain in gains])).word == HOLDS
    assert verdict_of(claim(), results_of([-gain - 100 for gain in gains])).word == FAILS


def test_the_alarm_rings():
    """The twin that reads means calls a gain of one good seed in three a success; the law catches it."""
    gains = [9.0, -1.0, -1.0]
    assert not lawful(holds_by_means(results_of(gains)), gains)
    assert not lawful(holds_by_means(results_of([-gain for gain in gains])), gains)  # nor is its opposite a failure
    assert lawful(verdict_of(claim(), results_of(gains)).word, gains)


@pytest.mark.parametrize("gain", [1e6, 0.0, -1e6])
def test_one_seed_never_gives_a_verdict(gain):
    verdict = verdict_of(claim(), results_of([gain]))
    assert verdict.word == UNTESTED and "single seed" in verdict.why
    with pytest.raises(InputError):
        judge([(r.cell, r.numbers) for r in results_of([gain])])


def test_one_part_that_fails_decides_and_one_that_is_open_keeps_the_rest_open():
    good, bad, open_ = Estimate(2.0, 1.0, 3.0), Estimate(-2.0, -3.0, -1.0), Estimate(2.0, -1.0, 5.0)
    assert decide({"a": good, "b": good}).word == HOLDS
    assert decide({"a": good, "b": open_}).word == UNDECIDED
    assert decide({"a": open_, "b": bad, "c": good}).word == FAILS


def test_numbers_that_are_not_finite_decide_nothing():
    assert decide({"gain": Estimate(1.0, 0.5, math.inf)}).word == UNDECIDED
    assert decide({"gain": Estimate(-1.0, -math.inf, -0.5)}).word == UNDECIDED
    with pytest.raises(InputError):
        decide({})


def test_pairs_are_of_the_same_seed():
    assert factor({0: 2.0, 1: 8.0}, {0: 1.0, 1: 4.0}).value == pytest.approx(2.0)
    with pytest.raises(InputError, match="same seeds"):
        difference({0: 1.0, 1: 2.0}, {0: 1.0, 2: 2.0})


def test_cells_are_measured_once_and_an_interruption_keeps_the_finished(tmp_path):
    seen = []

    def measured(cell, place):
        if len(seen) == 3 and "stopped" not in seen:
            (place.folder / "begun").write_text("half")
            seen.append("stopped")
            raise KeyboardInterrupt
        seen.append((cell.settings["arm"], cell.seed, (place.folder / "begun").exists()))
        return score(cell, place)

    with pytest.raises(KeyboardInterrupt):
        measure([claim(measured)], "minutes", range(3), tmp_path)
    assert len(list((tmp_path / "cells").glob("*.json"))) == 3
    (outcome,) = measure([claim(measured)], "minutes", range(3), tmp_path, command="again")
    assert outcome.verdict.word == HOLDS
    assert len(seen) == 7 and len(set(seen)) == 7
    assert [each[2] for each in seen if each != "stopped"] == [False] * 3 + [True, False, False]
    assert [r.command for r in outcome.results] == [""] * 3 + ["again"] * 3
    assert not list((tmp_path / "work").iterdir())
    fresh = measure([claim()], "minutes", range(3), tmp_path / "fresh")[0]
    assert [r.numbers for r in fresh.results] == [r.numbers for r in outcome.results]


def test_another_version_setting_seed_or_content_is_another_cell(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    cell = Cell("demo", {"arm": "new", "data": "a.txt"}, 0)
    found = {digest(claim(), cell, tmp_path), digest(claim(version=2), cell, tmp_path)}
    found.add(digest(claim(), Cell("demo", {"arm": "new", "data": "a.txt"}, 1), tmp_path))
    found.add(digest(claim(), Cell("demo", {"arm": "old", "data": "a.txt"}, 0), tmp_path))
    (tmp_path / "a.txt").write_text("two")
    found.add(digest(claim(), cell, tmp_path))
    assert len(found) == 5
    with pytest.raises(Untestable, match=r"b\.txt"):
        digest(claim(), Cell("demo", {"data": "b.txt"}, 0), tmp_path)


def slow(cell, place):
    with (place.folder.parent.parent / "log").open("a") as log:
        log.write(f"{cell.settings['arm']} {cell.seed}\n")
    multiprocessing.get_context("spawn").Event().wait(0.05)
    return score(cell, place)


def _work(folder):
    measure([claim(slow)], "minutes", range(4), folder)


def test_two_processes_share_the_cells(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_work, args=(tmp_path,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == 8 and len(set(lines)) == 8


@pytest.mark.parametrize("reason", [Untestable("needs a GPU"), MissingExtra("local_attention", "bench")])
def test_what_cannot_be_measured_is_said_and_not_kept(tmp_path, reason):
    def measured(cell, place):
        if cell.seed == 1:
            raise reason
        return score(cell, place)

    (outcome,) = measure([claim(measured)], "minutes", range(2), tmp_path)
    assert outcome.verdict == Verdict(UNTESTED, str(reason))
    assert len(list((tmp_path / "cells").glob("*.json"))) == 2


def test_mistakes_are_told(tmp_path):
    for changes in ({"scale": "days"}, {"seeds": [0]}, {"seeds": [0, 0]}, {"data": tmp_path / "absent"}):
        asked = {"scale": "minutes", "seeds": [0, 1], **changes}
        with pytest.raises(InputError):
            measure([claim()], asked["scale"], asked["seeds"], tmp_path, data=asked.get("data"))
    (tmp_path / "cells").mkdir()
    name = digest(claim(), Cell("demo", {"arm": "old"}, 0), None)
    (tmp_path / "cells" / f"{name}.json").write_text("{}")
    with pytest.raises(InputError, match=name):
        measure([claim()], "minutes", [0, 1], tmp_path)


def test_every_claim_is_whole():
    keys = [one.key for one in choose()]
    assert len(keys) == len(set(keys))
    for article in ARTICLES:
        for one in claims_of(article):
            assert one.article == article.number and one.sentence and one.articles_number
            for scale in ("minutes", "hour", "full"):
                cells = list(one.cells(scale, (0, 1, 2)))
                assert {cell.claim for cell in cells} <= {each.key for each in claims_of(article)}
                assert json.loads(json.dumps([dict(cell.settings) for cell in cells])) == [
                    dict(cell.settings) for cell in cells
                ]
                if scale == "minutes":
                    assert cells, f"{one.key} has no cell at the scale that ships"
                    assert not any("data" in cell.settings for cell in cells)
                if cells and not one.certain:
                    assert {cell.seed for cell in cells} >= {0, 1}
    assert [one.article for one in choose(["6"])] == [6, 6] and choose(["gelu-constants"])[0].key == "gelu-constants"


def test_pages_are_made_from_the_cells_alone(tmp_path):
    outcomes = measure(choose(["gelu"]), "minutes", [0, 1], tmp_path / "out", command="jieyue reproduce 6")
    publish(outcomes, tmp_path / "docs")
    page = (tmp_path / "docs" / "reproduction.md").read_text(encoding="utf-8")
    assert page.count("| holds |") >= 2 and "jieyue reproduce 6" in page and "0.04471491123850965" in page
    again = [Outcome(o.claim, o.scale, o.results, o.missing) for o in published(tmp_path / "docs")]
    assert build(again) == build(outcomes)
    html = {path.name for path in write(outcomes, tmp_path / "out")}
    assert html == {"reproduction.html", "reproduction.json", "reproduction.md"}
    text = (tmp_path / "out" / "reproduction.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in text and "<script" not in text
    assert [path.name for path in write(outcomes, tmp_path / "zh", "zh")][2] == "reproduction.zh.md"
    for name in ("zh/reproduction.html", "docs/reproduction.zh.md"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert "成立" in text and "holds" not in text and "0.04471491123850965" in text


def test_cells_of_an_earlier_version_are_not_published(tmp_path):
    outcomes = measure(choose(["gelu-constants"]), "minutes", [0, 1], tmp_path / "out", command="jieyue reproduce 6")
    publish(outcomes, tmp_path / "docs")
    (path,) = (tmp_path / "docs" / "results" / "minutes").iterdir()
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    older = [{**line, "version": line["version"] - 1} for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in older), encoding="utf-8")
    assert published(tmp_path / "docs") == []
