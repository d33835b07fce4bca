"""A talk as tokens: one format for training, chat and server, and whole oldest turns dropped where it grows too long.

The format is the tokenizer's own chat template. Where it has none, ``template_for`` gives one: the article's
``[CLS] u1 [SEP] u2 [SEP] …`` (7718) for tokenizers with [CLS] and [SEP], DialoGPT's ``u1 <eos> u2 <eos> …`` for those with
an end of text. Both know no roles: turns alternate, and a reply is what comes after the last separator.

The tokenizer is passed in; any that transformers loads as a fast one will do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy

from jieyue.errors import InputError, message

__all__ = ["ROLES", "Fitted", "Message", "Talk", "alternate", "encode_talks", "fit_history", "template_for"]

ROLES = ("system", "user", "assistant")
TURNS = "{{- cls_token }}{% for message in messages %}{{ message['content'] | trim }}{{ sep_token }}{% endfor %}"
ENDED = "{% for message in messages %}{{ message['content'] | trim }}{{ eos_token }}{% endfor %}"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: who speaks (one of ``ROLES``) and what."""

    role: str
    text: str


@dataclass(frozen=True, slots=True)
class Talk:
    """A talk as tokens. ``turns[i]``: the tokens that message i adds and a speaker has to say, half-open."""

    ids: numpy.ndarray
    turns: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Fitted:
    """What of a talk fits: ``messages`` kept, its tokens, and how many oldest turns were dropped for it."""

    ids: numpy.ndarray
    messages: tuple[Message, ...]
    num_dropped: int


def alternate(utterances: Iterable[str]) -> tuple[Message, ...]:
    """Utterances of two speakers in turn; the first is the user's.

    >>> [message.role for message in alternate(["你好", "你好呀", "吃了吗"])]
    ['user', 'assistant', 'user']
    """
    return tuple(Message(ROLES[1 + number % 2], text) for number, text in enumerate(utterances))


def template_for(tokenizer: Any) -> str:
    """The tokenizer's chat template, or the one that its special tokens allow (see the module's text)."""
    if tokenizer.chat_template:
        return str(tokenizer.chat_template)
    if tokenizer.cls_token and tokenizer.sep_token:
        return TURNS
    if tokenizer.eos_token:
        return ENDED
    raise InputError(message("the tokenizer", "no chat template, no [CLS] and [SEP], no end of text", "one of them"))


