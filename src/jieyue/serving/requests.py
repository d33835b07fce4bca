"""What a request may say, in OpenAI's words, checked; every mistake is answered in OpenAI's error shape.

    {"error": {"message": …, "type": "invalid_request_error", "param": "top_p", "code": null}}

Beyond OpenAI's own: ``top_k``, ``min_p``, ``repetition_penalty``, ``no_repeat_ngram_size``, ``min_tokens``; -1 for ``top_k``
and ``max_tokens`` means no limit. ``max_tokens`` above the bound is clamped, and the answer's header says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue, model_validator

from jieyue.data.history import Message
from jieyue.decoding.sampling import Sampling
from jieyue.errors import InputError

from .bodies import Body, Number, Text, Whole, checked, known_only, parse_body, writable
from .bounds import Bounds, Refusal

__all__ = ["Asked", "Bounds", "ChatBody", "CompletionBody", "Refusal", "parse_body", "parse_chat", "parse_completion"]

HARMLESS = frozenset(
    {  # about the client, or with one value only here
        *("metadata", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "store", "service_tier"),
        *("parallel_tool_calls", "verbosity", "reasoning_effort"),
    }
)
NOTHING: dict[str, tuple[JsonValue, ...]] = {  # offered by others, let through only where it asks for nothing
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "echo": (False,),
    "suffix": ("",),
    "best_of": (1,),
}
_SILENT: dict[str, tuple[JsonValue, ...]] = {  # the same, in a message
    "tool_calls": ([],),
    "annotations": ([],),
    "reasoning_content": ("",),
    "reasoning": ("",),
}
_FROM_CONFIG = {  # transformers' generation_config: its names -> ours; its others have no effect here
    "max_new_tokens": "max_tokens",
    **{n: n for n in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "no_repeat_ngram_size")},
}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A checked request. ``messages`` of a chat or ``prompt`` of a completion.

    ``num_logprobs``: None = none are told, else how many likeliest tokens beside each; ``headers``: what was ignored or
    clamped, for the answer.
    """

    model: str | None
    sampling: Sampling
    max_tokens: int | None
    num_choices: int = 1
    stream: bool = False
    with_usage: bool = False
    stop: tuple[str, ...] = ()
    messages: tuple[Message, ...] = ()
    prompt: str = ""
    num_logprobs: int | None = None
    client: str = ""
    headers: tuple[tuple[str, str], ...] = ()


def _parts(value: JsonValue) -> JsonValue:
    """The text of a message's content: as it is, or its parts of text one under the other; nothing is empty text."""
    if isinstance(value, list):
        texts = [
            part.get("text") for part in value if isinstance(part, dict) and part.get("type") in ("text", "refusal")
        ]
        if len(texts) < len(value) or not all(isinstance(text, str) for text in texts):
            raise ValueError("text; its parts are not text alone")
        return "\n".join(str(text) for text in texts)
    return "" if value is None else value


class MessageBody(Body):
    """A message: its content is text, or a list of parts of text; the assistant's may be empty."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_parts), AfterValidator(writable)] = ""
    name: str | None = None
    refusal: Annotated[str, AfterValidator(writable)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _own_names(cls, body: JsonValue) -> JsonValue:
        if not isinstance(body, dict):
            raise ValueError("an object with 'role' and 'content'")
        return known_only(body, set(cls.model_fields), nothing=_SILENT)[0]


class StreamOptions(Body):
    """What a stream tells besides the text."""

    include_usage: bool = False
    include_obfuscation: bool = False


def _listed(value: JsonValue) -> JsonValue:
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or len(value) > 4:
        raise ValueError("a text or a list of at most 4")
    return value


class _Wanted(Body):
    """What both kinds of completion may ask for."""

    model: str | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    top_k: Annotated[Whole, Field(ge=-1, le=10**6)] | None = None
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[Number, Field(ge=0.01, le=100)] | None = None
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    no_repeat_ngram_size: Annotated[Whole, Field(ge=0, le=100)] | None = None
    min_tokens: Annotated[Whole, Field(ge=0, le=10**6)] | None = None
    seed: Annotated[Whole, Field(ge=-(2**63), lt=2**63)] | None = None
    max_tokens: Annotated[Whole, Field(ge=-1)] | None = None
    n: Annotated[Whole, Field(ge=1)] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    stop: Annotated[list[Text], BeforeValidator(_listed)] = Field(default_factory=list)
    user: str | None = None

    def sampling(self) -> Sampling:
        """How tokens are chosen; a ``top_p`` of 0 is what OpenAI's clients call the likeliest only."""
        names = ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "min_tokens", "seed"]
        names += ["frequency_penalty", "presence_penalty"]
        given = {name: getattr(self, name) for name in names} | {"no_repeat_ngram": self.no_repeat_ngram_size}
        given = {name: value for name, value in given.items() if value is not None}
        given |= {"top_k": 0} if self.top_k == -1 else {}
        given |= {"top_p": 1.0, "temperature": 0.0} if self.top_p == 0 else {}
        try:
            return Sampling(**given)
        except InputError as error:
            raise Refusal(400, str(error)) from error


