"""What a request may say, in OpenAI's words: parsed, checked, and every mistake answered in OpenAI's error shape.

    {"error": {"message": …, "type": "invalid_request_error", "param": "top_p", "code": null}}

Beyond OpenAI's own: ``top_k``, ``min_p``, ``repetition_penalty``, ``no_repeat_ngram_size``, ``min_tokens``. What is known but not
offered (tools, logprobs, penalties …) is refused unless it asks for nothing; unknown arguments are refused as OpenAI does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jieyue.data.history import ROLES, Message
from jieyue.decoding.sampling import Sampling
from jieyue.errors import InputError

__all__ = ["Asked", "Bounds", "Refusal", "parse_body", "parse_chat", "parse_completion", "text_of"]


class Refusal(Exception):
    """An answer with this status; ``body()`` is the error in OpenAI's shape."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def body(self) -> dict[str, Any]:
        kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error", 503: "server_error"}
        kind = kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What one request may ask for, and what the server holds at once."""

    body_bytes: int = 2**20
    reply_tokens: int = 1024
    messages: int = 2000
    choices: int = 8
    waiting: int = 64
    rows: int = 32
    seconds: float = 30.0  # for a request to arrive in full


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A checked request. ``messages`` of a chat or ``prompt`` of a completion."""

    model: str | None
    sampling: Sampling
    max_tokens: int | None
    num_choices: int = 1
    stream: bool = False
    with_usage: bool = False
    stop: tuple[str, ...] = ()
    messages: tuple[Message, ...] = ()
    prompt: str = ""


_SHARED = {"model", "temperature", "top_p", "n", "stream", "stream_options", "stop", "max_tokens", "seed", "top_k"}
_SHARED |= {"min_p", "repetition_penalty", "no_repeat_ngram_size", "min_tokens", "user", "metadata"}
_SHARED |= {"safety_identifier", "prompt_cache_key"}  # about the client, of no effect here
_NOTHING: dict[str, tuple[Any, ...]] = {  # offered by others, accepted only where it asks for nothing
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "logit_bias": (None, {}),
    "logprobs": (None, False, 0),
    "top_logprobs": (None, 0),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "parallel_tool_calls": (None, True, False),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
    "echo": (None, False),
    "suffix": (None, ""),
    "best_of": (None, 1),
    "reasoning_effort": (None,),
}


