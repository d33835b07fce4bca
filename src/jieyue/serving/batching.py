"""Replies of many clients in one batch: a request joins while others are being answered, and leaves when done or cancelled.

One thread owns the model. Between two steps it takes in whoever waits (their prompts are read together) and lets go of the
finished. Where caches can be joined all rows are stepped at once; where they cannot (patterns, windows) the talks take turns,
client by client, by the time that each has had.

Nobody's first tokens wait for others' long replies: a talk's first ``YOUNG`` tokens are made apart, four steps for each one
of the others, wherever stepping all together would take much longer. Who is in comes before how many ask: a client without a
row is taken in first.

A finished talk's state is kept for a while: when its next turn comes, only the new tokens are read.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor, nn

from jieyue.decoding.reply import Chance, Reply
from jieyue.errors import InputError
from jieyue.hf.batched_decoding import DecodingRows, KeptStates, Stepper

__all__ = ["Batcher", "Full", "Job", "Said"]

YOUNG = 4  # tokens of a reply that are hurried
_TOGETHER = 4096  # tokens of prompts, padding included, that are read in one pass
_DEARER = 1.5  # a step with others that takes so many times as long as one alone is not made for the young


class Full(InputError):
    """Too many requests wait already."""


@dataclass(frozen=True, slots=True)
class Said:
    """What a client hears: a piece of text; ``finish`` with the last one ("stop", "length", or "error")."""

    text: str
    finish: str | None = None
    chances: tuple[Chance, ...] = ()


@dataclass(eq=False)
class Job:
    """One reply that is wanted. ``tell`` is called on the batcher's thread with each ``Said``; ``cancel()`` ends it.

    ``client``: who asks; those of one name share what one is due.
    """

    prompt: Sequence[int]
    reply: Reply
    tell: Callable[[Said], None]
    client: str = ""
    is_cancelled: bool = False
    came: float = field(default_factory=time.perf_counter)
    first: float | None = None  # seconds until the first token
    num_told: int = 0  # chances that were told

    def cancel(self) -> None:
        self.is_cancelled = True


@dataclass(eq=False)
class _Group:
    """Talks that are stepped together. ``stepped``: number of the last step, of all groups'."""

    rows: DecodingRows
    jobs: list[Job]
    stepped: int = 0

    @property
    def client(self) -> str:
        return self.jobs[0].client

    @property
    def is_young(self) -> bool:
        return all(len(job.reply.ids) < YOUNG for job in self.jobs)


