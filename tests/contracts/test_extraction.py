"""Contract of judging: the two rules on cases worked out by hand, calibration and intervals on cases with known answers."""

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jieyue.errors import InputError
from jieyue.metrics.baselines import compare_baselines, overlap_span
from jieyue.metrics.calibration import calibration_error, cross_fit, fit_temperature
from jieyue.metrics.extraction import TrainingAnswers, interval_of, judge, normal_form, rule_for, score_answers

CASES = [
    # predicted, golds, rule, exact, F1
    ("the Denver Broncos.", ["Denver Broncos"], "squad", 1, 1),
    ("Denver", ["Denver Broncos", "Broncos"], "squad", 0, 2 / 3),
    ("Denver Denver", ["Denver Broncos"], "squad", 0, 0.5),  # bags: one of two shared
    ("Broncos Denver", ["Denver Broncos"], "squad", 0, 1),
    ("the", ["a"], "squad", 1, 1),  # both empty after normalisation
    ("Theatre", ["atre"], "squad", 0, 0),
    ("光荣和ω-force", ["光荣和ω-force"], "cmrc2018", 1, 1),
    ("《呐喊》", ["呐喊"], "cmrc2018", 1, 1),
    ("1963年", ["1963年4月"], "cmrc2018", 0, 2 * 2 / (2 + 4)),  # units 1963 年 | 1963 年 4 月
    ("四月，1963年", ["1963年四月"], "cmrc2018", 0, 2 * 2 / (4 + 4)),  # the longest run counts, not the bag
    ("北京", ["上海", "北京市"], "cmrc2018", 0, 2 * 2 / 5),
    ("Port Royal号", ["port royal号"], "cmrc2018", 1, 1),
    ("“七点”", ["七点"], "cmrc2018", 1, 1),
    ('"七点"', ["七点"], "cmrc2018", 0, 2 * 2 / (4 + 2)),  # the straight quote is not among the script's marks
    ("", [], "squad", 1, 1),
    (" ", [], "cmrc2018", 1, 1),
    ("x", [], "squad", 0, 0),
    ("", ["x"], "squad", 0, 0),
]


@pytest.mark.parametrize(("predicted", "golds", "rule", "exact", "f1"), CASES)
def test_rules(predicted, golds, rule, exact, f1):
    assert judge(predicted, golds, rule) == pytest.approx((exact, f1))


def test_rule_names():
    assert rule_for("Who?") == "squad" and rule_for("Who?", ["鲁迅"]) == "cmrc2018"
    with pytest.raises(InputError, match="one of squad, cmrc2018"):
        normal_form("x", "drcd")


@given(
    st.text("ab 中国，.", max_size=8), st.lists(st.text("ab 中国，.", min_size=1, max_size=8), min_size=1, max_size=3)
)
def test_judging_is_a_maximum_within_bounds(predicted, golds):
    for rule in ("squad", "cmrc2018"):
        exact, f1 = judge(predicted, golds, rule)
        assert 0 <= exact <= 1 and 0 <= f1 <= 1
        assert (exact, f1) == tuple(map(max, zip(*(judge(predicted, [gold], rule) for gold in golds), strict=True)))


def test_scores_keep_kinds_apart():
    questions = [
        ("Who?", ("Ann",)),
        ("Where?", ("Rome", "in Rome")),
        ("Why?", ()),
        ("谁？", ("李四",)),
        ("Open?", None),
    ]
    facts = score_answers(["Ann", "Paris", "", "李", "x"], questions, training=TrainingAnswers.of([["ann"], ["Oslo"]]))
    assert facts["questions"] == 4 and facts["golds_unknown"] == 1 and facts["abstained"] == 1
    assert facts["exact_match"] == 0.5 and facts["f1"] == pytest.approx((1 + 0 + 1 + 2 / 3) / 4)
    assert facts["final"] == pytest.approx((facts["exact_match"] + facts["f1"]) / 2)
    assert facts["answerable"]["questions"] == 3 and facts["unanswerable"]["exact_match"] == 1
    assert facts["unseen"]["questions"] == 2 and facts["unseen"]["exact_match"] == 0  # Ann is an answer in training
    assert facts["rule"] == "SQuAD 2.0 (3 questions), CMRC 2018 (1 questions)"
    assert score_answers(["x"], [("Open?", None)])["questions"] == 0


def test_calibration_error_of_known_cases():
    assert calibration_error([1.0, 1.0, 0.0], [1, 1, 0])[0] == 0
    assert calibration_error([1.0, 1.0], [0, 0])[0] == 1
    error, bins = calibration_error([0.05, 0.05, 0.95, 0.95], [0, 1, 1, 1])
    assert error == pytest.approx(0.5 * 0.45 + 0.5 * 0.05)
    assert [(one.count, one.accuracy) for one in bins] == [(2, 0.5), (2, 1.0)]
    with pytest.raises(InputError, match="0 confidences"):
        calibration_error([], [])


@pytest.mark.parametrize("true_temperature", [0.5, 1.0, 2.5])
def test_the_temperature_is_found_again(true_temperature):
    """Outcomes drawn with probability σ(z / T): the fit gives T back, and calibrates the half that it did not see."""
    generator = numpy.random.default_rng(0)
    z = generator.normal(0, 3, 20000)

    def sigmoid(x):
        return 1 / (1 + numpy.exp(-x))

    correct = (generator.random(len(z)) < sigmoid(z / true_temperature)).tolist()
    assert fit_temperature(lambda heat: sigmoid(z / heat), correct) == pytest.approx(true_temperature, rel=0.06)
    fitted = cross_fit(lambda which, heat: sigmoid(z[list(which)] / heat), correct)
    assert fitted.temperature == pytest.approx(true_temperature, rel=0.06)
    assert fitted.error_after < 0.02
    if true_temperature != 1:
        assert fitted.error_before > 2 * fitted.error_after


def test_questions_of_one_passage_are_drawn_together():
    """Ten passages of ten like questions are ten observations, not a hundred: the interval is wider."""
    values, passages = [float(at // 10 % 2) for at in range(100)], [at // 10 for at in range(100)]
    together, apart = interval_of(values, passages), interval_of(values, list(range(100)))
    assert together[1] - together[0] > 2 * (apart[1] - apart[0])
    assert interval_of([0.25] * 9, ["p"] * 9) == (0.25, 0.25)


def test_baselines():
    assert TrainingAnswers.of([[], [], ["a"]]).usual == "" and TrainingAnswers.of([]).usual == ""
    assert overlap_span("票价多少？", ["渡船七点出发。票价是两元。"]) == "是两元"
    assert overlap_span("", [""]) == ""
    questions = [("票价多少？", ("两元",), ["票价两元。"]), ("谁？", (), ["没有。"]), ("几点？", ("七点",), ["七点。"])]
    facts = compare_baselines(["两元", "", "七点"], questions, TrainingAnswers.of([["七点"], ["七点", "7"], []]))
    assert facts["baselines"]["always abstain"]["exact_match"] == pytest.approx(1 / 3)
    assert facts["baselines"]["most frequent answer"]["answerable"]["exact_match"] == 0.5
    assert facts["baselines"]["best n-gram overlap span"]["answerable"]["exact_match"] == 0.5
    assert facts["gain"] == 0.5 and facts["gain_interval"][0] <= 0.5 <= facts["gain_interval"][1]
    assert "gain" not in compare_baselines([""], [("谁？", (), ["无。"])])


def test_overlap_never_leaves_the_passage():
    for passage in ("A b, c d. E f", "节约用水，人人有责。", "…", "x"):
        assert overlap_span("c 水?", [passage]) in passage
