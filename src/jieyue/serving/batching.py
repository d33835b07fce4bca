"""Replies of many clients in one batch: a request joins while others are being answered, and leaves when done or cancelled.

One thread owns the model. Between two steps it takes in whoever waits (their prompts are read together), steps all rows
once, gives each its token, and lets go of the finished. Where caches cannot be joined (patterns, windows) those who came
together stay together and the groups take turns.

A finished talk's state is kept for a while: when its next turn comes, only the new tokens are read.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from jieyue.decoding.reply import Reply
from jieyue.errors import InputError
from jieyue.hf.stepping import Rows, Stepper

__all__ = ["Batcher", "Full", "Job", "Said"]

_TOGETHER = 4096  # tokens of prompts, padding included, that are read in one pass


class Full(InputError):
    """Too many requests wait already."""


@dataclass(frozen=True, slots=True)
class Said:
    """What a client hears: a piece of text; ``finish`` with the last one ("stop", "length", or "error")."""

    text: str
    finish: str | None = None
    num_tokens: int = 0


@dataclass(eq=False)
class Job:
    """One reply that is wanted. ``tell`` is called on the batcher's thread with each ``Said``; ``cancel()`` ends it."""

    prompt: Sequence[int]
    reply: Reply
    tell: Callable[[Said], None]
    is_cancelled: bool = False
    came: float = field(default_factory=time.perf_counter)
    first: float | None = None  # seconds until the first token

    def cancel(self) -> None:
        self.is_cancelled = True


@dataclass(eq=False)
class _Group:
    rows: Rows
    jobs: list[Job]


