"""How near a written text is to a wanted one (ROUGE, BLEU, NIST), and how varied a set of texts is (Dist, entropy, repetition).

Everything works on units: ``characters(text)`` (the article's way for Chinese) or ``words(text)`` (single CJK characters, words of
other scripts). Counts are clipped: an n-gram is found as often as both texts have it. rouge 1.0.0 and rouge-chinese, which the
article used, look at sets instead unless told otherwise (``exclusive=False`` there is what stands here).

    ROUGE-n  F1 of n-grams              Lin 2004; ROUGE-L: of the longest common subsequence
    BLEU     brevity · (Π p_n)^(1/N)    sentence: floor 0.1 (nltk's method1), as in the article; corpus: sacrebleu's
    NIST     Σ information per n-gram   Doddington 2002
    Dist-n   different n-grams / all    Li et al. 2016; entropy of n-grams in nats: Zhang et al. 2018
"""

from __future__ import annotations

import importlib
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jieyue.errors import InputError, MissingExtra
from jieyue.text import is_cjk, units

__all__ = [
    "Overlap",
    "characters",
    "corpus_bleu",
    "distinct",
    "entropy",
    "nist",
    "repetition",
    "rouge_l",
    "rouge_n",
    "sacrebleu",
    "sentence_bleu",
    "words",
]

Units = Sequence[str]
_FLOOR = 0.1


def characters(text: str) -> list[str]:
    """Every character but spaces, lower-cased; punctuation counts.

    >>> characters("用 Bert 写。")
    ['用', 'b', 'e', 'r', 't', '写', '。']
    """
    return [char for char in text.lower() if not char.isspace()]


def words(text: str) -> list[str]:
    """Words and numbers, lower-cased, each CJK character a word; no punctuation. On English: rouge-score's words.

    >>> words("用 Bert 写, OK?")
    ['用', 'bert', '写', 'ok']
    """
    return [unit for unit in units(text.lower()) if unit[0].isalnum()]


@dataclass(frozen=True, slots=True)
class Overlap:
    """Precision, recall and their harmonic mean; 0 where there is nothing to divide by."""

    precision: float
    recall: float

    @property
    def f1(self) -> float:
        both = self.precision + self.recall
        return 2 * self.precision * self.recall / both if both else 0.0


def rouge_n(predicted: Units, gold: Units, n: int) -> Overlap:
    """Overlap of n-grams. A text shorter than n has none, and scores 0.

    >>> round(rouge_n(characters("语言模型"), characters("大语言模型"), 2).f1, 4)
    0.8571
    """
    own, wanted = _ngrams(predicted, n), _ngrams(gold, n)
    return _overlap((own & wanted).total(), own.total(), wanted.total())


def rouge_l(predicted: Units, gold: Units) -> Overlap:
    """Overlap by the longest common subsequence of the two texts as wholes (no splitting into sentences).

    >>> rouge_l(characters("模型的语言"), characters("语言模型")).recall
    0.5
    """
    return _overlap(_longest_common_subsequence(predicted, gold), len(predicted), len(gold))


def sentence_bleu(predicted: Units, golds: Sequence[Units], order: int = 4) -> float:
    """BLEU of one text, from 0 to 1: a precision of 0 above order 1 becomes 0.1/count (nltk's ``method1``, as in the article).

    Averaged over texts it is the article's BLEU (an empty text scores 0).

    >>> round(sentence_bleu(characters("语言模型"), [characters("大语言模型")]), 4)
    0.7788
    """
    found, counts, own, wanted = _matches([predicted], [golds], order)
    if not found[0]:
        return 0.0
    precisions = [max(hit, _FLOOR) / max(count, 1) for hit, count in zip(found, counts, strict=True)]
    return _brevity(own, wanted) * math.exp(sum(map(math.log, precisions)) / order)


def corpus_bleu(predicted: Sequence[Units], golds: Sequence[Sequence[Units]], order: int = 4) -> float:
    """BLEU of a whole set, from 0 to 1, counts summed before they are divided; sacrebleu's default smoothing (``exp``).

    The k-th order without a hit counts as 1/2^k hits. 0 where an order has no n-gram at all.

    >>> round(corpus_bleu([characters("语言模型")], [[characters("大语言模型")]]), 4)
    0.7788
    """
    _check(predicted, golds)
    found, counts, own, wanted = _matches(predicted, golds, order)
    if not any(found) or not all(counts):
        return 0.0
    total, missing = 0.0, 1.0
    for hit, count in zip(found, counts, strict=True):
        if not hit:
            missing *= 2
        total += math.log(hit / count if hit else 1 / (missing * count))
    return _brevity(own, wanted) * math.exp(total / order)


def sacrebleu(predicted: Sequence[str], golds: Sequence[Sequence[str]]) -> tuple[float, str]:
    """sacrebleu's own BLEU (0 to 100) with the signature to quote; tokenizer ``zh`` where golds hold CJK, else ``13a``.

    ``golds[i]``: the accepted texts of ``predicted[i]``, equally many each. ``MissingExtra`` without the package.
    """
    try:
        package = importlib.import_module("sacrebleu")
    except ModuleNotFoundError:
        raise MissingExtra("sacrebleu", "metrics") from None
    if len({len(own) for own in golds}) > 1:
        raise InputError("sacrebleu: found texts with different numbers of golds, expected equally many")
    chinese = any(is_cjk(char) for own in golds for gold in own for char in gold)
    metric = package.BLEU(tokenize="zh" if chinese else "13a")
    result = metric.corpus_score(list(predicted), [list(column) for column in zip(*golds, strict=True)])
    return float(result.score), str(metric.get_signature())


