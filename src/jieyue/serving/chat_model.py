"""A dialogue model that is served: from a checked request to the pieces of its replies, made in the batch of all clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from torch import nn

from jieyue.data.history import Tokenizer, TooLong, fit_history
from jieyue.decoding.reply import Reply
from jieyue.decoding.slots import positions_of
from jieyue.errors import InputError
from jieyue.tasks.chat.replies import ends_of

from .batching import Batcher, Full, Job, Said
from .bounds import Bounds, Refusal
from .requests import Asked

__all__ = ["ChatModel", "Talk"]

CONTEXT = 4096  # tokens of talk and reply where the model has no limit, or a larger one
_SEEN = 16  # tokens of a beginning that its continuation is written after


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
            self.cancel()

    def cancel(self) -> None:
        """Ends what is not finished."""
        for job in self.jobs:
            job.cancel()

    @property
    def num_reply_tokens(self) -> int:
        return sum(len(job.reply.ids) for job in self.jobs)


class ChatModel:
    """One model with its batcher. ``context``: tokens of talk and reply together; longer talks lose whole oldest turns."""

    kind = "chat"

    def __init__(
        self, name: str, model: nn.Module, tokenizer: Tokenizer, bounds: Bounds, context: int | None = None
    ) -> None:
        self.name, self.tokenizer, self.bounds = name, tokenizer, bounds
        limit = positions_of(model) or CONTEXT
        self.context = min(limit, context or CONTEXT)
        self.ends = ends_of(model, tokenizer)
        self.reply_tokens = min(bounds.reply_tokens, max(1, self.context // 2), 256)
        self.batcher = Batcher(model, max_rows=bounds.rows, max_waiting=bounds.waiting)
        self._writers = ThreadPoolExecutor(1, "jieyue-prompts")  # templates and tokenizing, away from the event loop

    async def talk(self, asked: Asked) -> Talk:
        """Puts the request into the batch. ``Refusal`` for what does not fit (413) and when too many wait (429).

        Room is taken before the prompt is written, so that no more than the bound are ever being written.
        """
        most = min(asked.max_tokens or self.reply_tokens, self.context - 1)
        heard: asyncio.Queue[tuple[int, Said]] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        try:
            with self.batcher.place(asked.client, asked.num_choices):
                ids, num_dropped = await loop.run_in_executor(self._writers, self._prompt, asked, self.context - most)
                jobs = [self._job(asked, number, ids, most, heard, loop) for number in range(asked.num_choices)]
                self.batcher.submit(*jobs, is_placed=True)
        except Full as full:
            raise Refusal(429, f"busy: {full}; try again in a moment", code="queue_full") from full
        return Talk(jobs, heard, len(ids), num_dropped)

    def stop(self) -> None:
        """Lets the replies in the making end."""
        self.batcher.stop()
        self._writers.shutdown(wait=False, cancel_futures=True)

    def abandon(self) -> None:
        """Lets go of the replies in the making."""
        self.batcher.abandon()

    def decode(self, ids: Sequence[int]) -> str:
        """Text as the model says it, without its special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def token_text(self, token: int) -> str:
        """One token as text, special ones by their names."""
        return str(self.tokenizer.decode([token], skip_special_tokens=False))

    def _job(
        self,
        asked: Asked,
        number: int,
        ids: list[int],
        most: int,
        heard: asyncio.Queue[tuple[int, Said]],
        loop: asyncio.AbstractEventLoop,
    ) -> Job:
        def tell(said: Said) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(heard.put_nowait, (number, said))

        seed = asked.sampling.seed
        sampling = asked.sampling if seed is None else replace(asked.sampling, seed=_wrapped(seed + number))
        is_continued = not asked.messages or asked.messages[-1].role == "assistant"
        reply = Reply(
            sampling,
            ids,
            ends=self.ends,
            decode=self.decode,
            max_tokens=most,
            stop=asked.stop,
            num_before=min(_SEEN, len(ids)) if is_continued else 0,
            num_likeliest=asked.num_logprobs,
        )
        return Job(ids, reply, tell, asked.client)

    def _prompt(self, asked: Asked, room: int) -> tuple[list[int], int]:
        try:
            if asked.messages:
                is_continued = asked.messages[-1].role == "assistant"
                fitted = fit_history(self.tokenizer, asked.messages, room, continued=is_continued)
                return fitted.ids.tolist(), fitted.num_dropped
        except TooLong as error:
            raise Refusal(413, str(error), param="messages", code="context_length_exceeded") from error
        except InputError as error:
            raise Refusal(400, str(error), param="messages") from error
        ids = [int(one) for one in self.tokenizer(asked.prompt, verbose=False)["input_ids"]]
        if 1 <= len(ids) <= room:
            return ids, 0
        found = f"the prompt has {len(ids)} tokens, expected at most {room}"
        raise Refusal(413, found, param="prompt", code="context_length_exceeded")


def _wrapped(seed: int) -> int:
    return (seed + 2**63) % 2**64 - 2**63
