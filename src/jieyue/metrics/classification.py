"""Labels against labels: accuracy and macro-F1 with their bootstrap intervals, each label apart, and two baselines.

    F1_c = 2·TP_c / (2·TP_c + FP_c + FN_c),   macro-F1 = mean of F1_c over the labels that occur among the golds

An example drawn into a resample takes its gold and its prediction along. ``NaiveBayes`` is the baseline that a trained
model must beat: words and pairs of neighbouring characters, counted, add-one smoothing (McCallum and Nigam 1998).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy

from jieyue.errors import InputError
from jieyue.json_values import Facts
from jieyue.text import normalize

from .intervals import bootstrap

__all__ = ["NaiveBayes", "gain_over", "macro_f1", "score_labels"]

_WORD = re.compile(r"[a-z0-9]+|[^\sa-z0-9]")


def score_labels(predicted: Sequence[str], golds: Sequence[str]) -> Facts:
    """Facts: ``examples``, ``accuracy``, ``macro_f1`` (each with ``_interval``, 95 %), ``by_label``: number, precision, recall, F1.

    >>> facts = score_labels(["a", "b", "a"], ["a", "b", "b"])
    >>> round(facts["accuracy"], 4), round(facts["macro_f1"], 4), facts["by_label"]["b"]["recall"]
    (0.6667, 0.6667, 0.5)
    """
    if not golds or len(predicted) != len(golds):
        raise InputError(
            "score_labels", f"{len(predicted)} predictions for {len(golds)} golds", "one each, at least one"
        )
    names = sorted({*golds, *predicted})
    number = {name: at for at, name in enumerate(names)}
    gold = numpy.array([number[name] for name in golds])
    own = numpy.array([number[name] for name in predicted])
    facts: Facts = {"examples": len(golds), "accuracy": float((gold == own).mean())}
    facts["macro_f1"] = macro_f1(gold, own)
    if len(golds) > 1:
        for key, found in (
            ("accuracy", bootstrap((gold == own).astype(float).tolist())),
            ("macro_f1", bootstrap(gold.tolist(), own.tolist(), statistic=macro_f1)),
        ):
            facts[f"{key}_interval"] = (float(found.low), float(found.high))
    table = numpy.zeros((len(names), len(names)), dtype=int)
    numpy.add.at(table, (gold, own), 1)
    facts["by_label"] = {
        name: {
            "examples": int(table[at].sum()),
            "precision": float(table[at, at] / max(1, table[:, at].sum())),
            "recall": float(table[at, at] / max(1, table[at].sum())),
            "f1": float(2 * table[at, at] / max(1, table[at].sum() + table[:, at].sum())),
        }
        for at, name in enumerate(names)
        if table[at].sum()
    }
    mistakes = Counter((names[a], names[b]) for a, b in zip(gold, own, strict=True) if a != b)
    facts["mistakes"] = [[gold, taken, count] for (gold, taken), count in mistakes.most_common(10)]
    return facts


def macro_f1(gold: numpy.ndarray, predicted: numpy.ndarray) -> float:
    """The mean F1 over the labels that occur in ``gold``; both are arrays of small whole numbers."""
    gold, predicted = numpy.asarray(gold).astype(int), numpy.asarray(predicted).astype(int)
    size = int(max(gold.max(), predicted.max())) + 1
    right = numpy.bincount(gold[gold == predicted], minlength=size)
    asked, taken = numpy.bincount(gold, minlength=size), numpy.bincount(predicted, minlength=size)
    present = asked > 0
    return float((2 * right[present] / (asked + taken)[present]).mean())


def gain_over(
    predicted: Sequence[str], other: Sequence[str], golds: Sequence[str]
) -> tuple[float, tuple[float, float]]:
    """Accuracy minus another system's on the same examples, and its paired 95 % bootstrap interval."""
    right = [float(a == gold) - float(b == gold) for a, b, gold in zip(predicted, other, golds, strict=True)]
    if len(right) < 2:
        return sum(right), (-1.0, 1.0)
    found = bootstrap(right)
    return float(found.value), (float(found.low), float(found.high))


@dataclass(frozen=True)
class NaiveBayes:
    """A multinomial naive Bayes over words (single characters where words are not spaced) and pairs of neighbours.

    ``labels``: how many texts each label had; ``words``: how often each feature stood under it. Cost: a second for some ten
    thousand short texts.

    >>> NaiveBayes.learned(["rain and snow", "a match"], ["weather", "sport"]).predict(["more snow", "the match"])
    ['weather', 'sport']
    """

    labels: Mapping[str, int]
    words: Mapping[str, Mapping[str, int]]

    @classmethod
    def learned(cls, texts: Sequence[str], labels: Sequence[str]) -> NaiveBayes:
        """Counted from these texts."""
        counts: dict[str, Counter[str]] = {name: Counter() for name in sorted(set(labels))}
        for text, label in zip(texts, labels, strict=True):
            counts[label].update(_features(text))
        return cls(Counter(labels), counts)

    @classmethod
    def from_dict(cls, values: Facts) -> NaiveBayes:
        """What ``to_dict`` gave."""
        return cls(values["labels"], values["words"])

    def to_dict(self) -> Facts:
        """JSON values."""
        return {"labels": dict(self.labels), "words": {name: dict(own) for name, own in self.words.items()}}

    @property
    def most_frequent(self) -> str:
        """The label that occurs most often; of equals the first in the alphabet."""
        return min(self.labels, key=lambda name: (-self.labels[name], name))

    def predict(self, texts: Sequence[str]) -> list[str]:
        """The likeliest label of each text."""
        names = sorted(self.labels)
        number = {one: at for at, one in enumerate(sorted({one for own in self.words.values() for one in own}))}
        table = numpy.ones((len(names), len(number) or 1))
        for at, name in enumerate(names):
            for feature, count in self.words[name].items():
                table[at, number[feature]] += count
        weights = numpy.log(table / table.sum(axis=1, keepdims=True))
        prior = numpy.log([self.labels[name] / sum(self.labels.values()) for name in names])
        found = []
        for text in texts:
            at_features = [number[one] for one in _features(text) if one in number]
            found.append(names[int(numpy.argmax(prior + weights[:, at_features].sum(axis=1)))])
        return found


def _features(text: str) -> list[str]:
    words = _WORD.findall(normalize(text).casefold())
    return [*words, *(f"{a} {b}" for a, b in pairwise(words))]
