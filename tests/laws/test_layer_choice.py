"""Which layers stay full: the greedy choice by the joint price, held against trying every layer, with twins that must fail."""

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jieyue.errors import InputError
from jieyue.run.layer_choice import choose_layers, interleaved, most_prices
from jieyue.run.layer_options import Choosing, FullLayers, parse_count

prices = st.lists(st.floats(0, 1), min_size=2, max_size=7)


def joint(own, pairs):
    """A price in which sparse neighbours cost extra: single prices do not add up."""

    def price(full):
        gone = [layer for layer in range(len(own)) if layer not in full]
        return sum(own[layer] for layer in gone) + sum(
            pairs[layer] for layer in gone if layer + 1 in gone and layer < len(pairs)
        )

    return price


def greedy_oracle(price, layers, count):
    full = frozenset(layers)
    while len(full) > count:
        full = min((full - {layer} for layer in sorted(full)), key=lambda one: (price(one), *sorted(set(layers) - one)))
    return price(full)


@given(prices, prices, st.data())
def test_with_all_candidates_it_is_the_greedy_choice(own, pairs, data):
    layers, price = range(len(own)), joint(own, pairs)
    count = data.draw(st.integers(0, len(own)))
    found = choose_layers(price, layers, FullLayers(count=count), candidates=len(own))
    assert len(found.full) == count and found.path[-1][1] == pytest.approx(greedy_oracle(price, layers, count))
    assert [left for left, _ in found.path] == list(range(len(own), count - 1, -1))
    for place, (_, told) in enumerate(found.path):
        assert told == pytest.approx(price(frozenset(layers) - set(found.order[:place])))


def test_numpys_whole_numbers_are_numbers():
    """The fault: a count that NumPy had computed was refused."""
    assert FullLayers.parse(numpy.int64(2)) == FullLayers(count=2)
    assert FullLayers.parse(numpy.arange(2)) == FullLayers.parse(range(2)) == FullLayers(layers=(0, 1))
    for wrong in (numpy.float64(2), True, [True]):
        with pytest.raises(InputError):
            FullLayers.parse(wrong)


def test_single_prices_do_not_decide():
    """The twin that sorts layers by their price alone pays more."""
    price = joint([0.1, 0.1, 0.15, 0.3], [5.0, 0.0, 0.0])  # 0 and 1 are cheap alone and dear together
    found = choose_layers(price, range(4), FullLayers(count=2))
    alone = sorted(range(4), key=lambda layer: found.alone[layer])[2:]
    assert found.full == (1, 3) and price(frozenset(found.full)) < price(frozenset(alone))


@given(prices, st.floats(0, 2))
def test_it_stops_before_the_price_that_is_allowed_is_passed(own, most):
    price = joint(own, [])
    found = choose_layers(price, range(len(own)), FullLayers(most=most), candidates=len(own))
    assert price(frozenset(found.full)) <= most
    assert all(price(frozenset(found.full) - {layer}) > most for layer in found.full)


def test_it_tells_what_is_kept_and_asks_no_more_than_it_says():
    asked, kept = [], []
    price = joint([0.4, 0.1, 0.3, 0.2], [0.0] * 3)

    def counted(full):
        asked.append(full)
        return price(full)

    found = choose_layers(counted, range(4), FullLayers(count=1), candidates=2, kept=kept.append)
    assert found.tried == len(asked) == 4 + 2 + 2 and found.order == (1, 3, 2)
    assert kept == [frozenset(range(4)), frozenset({0, 2, 3}), frozenset({0, 2}), frozenset({0})]


@given(prices, st.integers(1, 9), st.booleans(), st.data())
def test_as_many_prices_are_asked_for_as_progress_is_told_of(own, candidates, estimated, data):
    """The fault: with more candidates than layers left the total was of prices that nobody asks for."""
    count, layers = data.draw(st.integers(0, len(own))), range(len(own))
    asked = []

    def counted(full):
        asked.append(full)
        return joint(own, [])(full)

    estimates = dict(enumerate(own)) if estimated else None
    choose_layers(counted, layers, FullLayers(count=count), candidates=candidates, estimates=estimates)
    assert len(asked) == most_prices(len(own), count, candidates, estimated=estimated)


def test_evenly_spaced_layers_are_as_many_as_asked():
    for length in range(1, 12):
        for count in range(1, length + 1):
            found = interleaved(range(length), count)
            assert len(set(found)) == count and max(found) < length


@pytest.mark.parametrize("text", ["auto", "auto:2%", "auto:+%", "-1", "half", "auto:+2"])
def test_full_layers_that_are_not_understood(text):
    with pytest.raises(InputError, match="a number of layers, or auto"):
        FullLayers.parse(text)
    with pytest.raises(InputError):
        Choosing(full_layers=text)


@pytest.mark.parametrize(
    ("given", "layers", "text"),
    [
        ("1,4,7-10", (1, 4, 7, 8, 9, 10), "1,4,7-10"),
        ("3 , 1-2", (1, 2, 3), "1-3"),
        ("5-5", (5,), "5-5"),
        ([9, 0], (0, 9), "0,9"),
        ((3,), (3,), "3-3"),
    ],
)
def test_layers_that_are_named(given, layers, text):
    found = FullLayers.parse(given)
    assert found.layers == layers and str(found) == text and FullLayers.parse(text) == found
    assert Choosing(full_layers=text) == Choosing(full_layers=given)
    chosen = choose_layers(lambda full: pytest.fail("a price was asked for"), range(11), found)
    assert chosen.full == layers and not chosen.tried and chosen.path == ()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("1,2,1", "1 twice in '1,2,1'"),
        ("0-3,2", "2 twice"),
        ([4, 4], "4 twice"),
        ("3-1", "such as 1,4,7-10"),
        ("1,", "such as 1,4,7-10"),
        ([], "such as 1,4,7-10"),
        ([True], "such as 1,4,7-10"),
        ([1.5], "such as 1,4,7-10"),
        ([-1], "such as 1,4,7-10"),
    ],
)
def test_named_layers_that_are_not_understood(given, says):
    with pytest.raises(InputError, match=says):
        FullLayers.parse(given)


def test_named_layers_that_cannot_be_sparse():
    with pytest.raises(InputError, match="found layer 4, expected some of 0-3"):
        choose_layers(lambda full: 0.0, range(4), FullLayers.parse("1,4"))
    with pytest.raises(InputError, match="found layers 1, 3, expected some of 0,2,4, the layers that can be sparse"):
        choose_layers(lambda full: 0.0, (0, 2, 4), FullLayers.parse("1-3"))


def test_more_full_layers_than_there_are():
    with pytest.raises(InputError, match="at most 4"):
        choose_layers(lambda full: 0.0, range(4), FullLayers(count=5))


@pytest.mark.parametrize("text", ["", "2m", "k", "-3", "1.5", "0.0001k", "1e3"])
def test_counts_that_are_not_understood(text):
    with pytest.raises(InputError, match="a whole number of tokens"):
        parse_count(text, "tokens")


def test_options_of_the_choice_are_checked():
    assert Choosing(tokens="200k").tokens == 200_000
    for wrong in ({"candidates": 0}, {"calibration_tokens": 0}, {"control": True}, {"second_data": ["no-such-file"]}):
        with pytest.raises(InputError):
            Choosing(**wrong)
