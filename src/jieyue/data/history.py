"""A talk as tokens: one format for training, chat and server, and whole oldest turns dropped where it grows too long.

The format is the tokenizer's own chat template. Where it has none, ``template_for`` gives one: the article's
``[CLS] u1 [SEP] u2 [SEP] …`` (7718) for tokenizers with [CLS] and [SEP], DialoGPT's ``u1 <eos> u2 <eos> …`` for those with
an end of text. Both know no roles: turns alternate, and a reply is what comes after the last separator.

The tokenizer is passed in; any that transformers loads as a fast one will do.
"""

from __future__ import annotations

import sys
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from types import FrameType
from typing import TYPE_CHECKING, Any

from jieyue.errors import InputError, message

from .tokenizer import Places, Tokenizer

if TYPE_CHECKING:
    import numpy
    from _typeshed import TraceFunction

__all__ = [
    "ROLES",
    "TOOL",
    "Fitted",
    "Message",
    "Talk",
    "Tokenizer",
    "TooLong",
    "alternate",
    "encode_talks",
    "fit_history",
    "template_for",
]


ROLES = ("system", "user", "assistant")
TOOL = "tool"  # the role of what a tool or function gave: context in data, never learned
TURNS = "{{- cls_token }}{% for message in messages %}{{ message['content'] | trim }}{{ sep_token }}{% endfor %}"
TEMPLATE_SECONDS = 10.0  # a template that is still at it then is stopped
_FEW = 8  # turns up to which every beginning of a talk is written
ENDED = "{% for message in messages %}{{ message['content'] | trim }}{{ eos_token }}{% endfor %}"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: who speaks (one of ``ROLES``, in data ``TOOL`` too) and what. ``learned``: False for what is context only."""

    role: str
    text: str
    learned: bool = True


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


def template_for(tokenizer: Tokenizer) -> str:
    """The tokenizer's chat template, or the one that its special tokens allow (see the module's text)."""
    if tokenizer.chat_template:
        return str(tokenizer.chat_template)
    if tokenizer.cls_token and tokenizer.sep_token:
        return TURNS
    if tokenizer.eos_token:
        return ENDED
    raise InputError(message("the tokenizer", "no chat template, no [CLS] and [SEP], no end of text", "one of them"))


def encode_talks(tokenizer: Tokenizer, talks: Sequence[Sequence[Message]]) -> list[Talk]:
    """Whole talks as tokens, many at once. ``InputError`` where the template rewrites earlier turns when later ones come.

    A special token's name inside a text is plain text here, whatever the tokenizer would make of it.
    """
    import numpy  # not for those who only read who speaks

    written = [_written(tokenizer, messages) for messages in talks]
    if not written:
        return []
    if not tokenizer.is_fast:
        raise InputError(message("the tokenizer", "a slow one", "a fast one, which tells where its tokens stand"))
    options = {"add_special_tokens": False, "return_attention_mask": False, "return_token_type_ids": False}
    found = tokenizer([text for text, _ in written], verbose=False, **options)
    end = {TURNS: tokenizer.sep_token_id, ENDED: tokenizer.eos_token_id}.get(template_for(tokenizer))
    made = []
    for listed, encoding, (_, spans) in zip(found["input_ids"], found.encodings, written, strict=True):
        ids = numpy.asarray(listed, dtype=numpy.int32)
        stops = (numpy.flatnonzero(ids == end) + 1).tolist() if end is not None else []
        if len(stops) == len(spans) > 0:  # every turn ends with the token that nothing else writes
            first = int(template_for(tokenizer) == TURNS)
            turns = tuple(zip([first, *stops[:-1]], stops, strict=True))
        else:
            turns = _turns_by_place(encoding, len(ids), spans)
        made.append(Talk(ids, turns))
    return made


def _turns_by_place(encoding: Places, num_tokens: int, spans: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Spans of characters as spans of the tokens that begin in them.

    Places are asked for one by one: as a list those of all tokens cost as much as the tokens.
    """
    before = {
        place: bisect_left(range(num_tokens), place, key=lambda token: encoding.token_to_chars(token)[0])
        for place in {place for span in spans for place in span}
    }
    return tuple((before[first], before[stop]) for first, stop in spans)


