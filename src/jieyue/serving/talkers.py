"""A dialogue model that is served: from a checked request to the pieces of its replies, made in the batch of all clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import numpy

from jieyue.data.history import fit_history
from jieyue.decoding.reply import Reply
from jieyue.decoding.slots import positions_of
from jieyue.errors import InputError
from jieyue.recipes.chat import ends_of

from .batching import Batcher, Full, Job, Said
from .requests import Asked, Bounds, Refusal

__all__ = ["Talk", "Talker"]

CONTEXT = 4096  # tokens of talk and reply where the model has no limit, or a larger one


@dataclass(eq=False)
class Talk:
    """The replies to one request, in the making. Leaving the iteration early cancels what is not finished."""

    jobs: list[Job]
    heard: asyncio.Queue[tuple[int, Said]]
    num_prompt_tokens: int
    num_dropped: int

    async def pieces(self) -> AsyncIterator[tuple[int, Said]]:
        """(number of the choice, what it says next) until all have finished."""
        open_choices = len(self.jobs)
        try:
            while open_choices:
                number, said = await self.heard.get()
                open_choices -= said.finish is not None
                yield number, said
        finally:
            for job in self.jobs:
                job.cancel()

    @property
    def num_reply_tokens(self) -> int:
        return sum(len(job.reply.ids) for job in self.jobs)


class Talker:
    """One model with its batcher. ``context``: tokens of talk and reply together; longer talks lose whole oldest turns."""

    kind = "chat"

    def __init__(self, name: str, model: Any, tokenizer: Any, bounds: Bounds, context: int | None = None) -> None:
        self.name, self.tokenizer, self.bounds = name, tokenizer, bounds
        limit = positions_of(model) or CONTEXT
        self.context = min(limit, context or CONTEXT)
        self.ends = ends_of(model, tokenizer)
        self.reply_tokens = min(bounds.reply_tokens, max(1, self.context // 2), 256)
        self.batcher = Batcher(model, max_rows=bounds.rows, max_waiting=bounds.waiting)

    async def talk(self, asked: Asked) -> Talk:
        """Puts the request into the batch. ``Refusal`` for what does not fit (413) and when too many wait (429)."""
        most = min(asked.max_tokens or self.reply_tokens, self.context - 1)
        ids, num_dropped = await asyncio.to_thread(self._prompt, asked, self.context - most)
        heard: asyncio.Queue[tuple[int, Said]] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def job(number: int) -> Job:
            def tell(said: Said) -> None:
                if not loop.is_closed():
                    loop.call_soon_threadsafe(heard.put_nowait, (number, said))

            seed = asked.sampling.seed
            sampling = asked.sampling if seed is None else replace(asked.sampling, seed=_wrapped(seed + number))
            reply = Reply(sampling, ids, ends=self.ends, decode=self.decode, max_tokens=most, stop=asked.stop)
            return Job(ids, reply, tell)

        jobs = [job(number) for number in range(asked.num_choices)]
        try:
            self.batcher.submit(*jobs)
        except Full as full:
            raise Refusal(429, f"busy: {full}; try again in a moment", code="queue_full") from full
        return Talk(jobs, heard, len(ids), num_dropped)

    def stop(self) -> None:
        """Lets the replies in the making end."""
        self.batcher.stop()

    def decode(self, ids: Any) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _prompt(self, asked: Asked, room: int) -> tuple[list[int], int]:
        try:
            if asked.messages:
                fitted = fit_history(self.tokenizer, asked.messages, room)
                return fitted.ids.tolist(), fitted.num_dropped
            ids = numpy.asarray(self.tokenizer(asked.prompt, verbose=False)["input_ids"]).tolist()
        except InputError as error:
            too_long = "newest turn" in str(error)
            code = "context_length_exceeded" if too_long else None
            raise Refusal(413 if too_long else 400, str(error), param="messages", code=code) from error
        if not 1 <= len(ids) <= room:
            raise Refusal(
                413,
                f"the prompt has {len(ids)} tokens, expected at most {room}",
                param="prompt",
                code="context_length_exceeded",
            )
        return ids, 0


def _wrapped(seed: int) -> int:
    return (seed + 2**63) % 2**64 - 2**63
