"""A talk as a chat template writes it, and the characters of each turn: what the template writes for it is where a turn ends.

``Writer(tokenizer)`` asks the tokenizer once for what does not change; ``written`` is linear in the talk, whatever the
template: marks inside each message show where it is written, and what stands between two messages is learned once for each
kind of such a border. The quadratic way, every beginning of the talk, is the definition and the last resort.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

from jieyue.errors import InputError

from .tokenizer import Tokenizer

if TYPE_CHECKING:
    from _typeshed import TraceFunction

__all__ = ["ENDED", "TURNS", "Message", "Refused", "Writer", "template_for"]

TURNS = "{{- cls_token }}{% for message in messages %}{{ message['content'] | trim }}{{ sep_token }}{% endfor %}"
ENDED = "{% for message in messages %}{{ message['content'] | trim }}{{ eos_token }}{% endfor %}"
TEMPLATE_SECONDS = 10.0  # a template that is still at it then is stopped
_FEW = 8  # turns up to which every beginning of a talk is written

Listed = list[dict[str, str]]  # messages as templates get them
Spans = list[tuple[int, int]]


class Message(NamedTuple):
    """One turn: who speaks (a role of ``history``) and what. ``learned``: False for what is context only.

    A tuple, since files have many millions of them, and it is made in a third of a frozen dataclass's time.
    """

    role: str
    text: str
    learned: bool = True


class Refused(InputError):
    """The template does not allow these messages."""

    def __init__(self, why: Exception) -> None:
        super().__init__(f"the chat template refuses the talk: {why}")


def template_for(tokenizer: Tokenizer) -> str:
    """The tokenizer's chat template, or the one that its special tokens allow (see ``data.history``)."""
    if tokenizer.chat_template:
        return str(tokenizer.chat_template)
    if tokenizer.cls_token and tokenizer.sep_token:
        return TURNS
    if tokenizer.eos_token:
        return ENDED
    raise InputError("the tokenizer", "no chat template, no [CLS] and [SEP], no end of text", "one of them")