class Batcher:
    """``submit(job)`` from any thread; ``stop()`` answers those who were taken in and refuses the rest.

    ``max_rows`` decode at once, ``max_waiting`` wait, more get ``Full``. ``kept_bytes``: of states of finished talks.
    Counters for /metrics are plain attributes.
    """

    def __init__(self, model: Any, *, max_rows: int = 32, max_waiting: int = 64, kept_bytes: int = 256 * 2**20) -> None:
        self.stepper = Stepper(model)
        self.max_rows, self.max_waiting, self.kept_bytes = max_rows, max_waiting, kept_bytes
        self.prompt_tokens = self.reused_tokens = self.reply_tokens = self.steps = self.cancelled = self.failed = 0
        self._waiting: deque[Job] = deque()
        self._groups: list[_Group] = []
        self._kept: OrderedDict[tuple[int, ...], Rows] = OrderedDict()
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="jieyue-batcher", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_active(self) -> int:
        return sum(len(group.jobs) for group in self._groups)

    def submit(self, *jobs: Job) -> None:
        """All of them or none: ``Full`` where they would wait with more than ``max_waiting``."""
        with self._changed:
            if self._stopping:
                raise Full("the server is stopping")
            if len(self._waiting) + len(jobs) > self.max_waiting:
                raise Full(f"{len(self._waiting)} requests wait already, at most {self.max_waiting} may")
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

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._groups or self._stopping):
                    self._changed.wait()
                if self._stopping and not self._groups:
                    return
                coming = [] if self._stopping else self._next_jobs()
            try:
                self._take_in(coming)
                for group in list(self._groups):
                    self._step(group)
            except Exception as error:  # one broken step must not leave clients waiting for ever
                self._fail(coming, error)

    def _next_jobs(self) -> list[Job]:
        """Who may come in now: as many as there is room for, their prompts read in one pass."""
        chosen: list[Job] = []
        while self._waiting and self.num_active + len(chosen) < self.max_rows:
            job = self._waiting[0]
            if not job.is_cancelled:
                width = max(len(one.prompt) for one in [*chosen, job])
                if chosen and width * (len(chosen) + 1) > _TOGETHER:
                    break
                chosen.append(job)
            else:
                self.cancelled += 1
            self._waiting.popleft()
        return chosen

    def _take_in(self, jobs: list[Job]) -> None:
        fresh: list[Job] = []
        for job in jobs:
            self.prompt_tokens += len(job.prompt)
            rows = self._known(job.prompt)
            if rows is None:
                fresh.append(job)
                continue
            self.reused_tokens += rows.lengths[0]
            logits = self.stepper.extend(rows, list(job.prompt)[rows.lengths[0] :])
            self._place(_Group(rows, [job]), logits)
        if fresh:
            rows, logits = self.stepper.begin([job.prompt for job in fresh])
            self._place(_Group(rows, fresh), logits)

    def _place(self, group: _Group, logits: torch.Tensor) -> None:
        """Gives the first tokens and puts the rows where they can be stepped with others."""
        self._say(group, logits)
        if not group.jobs:
            return
        other = next((one for one in self._groups if one.rows.can_join and group.rows.can_join), None)
        if other is None:
            self._groups.append(group)
        else:
            other.rows.join(group.rows)
            other.jobs += group.jobs

    def _step(self, group: _Group) -> None:
        self._leave(group, [number for number, job in enumerate(group.jobs) if job.is_cancelled])
        if group.jobs:
            logits = self.stepper.step(group.rows, [job.reply.ids[-1] for job in group.jobs])
            self.steps += 1
            self._say(group, logits)
        if not group.jobs:
            self._groups.remove(group)

    def _say(self, group: _Group, logits: torch.Tensor) -> None:
        done = []
        logits = logits.float().cpu()
        for number, (job, row) in enumerate(zip(group.jobs, logits, strict=True)):
            piece = job.reply.take(row)
            self.reply_tokens += 1
            if job.first is None:
                job.first = time.perf_counter() - job.came
            if piece or job.reply.finish:
                job.tell(Said(piece, job.reply.finish, len(job.reply.ids)))
            if job.reply.finish:
                done.append(number)
        self._leave(group, done)

    def _leave(self, group: _Group, numbers: list[int]) -> None:
        """Takes these rows out; the state of a reply that came to its end is kept."""
        if not numbers:
            return
        for number in numbers:
            job = group.jobs[number]
            self.cancelled += job.reply.finish is None
            if job.reply.finish and self.kept_bytes and (len(group.jobs) == 1 or group.rows.can_join):
                kept = group.rows.alone(number)
                if kept.mask is None:
                    self._keep(kept, [*job.prompt, *job.reply.ids])
        staying = [number for number in range(len(group.jobs)) if number not in set(numbers)]
        group.jobs = [group.jobs[number] for number in staying]
        if staying:
            group.rows.keep(staying)

    def _keep(self, rows: Rows, ids: list[int]) -> None:
        self._kept[tuple(ids[: rows.lengths[0]])] = rows
        while len(self._kept) > 1 and sum(one.nbytes for one in self._kept.values()) > self.kept_bytes:
            self._kept.popitem(last=False)
        if sum(one.nbytes for one in self._kept.values()) > self.kept_bytes:
            self._kept.clear()

    def _known(self, prompt: Sequence[int]) -> Rows | None:
        """The kept state that knows most of the prompt's beginning, cut to what they share; at least half of the prompt."""
        best, shared = None, 0
        for ids in self._kept:
            count = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(ids, prompt, strict=False)))
            count = min(count, len(prompt) - 1)  # one token at least is read, for its logits
            if count > shared:
                best, shared = ids, count
        if best is None or 2 * shared < len(prompt):
            return None
        rows = self._kept.pop(best)
        return rows if rows.crop(len(best) - shared) else None

    def _fail(self, coming: list[Job], error: Exception) -> None:
        self.failed += 1
        jobs = {*coming, *(job for group in self._groups for job in group.jobs)}
        self._groups = []
        self._kept.clear()
        for job in jobs:
            if job.reply.finish is None:
                job.tell(Said(f"{type(error).__name__}", "error"))