class ChatBody(_Wanted):
    """The body of a request to /v1/chat/completions."""

    messages: Annotated[list[MessageBody], Field(min_length=1)]
    max_completion_tokens: Annotated[Whole, Field(ge=-1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[Whole, Field(ge=0, le=20)] | None = None


class CompletionBody(_Wanted):
    """The body of a request to /v1/completions."""

    prompt: Annotated[
        Text, BeforeValidator(lambda value: value[0] if isinstance(value, list) and len(value) == 1 else value)
    ]
    logprobs: Annotated[Whole, Field(ge=0, le=5)] | None = None


def parse_chat(body: Mapping[str, JsonValue], bounds: Bounds) -> Asked:
    """A request to /v1/chat/completions."""
    body, ignored = _configured(body)
    kept, more = known_only(body, set(ChatBody.model_fields), HARMLESS, NOTHING)
    listed = kept.get("messages")
    if isinstance(listed, list) and len(listed) > bounds.messages:
        raise Refusal(413, f"{len(listed)} messages, expected at most {bounds.messages}", param="messages")
    wanted = checked(ChatBody, kept)
    if wanted.top_logprobs is not None and not wanted.logprobs:
        raise Refusal(400, "'top_logprobs' without 'logprobs': true", param="top_logprobs")
    most = wanted.max_tokens if wanted.max_completion_tokens is None else wanted.max_completion_tokens
    return _asked(
        wanted,
        bounds,
        (*ignored, *more),
        most,
        messages=_messages(wanted.messages),
        num_logprobs=(wanted.top_logprobs or 0) if wanted.logprobs else None,
    )


def parse_completion(body: Mapping[str, JsonValue], bounds: Bounds) -> Asked:
    """A request to /v1/completions."""
    kept, ignored = known_only(body, set(CompletionBody.model_fields), HARMLESS, NOTHING)
    if kept.get("logprobs") is False:
        del kept["logprobs"]
    wanted = checked(CompletionBody, kept)
    return _asked(wanted, bounds, ignored, wanted.max_tokens, prompt=wanted.prompt, num_logprobs=wanted.logprobs)


def _asked(
    wanted: _Wanted,
    bounds: Bounds,
    ignored: tuple[str, ...],
    most: int | None,
    *,
    num_logprobs: int | None,
    messages: tuple[Message, ...] = (),
    prompt: str = "",
) -> Asked:
    if wanted.stream_options is not None and not wanted.stream:
        raise Refusal(400, "'stream_options' without 'stream': true", param="stream_options")
    if wanted.n > bounds.choices:
        raise Refusal(400, f"'n' is {wanted.n}, expected from 1 to {bounds.choices}", param="n")
    if most == 0:
        raise Refusal(400, "'max_tokens' is 0, expected at least 1, or -1 for no limit", param="max_tokens")
    headers = [("x-jieyue-ignored", ", ".join(ignored[:20]))] if ignored else []
    if most is not None and most > bounds.reply_tokens:
        most = bounds.reply_tokens
        headers.append(("x-jieyue-clamped", f"max_tokens={most}"))
    return Asked(
        model=wanted.model,
        sampling=wanted.sampling(),
        max_tokens=bounds.reply_tokens if most == -1 else most,
        num_choices=wanted.n,
        stream=wanted.stream,
        with_usage=wanted.stream_options is not None and wanted.stream_options.include_usage,
        stop=tuple(wanted.stop),
        messages=messages,
        prompt=prompt,
        num_logprobs=num_logprobs,
        client=wanted.user or "",
        headers=tuple(headers),
    )


def _messages(listed: list[MessageBody]) -> tuple[Message, ...]:
    """The talk. What several system messages say at the beginning becomes one; an empty last one of the assistant's is none."""
    made = []
    for number, one in enumerate(listed):
        role = "system" if one.role == "developer" else one.role
        if role != "assistant" and not one.content.strip():
            place = f"messages[{number}].content"
            raise Refusal(400, f"'{place}' is empty text, expected text", param=place)
        made.append(Message(role, one.content or (one.refusal or "")))
    first = [one.text for one in takewhile(lambda one: one.role == "system", made)]
    made[: len(first)] = [Message("system", "\n\n".join(first))] if first else []
    if made[-1].role == "assistant" and not made[-1].text.strip():
        made.pop()
    if not made or made[-1].role == "system":
        place = f"messages[{len(listed) - 1}]"
        said = "nothing is said" if not made else "the last message is the system's"
        raise Refusal(400, f"{said}, expected one of the user's, or one of the assistant's to go on from", param=place)
    return tuple(made)


def _configured(body: Mapping[str, JsonValue]) -> tuple[Mapping[str, JsonValue], tuple[str, ...]]:
    """The body with what ``transformers chat`` puts into ``generation_config`` in its place, and the names ignored there."""
    text = body.get("generation_config")
    if text is None:
        return body, ()
    try:
        config = json.loads(text) if isinstance(text, str) else text
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        place = "generation_config"
        raise Refusal(400, f"'{place}' is not what transformers writes, expected a JSON object as text", param=place)
    given = {_FROM_CONFIG[name]: value for name, value in config.items() if name in _FROM_CONFIG}
    if config.get("do_sample") is False:
        given["temperature"] = 0.0
    ignored = tuple(f"generation_config.{name[:40]}" for name in config if name not in {*_FROM_CONFIG, "do_sample"})
    rest = {name: value for name, value in body.items() if name != "generation_config"}
    return given | rest, tuple(name for name in ignored if name.isascii() and name.isprintable())
