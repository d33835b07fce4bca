"""Scores of written text against what other packages gave, and against their definitions.

The expected numbers came from rouge-chinese 1.0.3 (exclusive=False), rouge-score 0.1.2, nltk 3.10.4 and sacrebleu 2.6.0.
"""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jieyue.errors import InputError, MissingExtra
from jieyue.metrics import generation
from jieyue.metrics.generation import (
    characters,
    corpus_bleu,
    distinct,
    entropy,
    nist,
    repetition,
    rouge_l,
    rouge_n,
    sentence_bleu,
    words,
)

# written, wanted, (ROUGE-1, -2, -L of rouge-chinese), nltk's sentence BLEU with method1
CHINESE = [
    ("基于语言模型的标题生成方法", "一种基于预训练语言模型的标题生成方法", (0.8387097, 0.7586207, 0.8387097), 0.599102971145),
    ("深度学习深度学习深度学习研究", "深度学习在图像识别中的应用研究", (0.4137931, 0.2962963, 0.4137931), 0.196846612334),
    ("水稻", "玉米产量与气候变化的关系", (0.0, 0.0, 0.0), 0.0),
    ("用bert做文本分类", "使用BERT模型进行文本分类", (0.75, 0.6363636, 0.75), 0.441095396474),
    ("大数据", "大数据", (1.0, 1.0, 1.0), 0.56234132519),
    ("铜合金的疲劳性能分析", "TC4钛合金的疲劳裂纹扩展性能的分析与研究", (0.5806452, 0.4137931, 0.5806452), 0.167611837942),
]  # fmt: skip
ENGLISH = [  # rouge-score
    ("The model's titles, in short, are the best.", "the titles of this model are not the best titles",
     (0.631578947368, 0.117647058824, 0.526315789474)),
    ("a cat sat on on on the mat", "the cat sat on the mat", (0.714285714286, 0.666666666667, 0.714285714286)),
    ("attention", "Attention is all you need", (0.333333333333, 0.0, 0.333333333333)),
]  # fmt: skip
TWO_GOLDS = [
    ("the cat the cat on the mat", ["the cat is on the mat", "there is a cat on the mat"]),
    ("the dog barked loud and long today", ["a dog barked", "the dog was barking loudly"]),
]


def three(predicted, gold):
    return rouge_n(predicted, gold, 1).f1, rouge_n(predicted, gold, 2).f1, rouge_l(predicted, gold).f1


@pytest.mark.parametrize(("predicted", "gold", "expected", "bleu"), CHINESE)
def test_chinese_characters(predicted, gold, expected, bleu):
    own, wanted = characters(predicted), characters(gold)
    assert three(own, wanted) == pytest.approx(expected, abs=2e-7)
    assert sentence_bleu(own, [wanted]) == pytest.approx(bleu, abs=1e-11)


@pytest.mark.parametrize(("predicted", "gold", "expected"), ENGLISH)
def test_english_words(predicted, gold, expected):
    assert three(words(predicted), words(gold)) == pytest.approx(expected, abs=1e-11)


def test_scores_of_a_set():
    own = [characters(one[0]) for one in CHINESE]
    golds = [[characters(one[1])] for one in CHINESE]
    assert nist(own, golds) == pytest.approx(1.938640681027, abs=1e-11)
    assert 100 * corpus_bleu(own, golds, 2) == pytest.approx(39.02147752, abs=1e-9)
    assert 100 * corpus_bleu(own, golds) == pytest.approx(31.0067459438, abs=1e-9)
    own = [text.split() for text, _ in TWO_GOLDS]
    golds = [[gold.split() for gold in two] for _, two in TWO_GOLDS]
    assert 100 * corpus_bleu(own, golds) == pytest.approx(29.0715368484, abs=1e-9)
    assert sentence_bleu(own[0], golds[0]) == pytest.approx(0.467137977728, abs=1e-11)


def test_an_average_of_sentences_is_no_corpus_score():
    own, golds = [characters(one[0]) for one in CHINESE], [[characters(one[1])] for one in CHINESE]
    mean = sum(sentence_bleu(a, b) for a, b in zip(own, golds, strict=True)) / len(own)
    assert abs(mean - corpus_bleu(own, golds)) > 0.01


def test_sacrebleu_gives_its_signature():
    pytest.importorskip("sacrebleu", reason="the extra `metrics` is not installed")
    score, signature = generation.sacrebleu([one[0] for one in CHINESE], [[one[1]] for one in CHINESE])
    assert score == pytest.approx(29.1032182709, abs=1e-9)
    assert "tok:zh|smooth:exp|version:" in signature


def test_a_missing_sacrebleu_says_what_to_install(monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(generation.importlib, "import_module", absent)
    with pytest.raises(MissingExtra, match=r"jieyue\[metrics\]"):
        generation.sacrebleu(["a"], [["a"]])


def test_variety():
    texts = [list("abab"), list("abc"), []]
    assert distinct(texts, 1) == 3 / 7
    assert distinct(texts, 2) == 3 / 5
    assert repetition([list("ababab"), list("abc"), list("a")], 2) == pytest.approx((3 / 5 + 0) / 2)
    assert entropy([list("aabb")], 1) == pytest.approx(0.6931471805599453)
    assert distinct([], 1) == entropy([], 1) == repetition([]) == 0


SHORT = st.text("abc", max_size=7)


@given(SHORT, SHORT)
def test_common_subsequence_against_all_subsequences(a, b):
    def subsequences(text):
        return {part for n in range(len(text) + 1) for part in itertools.combinations(text, n)}

    longest = max(map(len, subsequences(a) & subsequences(b)))
    assert rouge_l(a, b).recall == (longest / len(b) if b else 0)


@given(st.lists(st.tuples(SHORT, SHORT), min_size=1, max_size=4))
def test_bounds_and_identity(pairs):
    own, golds = [a for a, _ in pairs], [[b] for _, b in pairs]
    for a, b in pairs:
        for score in (*three(a, b), sentence_bleu(a, [b])):
            assert 0 <= score <= 1
        assert rouge_n(a, b, 1).precision == rouge_n(b, a, 1).recall
        if len(a) >= 4:
            assert three(a, a) == (1, 1, 1) and sentence_bleu(a, [a]) == pytest.approx(1)
    assert 0 <= corpus_bleu(own, golds) <= 1 + 1e-12


def test_bad_input():
    with pytest.raises(InputError, match="a gold for each text"):
        corpus_bleu([["a"]], [[]])
    with pytest.raises(InputError, match="n=0"):
        rouge_n("a", "b", 0)