def fit_history(
    tokenizer: Tokenizer, messages: Sequence[Message], max_tokens: int, *, reply: bool = True, continued: bool = False
) -> Fitted:
    """The talk within ``max_tokens``: while it is longer, the whole oldest turn is dropped, never a part of one.

    A system message at the beginning stays. ``reply``: the template's opening of the next reply is added, as generation
    needs it; ``continued``: instead the last message is left open, to be gone on with. ``TooLong`` when not even the newest
    turn fits, ``InputError`` for a template that refuses the talk. Cost: the whole is written once; beyond that what fits, times
    the logarithm of its turns, however long the talk.
    """
    first = int(bool(messages) and messages[0].role == "system")
    count = len(messages) - first
    if count < 1:
        raise InputError(message("the talk", f"{len(messages)} messages, none to reply to", "at least one turn"))
    listed = _listed(tokenizer, messages)

    def newest(turns: int) -> tuple[int, str]:
        """The newest turns as text; fewer where the template refuses so many, such as one that wants the user to begin."""
        for kept in range(turns, 0, -1):
            try:
                return kept, _open_text(tokenizer, [*listed[:first], *listed[first + count - kept :]], reply, continued)
            except _Refused:
                if kept in (1, count):
                    raise
        raise AssertionError("range is not empty")

    import numpy

    def encoded(turns: int) -> tuple[int, numpy.ndarray]:
        kept, text = newest(turns)
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return kept, numpy.asarray(ids, dtype=numpy.int32)

    _, text = newest(count)
    fits, found = 0, None  # turns that are known to fit
    too_many = count + 1  # turns that are known not to
    probe = count if len(text) <= 16 * max_tokens else 1
    while fits < probe < too_many:
        kept, ids = encoded(probe)
        if len(ids) <= max_tokens:
            fits, found = probe, (kept, ids)
        elif probe == 1:
            what = f"{len(ids)} tokens with what frames it"
            raise TooLong(message("the newest turn", what, f"at most {max_tokens}", "shorten it"))
        else:
            too_many = probe
        probe = max(1, (fits + too_many) // 2 if too_many <= count else min(2 * fits, count))
    assert found is not None
    kept, ids = found
    return Fitted(ids, (*messages[:first], *messages[first + count - kept :]), count - kept)


class TooLong(InputError):
    """Not even the newest turn fits."""


class _Refused(InputError):
    """The template does not allow these messages."""

    def __init__(self, why: Exception) -> None:
        super().__init__(f"the chat template refuses the talk: {why}")


Listed = list[dict[str, str]]  # messages as templates get them


def _listed(tokenizer: Tokenizer, messages: Sequence[Message]) -> Listed:
    return [{"role": one.role, "content": _plain(tokenizer, one.text)} for one in messages]


def _render(tokenizer: Tokenizer, listed: Listed, opening: bool = False, continued: bool = False) -> str:
    from jinja2.exceptions import TemplateError

    template = template_for(tokenizer)
    try:
        with _time_limit(TEMPLATE_SECONDS):
            text = tokenizer.apply_chat_template(
                listed,
                chat_template=template,
                tokenize=False,
                add_generation_prompt=opening,
                continue_final_message=continued,
            )
    except (TemplateError, ValueError) as error:  # ValueError: the last message is not in what the template wrote
        raise _Refused(error) from error
    return str(text)


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Stops a template that does not end: looked at with each line that the template's own code runs."""
    from jinja2.exceptions import TemplateRuntimeError

    deadline, before = time.monotonic() + seconds, sys.gettrace()

    def line(frame: FrameType, event: str, argument: Any) -> TraceFunction:
        if time.monotonic() > deadline:
            raise TemplateRuntimeError(f"it did not end within {seconds:g} seconds")
        return line

    def call(frame: FrameType, event: str, argument: Any) -> TraceFunction | None:
        return line if frame.f_code.co_filename == "<template>" else None

    sys.settrace(call)
    try:
        yield
    finally:
        sys.settrace(before)


def _open_text(tokenizer: Tokenizer, listed: Listed, reply: bool, continued: bool) -> str:
    """The talk as text, ready for what is to come: a reply, more of the last message, or nothing."""
    template = template_for(tokenizer)
    if template not in (TURNS, ENDED):
        return _render(tokenizer, listed, opening=reply and not continued, continued=continued)
    text, _ = _plainly_written(tokenizer, listed)
    return text.removesuffix(_ending(tokenizer)) if continued else text


def _ending(tokenizer: Tokenizer) -> str:
    """What ``TURNS`` and ``ENDED`` write behind each turn."""
    return (tokenizer.sep_token if template_for(tokenizer) == TURNS else tokenizer.eos_token) or ""


def _plainly_written(tokenizer: Tokenizer, listed: Listed) -> tuple[str, list[tuple[int, int]]]:
    """What ``TURNS`` and ``ENDED`` write, without asking the template."""
    text = (tokenizer.cls_token or "") if template_for(tokenizer) == TURNS else ""
    end = _ending(tokenizer)
    parts, spans, start = [text], [], len(text)
    for one in listed:
        parts.append(one["content"].strip() + end)
        spans.append((start, start := start + len(parts[-1])))
    return "".join(parts), spans


def _written(tokenizer: Tokenizer, messages: Sequence[Message]) -> tuple[str, list[tuple[int, int]]]:
    """The talk as the template writes it, and the characters of each turn."""
    listed = _listed(tokenizer, messages)
    if template_for(tokenizer) in (TURNS, ENDED):
        return _plainly_written(tokenizer, listed)
    whole = _render(tokenizer, listed)
    spans = None if len(listed) <= _FEW else _marked_spans(tokenizer, listed, whole)
    return whole, _spans(tokenizer, listed, whole) if spans is None else spans


def _spans(tokenizer: Tokenizer, listed: Listed, whole: str) -> list[tuple[int, int]]:
    """The characters of each turn, by every beginning of the talk: what the template writes for it is where a turn ends."""
    spans, before = [], 0
    for number, one in enumerate(listed, 1):
        opened = before
        if one["role"] == "assistant" and number > 1:
            opened = _length(whole, _render(tokenizer, listed[: number - 1], opening=True))
        text = whole if number == len(listed) else _beginning(tokenizer, listed[:number])
        if text is None:
            spans.append((before, before))
            continue
        before = _length(whole, text)
        if before < opened:
            raise _rewrites()
        spans.append((opened, before))
    return spans


def _marked_spans(tokenizer: Tokenizer, listed: Listed, whole: str) -> list[tuple[int, int]] | None:
    """The same in linear time, or None where this template cannot be read so.

    Marks inside each message show where the template writes it. What stands between two messages ends one turn and opens the
    next; where it does is asked of the template once for each kind of such a border, not once for each border.
    """
    contents = _contents(tokenizer, listed, whole)
    if contents is None:
        return None
    borders: dict[tuple[str, str, str], tuple[int, int]] = {}
    spans, before, opening = [], 0, 0
    for number, (one, (_, stop)) in enumerate(zip(listed, contents, strict=True), 1):
        if number == len(listed):
            spans.append((before + opening, len(whole)))
            break
        after = listed[number]["role"]
        key = (one["role"], after, whole[stop : contents[number][0]])
        if key not in borders:
            text = _beginning(tokenizer, listed[:number])
            if text is None:
                return None
            end = _length(whole, text)
            is_opened = after == "assistant"
            opened = _length(whole, _render(tokenizer, listed[:number], opening=True)) if is_opened else end
            if not stop <= end <= opened <= contents[number][0]:
                return None
            borders[key] = end - stop, opened - end
        spans.append((before + opening, stop + borders[key][0]))
        before, opening = stop + borders[key][0], borders[key][1]
    return spans


def _contents(tokenizer: Tokenizer, listed: Listed, whole: str) -> list[tuple[int, int]] | None:
    """Where the template writes the text of each message, without the spaces around it; None where it writes something else."""
    mark = next((chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in whole), "")
    marked, texts = [], [one["content"].strip() for one in listed]
    if not mark or not all(texts):
        return None
    for one, text in zip(listed, texts, strict=True):
        inside = f"{text[0]}{mark}{text[1:-1]}{mark}{text[-1] if len(text) > 1 else ''}"
        marked.append(one | {"content": one["content"].replace(text, inside, 1)})
    parts = _render(tokenizer, marked).split(mark)
    if "".join(parts) != whole or len(parts) != 2 * len(texts) + 1:
        return None
    found, place = [], 0
    for text, lead, inner in zip(texts, parts[::2], parts[1::2], strict=False):
        start = place + len(lead) - 1
        place += len(lead) + len(inner)
        if whole[start : start + len(text)] != text:
            return None
        found.append((start, start + len(text)))
    return found


def _length(whole: str, beginning: str) -> int:
    if not whole.startswith(beginning):
        raise _rewrites()
    return len(beginning)


def _rewrites() -> InputError:
    found, allowed = "one that rewrites earlier turns", "one where a talk only grows at its end"
    return InputError(message("the chat template", found, allowed))


def _beginning(tokenizer: Tokenizer, listed: Listed) -> str | None:
    """The beginning of a talk as text; None where the template does not allow it alone (a system message)."""
    try:
        return _render(tokenizer, listed)
    except _Refused:
        if listed[-1]["role"] == "system":
            return None
        raise


def _plain(tokenizer: Tokenizer, text: str) -> str:
    """The text with the names of special tokens taken apart: nobody can end a turn from inside one."""
    for name in _names(tuple(tokenizer.all_special_tokens)):
        if name in text:
            text = text.replace(name, f"{name[0]} {name[1:]}")
    return text


@lru_cache(maxsize=16)
def _names(tokens: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted((token for token in tokens if len(token) > 1), key=len, reverse=True))