def nist(predicted: Sequence[Units], golds: Sequence[Sequence[Units]], order: int = 5) -> float:
    """NIST of a set: the information, in bits, of the n-grams that are found, per n-gram written, summed over the orders.

    An n-gram's information is log2(count of its beginning / its count) among all golds. The penalty for shortness halves
    the score at two thirds of the (mean) gold length.
    """
    _check(predicted, golds)
    seen = Counter[tuple[str, ...]]()
    num_words = 0
    for text in (gold for own in golds for gold in own):
        num_words += len(text)
        for n in range(1, order + 1):
            seen.update(_ngrams(text, n))
    score = 0.0
    for n in range(1, order + 1):
        bits, count = 0.0, 0
        for text, own in zip(predicted, golds, strict=True):
            written = _ngrams(text, n)
            count += written.total()
            for ngram, hits in (written & _most(own, n)).items():
                bits += hits * math.log2((seen[ngram[:-1]] if n > 1 else num_words) / seen[ngram])
        score += bits / count if count else 0.0
    length = sum(map(len, predicted))
    wanted = sum(sum(map(len, own)) / len(own) for own in golds)
    ratio = min(1.0, length / wanted) if wanted else 1.0
    if not ratio:
        return 0.0
    return score * math.exp(math.log(0.5) / math.log(1.5) ** 2 * math.log(ratio) ** 2)


def distinct(texts: Iterable[Units], n: int) -> float:
    """Dist-n: different n-grams of all texts together, divided by the number of n-grams; 0 without any.

    >>> distinct([["a", "b"], ["a", "c"]], 1)
    0.75
    """
    found = sum((_ngrams(text, n) for text in texts), Counter[tuple[str, ...]]())
    return len(found) / found.total() if found else 0.0


def entropy(texts: Iterable[Units], n: int) -> float:
    """Entropy of the n-grams of all texts together, in nats; 0 without any.

    >>> round(entropy([["a", "b"], ["c", "d"]], 1), 4)
    1.3863
    """
    found = sum((_ngrams(text, n) for text in texts), Counter[tuple[str, ...]]())
    total = found.total()
    return sum(-count / total * math.log(count / total) for count in found.values())


def repetition(texts: Iterable[Units], n: int = 4) -> float:
    """Share of a text's n-grams that it said before (seq-rep-n, Welleck et al. 2020), mean over the texts that have any.

    >>> repetition([["a", "b", "a", "b", "a"]], 2)
    0.5
    """
    shares = [1 - len(found) / found.total() for text in texts if (found := _ngrams(text, n))]
    return sum(shares) / len(shares) if shares else 0.0


def _ngrams(text: Units, n: int) -> Counter[tuple[str, ...]]:
    if n < 1:
        raise InputError(f"n={n}: expected at least 1, the units of an n-gram")
    return Counter(tuple(text[at : at + n]) for at in range(len(text) - n + 1))


def _most(golds: Sequence[Units], n: int) -> Counter[tuple[str, ...]]:
    """How often each n-gram may count: as often as the gold that has it most."""
    found = Counter[tuple[str, ...]]()
    for gold in golds:
        found |= _ngrams(gold, n)
    return found


def _matches(
    predicted: Sequence[Units], golds: Sequence[Sequence[Units]], order: int
) -> tuple[list[int], list[int], int, int]:
    """Hits and n-grams of each order, units written, units wanted (the gold nearest in length; of two, the shorter)."""
    found, counts = [0] * order, [0] * order
    wanted = 0
    for text, own in zip(predicted, golds, strict=True):
        for n in range(1, order + 1):
            written = _ngrams(text, n)
            found[n - 1] += (written & _most(own, n)).total()
            counts[n - 1] += written.total()
        wanted += min((abs(len(gold) - len(text)), len(gold)) for gold in own)[1]
    return found, counts, sum(map(len, predicted)), wanted


def _brevity(own: int, wanted: int) -> float:
    if own >= wanted:
        return 1.0
    return math.exp(1 - wanted / own) if own else 0.0


def _overlap(shared: int, own: int, wanted: int) -> Overlap:
    return Overlap(shared / own if own else 0.0, shared / wanted if wanted else 0.0)


def _longest_common_subsequence(a: Units, b: Units) -> int:
    """Bit-parallel (Hyyrö 2004): one integer of len(a) bits, updated once for each unit of b."""
    places: dict[str, int] = {}
    for at, unit in enumerate(a):
        places[unit] = places.get(unit, 0) | 1 << at
    everything = (1 << len(a)) - 1
    rows = everything
    for unit in b:
        hits = rows & places.get(unit, 0)
        rows = (rows + hits | rows - hits) & everything
    return len(a) - rows.bit_count()


def _check(predicted: Sequence[Units], golds: Sequence[Sequence[Units]]) -> None:
    if len(predicted) != len(golds) or not all(len(own) for own in golds):
        raise InputError(f"found {len(predicted)} texts and {len(golds)} lists of golds, expected a gold for each text")