class Writer:
    """Writes talks by one tokenizer's template. ``end``: the token behind every turn of ``TURNS`` and ``ENDED``, else None."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.template = tokenizer, template_for(tokenizer)
        self.end: int | None = {TURNS: tokenizer.sep_token_id, ENDED: tokenizer.eos_token_id}.get(self.template)
        self._is_plain = self.template in (TURNS, ENDED)
        self._start = (tokenizer.cls_token or "") if self.template == TURNS else ""
        self._ending = (tokenizer.sep_token if self.template == TURNS else tokenizer.eos_token) or ""
        self._special = _names(tuple(tokenizer.all_special_tokens))
        self._borders: dict[tuple[str, str], _Border] = {}  # by the roles around it, "" at both ends

    def listed(self, messages: Sequence[Message]) -> Listed:
        """The messages as the template gets them, no special token's name whole in them."""
        return [{"role": one.role, "content": self.plain(one.text)} for one in messages]

    def plain(self, text: str) -> str:
        """The text with the names of special tokens taken apart: nobody can end a turn from inside one."""
        for name in self._special:
            if name in text:
                text = text.replace(name, f"{name[0]} {name[1:]}")
        return text

    def open_text(self, listed: Listed, reply: bool, continued: bool) -> str:
        """The talk as text, ready for what is to come: a reply, more of the last message, or nothing."""
        if not self._is_plain:
            return self.render(listed, opening=reply and not continued, continued=continued)
        text, _ = self._plainly_written([one["content"] for one in listed])
        return text.removesuffix(self._ending) if continued else text

    def written(self, talks: Sequence[Sequence[Message]]) -> list[tuple[str, Spans]]:
        """Each talk as the template writes it, and the characters of each turn."""
        if self._is_plain:
            return [self._plainly_written([self.plain(one.text) for one in talk]) for talk in talks]
        listed = [self.listed(talk) for talk in talks]
        return [(whole, self._spans_of(own, whole)) for own, whole in zip(listed, self._rendered(listed), strict=True)]

    def render(self, listed: Listed, opening: bool = False, continued: bool = False) -> str:
        """What the template makes of the messages, in at most ``TEMPLATE_SECONDS``; ``Refused`` where it makes nothing."""
        with _time_limit(TEMPLATE_SECONDS), _refusals():
            return str(self._applied(listed, add_generation_prompt=opening, continue_final_message=continued))

    def _applied(self, listed: Listed | list[Listed], **options: bool) -> Any:
        return self.tokenizer.apply_chat_template(listed, chat_template=self.template, tokenize=False, **options)

    def _rendered(self, many: list[Listed]) -> list[str]:
        """Many at once: the first by ``render``, and where that ends the rest unwatched, as watching costs more than writing."""
        first = [self.render(listed) for listed in many[:1]]
        if len(many) < 2:
            return first
        with _refusals():
            return [*first, *map(str, self._applied(many[1:]))]

    def _plainly_written(self, texts: Sequence[str]) -> tuple[str, Spans]:
        """What ``TURNS`` and ``ENDED`` write, without asking the template."""
        parts, spans, start = [self._start], Spans(), len(self._start)
        for text in texts:
            parts.append(part := text.strip() + self._ending)
            spans.append((start, start := start + len(part)))
        return "".join(parts), spans

    def _spans_of(self, listed: Listed, whole: str) -> Spans:
        """The characters of each turn."""
        found = self._known_spans(listed, whole)
        if found is None and len(listed) > _FEW:
            found = self.marked_spans(listed, whole)
        if found is None:
            found = self.spans(listed, whole)
            self._learn(listed, whole, found)
        return found

    def _known_spans(self, listed: Listed, whole: str) -> Spans | None:
        """By the borders of earlier talks, where with them the messages make up the whole to the letter; else None."""
        parts, spans, place, begun, before = list[str](), Spans(), 0, 0, ""
        for one in listed:
            border = self._borders.get((before, one["role"]))
            if border is None:
                return None
            if before:
                spans.append((begun, place + border.end))
                begun = place + border.opened
            parts += (border.text, one["content"].strip())
            place += len(border.text) + len(parts[-1])
            before = one["role"]
        last = self._borders.get((before, ""))
        if last is None or "".join(parts) + last.text != whole:
            return None
        return [*spans, (begun, len(whole))]

    def _learn(self, listed: Listed, whole: str, spans: Spans) -> None:
        """Keeps what stands between the messages of a talk, and where in it a turn ends and the next begins."""
        contents = self._contents(listed, whole)
        if contents is None:
            return
        roles = ["", *(one["role"] for one in listed), ""]
        starts, stops = [0, *(stop for _, stop in contents)], [*(start for start, _ in contents), len(whole)]
        ends, opened = [0, *(stop for _, stop in spans)], [*(start for start, _ in spans), len(whole)]
        for before, after, start, stop, end, begin in zip(roles, roles[1:], starts, stops, ends, opened, strict=False):
            if start <= end <= begin <= stop:
                self._borders[before, after] = _Border(whole[start:stop], end - start, begin - start)

    def spans(self, listed: Listed, whole: str) -> Spans:
        """The characters of each turn, by every beginning of the talk: what the template writes for it is where a turn ends."""
        spans, before = Spans(), 0
        for number, one in enumerate(listed, 1):
            opened = before
            if one["role"] == "assistant" and number > 1:
                opened = _length(whole, self.render(listed[: number - 1], opening=True))
            text = whole if number == len(listed) else self._beginning(listed[:number])
            if text is None:
                spans.append((before, before))
                continue
            before = _length(whole, text)
            if before < opened:
                raise _rewrites()
            spans.append((opened, before))
        return spans

    def marked_spans(self, listed: Listed, whole: str) -> Spans | None:
        """The same in linear time, or None where this template cannot be read so."""
        contents = self._contents(listed, whole)
        if contents is None:
            return None
        borders: dict[tuple[str, str, str], tuple[int, int]] = {}
        spans, before, opening = Spans(), 0, 0
        for number, (one, (_, stop)) in enumerate(zip(listed, contents, strict=True), 1):
            if number == len(listed):
                spans.append((before + opening, len(whole)))
                break
            after = listed[number]["role"]
            key = (one["role"], after, whole[stop : contents[number][0]])
            if key not in borders:
                text = self._beginning(listed[:number])
                if text is None:
                    return None
                end = _length(whole, text)
                is_opened = after == "assistant"
                opened = _length(whole, self.render(listed[:number], opening=True)) if is_opened else end
                if not stop <= end <= opened <= contents[number][0]:
                    return None
                borders[key] = end - stop, opened - end
            spans.append((before + opening, stop + borders[key][0]))
            before, opening = stop + borders[key][0], borders[key][1]
        return spans

    def _contents(self, listed: Listed, whole: str) -> Spans | None:
        """Where the template writes the text of each message, without the spaces around it; None where it writes something else."""
        mark = next((chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in whole), "")
        marked, texts = [], [one["content"].strip() for one in listed]
        if not mark or not all(texts):
            return None
        for one, text in zip(listed, texts, strict=True):
            inside = f"{text[0]}{mark}{text[1:-1]}{mark}{text[-1] if len(text) > 1 else ''}"
            marked.append(one | {"content": one["content"].replace(text, inside, 1)})
        parts = self.render(marked).split(mark)
        if "".join(parts) != whole or len(parts) != 2 * len(texts) + 1:
            return None
        found, place = Spans(), 0
        for text, lead, inner in zip(texts, parts[::2], parts[1::2], strict=False):
            start = place + len(lead) - 1
            place += len(lead) + len(inner)
            if whole[start : start + len(text)] != text:
                return None
            found.append((start, start + len(text)))
        return found

    def _beginning(self, listed: Listed) -> str | None:
        """The beginning of a talk as text; None where the template does not allow it alone (a system message)."""
        try:
            return self.render(listed)
        except Refused:
            if listed[-1]["role"] == "system":
                return None
            raise


@dataclass(frozen=True, slots=True)
class _Border:
    """What a template writes between two messages; in it the earlier turn ends at ``end``, the later one begins at ``opened``."""

    text: str
    end: int
    opened: int


@contextmanager
def _refusals() -> Iterator[None]:
    from jinja2.exceptions import TemplateError

    try:
        yield
    except (TemplateError, ValueError) as error:  # ValueError: the last message is not in what the template wrote
        raise Refused(error) from error


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


def _length(whole: str, beginning: str) -> int:
    if not whole.startswith(beginning):
        raise _rewrites()
    return len(beginning)


def _rewrites() -> InputError:
    found, allowed = "one that rewrites earlier turns", "one where a talk only grows at its end"
    return InputError("the chat template", found, allowed)


@lru_cache(maxsize=16)
def _names(tokens: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted((token for token in tokens if len(token) > 1), key=len, reverse=True))
