"""Search over a table of probabilities: the article's two steps, finished hypotheses, the whole tree as oracle."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jieyue.decoding.search import beam, greedy, sample
from jieyue.errors import InputError

END = 0
A, B, C, D = 1, 2, 3, 4


class Histories:
    """A state that is the texts themselves."""

    def __init__(self, texts):
        self.texts = texts

    def reorder(self, index):
        self.texts = [self.texts[at] for at in index.tolist()]


def table_step(chances, vocabulary):
    """``chances(text) -> {token: probability}`` as a step; the prompt's tokens are the beginning of every text."""

    def step(tokens, state):
        if state is None:
            state = Histories([tuple(row) for row in tokens.tolist()])
        else:
            state.texts = [(*text, token) for text, token in zip(state.texts, tokens.tolist(), strict=True)]
        logits = torch.full((len(state.texts), vocabulary), -torch.inf, dtype=torch.float64)
        for row, text in zip(logits, state.texts, strict=True):
            for token, chance in chances(text).items():
                row[token] = math.log(chance)
        return logits, state

    return step


def article(text):
    """7259: p(a) = .6, p(c) = .4; p(b|a) = .55, p(d|a) = .45; p(b|c) = .1, p(d|c) = .9."""
    return {(): {A: 0.6, C: 0.4}, (A,): {B: 0.55, D: 0.45}, (C,): {B: 0.1, D: 0.9}}.get(text[1:], {A: 1.0})


PROMPT = torch.tensor([[9]])


def test_two_steps_of_the_article():
    step = table_step(article, 5)
    (narrow,) = beam(step, PROMPT, width=1, max_tokens=2)
    assert [one.tokens for one in narrow] == [(A, B)]
    assert math.exp(narrow[0].log_probability) == pytest.approx(0.33)
    (wide,) = beam(step, PROMPT, width=4, max_tokens=2)
    found = {one.tokens: round(math.exp(one.score), 12) for one in wide}
    assert found == {(C, D): 0.36, (A, B): 0.33, (A, D): 0.27, (C, B): 0.04}
    (two,) = beam(step, PROMPT, width=2, max_tokens=2)
    assert two[0].tokens == (C, D), "the wider beam is worse: p(d|c) was never trained"
    assert greedy(step, PROMPT, max_tokens=2)[0].tokens == (A, B)


def counterexample(text):
    """The end is second best at once (.45); what goes on has .55 · .315 at most."""
    said = text[1:]
    if not said:
        return {END: 0.45, A: 0.55}
    if len(said) == 1:
        return {A: 0.315, B: 0.31, C: 0.3, D: 0.075}
    return {END: 1.0}


def forgetful_beam(step, tokens, width, max_tokens):
    """The broken twin: finished hypotheses that are not the best at that moment are thrown away (bert4keras)."""
    logits, state = step(tokens, None)
    beams = [((), 0.0)]
    for _ in range(max_tokens):
        options = sorted(
            ((total + float(row[token]), (*text, token), at) for at, ((text, total), row) in
             enumerate(zip(beams, logits.log_softmax(-1), strict=True)) for token in range(row.numel())),
            key=lambda option: -option[0],
        )[:width]  # fmt: skip
        if options[0][1][-1] == END:
            return options[0][1][:-1], options[0][0]
        running = [option for option in options if option[1][-1] != END]
        beams = [(text, total) for total, text, _ in running]
        state.reorder(torch.tensor([at for _, _, at in running]))
        logits, state = step(torch.tensor([text[-1] for text, _ in beams]), state)
    return beams[0]


def test_finished_hypotheses_are_kept():
    step = table_step(counterexample, 5)
    (found,) = beam(step, PROMPT, width=2, stop=[END], max_tokens=5)
    assert found[0].tokens == () and found[0].finished
    assert math.exp(found[0].log_probability) == pytest.approx(0.45)
    text, total = forgetful_beam(step, PROMPT, 2, 5)
    assert text == (A, A) and math.exp(total) == pytest.approx(0.17325), "the alarm rings: .173 instead of .45"


def test_length_penalty_turns_the_order():
    step = table_step(counterexample, 5)
    (found,) = beam(step, PROMPT, width=2, stop=[END], max_tokens=5, length_penalty=1.0)
    assert found[0].tokens == (A, A)
    assert found[0].score == pytest.approx(math.log(0.55 * 0.315) / 3)


