"""OpenAI's answers: chat and text completions, whole or as server-sent events, and the list of models."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from jieyue.decoding.reply import Chance

from .batching import Said
from .bounds import Refusal
from .chat_model import ChatModel, Talk
from .requests import Asked

__all__ = ["Completion", "event", "model_list"]

Object = dict[str, JsonValue]


@dataclass(frozen=True)
class Completion:
    """The answer to one request, in the shape of a chat or of a text completion."""

    asked: Asked
    talk: Talk
    model: ChatModel
    id: str
    created: int

    @classmethod
    def of(cls, asked: Asked, talk: Talk, model: ChatModel) -> Completion:
        kind = "chatcmpl" if asked.messages else "cmpl"
        return cls(asked, talk, model, f"{kind}-{secrets.token_hex(12)}", int(time.time()))

    async def whole(self) -> Object:
        """The answer when all choices have ended; leaving early cancels them."""
        said: list[list[Said]] = [[] for _ in self.talk.jobs]
        async for number, piece in self.talk.pieces():
            if piece.finish == "error":
                raise Refusal(503, "the reply could not be finished; try again", code="unfinished")
            said[number].append(piece)
        choices: list[JsonValue] = []
        for number, pieces in enumerate(said):
            chances = tuple(chance for piece in pieces for chance in piece.chances)
            joined = Said("".join(piece.text for piece in pieces), pieces[-1].finish, chances)
            choices.append(self._choice(number, joined, whole=True))
        return self._frame(choices, whole=True) | {"usage": self._usage()}

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The answer as it comes; ends with ``[DONE]``. Closing the iterator cancels what is not finished."""
        extra: Object = {"usage": None} if self.asked.with_usage else {}
        begun: set[int] = set()
        offsets = [0] * len(self.talk.jobs)
        async for number, said in self.talk.pieces():
            if number not in begun and self.asked.messages:
                begun.add(number)
                first: Object = {"index": number, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
                yield event(self._frame([first]) | extra)
            if said.finish == "error":
                yield event(Refusal(503, "the reply could not be finished; try again", code="unfinished").body())
                return
            if said.text or said.chances:
                piece = Said(said.text, None, said.chances)
                yield event(self._frame([self._choice(number, piece, offset=offsets[number])]) | extra)
                offsets[number] += len(said.text)
            if said.finish:
                yield event(self._frame([self._choice(number, Said("", said.finish))]) | extra)
        if self.asked.with_usage:
            yield event(self._frame([]) | {"usage": self._usage()})
        yield b"data: [DONE]\n\n"

    def _choice(self, number: int, said: Said, whole: bool = False, offset: int = 0) -> Object:
        asks = self.asked.num_logprobs is not None and bool(said.chances or whole)
        choice: Object = {"index": number, "finish_reason": said.finish}
        if not self.asked.messages:
            choice["logprobs"] = self._text_chances(said.chances, offset) if asks else None
            return choice | {"text": said.text}
        choice["logprobs"] = {"content": [self._chance(one) for one in said.chances], "refusal": None} if asks else None
        if whole:
            return choice | {"message": {"role": "assistant", "content": said.text, "refusal": None}}
        return choice | {"delta": {"content": said.text} if said.text else {}}

    def _chance(self, chance: Chance) -> Object:
        likeliest: list[JsonValue] = [self._token(token, value) for token, value in chance.likeliest]
        return self._token(chance.token, chance.log_probability) | {
            "top_logprobs": likeliest[: self.asked.num_logprobs]
        }

    def _token(self, token: int, log_probability: float) -> Object:
        text = self.model.token_text(token)
        whole: list[JsonValue] | None = None if "\ufffd" in text else list(text.encode())  # part of a character
        return {"token": text, "logprob": _told(log_probability), "bytes": whole}

    def _text_chances(self, chances: tuple[Chance, ...], offset: int) -> Object:
        tokens = [self.model.token_text(chance.token) for chance in chances]
        places: list[JsonValue] = []
        for text in tokens:
            places.append(offset)
            offset += len(text)
        return {
            "tokens": [*tokens],
            "token_logprobs": [_told(chance.log_probability) for chance in chances],
            "top_logprobs": [
                {self.model.token_text(token): _told(value) for token, value in chance.likeliest} for chance in chances
            ],
            "text_offset": places,
        }

    def _frame(self, choices: list[JsonValue], whole: bool = False) -> Object:
        kind = "text_completion"
        if self.asked.messages:
            kind = "chat.completion" if whole else "chat.completion.chunk"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model.name, "choices": choices}

    def _usage(self) -> Object:
        prompt, reply = self.talk.num_prompt_tokens, self.talk.num_reply_tokens
        usage: Object = {"prompt_tokens": prompt, "completion_tokens": reply, "total_tokens": prompt + reply}
        return usage | {"dropped_turns": self.talk.num_dropped}


def _told(log_probability: float) -> float:
    """A number that JSON has: what cannot be is OpenAI's -9999."""
    return max(log_probability, -9999.0)


def event(value: Mapping[str, JsonValue] | Mapping[str, Mapping[str, str | None]]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def model_list(names: Iterable[tuple[str, str]], started: int) -> Object:
    """(name, kind) of what is served, as OpenAI lists models."""
    rows: list[JsonValue] = [
        {"id": n, "object": "model", "created": started, "owned_by": "jieyue", "kind": k} for n, k in names
    ]
    return {"object": "list", "data": rows}
