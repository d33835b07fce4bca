"""What the server holds and waits for, and how it says no: the numbers in one place, and one shape for every error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Bounds", "Refusal"]

_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class Refusal(Exception):
    """An answer with this HTTP status; ``body()`` is the error in OpenAI's shape. ``headers``: more of the answer's."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.headers = {"retry-after": "1"} if status == 429 else {}
        self.headers |= {"www-authenticate": "Bearer"} if status == 401 else {}
        self.headers |= headers or {}

    def body(self) -> dict[str, Mapping[str, str | None]]:
        """``{"error": {"message", "type", "param", "code"}}``."""
        kind = _KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What one request may ask for, and what the server holds at once. Times in seconds.

    ``rows`` replies are made at once and ``waiting`` requests wait; a client that has none of either may still come in, up
    to a quarter more. ``connections`` at once (fewer where the system allows fewer open files); at the bound the one
    that has been idle longest goes. ``idle_seconds``: from a connection's opening, or from its last answer, until the next
    request's head is there; ``seconds``: until its body is; ``stalled_seconds``: of a client that does not read its answer.
    """

    body_bytes: int = 2**20
    reply_tokens: int = 1024
    messages: int = 2000
    choices: int = 8
    waiting: int = 64
    rows: int = 32
    seconds: float = 30.0
    connections: int = 256
    backlog: int = 32
    idle_seconds: float = 15.0
    stalled_seconds: float = 30.0
