"""Cropping keeps the answer and little else; stages change at exact rows; every example is drawn once a round."""

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jieyue.data.curriculum import Curriculum, crop, split_sentences
from jieyue.errors import InputError

sentence = st.sampled_from(
    ["It opens at 9.30.", "他在家。", "Why?", "票价45元！", '"No," she said.', "no end", "a.b", "\n"]
)
passage = st.lists(sentence, min_size=1, max_size=8).map(" ".join)


@given(st.text(alphabet="a .。!?\n9”)", max_size=60))
def test_sentences_cover_the_text(text):
    places = split_sentences(text)
    assert "".join(text[start:stop] for start, stop in places) == text
    assert all(start < stop for start, stop in places)


@given(passage, st.integers(1, 9), st.integers(0, 10**6), st.data())
def test_crop_keeps_the_answer(text, num_sentences, seed, data):
    start = data.draw(st.integers(0, len(text.rstrip()) - 1 if text.strip() else 0))
    stop = data.draw(st.integers(start, len(text.rstrip())))
    cut, spans = crop(text, [(start, stop)], num_sentences, Random(seed))
    assert text[start:stop] == cut[slice(*spans[0])]
    assert cut in text
    sentences = split_sentences(text)
    crossed = sum(a < max(stop, start + 1) and b > start for a, b in sentences)
    assert len(split_sentences(cut)) <= max(num_sentences, crossed)
    if num_sentences >= len(sentences):
        assert (cut, spans) == (text, ((start, stop),))


@given(passage, st.integers(1, 4), st.integers(0, 10**6))
def test_crop_without_an_answer(text, num_sentences, seed):
    cut, spans = crop(text, [], num_sentences, Random(seed))
    assert spans == () and cut in text and len(split_sentences(cut)) <= num_sentences


def test_crop_draws_every_neighbour():
    text = "One. Two. Three. Four."
    drawn = {crop(text, [(5, 8)], 2, Random(seed))[0] for seed in range(60)}
    assert drawn == {"One. Two.", "Two. Three."}
    assert {crop(text, [], 1, Random(seed))[0] for seed in range(60)} == {"One.", "Two.", "Three.", "Four."}


def test_other_places_are_moved_or_dropped():
    text = "Anna. Bob. Anna."
    assert crop(text, [(0, 4), (11, 15)], 1, Random(0)) == ("Anna.", ((0, 4),))
    assert crop(text, [(11, 15), (0, 4)], 1, Random(0)) == ("Anna.", ((0, 4),))


@given(st.integers(1, 12), st.integers(0, 60), st.integers(0, 99))
def test_draws(num_examples, num_rows, seed):
    curriculum = Curriculum.parse("1:0.25,3:0.5")
    rows = list(curriculum.draws(num_examples, num_rows, seed))
    assert rows == list(curriculum.draws(num_examples, num_rows, seed)) and len(rows) == num_rows
    counts = Counter(example for example, _ in rows)
    assert max(counts.values(), default=0) - min((counts[i] for i in range(num_examples)), default=0) <= 1
    for row, (_, count) in enumerate(rows):
        assert count == (1 if 4 * row < num_rows else 3 if 2 * row < num_rows else None)


@pytest.mark.parametrize("text", ["", "none", "1:0.22,2:0.42", "2:1"])
def test_parse_and_print(text):
    curriculum = Curriculum.parse(text)
    assert Curriculum.parse(str(curriculum)) == curriculum and str(curriculum) == (text or "none")


@pytest.mark.parametrize("text", ["1", "a:0.2", "1:0.5,2:0.4", "2:0.2,1:0.4", "0:0.5", "1:1.5", "1:0,2:0.5", "1:0.5,"])
def test_wrong_curricula_say_what_is_expected(text):
    with pytest.raises(InputError, match=r"1:0\.22,2:0\.42"):
        Curriculum.parse(text)
