"""Choosing tokens: the same distribution as transformers' processors in turn, the same talk from the same seed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation import logits_process as theirs

from jieyue.decoding.sampling import Sampler, Sampling
from jieyue.errors import InputError

V = 24


def oracle(logits, seen, num_prompt, one):
    """transformers' processors and warpers, one after another."""
    ids = torch.tensor([seen])
    steps = []
    if one.repetition_penalty != 1:
        steps.append(theirs.RepetitionPenaltyLogitsProcessor(one.repetition_penalty))
    if one.no_repeat_ngram:
        steps.append(theirs.NoRepeatNGramLogitsProcessor(one.no_repeat_ngram))
    if one.min_tokens:
        steps.append(theirs.MinNewTokensLengthLogitsProcessor(num_prompt, one.min_tokens, 0, device="cpu"))
    if one.temperature != 1:
        steps.append(theirs.TemperatureLogitsWarper(one.temperature))
    if one.top_k:
        steps.append(theirs.TopKLogitsWarper(one.top_k))
    if one.top_p < 1:
        steps.append(theirs.TopPLogitsWarper(one.top_p))
    if one.min_p > 0:
        steps.append(theirs.MinPLogitsWarper(one.min_p))
    scores = logits[None]
    for step in steps:
        scores = step(ids, scores)
    return scores[0].double().softmax(-1)


choices = st.builds(
    Sampling,
    temperature=st.sampled_from([0.3, 1.0, 1.7]),
    top_k=st.sampled_from([0, 1, 5]),
    top_p=st.sampled_from([1.0, 0.9, 0.4]),
    min_p=st.sampled_from([0.0, 0.1, 0.5]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.8]),
    no_repeat_ngram=st.sampled_from([0, 1, 2, 3]),
    min_tokens=st.sampled_from([0, 3]),
)


@settings(max_examples=200)
@given(one=choices, seed=st.integers(0, 10**6), seen=st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_the_distribution_is_transformers(one, seed, seen):
    generator = torch.Generator().manual_seed(seed)
    sampler, said = Sampler(one, seen, ends=[0]), list(seen)
    for _ in range(5):
        logits = 3 * torch.randn(V, generator=generator)
        tokens, chances = sampler.distribution(logits)
        found = torch.zeros(V, dtype=torch.float64).index_put((tokens,), chances)
        torch.testing.assert_close(found, oracle(logits, said, len(seen), one), rtol=1e-5, atol=1e-6)
        said.append(sampler(logits))
        assert found[said[-1]] > 0


def test_a_broken_order_is_noticed():
    """The twin: top-p before the temperature is another distribution."""
    logits = torch.tensor([2.0, 1.5, 1.0, 0.0])
    whole = Sampler(Sampling(temperature=3.0, top_k=0, top_p=0.7)).distribution(logits)[1]
    kept = Sampler(Sampling(top_k=0, top_p=0.7)).distribution(logits)[0]
    assert len(whole) != len(kept)


def test_draws_follow_the_chances_and_the_seed():
    logits = torch.tensor([1.0, 0.0, 2.0, -1.0])
    sampler = Sampler(Sampling(top_k=3, seed=5))
    drawn = torch.bincount(torch.tensor([sampler(logits) for _ in range(6000)]), minlength=4) / 6000
    expected = torch.tensor([1.0, 0.0, 2.0, -torch.inf]).softmax(-1)
    assert (drawn - expected).abs().max() < 4 * (0.25 / 6000) ** 0.5
    again = [Sampler(Sampling(seed=7)), Sampler(Sampling(seed=7)), Sampler(Sampling(seed=8))]
    said = [[one(torch.arange(9.0) / 9) for _ in range(40)] for one in again]
    assert said[0] == said[1] != said[2]
    assert Sampler(Sampling()).seed != Sampler(Sampling()).seed


def test_when_nothing_may_be_said_the_reply_ends():
    sampler = Sampler(Sampling(no_repeat_ngram=1, temperature=0), range(4), ends=[2])
    assert sampler(torch.zeros(4)) == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"top_p": 2},
        {"top_k": -1},
        {"min_p": 2},
        {"repetition_penalty": 0},
        {"no_repeat_ngram": -1},
        {"min_tokens": -1},
        {"seed": 2**63},
    ],
)
def test_what_is_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Sampling(**wrong)


@settings(max_examples=40)
@given(data=st.data(), frequency=st.sampled_from([0.0, 0.7, -1.5]), presence=st.sampled_from([0.0, 1.1, -2.0]))
def test_frequency_and_presence_penalties_are_openais(data, frequency, presence):
    """logit - count * frequency - (count > 0) * presence, counted over the reply alone."""
    said = data.draw(st.lists(st.integers(0, 5), max_size=8))
    logits = torch.tensor(data.draw(st.lists(st.floats(-3, 3, width=32), min_size=6, max_size=6)))
    sampler = Sampler(
        Sampling(top_k=0, frequency_penalty=frequency, presence_penalty=presence, seed=1), seen=[0, 1, 1, 5]
    )
    for token in said:
        sampler(torch.full((6,), -50.0).index_fill(0, torch.tensor([token]), 50.0))
    expected = torch.stack(
        [one - said.count(token) * frequency - (token in said) * presence for token, one in enumerate(logits)]
    )
    tokens, chances = sampler.distribution(logits)
    torch.testing.assert_close(chances, expected.double().softmax(-1)[tokens], rtol=1e-5, atol=1e-7)