class Batcher:
    """``submit(job)`` from any thread; ``stop()`` answers those who were taken in and refuses the rest.

    ``max_rows`` decode at once, ``max_waiting`` wait, more get ``Full``; a client that has none may come in beyond, up to a
    quarter more. ``kept_bytes``: of states of finished talks. Counters for /metrics are plain attributes.
    """

    def __init__(
        self, model: nn.Module, *, max_rows: int = 32, max_waiting: int = 64, kept_bytes: int = 256 * 2**20
    ) -> None:
        self.stepper = Stepper(model)
        self.max_rows, self.max_waiting, self.kept_bytes = max_rows, max_waiting, kept_bytes
        self.prompt_tokens = self.reused_tokens = self.reply_tokens = self.steps = self.cancelled = self.failed = 0
        self._waiting: deque[Job] = deque()
        self._coming: Counter[str] = Counter()  # requests whose prompts are being written
        self._groups: list[_Group] = []
        self._kept = KeptStates(kept_bytes)
        self._used: dict[str, float] = {}  # seconds that each client's steps took
        self._costs: dict[int, float] = {}  # seconds of a step, by the number of rows rounded up to a power of two
        self._joins = True  # whether talks that did not come together can be stepped together, as seen so far
        self._hurried = 0  # steps of the young since one of the others
        self._changed = threading.Condition()
        self._stopping = self._abandoned = False
        self._thread = threading.Thread(target=self._run, name="jieyue-batcher", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        return len(self._waiting) + self._coming.total()

    @property
    def num_active(self) -> int:
        return sum(len(group.jobs) for group in self._groups)

    @contextmanager
    def place(self, client: str, count: int) -> Iterator[None]:
        """Room for so many jobs of a client while their prompt is being written; ``Full`` where there is none."""
        with self._changed:
            self._check_room(client, count)
            self._coming[client] += count
        try:
            yield
        finally:
            with self._changed:
                self._coming[client] -= count
                self._coming += Counter()  # without those who have none

    def submit(self, *jobs: Job, is_placed: bool = False) -> None:
        """All of them or none: ``Full`` where they would wait with more than ``max_waiting``, unless they have a ``place``."""
        with self._changed:
            if not is_placed:
                self._check_room(jobs[0].client, len(jobs))
            if self._stopping:
                raise Full("the server is stopping")
            self._waiting.extend(jobs)
            self._changed.notify()

    def stop(self, seconds: float = 30.0) -> None:
        """Lets the replies in the making end, for at most so long; those who still wait are told that it is over."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(seconds)
        for job in [*self._waiting, *(job for group in self._groups for job in group.jobs)]:
            job.cancel()
            job.tell(Said("", "error"))

    def abandon(self) -> None:
        """Ends after the step in the making, whatever is unfinished."""
        self._abandoned = self._stopping = True

    def _check_room(self, client: str, count: int) -> None:
        waits = self.num_waiting
        is_new = not self._coming[client] and all(job.client != client for job in self._waiting)
        more = max(1, self.max_waiting // 4) if is_new and client and self._others(client) else 0
        if self._stopping:
            raise Full("the server is stopping")
        if waits + count > self.max_waiting + more:
            raise Full(f"{waits} requests wait already, at most {self.max_waiting} may")

    def _others(self, client: str) -> bool:
        """Whether anybody else is waiting or being answered."""
        listed = [*self._waiting, *(job for group in list(self._groups) for job in list(group.jobs))]
        return any(job.client != client for job in listed) or any(name != client for name in self._coming)

    def _run(self) -> None:
        while not self._abandoned:
            with self._changed:
                while not (self._waiting or self._groups or self._stopping):
                    self._changed.wait()
                if self._stopping and not self._groups:
                    return
                coming = [] if self._stopping else self._next_jobs()
            try:
                self._take_in(coming)
            except Exception as error:  # one broken step must not leave clients waiting for ever
                self._fail(coming, error)
            if self._groups:
                group = self._next_group()
                try:
                    self._step(group)
                except Exception as error:
                    self._groups = [one for one in self._groups if one is not group]
                    self._fail(group.jobs, error)

    def _next_jobs(self) -> list[Job]:
        """Who may come in now: as many as there is room for, their prompts read in one pass, those with fewest rows first."""
        chosen: list[Job] = []
        self.cancelled += sum(job.is_cancelled for job in self._waiting)
        self._waiting = deque(job for job in self._waiting if not job.is_cancelled)
        rows = Counter(job.client for group in self._groups for job in group.jobs)
        while self._waiting:
            job = min(self._waiting, key=lambda one: rows[one.client])  # the first of those with as few
            is_guest = bool(rows) and job.client and not rows[job.client]
            room = self.max_rows + (max(1, self.max_rows // 4) if is_guest else 0)
            width = max(len(one.prompt) for one in [*chosen, job])
            if rows.total() >= room or (chosen and width * (len(chosen) + 1) > _TOGETHER):
                break
            chosen.append(job)
            rows[job.client] += 1
            self._waiting.remove(job)
        return chosen

    def _take_in(self, jobs: list[Job]) -> None:
        fresh: list[Job] = []
        for job in jobs:
            self.prompt_tokens += len(job.prompt)
            rows = self._kept.take(job.prompt)
            if rows is None:
                fresh.append(job)
                continue
            self.reused_tokens += rows.lengths[0]
            logits = self.stepper.extend(rows, list(job.prompt)[rows.lengths[0] :])
            self._place(_Group(rows, [job]), logits)
        while fresh:
            together = [job for job in fresh if self._joins or job.client == fresh[0].client]
            rows, logits = self.stepper.begin([job.prompt for job in together])
            self._joins = rows.can_join
            self._place(_Group(rows, together), logits)
            fresh = [job for job in fresh if job not in together]

    def _place(self, group: _Group, logits: Tensor) -> None:
        """Gives the first tokens and puts the rows where they can be stepped with others."""
        self._say(group, logits)
        if not group.jobs:
            return
        known = [self._used[one.client] for one in self._groups if one.client in self._used]
        self._used = {one.client: self._used.get(one.client, 0.0) for one in self._groups}
        self._used.setdefault(group.client, min(known, default=0.0))  # a newcomer owes nothing, and is owed nothing
        self._groups.append(group)
        self._unite(group)

    def _unite(self, group: _Group) -> None:
        """Steps the group with others from now on, where that can be and costs the young little."""
        for other in self._groups:
            if other is group or not (other.rows.can_join and group.rows.can_join):
                continue
            if group.is_young != other.is_young:
                alone = self._cost(len(group.jobs if group.is_young else other.jobs))
                together = self._cost(len(group.jobs) + len(other.jobs))
                if alone and together and together > _DEARER * alone:
                    continue
            other.rows.join(group.rows)
            other.jobs += group.jobs
            self._groups = [one for one in self._groups if one is not group]
            return

    def _cost(self, num_rows: int) -> float | None:
        return self._costs.get((num_rows - 1).bit_length())

    def _next_group(self) -> _Group:
        """Whose turn it is: the young four times for once of the others, and among either the client that had least time."""
        young = [group for group in self._groups if group.is_young]
        others = [group for group in self._groups if not group.is_young]
        chosen = young if young and (self._hurried < 4 or not others) else others
        self._hurried = self._hurried + 1 if chosen is young and others else 0
        return min(chosen, key=lambda group: (self._used.get(group.client, 0.0), group.stepped))

    def _step(self, group: _Group) -> None:
        self._leave(group, [number for number, job in enumerate(group.jobs) if job.is_cancelled])
        if group.jobs:
            started, was_young = time.perf_counter(), group.is_young
            num_rows, client = len(group.jobs), group.client
            logits = self.stepper.step(group.rows, [job.reply.ids[-1] for job in group.jobs])
            self.steps += 1
            group.stepped = self.steps
            self._say(group, logits)
            seconds = time.perf_counter() - started
            self._used[client] = self._used.get(client, 0.0) + seconds
            key = (num_rows - 1).bit_length()
            self._costs[key] = 0.9 * self._costs.get(key, seconds) + 0.1 * seconds
            if group.jobs and was_young and not group.is_young:
                self._unite(group)
        if not group.jobs:
            self._groups = [one for one in self._groups if one is not group]

    def _say(self, group: _Group, logits: Tensor) -> None:
        done = []
        logits = logits.float().cpu()
        for number, (job, row) in enumerate(zip(group.jobs, logits, strict=True)):
            piece = job.reply.take(row)
            self.reply_tokens += 1
            if job.first is None:
                job.first = time.perf_counter() - job.came
            chances = tuple(job.reply.chances[job.num_told :])
            job.num_told += len(chances)
            if piece or chances or job.reply.finish or len(job.reply.ids) == 1:
                job.tell(Said(piece, job.reply.finish, chances))
            if job.reply.finish:
                done.append(number)
        self._leave(group, done)

    def _leave(self, group: _Group, numbers: list[int]) -> None:
        if not numbers:
            return
        for number in numbers:
            job = group.jobs[number]
            self.cancelled += job.reply.finish is None
            if job.reply.finish and (len(group.jobs) == 1 or group.rows.can_join):
                kept = group.rows.alone(number)
                if kept.mask is None:
                    self._kept.keep([*job.prompt, *job.reply.ids], kept)
        staying = [number for number in range(len(group.jobs)) if number not in set(numbers)]
        group.jobs = [group.jobs[number] for number in staying]
        if staying:
            group.rows.keep(staying)

    def _fail(self, jobs: list[Job], error: Exception) -> None:
        self.failed += 1
        self._kept.clear()
        for group in self._groups:  # those that were placed before it failed
            staying = [number for number, job in enumerate(group.jobs) if job not in jobs]
            if len(staying) < len(group.jobs):
                group.rows.keep(staying)
                group.jobs = [group.jobs[number] for number in staying]
        self._groups = [group for group in self._groups if group.jobs]
        for job in jobs:
            if job.reply.finish is None:
                job.tell(Said(f"{type(error).__name__}", "error"))
