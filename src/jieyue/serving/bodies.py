"""JSON bodies as pydantic models: how a text, a number and a whole number are read, and how a mistake is told in one line.

What other servers offer and a client merely mentions does no harm: ``null`` means that a name was not given, and a list of
names without effect here is let through; both are told in the answer's header. Any other unknown name is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, ValidationError

from .bounds import Refusal

__all__ = ["Body", "Number", "Text", "Whole", "checked", "known_only", "parse_body", "writable"]

M = TypeVar("M", bound=BaseModel)


def _number(value: JsonValue) -> JsonValue:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("a number")
    return value


def _whole(value: JsonValue) -> JsonValue:
    if not isinstance(_number(value), float):
        return value
    if not isinstance(value, float) or not value.is_integer():
        raise ValueError("a whole number")
    return int(value)


def _text(value: JsonValue) -> JsonValue:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("text that is not empty")
    return value


def writable(value: str) -> str:
    """The text, where it is one: half of a surrogate pair is not."""
    if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
        raise ValueError("whole characters; it has half of a surrogate pair")
    return value


Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Whole = Annotated[int, BeforeValidator(_whole)]  # 5.0 is 5
Text = Annotated[str, BeforeValidator(_text), AfterValidator(writable)]


class Body(BaseModel):
    """A request's body, or a part of one: no name but its own, nothing converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def parse_body(raw: bytes) -> dict[str, JsonValue]:
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


def known_only(
    body: Mapping[str, JsonValue],
    names: set[str],
    harmless: frozenset[str] = frozenset(),
    nothing: Mapping[str, tuple[JsonValue, ...]] = {},
) -> tuple[dict[str, JsonValue], tuple[str, ...]]:
    """The body's own ``names``, and which others were ignored; ``Refusal`` 400 for those that cannot be.

    Ignored: what is null, what is ``harmless``, and what asks for ``nothing`` (name -> the values that do).
    """
    kept: dict[str, JsonValue] = {}
    ignored: list[str] = []
    for name, value in body.items():
        if name in names:
            if value is not None:
                kept[name] = value
            continue
        shown = _shown_name(name)
        asks_nothing = any(value == one and type(value) is type(one) for one in nothing.get(name, ()))
        if value is None or name in harmless or asks_nothing:
            ignored.append(shown)
        elif name in nothing:
            raise Refusal(400, f"'{shown}' is not offered by this server", param=shown, code="unsupported_parameter")
        else:
            text = f"Unrecognized request argument supplied: {shown}"
            raise Refusal(400, text, param=shown, code="unknown_parameter")
    return kept, tuple(ignored)


def checked(model: type[M], body: Mapping[str, JsonValue]) -> M:
    """The body as that model, or ``Refusal`` 400 that names the place, what was there and what was expected."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        (first, *_) = error.errors(include_url=False, include_context=False)
        place = _place(first["loc"])
        expected = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        if first["type"] == "extra_forbidden":
            text, code = f"Unrecognized request argument supplied: {place}", "unknown_parameter"
        elif first["type"] == "missing":
            text, code = f"'{place}' is missing, expected a value", None
        else:
            text, code = f"'{place}' is {_kind(first['input'])}, expected {expected}", None
        raise Refusal(400, text, param=place or None, code=code) from error


def _place(parts: tuple[int | str, ...]) -> str:
    """``messages[0].content``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{_shown_name(part)}" for part in parts)
    return text.removeprefix(".")


def _shown_name(name: str) -> str:
    """A name from a stranger's body, fit for a message and a header."""
    return re.sub(r"[^\x21-\x7e]", "?", name)[:60].replace(",", "?")


def _kind(value: JsonValue) -> str:
    names = {dict: "an object", list: "a list", bool: "true or false", type(None): "missing"}
    if isinstance(value, str):
        return repr(value[:40].encode("utf-8", "replace").decode()) if value.strip() else "empty text"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value) if abs(value) < 2**63 else "a number that is too large"
    return names.get(type(value), "something else") + (" that is empty" if value == [] else "")


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")
