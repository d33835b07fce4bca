"""The corpus that ships: every number the card states, counted."""

import copy
import itertools
import json
import re
from collections import Counter

import pytest

from jieyue.data import corpora
from jieyue.data.corpora import compose, heldout_path, patterns, values, write
from jieyue.data.curriculum import split_sentences
from jieyue.errors import InputError


@pytest.fixture(scope="module")
def train():
    return compose("train", 0, 60_000)


@pytest.fixture(scope="module")
def heldout():
    return json.loads(heldout_path().read_text(encoding="utf-8"))


def paragraphs(corpus):
    return [(entry, entry["paragraphs"][0]) for entry in corpus["data"]]


def questions(corpus, language=None):
    return [q for e, p in paragraphs(corpus) for q in p["qas"] if language in (None, e["language"])]


def texts(corpus):
    return [t for e, p in paragraphs(corpus) for t in (e["title"], p["context"], *(q["question"] for q in p["qas"]))]


def faults(corpus):
    """What is wrong with a corpus in SQuAD shape."""
    found = []
    identifiers = Counter(question["id"] for question in questions(corpus))
    found += [f"{name} is there {count} times" for name, count in identifiers.items() if count > 1]
    for entry, paragraph in paragraphs(corpus):
        context = paragraph["context"]
        if len(entry["paragraphs"]) != 1 or not entry["title"] or "{" in context + entry["title"]:
            found.append(f"{entry['title']!r}: not one paragraph with a title")
        if paragraph["difficulty"] != len(split_sentences(context)):
            found.append(f"{context!r}: difficulty is {paragraph['difficulty']}")
        for question in paragraph["qas"]:
            if question["is_impossible"] != (not question["answers"]) or "{" in question["question"]:
                found.append(f"{question['id']}: answers and is_impossible disagree")
            for answer in question["answers"]:
                start = answer["answer_start"]
                if not answer["text"] or context[start : start + len(answer["text"])] != answer["text"]:
                    found.append(f"{question['id']}: the answer is not in its place")
    return found


def test_format(train, heldout):
    assert faults(train) == [] and faults(heldout) == []
    for twin in (copy.deepcopy(heldout) for _ in range(1)):  # the broken twin: each fault is found
        twin["data"][0]["paragraphs"][0]["difficulty"] += 1
        answered = next(q for q in questions(twin) if q["answers"])
        answered["answers"][0]["answer_start"] += 1
        twin["data"][1]["paragraphs"][0]["qas"][0]["id"] = twin["data"][2]["paragraphs"][0]["qas"][0]["id"]
        assert len(faults(twin)) == 3


def test_sizes(train, heldout):
    assert len(questions(train)) == 60_000
    assert len(heldout["data"]) >= 300 and len(questions(heldout)) >= 1000
    for corpus in (train, heldout):
        languages = Counter(entry["language"] for entry, _ in paragraphs(corpus))
        assert set(languages) == {"en", "zh"} and min(languages.values()) > 0.48 * sum(languages.values())
        assert len({entry["topic"] for entry, _ in paragraphs(corpus)}) == 13
        assert {paragraph["difficulty"] for _, paragraph in paragraphs(corpus)} == set(range(1, 7))
        share = sum(question["is_impossible"] for question in questions(corpus)) / len(questions(corpus))
        assert 0.13 < share < 0.17
        contexts = [paragraph["context"] for _, paragraph in paragraphs(corpus)]
        assert len(set(contexts)) == len(contexts)


@pytest.mark.parametrize("language", patterns.LANGUAGES)
def test_patterns(language, train, heldout):
    written = [pattern for topic in patterns.read_topics(language) for pattern in topic.patterns]
    kept = {pattern.name for pattern in written if pattern.heldout}
    assert len(written) >= 120 and 0.2 <= len(kept) / len(written) <= 0.25
    assert all(set(pattern.questions) <= {"s", *pattern.kinds} and pattern.questions for pattern in written)
    assert all(
        topic.name and len(topic.titles) >= 5 and len(topic.fillers) >= 10 for topic in patterns.read_topics(language)
    )
    for corpus, used in ((train, {p.name for p in written} - kept), (heldout, {p.name for p in written})):
        counts = Counter(question["pattern"] for question in questions(corpus, language))
        assert set(counts) <= used and len(counts) > 0.9 * len(used)
        assert max(counts.values()) <= 0.02 * sum(counts.values())
    asked = Counter(question["pattern"] in kept for question in questions(heldout, language))
    assert 0.15 < asked[True] / asked.total() < 0.3


@pytest.mark.parametrize("language", patterns.LANGUAGES)
def test_no_sentence_is_written_twice(language):
    topics = patterns.read_topics(language)
    sentences = [pattern.pieces for topic in topics for pattern in topic.patterns]
    fillers = [filler for topic in topics for filler in topic.fillers]
    assert len(set(sentences)) == len(sentences) and len(set(fillers)) == len(fillers)
    assert not any(re.search(r"\d|\{", filler) for filler in fillers)
    assert all(len(split_sentences(filler)) == 1 for filler in fillers)


