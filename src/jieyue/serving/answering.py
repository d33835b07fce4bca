"""Models that answer one request at a time: a reader finds a place, a title model writes, a classifier labels, a tagger marks.

POST /v1/read      {"question", "passages": [text, …] or "passage": text}
POST /v1/title     {"text"}
POST /v1/classify  {"texts": [text, …] or "text": text}
POST /v1/tag       {"texts": [text, …] or "text": text}
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

from pydantic import Field, JsonValue, model_validator

from jieyue.errors import InputError

from .bodies import Body, Text, checked, known_only
from .bounds import Bounds, Refusal

__all__ = ["BODIES", "AnsweringModel", "ReadBody", "Reader", "TextsBody", "TitleBody"]

Ask = Callable[[Mapping[str, JsonValue]], Mapping[str, JsonValue]]
MOST = 64  # passages or texts in one request


def _one_or_many(body: JsonValue, one: str, many: str) -> JsonValue:
    if not isinstance(body, dict):
        raise ValueError("an object")
    if (one in body) == (many in body):
        raise Refusal(400, f"expected either '{one}' or '{many}'", param=many)
    rest = {name: value for name, value in body.items() if name != one}
    return rest if many in body else rest | {many: [body[one]]}


class ReadBody(Body):
    """The body of a request to /v1/read."""

    question: Text
    passages: Annotated[list[Text], Field(min_length=1, max_length=MOST)]

    @model_validator(mode="before")
    @classmethod
    def _either(cls, body: JsonValue) -> JsonValue:
        return _one_or_many(body, "passage", "passages")


class TitleBody(Body):
    """The body of a request to /v1/title."""

    text: Text


class TextsBody(Body):
    """The body of a request to /v1/classify or /v1/tag."""

    texts: Annotated[list[Text], Field(min_length=1, max_length=MOST)]

    @model_validator(mode="before")
    @classmethod
    def _either(cls, body: JsonValue) -> JsonValue:
        return _one_or_many(body, "text", "texts")


BODIES: dict[str, tuple[type[Body], frozenset[str]]] = {  # kind -> its body, and the names that may stand in it
    "read": (ReadBody, frozenset({"question", "passage", "passages"})),
    "title": (TitleBody, frozenset({"text"})),
    "classify": (TextsBody, frozenset({"text", "texts"})),
    "tag": (TextsBody, frozenset({"text", "texts"})),
}


class AnsweringModel:
    """``ask(body)`` gives the answer to a checked body; calls are one after another, ``bounds.waiting`` may wait.

    ``kind``: one of ``BODIES``.
    """

    def __init__(self, name: str, kind: str, ask: Ask, bounds: Bounds) -> None:
        self.name, self.kind, self.bounds = name, kind, bounds
        self._ask = ask
        self._worker = ThreadPoolExecutor(1, f"jieyue-{kind}")
        self._waiting = 0

    async def answer(self, body: Mapping[str, JsonValue]) -> tuple[dict[str, JsonValue], tuple[str, ...]]:
        """The answer to a request's body and the names in it that were ignored, or ``Refusal``."""
        model, names = BODIES[self.kind]
        kept, ignored = known_only(body, set(names))
        asked = checked(model, kept).model_dump()
        if self._waiting >= self.bounds.waiting:
            raise Refusal(429, f"busy: {self._waiting} requests wait already; try again in a moment", code="queue_full")
        self._waiting += 1
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._worker, self._ask, asked)
        except InputError as error:
            raise Refusal(400, str(error)) from error
        finally:
            self._waiting -= 1
        return {**found, "model": self.name}, ignored

    def stop(self) -> None:
        """Lets the answer in the making end."""
        self._worker.shutdown(wait=True, cancel_futures=True)

    def abandon(self) -> None:
        """Lets those who wait go."""
        self._worker.shutdown(wait=False, cancel_futures=True)


Reader = AnsweringModel
