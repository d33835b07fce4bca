"""What torch's caching allocator holds and reserves on a GPU, replayed from the sizes of tensors as they come and go.

The rules, as torch's source has them without settings of its own (``c10/cuda/CUDACachingAllocator.cpp``):

    a request            is rounded up to 512 bytes
    up to 1 MiB          the small pool, which grows by segments of 2 MiB
    above                the large pool, which grows by segments of 20 MiB, from 10 MiB on by the request in multiples of 2 MiB
    a free block         is taken if it is the smallest that fits, of equal ones the one at the lowest address
    what is left of it   is split off, in the small pool from 512 bytes on, in the large one above 1 MiB; else it is held as well
    a freed block        joins free neighbours of its segment; no segment is given back

Products need cuBLAS's workspace, which torch takes once for each thread that multiplies: the one that runs forward passes and the
one in which autograd runs backward passes (``aten/src/ATen/cuda/CublasHandlePool.cpp``). Not modelled: several streams, graphs,
``PYTORCH_CUDA_ALLOC_CONF``, segments given back when memory runs out, the CUDA context itself (``search.fixed_cost``).
Addresses grow from segment to segment here, as they nearly always do; they decide between equal blocks alone.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from jieyue.errors import InputError, message

__all__ = ["CachingAllocator", "Moment", "Reached", "replay", "workspace_bytes"]

BLOCK = 512
SMALL, SMALL_SEGMENT = 2**20, 2 * 2**20
LARGE, LARGE_SEGMENT = 10 * 2**20, 20 * 2**20
ROUND = 2 * 2**20
_WORKSPACE = 2 * 4096 * 1024 + 8 * 16 * 1024  # two buffers of 4 MiB and eight of 16 KiB
_WORKSPACE_FROM_HOPPER = 32 * 2**20
_HOPPER = 9


class Moment(NamedTuple):
    """A tensor's memory comes (``num_bytes`` > 0) or goes (0); ``number`` is the same both times."""

    number: int
    num_bytes: int


class Reached(NamedTuple):
    """The highest so far of what ``torch.cuda.max_memory_allocated`` and ``max_memory_reserved`` tell, in bytes."""

    allocated_bytes: int
    reserved_bytes: int


@dataclass(eq=False)
class _Block:
    """A stretch of a segment, with its neighbours there."""

    address: int
    num_bytes: int
    pool: list[tuple[int, int]]  # (bytes, address) of the pool's free blocks, sorted
    free: bool = False
    before: _Block | None = field(default=None, repr=False)
    after: _Block | None = field(default=None, repr=False)


class CachingAllocator:
    """The state of the allocator of one GPU. A request costs O(log of the free blocks) to find, O(their number) to list."""

    def __init__(self) -> None:
        self.allocated_bytes = self.reserved_bytes = 0
        self.most_allocated = self.most_reserved = 0
        self._small: list[tuple[int, int]] = []
        self._large: list[tuple[int, int]] = []
        self._blocks: dict[int, _Block] = {}  # by address, free ones too
        self._end = 0

    @property
    def reached(self) -> Reached:
        return Reached(self.most_allocated, self.most_reserved)

    def forget_peaks(self) -> None:
        """As ``torch.cuda.reset_peak_memory_stats``."""
        self.most_allocated, self.most_reserved = self.allocated_bytes, self.reserved_bytes

    def allocate(self, num_bytes: int) -> int:
        """The address of a block of so many bytes or more; ``InputError`` for fewer than one."""
        if num_bytes < 1:
            raise InputError(message("num_bytes", str(num_bytes), "at least 1: nothing is allocated for empty tensors"))
        wanted = _up(num_bytes, BLOCK)
        pool = self._small if wanted <= SMALL else self._large
        place = bisect_left(pool, (wanted, -1))
        block = self._blocks[pool.pop(place)[1]] if place < len(pool) else self._segment(wanted, pool)
        block.free = False
        left = block.num_bytes - wanted
        if left >= BLOCK if pool is self._small else left > SMALL:
            self._split(block, wanted)
        self.allocated_bytes += block.num_bytes
        self.most_allocated = max(self.most_allocated, self.allocated_bytes)
        return block.address

    def free(self, address: int) -> None:
        """Gives the block at that address back to its pool; ``InputError`` where none is held."""
        block = self._blocks.get(address)
        if block is None or block.free:
            raise InputError(message("address", str(address), "one that was allocated and not yet freed"))
        self.allocated_bytes -= block.num_bytes
        if block.before is not None and block.before.free:
            block = self._join(block.before, block)
        if block.after is not None and block.after.free:
            block.pool.remove((block.after.num_bytes, block.after.address))
            self._join(block, block.after, listed=False)
        block.free = True
        insort(block.pool, (block.num_bytes, block.address))

    def _segment(self, wanted: int, pool: list[tuple[int, int]]) -> _Block:
        grown = SMALL_SEGMENT if wanted <= SMALL else LARGE_SEGMENT if wanted < LARGE else _up(wanted, ROUND)
        block = _Block(self._end, grown, pool)
        self._blocks[block.address] = block
        self._end += grown
        self.reserved_bytes += grown
        self.most_reserved = max(self.most_reserved, self.reserved_bytes)
        return block

    def _split(self, block: _Block, wanted: int) -> None:
        rest = _Block(block.address + wanted, block.num_bytes - wanted, block.pool, True, block, block.after)
        if block.after is not None:
            block.after.before = rest
        block.after, block.num_bytes = rest, wanted
        self._blocks[rest.address] = rest
        insort(block.pool, (rest.num_bytes, rest.address))

    def _join(self, first: _Block, second: _Block, listed: bool = True) -> _Block:
        """One block of two neighbours; ``listed``: the first is in its pool's list, and leaves it."""
        if listed:
            first.pool.remove((first.num_bytes, first.address))
        del self._blocks[second.address]
        first.num_bytes += second.num_bytes
        first.after = second.after
        if second.after is not None:
            second.after.before = first
        return first


def replay(
    moments: Iterable[Moment], allocator: CachingAllocator | None = None, held: dict[int, int] | None = None
) -> Reached:
    """Puts each moment to the allocator (None: a new one) in turn; returns the highest it has reached.

    ``held``: addresses by number, of what an earlier part of the same trace has left; changed. ``InputError`` where what goes
    never came.
    """
    allocator = CachingAllocator() if allocator is None else allocator
    held = {} if held is None else held
    for number, num_bytes in moments:
        if num_bytes > 0:
            held[number] = allocator.allocate(num_bytes)
        elif number in held:
            allocator.free(held.pop(number))
        else:
            raise InputError(message("moments", f"number {number} goes", "one that came before"))
    return allocator.reached


def workspace_bytes(capability: tuple[int, int]) -> int:
    """cuBLAS's workspace for one thread: 8.125 MiB, from Hopper (compute capability 9.0) on 32 MiB."""
    return _WORKSPACE_FROM_HOPPER if capability[0] >= _HOPPER else _WORKSPACE


def _up(number: int, unit: int) -> int:
    return -(-number // unit) * unit
