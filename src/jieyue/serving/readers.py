"""A reading model that is served: questions about passages, one at a time, answered with a place in the text."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from jieyue.errors import InputError

from .requests import Bounds, Refusal, text_of

__all__ = ["Reader"]

PASSAGES = 64


class Reader:
    """``ask(body)`` gives the answer to a checked body; calls are one after another, ``bounds.waiting`` may wait.

    ``kind``: "read" (``question`` and ``passage`` or ``passages``) or "title" (``text``).
    """

    def __init__(
        self, name: str, kind: str, ask: Callable[[Mapping[str, Any]], Mapping[str, Any]], bounds: Bounds
    ) -> None:
        self.name, self.kind, self.bounds = name, kind, bounds
        self._ask = ask
        self._turn: asyncio.Lock | None = None
        self._waiting = 0

    async def answer(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a request's body, or ``Refusal``."""
        checked = _reading(body) if self.kind == "read" else _titling(body)
        if self._waiting >= self.bounds.waiting:
            raise Refusal(429, f"busy: {self._waiting} requests wait already; try again in a moment", code="queue_full")
        if self._turn is None:
            self._turn = asyncio.Lock()
        self._waiting += 1
        try:
            async with self._turn:
                return dict(await asyncio.to_thread(self._ask, checked)) | {"model": self.name}
        except InputError as error:
            raise Refusal(400, str(error)) from error
        finally:
            self._waiting -= 1

    def stop(self) -> None:
        """Nothing of its own runs between calls."""


def _reading(body: Mapping[str, Any]) -> dict[str, Any]:
    _only(body, {"question", "passage", "passages"})
    if ("passage" in body) == ("passages" in body):
        raise Refusal(400, "expected either 'passage' or 'passages'", param="passages")
    passages = body.get("passages", [body.get("passage")])
    if not isinstance(passages, list) or not 1 <= len(passages) <= PASSAGES:
        raise Refusal(400, f"'passages' is not a list of 1 to {PASSAGES} texts", param="passages")
    return {
        "question": text_of(body, "question"),
        "passages": [text_of({"passages": one}, "passages") for one in passages],
    }


def _titling(body: Mapping[str, Any]) -> dict[str, Any]:
    _only(body, {"text"})
    return {"text": text_of(body, "text")}


def _only(body: Mapping[str, Any], names: set[str]) -> None:
    unknown = sorted(name.encode("utf-8", "replace").decode()[:60] for name in set(body) - names)
    if unknown:
        raise Refusal(
            400, f"Unrecognized request argument supplied: {unknown[0]}", param=unknown[0], code="unknown_parameter"
        )
