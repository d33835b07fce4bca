"""A talk as tokens: one format for training, chat and server, and whole oldest turns dropped where it grows too long.

The format is the tokenizer's own chat template. Where it has none, ``template_for`` gives one: the article's
``[CLS] u1 [SEP] u2 [SEP] …`` (7718) for tokenizers with [CLS] and [SEP], DialoGPT's ``u1 <eos> u2 <eos> …`` for those with
an end of text. Both know no roles: turns alternate, and a reply is what comes after the last separator.

The tokenizer is passed in; any that transformers loads as a fast one will do.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jieyue.errors import InputError

from .tokenizer import Encoding, Tokenizer
from .written import ENDED, TURNS, Message, Refused, Writer, template_for

if TYPE_CHECKING:
    import numpy

__all__ = [
    "ENDED",
    "ROLES",
    "TOOL",
    "TURNS",
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
_FEW = 8  # texts up to which a tokenizer is asked the usual way
TOOL = "tool"  # the role of what a tool or function gave: context in data, never learned


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
    return tuple([Message(ROLES[1 + number % 2], text) for number, text in enumerate(utterances)])


def encode_talks(tokenizer: Tokenizer, talks: Sequence[Sequence[Message]]) -> list[Talk]:
    """Whole talks as tokens, many at once. ``InputError`` where the template rewrites earlier turns when later ones come.

    A special token's name inside a text is plain text here, whatever the tokenizer would make of it.
    """
    import numpy  # not for those who only read who speaks

    if not talks:
        return []
    if not tokenizer.is_fast:
        raise InputError("the tokenizer", "a slow one", "a fast one, which tells where its tokens stand")
    writer = Writer(tokenizer)
    written = writer.written(talks)
    first = int(writer.template == TURNS)
    made = []
    for encoding, (text, spans) in zip(_encodings(tokenizer, written, writer.end is None), written, strict=True):
        ids = numpy.asarray(encoding.ids, dtype=numpy.int32)
        stops = [] if writer.end is None else ((ids == writer.end).nonzero()[0] + 1).tolist()
        if len(stops) == len(spans) > 0:  # every turn ends with the token that nothing else writes
            turns = tuple(zip([first, *stops[:-1]], stops, strict=True))
        else:
            placed = encoding if writer.end is None else _encodings(tokenizer, [(text, spans)], True)[0]
            turns = _turns_by_place(placed, len(ids), spans)
        made.append(Talk(ids, turns))
    return made


def _encodings(tokenizer: Tokenizer, written: Sequence[tuple[str, object]], with_places: bool) -> Sequence[Encoding]:
    """Each text's tokens, and where they stand if that is asked for, which costs a quarter more.

    Many are given to the tokenizer's own core, past what transformers adds; unless the first one shows that it adds something.
    """
    texts = [text for text, _ in written]
    options = {"add_special_tokens": False, "return_attention_mask": False, "return_token_type_ids": False}
    if len(texts) <= _FEW:
        return tokenizer(texts, verbose=False, **options).encodings
    (own,) = tokenizer(texts[:1], verbose=False, **options).encodings  # switches cutting and padding off, too
    core = tokenizer.backend_tokenizer
    encode = core.encode_batch if with_places else core.encode_batch_fast
    found: Sequence[Encoding] = encode(texts, add_special_tokens=False)
    return found if found[0].ids == own.ids else tokenizer(texts, verbose=False, **options).encodings


def _turns_by_place(
    encoding: Encoding, num_tokens: int, spans: Sequence[tuple[int, int]]
) -> tuple[tuple[int, int], ...]:
    """Spans of characters as spans of the tokens that begin in them."""
    before = {place: _first_from(encoding, num_tokens, place) for place in {place for span in spans for place in span}}
    return tuple((before[first], before[stop]) for first, stop in spans)


def _first_from(encoding: Encoding, num_tokens: int, place: int) -> int:
    """The first token that begins at a character or behind it. Places are asked for one by one: a list of them all is dear."""

    def begins(token: int) -> int:
        return encoding.token_to_chars(token)[0]

    near = encoding.char_to_token(place)  # some token that has the character in it
    if near is not None and begins(near) == place and (near == 0 or begins(near - 1) < place):
        return near
    return bisect_left(range(num_tokens), place, key=begins)


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
        raise InputError("the talk", f"{len(messages)} messages, none to reply to", "at least one turn")
    writer = Writer(tokenizer)
    listed = writer.listed(messages)

    def newest(turns: int) -> tuple[int, str]:
        """The newest turns as text; fewer where the template refuses so many, such as one that wants the user to begin."""
        for kept in range(turns, 0, -1):
            try:
                return kept, writer.open_text([*listed[:first], *listed[first + count - kept :]], reply, continued)
            except Refused:
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
            raise TooLong("the newest turn", what, f"at most {max_tokens}", "shorten it")
        else:
            too_many = probe
        probe = max(1, (fits + too_many) // 2 if too_many <= count else min(2 * fits, count))
    assert found is not None
    kept, ids = found
    return Fitted(ids, (*messages[:first], *messages[first + count - kept :]), count - kept)


class TooLong(InputError):
    """Not even the newest turn fits."""
