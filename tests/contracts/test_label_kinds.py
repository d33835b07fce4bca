"""Class weights, several labels, numbers: read as one kind or refused, summed exactly whatever the cut, told and judged."""

import json

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jieyue.data.labelled import Labelled, read_labelled
from jieyue.errors import InputError
from jieyue.metrics.multilabel import best_threshold, score_sets
from jieyue.metrics.regression import pearson, spearman
from jieyue.run import RunConfig, TrainingConfig
from jieyue.run.jobs import doctor, evaluate, train
from jieyue.run.predict import predict
from jieyue.tasks.classify.kinds import Choices, SetLoss, WeightedLoss, label_weights, number_loss
from jieyue.tasks.classify.settings import ClassifySettings, per_label
from jieyue.tasks.classify.task import ClassifyTask
from jieyue.tasks.classify.thresholds import fit_thresholds


def written(folder, labels, name="data.jsonl"):
    path = folder / name
    rows = [{"text": f"text {at} {label}", "label": label} for at, label in enumerate(labels)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_kind_is_told_from_all_labels_and_never_mixed(tmp_path):
    def read(labels, **how):
        return read_labelled(written(tmp_path, labels), problem=how.pop("problem", "auto"), **how)[0]

    assert [one.labels for one in read([["a", "b"], ["a"], [], None])] == [("a", "b"), ("a",), (), None]
    assert [one.is_known for one in read([["a", "b"], [], None])] == [True, True, False]
    assert [one.value for one in read([1, 2.5, None])] == [1.0, 2.5, None]
    assert [one.label for one in read([["a"], "b", 3, []])] == ["a", "b", "3", None]
    assert [one.labels for one in read(["a|b", "b"], separator="|")] == [("a", "b"), ("b",)]
    for labels in ([["a", "b"], "a"], [2.5, "high"]):
        with pytest.raises(InputError, match=r"labels.*line"):
            read(labels)
    with pytest.raises(InputError, match=r"line 2.*a number"):
        read([1, "high"], problem="regression")
    with pytest.raises(InputError, match="one label"):
        read([["a", "b"]], problem="single-label")
    with pytest.raises(InputError, match="'many'"):
        read(["a"], problem="many")


class Linear(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layer = torch.nn.Linear(4, width, dtype=torch.float64)

    def forward(self, x):
        return type("Output", (), {"logits": self.layer(x)})()


LABELS = {
    "weighted": (WeightedLoss((0.5, 2.0, 3.5)), torch.tensor([[0], [1], [2], [2], [0], [1], [1]])),
    "sets": (SetLoss((1.0, 4.0, 0.25)), torch.tensor([[0, 1, 1]] * 3 + [[1, 0, 0]] * 4)),
    "numbers": (number_loss, torch.tensor([[0.1], [2.0], [-3.0], [4.0], [1.0], [0.0], [2.5]], dtype=torch.float64)),
}


@pytest.mark.parametrize("name", LABELS)
@pytest.mark.parametrize("cut", [1, 2, 5])
def test_parts_add_up_to_the_whole(name, cut):
    torch.manual_seed(1)
    loss, labels = LABELS[name]
    model, x = Linear(1 if name == "numbers" else 3), torch.randn(7, 4, dtype=torch.float64)

    def grad(cuts, mean_of_means=False):
        tallies = [
            loss(model, {"x": own, "labels": gold}) for own, gold in zip(x.split(cuts), labels.split(cuts), strict=True)
        ]
        if mean_of_means:
            value = sum(one.mean() for one in tallies) / len(tallies)
        else:
            value = sum(tallies).mean()
        return value, torch.autograd.grad(value, model.layer.weight)[0]

    whole, parts = grad(7), grad(cut)
    assert torch.allclose(whole[0], parts[0], atol=1e-14) and torch.allclose(whole[1], parts[1], atol=1e-13)
    if name == "weighted":  # the broken twin
        assert not torch.allclose(whole[1], grad(cut, mean_of_means=True)[1], atol=1e-6)
    logits = model(x).logits
    expected = {
        "weighted": lambda: torch.nn.functional.cross_entropy(
            logits, labels[:, 0], torch.tensor(LABELS["weighted"][0].weights).double()
        ),
        "sets": lambda: torch.nn.functional.binary_cross_entropy_with_logits(
            logits, labels.double(), pos_weight=torch.tensor(LABELS["sets"][0].weights).double()
        ),
        "numbers": lambda: torch.nn.functional.mse_loss(logits, labels),
    }[name]()
    assert torch.allclose(whole[0], expected, atol=1e-14)


def test_weights_of_labels():
    examples = [Labelled("t", "a")] * 6 + [Labelled("t", "b")] * 2
    settings = ClassifySettings(labels=("a", "b"), problem="single-label", class_weights="balanced")
    assert label_weights(settings, examples) == (8 / 12, 8 / 4)
    assert per_label("w", "a=2", ["a", "b"], 1.0) == [2.0, 1.0]
    assert per_label("w", '{"a,b": 3}', ["a,b"], 1.0) == [3.0]
    for wrong in ("c=1", "a=0", "a=x", "a=1,a=2", "a=nan", "x"):
        with pytest.raises(InputError, match="class_weights"):
            per_label("class_weights", wrong, ["a", "b"], 1.0)
    with pytest.raises(InputError, match="regression"):
        ClassifySettings(problem="regression", class_weights="balanced")
    with pytest.raises(InputError, match="multi-label"):
        ClassifySettings(problem="single-label", thresholds="0.3")


@given(st.lists(st.tuples(st.sets(st.sampled_from("abc")), st.sets(st.sampled_from("abcd"))), min_size=1, max_size=8))
def test_scores_of_sets_are_their_definition(pairs):
    facts = score_sets([own for own, _ in pairs], [gold for _, gold in pairs])
    flat = [(name in own, name in gold) for own, gold in pairs for name in "abcd"]
    true = sum(a and b for a, b in flat)
    wrong = sum(a != b for a, b in flat)
    assert facts["micro_f1"] == pytest.approx(2 * true / (2 * true + wrong) if true + wrong else 1.0)
    assert facts["exact_match"] == sum(own == gold for own, gold in pairs) / len(pairs)


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=2, max_size=12))
def test_correlations_are_their_definition(pairs):
    one, other = numpy.array(pairs, dtype=float).T
    if len(set(one)) > 1 and len(set(other)) > 1:
        assert pearson(one, other) == pytest.approx(numpy.corrcoef(one, other)[0, 1], abs=1e-12)
        ranks = [[(sum(b < a for b in own) + sum(b <= a for b in own) + 1) / 2 for a in own] for own in (one, other)]
        assert spearman(one, other) == pytest.approx(numpy.corrcoef(*ranks)[0, 1], abs=1e-12)
    else:
        assert pearson(one, other) == 0.0


