"""One record of a file as a dialogue, whatever its shape: utterances, turns with speakers, question and reply, a history.

Turns that are context only (of a tool, or of weight 0) carry ``learned=False``; what a row says about its tools, and rows of
weight 0, are counted. A record that is none of these is a ``BadRecord``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from .findings import BadRecord, Findings
from .history import TOOL, Message, alternate
from .json_shapes import Json, Layout
from .speakers import Speakers
from .streams import Unreadable

__all__ = ["KNOWN_SPEAKERS", "LAYOUT", "PROMPTS", "REPLIES", "Dialogue", "Records"]

Dialogue = tuple[Message, ...]

LISTS = ("messages", "turns", "dialog", "dialogue", "conversation", "conversations", "utterances", "content")
PROMPTS = ("instruction", "prompt", "question", "query", "ask", "问题", "input")
REPLIES = ("output", "response", "answer", "completion", "reply", "回答", "答案")
_SPEAKERS = ("role", "from", "speaker", "agent")
_TEXTS = ("content", "value", "text", "message", "utterance")
_PLAIN = {"role", "content"}
_REMEMBERED = 10_000  # orders of speakers
_OFTEN = 3  # records in which a first element stood before it is a speaker's name rather than a question


class _Turn(NamedTuple):
    speaker: str | None
    text: str
    learned: bool = True


def _is_row(value: Mapping[str, Json]) -> bool:
    has_list = any(isinstance(value.get(name), list) for name in LISTS)
    return has_list or (any(name in value for name in PROMPTS) and any(name in value for name in REPLIES))


def _is_turn(value: Json) -> bool:
    """Whether an object is one turn rather than a row: it names a speaker, and has a text."""
    if not isinstance(value, Mapping) or _is_row(value):
        return False
    return any(name in value for name in _SPEAKERS) and any(name in value for name in _TEXTS)


def _is_exchange(value: Mapping[str, Json]) -> bool:
    """``{"human": …, "assistant": …}``: both sides of an exchange in one object."""
    return bool(value) and all(isinstance(text, str) and KNOWN_SPEAKERS.knows(name) for name, text in value.items())


def _is_dialogue(values: Sequence[Json], of_lines: bool) -> bool:
    """Whether a list that begins so is one dialogue; a list of pairs only where it stands in a line of its own."""
    first = values[0]
    if isinstance(first, str) or _is_turn(first):
        return True
    if isinstance(first, Mapping):
        return of_lines and _is_exchange(first)
    if not isinstance(first, list) or len(first) != 2 or not isinstance(first[0], str):
        return not isinstance(first, list)
    is_spoken = KNOWN_SPEAKERS.knows(first[0])
    return is_spoken or (of_lines and all(isinstance(one, list) and len(one) == 2 for one in values))


KNOWN_SPEAKERS = Speakers()
LAYOUT = Layout(is_list_record=_is_dialogue, is_record=_is_row, joins_parts=True)
"""How records of dialogues are told apart from lists of them."""


class Records:
    """Makes dialogues of records, by the roles of ``speakers``; ``findings`` learns who is who and what was left out."""

    def __init__(self, speakers: Speakers, findings: Findings) -> None:
        self.speakers, self.findings = speakers, findings
        self._firsts = Counter[str]()  # how many records of pairs each first element stood in
        self._known: dict[tuple[str | None, ...], list[str]] = {}  # roles of the speakers of earlier dialogues

    def dialogue(self, record: Json | Unreadable) -> Dialogue | None:
        """The dialogue; None for a row of weight 0, which is counted. ``BadRecord`` where it is none."""
        if isinstance(record, Unreadable):
            raise BadRecord(record.why, "a JSON list of utterances, or an object with 'messages', on every line")
        if isinstance(record, Mapping):
            if _weight(record, "the row") == 0:
                self.findings.counts["dialogues_of_weight_0"] += 1
                return None
            return self._of_row(record)
        if not isinstance(record, list) or not record:
            raise BadRecord(_kind(record), "a list of utterances that is not empty")
        if all(isinstance(one, list) and len(one) == 2 for one in record) and not self._is_spoken(record):
            return self._spoken(_questions(record))
        return self._of_list(record)

    def _of_row(self, row: Mapping[str, Json]) -> Dialogue:
        name = next((name for name in LISTS if isinstance(row.get(name), list)), None)
        if row.get("tools"):
            self.findings.counts["dialogues_with_tools"] += 1
        if name is not None:
            listed = row[name]
            assert isinstance(listed, list)
            if not listed:
                raise BadRecord(f"an empty list {name!r}", "turns")
            found = self._of_list(listed)
        elif _is_row(row):
            found = self._spoken(_asked(row))
        elif _is_exchange(row):
            found = self._of_list([row])
        else:
            expected = f"one of {', '.join(map(repr, LISTS[:6]))} in it, or a question and a reply"
            raise BadRecord(f"an object with {sorted(map(str, row))[:8]}", expected)
        system = row.get("system")
        if isinstance(system, str) and system.strip():
            if found[0].role == "system" and found[0].text.strip() != system.strip():
                raise BadRecord("a row's 'system' beside a system message", "one of them")
            found = found if found[0].role == "system" else (Message("system", system), *found)
        elif system not in (None, ""):
            raise BadRecord(f"'system' = {_kind(system)}", "text")
        return found

    def _of_list(self, listed: list[Json]) -> Dialogue:
        if any(isinstance(one, str) for one in listed):
            return alternate([_text(one, number) for number, one in enumerate(listed)])
        found: list[_Turn] = []
        for number, one in enumerate(listed):
            if isinstance(one, list) and len(one) == 2 and isinstance(one[0], str):
                found.append(_Turn(one[0], _text(one[1], number)))
            elif not isinstance(one, dict):
                raise BadRecord(f"turn {number + 1}: {_kind(one)}", "text, [speaker, text] or {role, content}")
            elif "role" not in one and _is_exchange(one):
                found += [_Turn(name, _text(text, number)) for name, text in one.items()]
            else:
                found.append(self._turn(one, number))
        return self._spoken(found)

    def _turn(self, one: Mapping[str, Json], number: int) -> _Turn:
        if one.keys() == _PLAIN and isinstance(one["role"], str) and isinstance(one["content"], str):
            return _Turn(one["role"], _text(one["content"], number))  # nearly all there are, and the shortest way
        name = next((name for name in _SPEAKERS if name in one), None)
        speaker = one[name] if name else None
        if speaker is not None and not isinstance(speaker, str):
            raise BadRecord(f"turn {number + 1} with the role {_kind(speaker)}", "a role as text")
        text = _joined(next((one[name] for name in _TEXTS if one.get(name) is not None), None))
        calls = one.get("tool_calls") or one.get("function_call")
        if calls:
            self.findings.counts["turns_of_tools"] += 1
            if text is None or text == "":
                return _Turn(speaker, json.dumps(calls, ensure_ascii=False), False)
        return _Turn(speaker, _text(text, number), _weight(one, f"turn {number + 1}") > 0)

    def _spoken(self, turns: Sequence[_Turn]) -> Dialogue:
        """Turns as messages, by their speakers' roles; without any speakers they alternate."""
        names = tuple([turn.speaker for turn in turns])
        roles = self._known.get(names)
        if roles is None:
            roles = self._roles(names)
            if len(self._known) < _REMEMBERED:
                self._known[names] = roles
        self.findings.counts["turns_of_tools"] += roles.count(TOOL)
        return tuple(
            [Message(role, turn.text, turn.learned and role != TOOL) for role, turn in zip(roles, turns, strict=True)]
        )

    def _roles(self, names: tuple[str | None, ...]) -> list[str]:
        """The role of each turn; ``findings`` learns who is who."""
        if all(name is None for name in names):
            return [one.role for one in alternate([""] * len(names))]
        if None in names:
            raise BadRecord(f"turn {names.index(None) + 1} without a speaker", "one in every turn, or in none")
        said = [str(name) for name in names]
        roles = self.speakers.roles(said)
        self.findings.speakers.update(zip(said, roles, strict=True))
        return roles

    def _is_spoken(self, record: list[Json]) -> bool:
        """Whether pairs that stand alone are (speaker, text) rather than (question, reply)."""
        firsts = [one[0] for one in record if isinstance(one, list) and isinstance(one[0], str)]
        if len(firsts) < len(record) or any(map(self.speakers.knows, firsts)) or len(set(firsts)) < len(firsts):
            return True
        was_often = len(firsts) > 1 and all(self._firsts[first] >= _OFTEN for first in firsts)
        if len(self._firsts) < 10_000:
            self._firsts.update(firsts)
        return was_often


