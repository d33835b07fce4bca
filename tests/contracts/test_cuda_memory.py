"""The model of torch's CUDA allocator: sequences computed by hand from its rules, and a slow obvious twin."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jieyue.errors import InputError
from jieyue.planning.cuda_memory import CachingAllocator, Moment, replay, workspace_bytes

KIB, MIB = 2**10, 2**20


class Segments:
    """Every segment as a list of [bytes, taken], searched from end to end: the rules as a person would follow them."""

    def __init__(self):
        self.small, self.large, self.allocated, self.most = [], [], 0, 0

    def allocate(self, num_bytes):
        wanted = (num_bytes + 511) // 512 * 512
        pool = self.small if wanted <= MIB else self.large
        fitting = [
            (piece[0], where, at)
            for where, segment in enumerate(pool)
            for at, piece in enumerate(segment)
            if not piece[1] and piece[0] >= wanted
        ]
        if not fitting:
            whole = (
                2 * MIB
                if wanted <= MIB
                else 20 * MIB
                if wanted < 10 * MIB
                else (wanted + 2 * MIB - 1) // (2 * MIB) * 2 * MIB
            )
            pool.append([[whole, False]])
            fitting = [(whole, len(pool) - 1, 0)]
        size, where, at = min(fitting)
        rest = size - wanted
        piece = pool[where][at]
        piece[1] = True
        if (pool is self.small and rest >= 512) or (pool is self.large and rest > MIB):
            piece[0] = wanted
            pool[where].insert(at + 1, [rest, False])
        self.allocated += piece[0]
        self.most = max(self.most, self.allocated)
        return pool[where], piece

    def free(self, held):
        segment, piece = held
        piece[1] = False
        self.allocated -= piece[0]
        at = next(number for number, one in enumerate(segment) if one is piece)
        if at + 1 < len(segment) and not segment[at + 1][1]:
            piece[0] += segment.pop(at + 1)[0]
        if at and not segment[at - 1][1]:
            segment[at - 1][0] += segment.pop(at)[0]

    @property
    def reserved(self):
        return sum(piece[0] for segment in self.small + self.large for piece in segment)


def sizes():
    near = [512, MIB - 512, MIB, MIB + 1, 10 * MIB - 512, 10 * MIB - 1, 10 * MIB, 12 * MIB, 19 * MIB, 20 * MIB]
    return st.one_of(st.sampled_from(near), st.integers(1, 3 * MIB), st.integers(1, 30 * MIB))


@settings(max_examples=60)
@given(steps=st.lists(st.tuples(st.booleans(), st.integers(0, 40), sizes()), max_size=60))
def test_equals_the_obvious_twin(steps):
    fast, slow, held = CachingAllocator(), Segments(), []
    for goes, which, num_bytes in steps:
        if goes and held:
            ours, theirs, _ = held.pop(which % len(held))
            fast.free(ours)
            slow.free(theirs)
        else:
            held.append((fast.allocate(num_bytes), slow.allocate(num_bytes), num_bytes))
        assert (fast.allocated_bytes, fast.reserved_bytes) == (slow.allocated, slow.reserved)
        assert fast.reached == (slow.most, slow.reserved)
        assert fast.reserved_bytes >= fast.allocated_bytes >= sum(size for *_, size in held)
        assert fast.allocated_bytes % 512 == 0 and fast.reserved_bytes % (2 * MIB) == 0
    for ours, _, _ in held:
        fast.free(ours)
    assert fast.allocated_bytes == 0 and fast.reserved_bytes == slow.reserved


@pytest.mark.parametrize(
    ("num_bytes", "allocated", "reserved"),
    [
        (1, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),
        (MIB + 1, MIB + 512, 20 * MIB),
        (10 * MIB - 1, 10 * MIB, 10 * MIB),  # rounded first: no longer below 10 MiB
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        (10 * MIB + 1, 10 * MIB + 512, 12 * MIB),  # what is left, 2 MiB − 512, is split off
        (13 * MIB, 14 * MIB, 14 * MIB),  # 1 MiB left: not split, held as well
        (8_519_680, 8_519_680, 20 * MIB),
    ],
)
def test_one_request(num_bytes, allocated, reserved):
    assert replay([Moment(0, num_bytes)]) == (allocated, reserved)


def test_a_small_segment_is_shared_and_the_large_pool_takes_no_part():
    four = [Moment(number, 512 * KIB) for number in range(4)]
    assert replay(four) == (2 * MIB, 2 * MIB)
    assert replay([*four, Moment(4, 1)]) == (2 * MIB + 512, 4 * MIB)
    assert replay([Moment(0, 2 * MIB), Moment(1, 1)]) == (2 * MIB + 512, 22 * MIB)


def test_the_smallest_that_fits_is_taken_and_its_rest_split_off_or_held():
    # 12 and 16 MiB are free; 11.5 MiB fits the first, whose 0.5 MiB rest is held as well
    moments = [Moment(0, 16 * MIB), Moment(1, 12 * MIB), Moment(0, 0), Moment(1, 0), Moment(2, 23 * MIB // 2)]
    allocator = CachingAllocator()
    assert replay(moments, allocator) == (28 * MIB, 28 * MIB)
    assert allocator.allocated_bytes == 12 * MIB
    # 16 MiB, of which 3 are taken: 13 are left for the next one, no new segment
    assert replay([*moments, Moment(3, 3 * MIB), Moment(4, 13 * MIB)]) == (28 * MIB, 28 * MIB)
    assert replay([*moments, Moment(3, 3 * MIB), Moment(4, 27 * MIB // 2)])[1] == 42 * MIB


def test_neighbours_join_when_they_are_free():
    six = [Moment(number, 6 * MIB) for number in range(3)]  # one segment of 20 MiB, 2 MiB left over
    apart = [*six, Moment(0, 0), Moment(2, 0), Moment(3, 12 * MIB)]  # 6, then 6 + 2 free: not 12 together
    joined = [*six, Moment(0, 0), Moment(1, 0), Moment(3, 12 * MIB)]
    assert replay(apart)[1] == 32 * MIB
    assert replay(joined)[1] == 20 * MIB


def test_peaks_are_forgotten_as_torch_forgets_them():
    allocator = CachingAllocator()
    address = allocator.allocate(3 * MIB)
    allocator.free(address)
    assert allocator.reached == (3 * MIB, 20 * MIB)
    allocator.forget_peaks()
    assert allocator.reached == (0, 20 * MIB)


def test_workspaces_and_refusals():
    assert [workspace_bytes(one) for one in ((8, 0), (8, 9), (9, 0), (10, 0), (12, 0))] == [8_519_680] * 2 + [
        32 * MIB
    ] * 3
    with pytest.raises(InputError, match="num_bytes: found 0"):
        CachingAllocator().allocate(0)
    with pytest.raises(InputError, match="number 7 goes"):
        replay([Moment(7, 0)])
    allocator = CachingAllocator()
    allocator.free(address := allocator.allocate(1))
    with pytest.raises(InputError, match=f"address: found {address}"):
        allocator.free(address)


def test_the_twin_can_fail():
    """A broken twin: the first that fits in place of the best."""

    class First(Segments):
        def allocate(self, num_bytes):
            for segment in self.large:
                for piece in segment:
                    if not piece[1] and piece[0] >= num_bytes:
                        piece[1] = True
                        self.allocated += piece[0]
                        return segment, piece
            return super().allocate(num_bytes)

    slow, fast = First(), CachingAllocator()
    for allocator in (slow, fast):
        held = [allocator.allocate(size) for size in (16 * MIB, 12 * MIB)]
        for one in held:
            allocator.free(one)
        allocator.allocate(12 * MIB)
    assert slow.allocated != fast.allocated_bytes