def test_several_labels_are_told_above_their_thresholds():
    found = Choices.of([0.9, 0.4, 0.2], ["a", "b", "c"], [0.5, 0.3, 0.5])
    assert found.labels == ("a", "b") and found.confidence == pytest.approx(0.9 * 0.4 * 0.8)


@given(
    st.lists(st.tuples(st.sampled_from([0.05, 0.2, 0.2, 0.45, 0.6, 0.8, 0.95]), st.booleans()), min_size=1, max_size=9)
)
def test_the_best_threshold_is_that_of_all(pairs):
    shares, right = numpy.array([one for one, _ in pairs]), numpy.array([two for _, two in pairs])

    def f1(t):
        told = shares >= t
        return 2 * (told & right).sum() / max(1, told.sum() + right.sum())

    found = best_threshold(shares, right)
    best = max(f1(t) for t in numpy.arange(0.01, 1, 0.01))
    assert 0 < found < 1 and f1(found) == pytest.approx(best)
    assert found == 0.5 or not right.any() or f1(0.5) < best  # moved only where that is better


def test_thresholds_are_fitted_on_what_is_set_aside():
    """A common one, and one of its own for a label that is frequent enough; given ones stay."""
    labels, half = ("a", "b", "c"), [0.5] * 3
    settings = ClassifySettings(problem="multi-label", labels=labels)
    golds = [{"a"} if at < 20 else {"b"} if at < 25 else set() for at in range(60)]
    shares = [[0.4 if "a" in gold else 0.1, 0.3 if "b" in gold else 0.05, 0.02] for gold in golds]
    fitted, facts = fit_thresholds(settings, [Choices.of(own, labels, half) for own in shares], golds)
    own = fitted.threshold_of_each()
    assert own == [0.25, pytest.approx(0.2), pytest.approx(0.2)] and facts["labels_of_their_own"] == 1
    assert (facts["micro_f1_before"], facts["micro_f1"]) == (0.0, 1.0)
    assert [Choices.of(one, labels, own).labels for one in shares[19:26:5]] == [("a",), ("b",)]
    given_ones = ClassifySettings(problem="multi-label", labels=labels, thresholds="a=0.3")
    assert ClassifyTask().fitted(given_ones, None, None, ()) == (given_ones, {})


KINDS = {
    "multi-label": ([["sea", "sun"], ["sea"], ["sun"], []], {"class_weights": "balanced"}),
    "regression": ([0.5, 1.5, 2.0, 4.25], {}),
    "single-label": (["sea", "sea", "sea", "sun"], {"class_weights": "sun=3"}),
}


@pytest.mark.parametrize(
    "kind", ["multi-label", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("regression", "single-label"))]
)
def test_every_kind_trains_predicts_and_is_judged(kind, tmp_path):
    labels, own = KINDS[kind]
    data = written(tmp_path, labels * 15)
    settings = ClassifySettings(max_tokens=16, **own)
    config = RunConfig(model="bert-tiny", data=[data], settings=settings)
    train("classify", config, tmp_path / "model", training=TrainingConfig(steps=3, effective_batch=8))
    assert (tmp_path / "model" / "report.json").is_file()
    record = json.loads((tmp_path / "model" / "jieyue.json").read_text())["settings"]
    assert record["problem"] == kind and len(record["weights"]) == (2 if own else 0)
    if kind == "multi-label":  # fitted on the part set aside, and kept
        assert set(json.loads(record["thresholds"])) == {"sea", "sun"}
    (row,) = predict(tmp_path / "model", ["text 1"])
    kinds = {"multi-label": (list, tuple), "regression": float, "single-label": str}
    assert isinstance(row["answer"], kinds[kind]) and (row["confidence"] is None) == (kind == "regression")
    json.dumps(row)
    evaluate(tmp_path / "model", [data])
    doctor("classify", config)