def encode_talks(tokenizer: Any, talks: Sequence[Sequence[Message]]) -> list[Talk]:
    """Whole talks as tokens, many at once. ``InputError`` where the template rewrites earlier turns when later ones come.

    A special token's name inside a text is plain text here, whatever the tokenizer would make of it.
    """
    written = [_written(tokenizer, messages) for messages in talks]
    if not written:
        return []
    if not tokenizer.is_fast:
        raise InputError(message("the tokenizer", "a slow one", "a fast one, which tells where its tokens stand"))
    found = tokenizer(
        [text for text, _ in written], add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    made = []
    for ids, offsets, (_, spans) in zip(found["input_ids"], found["offset_mapping"], written, strict=True):
        begins = numpy.fromiter((start for start, _ in offsets), dtype=numpy.int64, count=len(offsets))
        turns = tuple((int(first), int(stop)) for first, stop in (numpy.searchsorted(begins, span) for span in spans))
        made.append(Talk(numpy.asarray(ids, dtype=numpy.int32), turns))
    return made


def fit_history(tokenizer: Any, messages: Sequence[Message], max_tokens: int, *, reply: bool = True) -> Fitted:
    """The talk within ``max_tokens``: while it is longer, the whole oldest turn is dropped, never a part of one.

    A system message at the beginning stays. ``reply``: the template's opening of the next reply is added, as generation
    needs it. ``InputError`` when not even the newest turn fits, and for a template that refuses what remains.
    """
    kept, first = list(messages), int(bool(messages) and messages[0].role == "system")
    if len(kept) <= first:
        raise InputError(message("the talk", f"{len(kept)} messages, none to reply to", "at least one turn"))
    while True:
        try:
            (talk,) = encode_talks(tokenizer, [kept])
            ids = _with_opening(tokenizer, kept, talk) if reply else talk.ids
        except _Refused as refused:  # such as a template that wants the user to speak first
            if len(kept) == len(messages) or len(kept) <= first + 1:
                raise InputError(f"the chat template refuses the talk: {refused}") from refused
            del kept[first]
            continue
        surplus = len(ids) - max_tokens
        if surplus <= 0:
            return Fitted(ids, tuple(kept), len(messages) - len(kept))
        if len(kept) <= first + 1:
            raise InputError(
                message(
                    "the newest turn", f"{len(ids)} tokens with what frames it", f"at most {max_tokens}", "shorten it"
                )
            )
        borders = [0, *(stop for _, stop in talk.turns)]
        before = borders[first]  # tokens that stay in front
        count = next((n for n in range(1, len(kept) - first) if borders[first + n] - before >= surplus), 0)
        del kept[first : first + (count or len(kept) - first - 1)]


class _Refused(Exception):
    """The template does not allow these messages."""


def _render(tokenizer: Any, messages: Sequence[Message], opening: bool = False) -> str:
    from jinja2.exceptions import TemplateError

    listed = [{"role": one.role, "content": _plain(tokenizer, one.text)} for one in messages]
    template = template_for(tokenizer)
    try:
        text = tokenizer.apply_chat_template(
            listed, chat_template=template, tokenize=False, add_generation_prompt=opening
        )
    except TemplateError as error:
        raise _Refused(str(error)) from error
    return str(text)


def _written(tokenizer: Any, messages: Sequence[Message]) -> tuple[str, list[tuple[int, int]]]:
    """The talk as the template writes it, and the characters of each turn."""
    template = template_for(tokenizer)
    if template in (TURNS, ENDED):  # no need to ask the template for every beginning of the talk
        head, end = (tokenizer.cls_token, tokenizer.sep_token) if template == TURNS else ("", tokenizer.eos_token)
        text, spans = head, []
        for one in messages:
            start = len(text)
            text += _plain(tokenizer, one.text).strip() + end
            spans.append((start, len(text)))
        return text, spans
    whole, spans, before = _render(tokenizer, messages), [], ""
    for number in range(1, len(messages) + 1):
        opened = before
        if messages[number - 1].role == "assistant":
            opened = _render(tokenizer, messages[: number - 1], opening=True) if number > 1 else before
        text = whole if number == len(messages) else _beginning(tokenizer, messages[:number])
        if text is None:
            spans.append((len(before), len(before)))
            continue
        if not text.startswith(opened) or not whole.startswith(text):
            raise InputError(
                message(
                    "the chat template", "one that rewrites earlier turns", "one where a talk only grows at its end"
                )
            )
        spans.append((len(opened), len(text)))
        before = text
    return whole, spans


def _beginning(tokenizer: Any, messages: Sequence[Message]) -> str | None:
    """The beginning of a talk as text; None where the template does not allow it alone (a system message)."""
    try:
        return _render(tokenizer, messages)
    except _Refused:
        if messages[-1].role == "system":
            return None
        raise


def _with_opening(tokenizer: Any, messages: Sequence[Message], talk: Talk) -> numpy.ndarray:
    if template_for(tokenizer) in (TURNS, ENDED):
        return talk.ids
    text = _render(tokenizer, messages, opening=True)
    return numpy.asarray(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=numpy.int32)


def _plain(tokenizer: Any, text: str) -> str:
    """The text with the names of special tokens taken apart: nobody can end a turn from inside one."""
    for name in _names(tuple(tokenizer.all_special_tokens)):
        if name in text:
            text = text.replace(name, f"{name[0]} {name[1:]}")
    return text


@lru_cache(maxsize=16)
def _names(tokens: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted((token for token in tokens if len(token) > 1), key=len, reverse=True))
