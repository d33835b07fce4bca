"""OpenAI's answers: chat and text completions, whole or as server-sent events, and the list of models."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Any

from .requests import Asked, Refusal
from .talkers import Talk

__all__ = ["Completion", "event", "model_list"]


@dataclass(frozen=True)
class Completion:
    """The answer to one request, in the shape of a chat or of a text completion."""

    asked: Asked
    talk: Talk
    model: str
    id: str
    created: int

    @classmethod
    def of(cls, asked: Asked, talk: Talk, model: str) -> Completion:
        kind = "chatcmpl" if asked.messages else "cmpl"
        return cls(asked, talk, model, f"{kind}-{secrets.token_hex(12)}", int(time.time()))

    async def whole(self) -> dict[str, Any]:
        """The answer when all choices have ended; leaving early cancels them."""
        texts, ends = [""] * len(self.talk.jobs), ["stop"] * len(self.talk.jobs)
        async for number, said in self.talk.pieces():
            if said.finish == "error":
                raise Refusal(503, "the reply could not be finished; try again", code="unfinished")
            texts[number] += said.text
            ends[number] = said.finish or ends[number]
        choices = [
            self._choice(n, text, end, whole=True) for n, (text, end) in enumerate(zip(texts, ends, strict=True))
        ]
        return self._frame(choices, whole=True) | {"usage": self._usage()}

    async def events(self) -> AsyncIterator[bytes]:
        """The answer as it comes; ends with ``[DONE]``. Closing the iterator cancels what is not finished."""
        extra = {"usage": None} if self.asked.with_usage else {}
        begun: set[int] = set()
        async for number, said in self.talk.pieces():
            if number not in begun and self.asked.messages:
                begun.add(number)
                first = {"index": number, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
                yield event(self._frame([first]) | extra)
            if said.finish == "error":
                yield event(Refusal(503, "the reply could not be finished; try again", code="unfinished").body())
                return
            if said.text:
                yield event(self._frame([self._choice(number, said.text, None)]) | extra)
            if said.finish:
                yield event(self._frame([self._choice(number, "", said.finish)]) | extra)
        if self.asked.with_usage:
            yield event(self._frame([]) | {"usage": self._usage()})
        yield b"data: [DONE]\n\n"

    def _choice(self, number: int, text: str, finish: str | None, whole: bool = False) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": number, "finish_reason": finish, "logprobs": None}
        if not self.asked.messages:
            return choice | {"text": text}
        if whole:
            return choice | {"message": {"role": "assistant", "content": text, "refusal": None}}
        return choice | {"delta": {"content": text} if text else {}}

    def _frame(self, choices: list[dict[str, Any]], whole: bool = False) -> dict[str, Any]:
        kind = "text_completion"
        if self.asked.messages:
            kind = "chat.completion" if whole else "chat.completion.chunk"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}

    def _usage(self) -> dict[str, Any]:
        prompt, reply = self.talk.num_prompt_tokens, self.talk.num_reply_tokens
        usage = {"prompt_tokens": prompt, "completion_tokens": reply, "total_tokens": prompt + reply}
        return usage | {"dropped_turns": self.talk.num_dropped}


def event(value: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def model_list(names: Iterable[tuple[str, str]], started: int) -> dict[str, Any]:
    """(name, kind) of what is served, as OpenAI lists models."""
    rows = [{"id": n, "object": "model", "created": started, "owned_by": "jieyue", "kind": k} for n, k in names]
    return {"object": "list", "data": rows}