def divided(language):
    """Kinds of names whose combinations are divided, by both parts of a division."""
    kinds = values.read_names(language)
    return {name: kind.items for name, kind in kinds.items() if kind.items and kind.items[True] != kind.items[False]}


def test_heldout_names_are_new():
    kinds = {"en": {"surname", "town", "road", "venue", "event", "work", "dish", "species", "train", "course", "brand"},
             "zh": {"given_f", "given_m", "place", "road", "venue", "event", "work", "dish", "species", "train", "course"}}  # fmt: skip
    for language in patterns.LANGUAGES:
        found = divided(language)
        assert kinds[language] <= set(found)
        for name, items in found.items():
            assert not set(items[False]) & set(items[True]), name
            assert 0.15 < len(items[True]) / (len(items[True]) + len(items[False])) < 0.25, name


def test_heldout_names_never_stand_in_training_text(train):
    """English names as whole words; nothing of the held-out half may occur in 60,000 questions' text."""
    runs = set()
    for text in texts(train):
        words = re.findall(r"[\w'-]+", text)
        runs.update(words)
        runs.update(" ".join(pair) for pair in itertools.pairwise(words))
        runs.update(" ".join(triple) for triple in zip(words, words[1:], words[2:], strict=False))
    for name, items in divided("en").items():
        assert not [item for item in items[True] if item in runs], name
        assert any(item in runs for item in items[False]), name  # the search finds what is there


def test_answers(train, heldout):
    """Varied lengths, mostly new in the held-out part, and seldom the only thing of their kind."""
    known = {answer["text"] for question in questions(train) for answer in question["answers"]}
    new = Counter(a["text"] not in known for q in questions(heldout) for a in q["answers"])
    assert new[True] / new.total() > 0.4
    lengths = Counter(min(len(a["text"]), 8) for q in questions(heldout, "zh") for a in q["answers"])
    assert sum(count > 0.03 * lengths.total() for count in lengths.values()) >= 4
    words = Counter(len(a["text"].split()) for q in questions(heldout, "en") for a in q["answers"])
    assert all(words[count] > 0.04 * words.total() for count in (1, 2, 3))
    for question in questions(heldout):
        assert all(answer["text"].lower() not in question["question"].lower() for answer in question["answers"])


def test_deterministic_and_shipped(heldout):
    assert compose("train", 3, 300) == compose("train", 3, 300) != compose("train", 4, 300)
    assert heldout == compose("heldout", corpora.HELDOUT_SEED, corpora.HELDOUT_QUESTIONS)


def test_options():
    only = compose("train", 0, 50, languages=("zh",), unanswerable=0.0)
    assert {entry["language"] for entry in only["data"]} == {"zh"}
    assert not any(question["is_impossible"] for question in questions(only)) and len(questions(only)) == 50
    for wrong in (
        {"split": "test"},
        {"num_questions": 0},
        {"languages": ("fr",)},
        {"unanswerable": 1.5},
        {"languages": ()},
    ):
        with pytest.raises(InputError, match=next(iter(wrong))):
            compose(**{"num_questions": 5, **wrong})


def test_write(tmp_path, heldout):
    trained, held = write(tmp_path / "new", seed=5, num_questions=40)
    assert json.loads(trained.read_text(encoding="utf-8")) == compose("train", 5, 40)
    assert json.loads(held.read_text(encoding="utf-8")) == heldout
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["heldout.json", "train.json"]


def test_licence_and_card():
    folder = heldout_path().parent
    assert "CC0 1.0 Universal" in (folder / "LICENSE-CORPUS").read_text(encoding="utf-8")
    card = (folder / "CARD.md").read_text(encoding="utf-8")
    for stated in ("171", "13", "60,000", f"{corpora.HELDOUT_QUESTIONS:,}", "CC0"):
        assert stated in card


def test_vocabulary_covers_the_heldout_part(train, heldout):
    """A vocabulary learned from training text alone writes all held-out text, and answers in at most 7 tokens."""
    tokenizers = pytest.importorskip("jieyue.hf.tokenizers")
    tokenizer = tokenizers.make_tokenizer(tokenizers.learn_vocabulary(texts(train)))
    rows = tokenizer(texts(heldout), add_special_tokens=False)["input_ids"]
    assert not any(tokenizer.unk_token_id in row for row in rows)
    answers = [answer["text"] for question in questions(heldout) for answer in question["answers"]]
    lengths = [len(row) for row in tokenizer(answers, add_special_tokens=False)["input_ids"]]
    assert sum(length > 7 for length in lengths) <= 0.005 * len(lengths)
