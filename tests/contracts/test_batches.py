"""Contract of batches: a pure function of its arguments, every row seen once an epoch, curricula kept to the step."""

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jieyue.data.batch import POOL, collate, effective_batches
from jieyue.errors import InputError


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 4), st.integers(0, 3))
def test_epochs_see_every_row_equally_often(num_rows, effective_batch, epochs, seed):
    batches = effective_batches(num_rows, effective_batch, epochs=epochs, seed=seed)
    assert numpy.bincount(numpy.concatenate(batches)).tolist() == [epochs] * num_rows
    assert all(len(batch) == effective_batch for batch in batches[:-1])
    assert len(batches) == -(-num_rows * epochs // effective_batch)
    first = numpy.concatenate(batches)[:num_rows]
    assert sorted(first.tolist()) == list(range(num_rows))  # no row twice before every row once


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 12))
def test_steps_are_full_and_a_longer_run_begins_alike(num_rows, effective_batch, steps):
    batches = effective_batches(num_rows, effective_batch, steps=steps, seed=5)
    assert [len(batch) for batch in batches] == [effective_batch] * steps
    again = effective_batches(num_rows, effective_batch, steps=steps, seed=5)
    longer = effective_batches(num_rows, effective_batch, steps=steps + 3, seed=5)
    for a, b, c in zip(batches, again, longer, strict=False):
        assert a.tolist() == b.tolist() == c.tolist()


def test_seeds_differ():
    a, b = (numpy.concatenate(effective_batches(50, 10, epochs=1, seed=seed)).tolist() for seed in (0, 1))
    assert a != b


def test_rows_of_like_length_share_a_batch_and_stay_in_their_pool():
    lengths = numpy.random.default_rng(0).integers(1, 100, 16 * POOL * 2 + 5)
    sized, plain = effective_batches(lengths, 16, epochs=1), effective_batches(len(lengths), 16, epochs=1)
    for first in range(0, len(sized), POOL):
        pool = slice(first, first + POOL)
        assert sorted(numpy.concatenate(sized[pool])) == sorted(numpy.concatenate(plain[pool]))
    assert [len(batch) for batch in sized] == [len(batch) for batch in plain]
    assert all((numpy.diff(lengths[batch]) <= 0).all() for batch in sized)

    def padded(batches):
        return sum(lengths[batch].max() * len(batch) for batch in batches)

    assert padded(sized) < 1.15 * lengths.sum() < padded(plain)
    assert [batch[0] for batch in sized] != sorted((batch[0] for batch in sized), key=lambda row: -lengths[row])


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"steps": 2, "epochs": 1}, "exactly one"),
        ({}, "exactly one"),
        ({"epochs": 0}, "more than none"),
    ],
)
def test_refusals(arguments, complaint):
    with pytest.raises(InputError, match=complaint):
        effective_batches(4, 2, **arguments)


def test_refuses_no_rows():
    with pytest.raises(InputError, match="0 rows"):
        effective_batches(0, 2, steps=1)


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=7), min_size=1, max_size=5), st.integers(0, 9))
def test_collate_keeps_every_token_and_says_where(rows, extra):
    longest = max(map(len, rows))
    arrays = [{"input_ids": numpy.array(row), "labels": numpy.array([1, -100]), "question": 3} for row in rows]
    batch = collate(arrays, pad_id=77, pad_to=longest + extra)
    assert sorted(batch) == ["attention_mask", "input_ids", "labels"]
    assert batch["input_ids"].shape == (len(rows), longest + extra) and batch["labels"].shape == (len(rows), 2)
    for row, ids, mask in zip(rows, batch["input_ids"], batch["attention_mask"], strict=True):
        assert ids[mask.bool()].tolist() == row and set(ids[~mask.bool()].tolist()) <= {77}
    with pytest.raises(InputError, match=f"at least {longest}"):
        collate(arrays, pad_id=0, pad_to=longest - 1)
    with pytest.raises(InputError, match="no rows"):
        collate([], pad_id=0)