def parse_body(raw: bytes) -> dict[str, Any]:
    """A JSON object of a request, or ``Refusal`` 400."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refusal(400, f"the body is not UTF-8 (byte {error.start}); expected JSON in UTF-8") from error
    try:
        body = json.loads(text, parse_constant=_no_constant)
    except RecursionError as error:
        raise Refusal(400, "the body is nested too deeply") from error
    except ValueError as error:
        raise Refusal(400, f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise Refusal(400, f"the body is {_kind(body)}, expected a JSON object")
    return body


def parse_chat(body: Mapping[str, Any], bounds: Bounds) -> Asked:
    """A request to /v1/chat/completions."""
    _known(body, _SHARED | {"messages", "max_completion_tokens"})
    listed = body.get("messages")
    if not isinstance(listed, list) or not listed:
        raise Refusal(400, f"'messages' is {_kind(listed)}, expected a list of messages", param="messages")
    if len(listed) > bounds.messages:
        raise Refusal(413, f"{len(listed)} messages, expected at most {bounds.messages}", param="messages")
    messages = tuple(_message(one, f"messages[{number}]") for number, one in enumerate(listed))
    if messages[-1].role != "user":
        raise Refusal(
            400,
            f"the last message is the {messages[-1].role}'s, expected the user's",
            param=f"messages[{len(messages) - 1}]",
        )
    if any(one.role == "system" for one in messages[1:]):
        raise Refusal(400, "a system message in the middle, expected it first or not at all", param="messages")
    return _asked(body, bounds, messages=messages)


def parse_completion(body: Mapping[str, Any], bounds: Bounds) -> Asked:
    """A request to /v1/completions."""
    _known(body, _SHARED | {"prompt"})
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    return _asked(body, bounds, prompt=text_of({"prompt": prompt}, "prompt"))


def text_of(body: Mapping[str, Any], name: str) -> str:
    """A text argument that is not empty."""
    value = body.get(name)
    if not isinstance(value, str) or not value.strip():
        raise Refusal(400, f"{name!r} is {_kind(value)}, expected text that is not empty", param=name)
    return _writable(value, name)


def _asked(body: Mapping[str, Any], bounds: Bounds, **content: Any) -> Asked:
    stop = body.get("stop")
    words = [stop] if isinstance(stop, str) else [] if stop is None else stop
    if not isinstance(words, list) or len(words) > 4 or not all(isinstance(w, str) and w for w in words):
        raise Refusal(400, "'stop' is not a text or a list of at most 4", param="stop")
    options = body.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise Refusal(400, f"'stream_options' is {_kind(options)}, expected an object", param="stream_options")
    stream = _flag(body, "stream")
    if options is not None and not stream:
        raise Refusal(400, "'stream_options' without 'stream': true", param="stream_options")
    most = [_number(body, name, 1, bounds.reply_tokens, whole=True) for name in ("max_completion_tokens", "max_tokens")]
    model = body.get("model")
    if model is not None and not isinstance(model, str):
        raise Refusal(400, f"'model' is {_kind(model)}, expected text", param="model")
    return Asked(
        model=model,
        sampling=_sampling(body),
        max_tokens=next((one for one in most if one is not None), None),
        num_choices=_number(body, "n", 1, bounds.choices, whole=True) or 1,
        stream=stream,
        with_usage=bool(options) and _flag(options or {}, "include_usage"),
        stop=tuple(_writable(word, "stop") for word in words),
        **content,
    )


def _sampling(body: Mapping[str, Any]) -> Sampling:
    given = {
        "temperature": _number(body, "temperature", 0, 2),
        "top_p": _number(body, "top_p", 0, 1),
        "top_k": _number(body, "top_k", 0, 10**6, whole=True),
        "min_p": _number(body, "min_p", 0, 1),
        "repetition_penalty": _number(body, "repetition_penalty", 0.01, 100),
        "no_repeat_ngram": _number(body, "no_repeat_ngram_size", 0, 100, whole=True),
        "min_tokens": _number(body, "min_tokens", 0, 10**6, whole=True),
        "seed": _number(body, "seed", -(2**63), 2**63 - 1, whole=True),
    }
    given = {name: value for name, value in given.items() if value is not None}
    if given.get("top_p") == 0:  # OpenAI's clients mean: the likeliest only
        given |= {"top_p": 1.0, "temperature": 0.0}
    try:
        return Sampling(**given)
    except InputError as error:
        raise Refusal(400, str(error)) from error


def _message(one: Any, place: str) -> Message:
    if not isinstance(one, dict):
        raise Refusal(400, f"{place} is {_kind(one)}, expected an object with 'role' and 'content'", param=place)
    role = one.get("role")
    role = "system" if role == "developer" else role
    if role not in ROLES:
        found = repr(role)[:60] if isinstance(role, str) else _kind(role)
        raise Refusal(400, f"{place}.role is {found}, expected one of {', '.join(ROLES)}", param=f"{place}.role")
    content = one.get("content")
    if isinstance(content, list):
        if not content or not all(isinstance(p, dict) and p.get("type") == "text" for p in content):
            raise Refusal(400, f"{place}.content has parts that are not text", param=f"{place}.content")
        content = "\n".join(text_of(part, "text") for part in content)
    if not isinstance(content, str) or not content.strip():
        raise Refusal(400, f"{place}.content is {_kind(content)}, expected text", param=f"{place}.content")
    return Message(role, _writable(content, f"{place}.content"))


def _known(body: Mapping[str, Any], names: set[str]) -> None:
    for name, value in body.items():
        if name in names:
            continue
        shown = name.encode("utf-8", "replace").decode()[:60]
        if name not in _NOTHING:
            raise Refusal(
                400, f"Unrecognized request argument supplied: {shown}", param=shown, code="unknown_parameter"
            )
        if not any(
            value is nothing or (type(value) is type(nothing) and value == nothing) for nothing in _NOTHING[name]
        ) and not (isinstance(value, float) and value == 0 and 0 in _NOTHING[name]):
            raise Refusal(400, f"'{shown}' is not offered by this server", param=shown, code="unsupported_parameter")


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise Refusal(400, f"'{name}' is {_kind(value)}, expected true or false", param=name)
    return bool(value)


def _number(body: Mapping[str, Any], name: str, low: float, high: float, *, whole: bool = False) -> Any:
    """The number of that name, or None where there is none."""
    value = body.get(name)
    if value is None:
        return None
    wanted = "a whole number" if whole else "a number"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refusal(400, f"'{name}' is {_kind(value)}, expected {wanted}", param=name)
    if not low <= value <= high:  # also what is no number or infinite
        raise Refusal(400, f"'{name}' is out of range, expected {wanted} from {low:g} to {high:g}", param=name)
    if whole and value != int(value):
        raise Refusal(400, f"'{name}' is {value}, expected {wanted}", param=name)
    return int(value) if whole else float(value)


def _writable(text: str, name: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Refusal(400, f"'{name}' has half of a surrogate pair, expected whole characters", param=name) from error
    return text


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", bool: "true or false", type(None): "missing"}
    if isinstance(value, str):
        return "text" if value.strip() else "empty text"
    return names.get(type(value), "a number") + (" that is empty" if value == [] else "")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")
