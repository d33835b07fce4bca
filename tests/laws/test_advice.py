"""What counts mean: how severe, in which words; nothing is said where nothing is wrong."""

from collections import Counter

import pytest

from jieyue.data.advice import advise
from jieyue.data.findings import Findings


def found(counts=(), encoded=(), shared=(), skipped=()):
    own = Findings(Counter(dict(counts)), skipped=list(skipped))
    return advise({"training files": own}, dict(encoded), dict(shared))


def test_nothing_is_said_of_good_data():
    good = {"files": 1, "examples": 100, "labels": 2, "questions": 100, "answerable": 60, "unanswerable": 40}
    good |= {"files_with_bom": 1, "texts_repeated": 3, "answers_not_in_text": 2}
    encoded = {"texts_truncated": 4, "tokens": 1000, "unknown_tokens": 9, "rows": 100}
    assert found(good, encoded, {"examples": 0, "ids": 0}) == ()


@pytest.mark.parametrize(
    ("given", "severity", "said"),
    [
        ({"shared": {"examples": 56}}, "error", "Leakage: 56 training examples also appear in held-out"),
        ({"shared": {"texts": 1234}}, "error", "Leakage: 1,234 training texts also appear in held-out"),
        ({"shared": {"examples": 0, "passages": 7}}, "warning", "Leakage: 7 training passages also appear in held-out"),
        ({"counts": {"examples": 9, "labels": 1}}, "error", "One class: "),
        (
            {"counts": {"records_skipped": 2}, "skipped": ["a, line 3: found an empty text, expected one"]},
            "error",
            "Empty texts: 1 ",
        ),
        (
            {"counts": {"questions": 100, "unanswerable": 95, "answerable": 5}},
            "error",
            "Nearly all unanswerable: 95 of 100 ",
        ),
        ({"counts": {"examples": 100}, "encoded": {"texts_truncated": 6}}, "warning", "Too long: 6 of 100 texts "),
        ({"counts": {"examples": 100}, "encoded": {"texts_truncated": 95}}, "error", "Too long: 95 of 100 texts "),
        ({"counts": {"pairs": 10}, "encoded": {"sources_truncated": 5}}, "warning", "Too long: 5 of 10 sources "),
        ({"encoded": {"tokens": 100, "unknown_tokens": 6}}, "warning", "Unknown tokens: 6 of 100 "),
        ({"counts": {"examples": 5, "entities": 0}}, "error", "No entities: "),
    ],
)
def test_each_finding_has_its_severity_and_advice(given, severity, said):
    first = found(**given)[0]
    assert (first.severity, first.found[: len(said)]) == (severity, said)
    assert first.do.endswith(".") and first.found[-1] != "."


def test_errors_come_first_and_borders_hold():
    many = found({"examples": 100, "labels": 1}, {"texts_truncated": 6}, {"ids": 2, "texts": 3})
    assert [one.severity for one in many] == ["error", "error", "warning", "warning"]
    assert found({"questions": 100, "unanswerable": 94, "answerable": 6}) == ()
    assert found({"examples": 100}, {"texts_truncated": 5}) == ()
