"""A talk with a trained model, turn by turn: what was said is remembered as the model's state, not read again.

talk = Conversation(*load(folder, "causal-lm"))
for piece in talk.say("你好"): ...
"""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from jieyue.data.history import Message, fit_history
from jieyue.decoding.reply import Reply
from jieyue.decoding.rerank import rerank
from jieyue.decoding.sampling import Sampling
from jieyue.decoding.slots import positions_of
from jieyue.errors import InputError, check_least
from jieyue.hf.batched_decoding import DecodingRows, KeptStates, Stepper
from jieyue.hf.types import Tokenizer
from jieyue.report import write_whole
from jieyue.tasks.chat.replies import ends_of, log_probability
from jieyue.tasks.chat.settings import ChatSettings

__all__ = ["Conversation"]

CONTEXT = 4096


class Conversation:
    """``messages``: what was said. ``context``: tokens of talk and reply; more lose whole oldest turns (``num_dropped``).

    ``candidates`` > 1: so many replies are drawn, and the one told whose mutual information with the last turn is highest
    (decoding/rerank.py); they cannot be streamed. ``num_tokens`` and ``seconds``: of the last reply; ``num_read``: tokens
    of the talk that had to be read for it.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        sampling: Sampling = Sampling(),
        *,
        reply_tokens: int = 128,
        context: int | None = None,
        candidates: int = 1,
    ) -> None:
        check_least(1, candidates=candidates, reply_tokens=reply_tokens)
        check_least(2, context=context)
        self.model, self.tokenizer, self.sampling, self.candidates = model, tokenizer, sampling, candidates
        self.context = min(positions_of(model) or CONTEXT, context or CONTEXT)
        self.reply_tokens = min(reply_tokens, max(1, self.context // 2))
        self.messages: list[Message] = []
        self.num_dropped = self.num_tokens = self.num_read = 0
        self.seconds = 0.0
        self._stepper = Stepper(model)
        self._ends = ends_of(model, tokenizer)
        self._known = KeptStates(2**63)

    def say(self, text: str) -> Generator[str, None, None]:
        """The reply to a message, in pieces. Leaving the iteration early ends the reply where it is, and keeps it."""
        self.messages.append(Message("user", text))
        try:
            ids = self._prompt()
        except InputError:
            self.messages.pop()
            raise
        yield from self._reply(ids)

    def retry(self) -> Generator[str, None, None]:
        """Another reply to the last message."""
        if self.messages and self.messages[-1].role == "assistant":
            self.messages.pop()
        if not self.messages:
            raise InputError("retry: found nothing said yet, expected a message to reply to")
        if self.sampling.seed is not None:
            self.sampling = replace(self.sampling, seed=self.sampling.seed + 1)
        yield from self._reply(self._prompt())

    def undo(self) -> bool:
        """Takes back the last message and its reply; False where there is none."""
        while self.messages:
            if self.messages.pop().role == "user":
                return True
        return False

    def clear(self) -> None:
        """Forgets everything that was said."""
        self.messages.clear()
        self._known.clear()

    def save(self, path: str | Path) -> None:
        """The talk as one line of OpenAI-style messages, which ``jieyue train chat --data`` reads; never over another file."""
        if Path(path).exists():
            raise InputError(f"save: {path} exists, expected a new file; name another")
        listed = [{"role": one.role, "content": one.text} for one in self.messages]
        write_whole(Path(path), json.dumps({"messages": listed}, ensure_ascii=False) + "\n")

    def _prompt(self) -> list[int]:
        fitted = fit_history(self.tokenizer, self.messages, self.context - self.reply_tokens)
        self.num_dropped = fitted.num_dropped
        return [int(one) for one in fitted.ids]

    def _reply(self, ids: list[int]) -> Generator[str, None, None]:
        started = time.perf_counter()
        reply = self._new_reply(ids, self.sampling)
        try:
            if self.candidates == 1:
                yield from self._written(ids, reply)
            else:
                reply = self._best(ids)
                yield reply.text
        finally:
            self.seconds, self.num_tokens = time.perf_counter() - started, len(reply.ids)
            if reply.text.strip():
                self.messages.append(Message("assistant", reply.text.strip()))

    def _new_reply(self, ids: list[int], sampling: Sampling) -> Reply:
        def decode(some: Sequence[int]) -> str:
            return str(self.tokenizer.decode(list(some), skip_special_tokens=True))

        return Reply(sampling, ids, ends=self._ends, decode=decode, max_tokens=self.reply_tokens)

    def _written(self, ids: list[int], reply: Reply) -> Generator[str, None, None]:
        """The reply as it comes; the state is kept for the next turn."""
        rows, logits = self._read(ids)
        try:
            while True:
                piece = reply.take(logits[0])
                if piece:
                    yield piece
                if reply.finish:
                    return
                logits = self._stepper.step(rows, [reply.ids[-1]])
        finally:
            self._known.keep([*ids, *reply.ids], rows)

    def _read(self, ids: list[int]) -> tuple[DecodingRows, Tensor]:
        """The state after these tokens: from what is known already, as far as it is their beginning."""
        rows = self._known.take(ids, least=0.0)
        self._known.clear()
        if rows is None:
            self.num_read = len(ids)
            return self._stepper.begin([ids])
        self.num_read = len(ids) - rows.lengths[0]
        return rows, self._stepper.extend(rows, ids[rows.lengths[0] :])

    def _best(self, ids: list[int]) -> Reply:
        """Several replies, and the one that says most about the last turn."""
        drawn = []
        rows, logits = self._stepper.begin([ids] * self.candidates)
        for number in range(self.candidates):
            seed = None if self.sampling.seed is None else self.sampling.seed + number
            drawn.append(self._new_reply(ids, replace(self.sampling, seed=seed)))
        open_rows = list(range(self.candidates))
        while True:
            for row, number in zip(logits, open_rows, strict=True):
                drawn[number].take(row)
            staying = [at for at, number in enumerate(open_rows) if not drawn[number].finish]
            if not staying:
                break
            if len(staying) < len(open_rows):
                rows.keep(staying)
                open_rows = [open_rows[at] for at in staying]
            logits = self._stepper.step(rows, [drawn[number].ids[-1] for number in open_rows])
        said = [one for one in drawn if one.text.strip()] or drawn[:1]
        last = self.messages[-1].text
        forward = [self._log(last, one.text) for one in said]
        backward = [self._log(one.text, last) for one in said]
        return said[rerank(forward, backward)[0]]

    def _log(self, first: str, second: str) -> float:
        """log p(second | first), a token."""
        if not (first.strip() and second.strip()):
            return -1e9
        talk = (Message("user", first), Message("assistant", second))
        settings = ChatSettings(loss_on="replies", max_tokens=self.context)
        loss, _ = log_probability(self.model, self.tokenizer, [talk], settings)
        return -float(loss.mean())