def _questions(pairs: Sequence[Json]) -> list[_Turn]:
    """(question, reply) pairs as turns."""
    found: list[_Turn] = []
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2:
            raise BadRecord(f"a history with {_kind(pair)}", "[question, reply] pairs")
        found += [_Turn("user", _text(pair[0], len(found))), _Turn("assistant", _text(pair[1], len(found) + 1))]
    return found


def _asked(row: Mapping[str, Json]) -> list[_Turn]:
    """A question and its reply with what was said before: Alpaca, prompt and response, ChatGLM's history."""
    history, found = row.get("history"), list[_Turn]()
    if isinstance(history, list) and all(isinstance(one, list) for one in history):
        found = _questions(history)
    elif history not in (None, ""):
        raise BadRecord(f"'history' = {_kind(history)}", "a list of [question, reply] pairs")
    prompt = next(name for name in PROMPTS if name in row)
    asked = row[prompt]
    more = row.get("input") if prompt != "input" else None
    if isinstance(more, str) and more.strip():
        asked = f"{asked}\n{more}" if isinstance(asked, str) and asked.strip() else more
    reply = row[next(name for name in REPLIES if name in row)]
    return [*found, _Turn("user", _text(asked, len(found))), _Turn("assistant", _text(reply, len(found) + 1))]


def _weight(record: Mapping[str, Json], where: str) -> int:
    """0 for what is not to be learned, else 1."""
    weight = record.get("weight", 1)
    if weight not in (0, 1, None):
        raise BadRecord(f"'weight' = {weight!r} in {where}", "0 or 1")
    return 1 if weight is None else int(bool(weight))


def _joined(content: Json) -> Json:
    """OpenAI's content: text, or a list of parts of which only texts are allowed."""
    if isinstance(content, list) and content:
        texts = [part.get("text") for part in content if isinstance(part, Mapping)]
        if len(texts) == len(content) and all(isinstance(text, str) for text in texts):
            return "\n".join(map(str, texts))
    return content


def _text(value: Json, number: int) -> str:
    if not isinstance(value, str) or not value.strip():
        found = "empty text" if isinstance(value, str) else _kind(value)
        raise BadRecord(f"{found} in turn {number + 1}", "text")
    return value.strip()


def _kind(value: Json) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number") + (" that is empty" if value == [] else "")