def random_table(seed, vocabulary):
    """Probabilities of every next token that depend on the whole text."""

    def chances(text):
        generator = torch.Generator().manual_seed(hash((seed, *text)) % 2**31)
        values = (2 * torch.randn(vocabulary, generator=generator, dtype=torch.float64)).softmax(-1)
        return dict(enumerate(values.tolist()))

    return chances


def every_text(chances, prompt, vocabulary, max_tokens, min_tokens):
    """All texts with their log probability and length (with the end)."""
    for count in range(1, max_tokens + 1):
        for text in itertools.product(range(vocabulary), repeat=count):
            if END in text[:-1] or (text[-1] != END and count < max_tokens):
                continue
            if text[-1] == END and count - 1 < min_tokens:
                continue
            total, said = 0.0, prompt
            for token in text:
                total += math.log(chances(said)[token])
                said = (*said, token)
            yield total, text


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    num_rows=st.integers(1, 3),
    max_tokens=st.integers(1, 4),
    min_tokens=st.integers(0, 1),
    penalty=st.sampled_from([0.0, 1.0, 0.7, -0.5]),
)
def test_a_beam_as_wide_as_the_tree_finds_the_best(seed, num_rows, max_tokens, min_tokens, penalty):
    chances, vocabulary = random_table(seed, 3), 3
    prompts = torch.arange(9, 9 + num_rows)[:, None]
    found = beam(
        table_step(chances, vocabulary), prompts, width=vocabulary**max_tokens, stop=[END], max_tokens=max_tokens,
        min_tokens=min_tokens, length_penalty=penalty,
    )  # fmt: skip
    for prompt, own in zip(prompts.tolist(), found, strict=True):
        texts = list(every_text(chances, tuple(prompt), vocabulary, max_tokens, min_tokens))
        texts = sorted(texts, key=lambda one: -one[0] / len(one[1]) ** penalty)
        assert own[0].score == pytest.approx(texts[0][0] / len(texts[0][1]) ** penalty, abs=1e-12)
        assert (*own[0].tokens, *([END] if own[0].finished else [])) == texts[0][1]
        if penalty == 0 and min_tokens == 0:  # all of them, in order, until the worst is not worth a step more
            assert [one.score for one in own] == pytest.approx([total for total, _ in texts[: len(own)]], abs=1e-12)
            assert len(own) == len(texts)


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), num_rows=st.integers(1, 4), width=st.integers(1, 4))
def test_rows_do_not_know_of_one_another(seed, num_rows, width):
    """A batch gives what its rows give alone, for all three; rows that are done leave without a trace."""
    step, stop = table_step(random_table(seed, 4), 4), [END]
    prompts = torch.arange(9, 9 + num_rows)[:, None]

    def drawn(rows, first):
        generators = [torch.Generator().manual_seed(first + at) for at in range(len(rows))]
        samplers = [lambda own, g=g: int(torch.multinomial(own.softmax(-1), 1, generator=g)) for g in generators]
        return sample(step, rows, samplers=samplers, stop=stop, max_tokens=6)

    together = drawn(prompts, 0), greedy(step, prompts, stop=stop), beam(step, prompts, width=width, stop=stop)
    for at in range(num_rows):
        own = prompts[at : at + 1]
        assert together[0][at] == drawn(own, at)[0]
        assert together[1][at] == greedy(step, own, stop=stop)[0]
        assert together[2][at] == beam(step, own, width=width, stop=stop)[0]
    for one, (other,) in zip(together[1], beam(step, prompts, width=1, stop=stop), strict=True):
        assert (one.tokens, one.finished) == (other.tokens, other.finished)
        assert one.score == pytest.approx(other.score, abs=1e-12)


def test_what_cannot_be_searched():
    step = table_step(article, 5)
    for call in (
        lambda: beam(step, PROMPT, width=0),
        lambda: greedy(step, PROMPT, max_tokens=0),
        lambda: greedy(step, PROMPT[0]),
        lambda: sample(step, PROMPT, samplers=[]),
    ):
        with pytest.raises(InputError, match="expected"):
            call()
