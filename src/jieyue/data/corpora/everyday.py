"""Everyday talks that ship: Chinese and English, two to eight turns about weather, meals, errands and other small matters.

``talks/zh.txt`` and ``talks/en.txt`` hold hand-written scenes, ``compose_talks`` puts together dialogues of them. A scene:

    # name = key phrase          every first reply has this phrase in it
    ^ a talk, divided by |       held out: neither its opening nor its replies are in a composed dialogue
    > openings, divided by |     any of them begins the dialogue
    + more of them               in which (a/b/c) stands for any of these
    < replies, divided by |      any of them answers any opening
    > how it goes on             from here on alternative k of one line belongs to alternative k of the next
    < …

The key phrases were written with the scenes, before any model was trained (talks/CARD.md).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from random import Random

from jieyue.data.dialogues import Dialogue
from jieyue.data.history import alternate
from jieyue.errors import InputError

__all__ = ["NUM_DIALOGUES", "Opening", "Scene", "compose_talks", "heldout_openings", "heldout_talks", "read_scenes"]

NUM_DIALOGUES = 2000
LANGUAGES = ("zh", "en")
_CLOSINGS = {
    "zh": (("谢谢！", "不客气。"), ("好的，谢谢你。", "别客气，有事再聊。"), ("明白了，谢谢。", "好，祝你顺利。")),
    "en": (("Thanks!", "You're welcome."), ("Okay, thank you.", "Any time."), ("Got it, thanks.", "Good luck!")),
}
_TURN = {"zh": "对了，", "en": "One more thing. "}


@dataclass(frozen=True, slots=True)
class Scene:
    """One everyday matter: its openings, first replies, and pairs of turns that go on."""

    name: str
    language: str
    key: str
    openings: tuple[str, ...]
    replies: tuple[str, ...]
    later: tuple[tuple[tuple[str, str], ...], ...]
    held_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Opening:
    """A held-out opening and the phrase that a good reply to it has."""

    text: str
    key: str
    language: str
    scene: str


def read_scenes(language: str) -> list[Scene]:
    """The hand-written scenes of a language, in order."""
    if language not in LANGUAGES:
        raise InputError(f"language={language!r}: expected one of {', '.join(LANGUAGES)}")
    text = (Path(__file__).parent / "talks" / f"{language}.txt").read_text(encoding="utf-8")
    return [_scene(block.splitlines(), language) for block in text.strip().split("\n\n")]


def _scene(lines: list[str], language: str) -> Scene:
    name, key = lines[0].removeprefix("# ").split(" = ")
    held_out = next((tuple(line[2:].split(" | ")) for line in lines if line.startswith("^ ")), ())
    turns = [tuple(line[2:].split(" | ")) for line in lines[1:] if line[0] in "<>"]
    openings, replies, *rest = turns
    for more in (line[2:].split(" | ") for line in lines if line.startswith("+ ")):
        openings += tuple(dict.fromkeys(text for pattern in more for text in _spelled_out(pattern)))
    later = tuple(tuple(zip(rest[at], rest[at + 1], strict=True)) for at in range(0, len(rest), 2))
    return Scene(name, language, key, openings, replies, later, held_out)


def _spelled_out(pattern: str) -> list[str]:
    """Every text of a pattern.

    >>> _spelled_out("It (rains/snows) (now/).")
    ['It rains now.', 'It rains.', 'It snows now.', 'It snows.']
    """
    parts = [part.split("/") for part in re.split(r"[()]", pattern)]
    return [re.sub(r" +(?=[ .,?!]|$)", "", "".join(chosen)) for chosen in product(*parts)]


def heldout_openings() -> list[Opening]:
    """The openings that no composed dialogue has, with their key phrases: Chinese first."""
    return [Opening(one.held_out[0], one.key, one.language, one.name) for one in _heldout_scenes()]


def heldout_talks() -> list[Dialogue]:
    """A dialogue of four turns for each held-out opening: for perplexity, and as references. No turn is said in training."""
    return [alternate(scene.held_out) for scene in _heldout_scenes()]


def _heldout_scenes() -> list[Scene]:
    return [scene for language in LANGUAGES for scene in read_scenes(language) if scene.held_out]


def compose_talks(seed: int = 0, num_dialogues: int = NUM_DIALOGUES) -> list[Dialogue]:
    """Exactly so many different dialogues, languages and scenes in turn; the same arguments give the same dialogues.

    All of a scene's openings come before one comes again. A third end with thanks, a sixth go on to another matter, and
    some users leave out capitals and the last full stop, as people do.
    """
    if num_dialogues < 1:
        raise InputError(f"num_dialogues={num_dialogues}: expected at least 1")
    random = Random(f"talks {seed}")
    scenes = {language: read_scenes(language) for language in LANGUAGES}
    courses = {(one.language, one.name): _courses(one, random) for own in scenes.values() for one in own}
    order = [scene for language in LANGUAGES for scene in scenes[language]]
    random.shuffle(order)
    found: dict[tuple[str, ...], Dialogue] = {}
    turn = 0
    while len(found) < num_dialogues:
        scene = order[turn % len(order)]
        own = courses[scene.language, scene.name]
        turns = list(own[turn // len(order) % len(own)])
        turn += 1
        if random.random() < 1 / 6:
            other = random.choice(scenes[scene.language])
            if other is not scene:
                opening, *others = random.choice(courses[other.language, other.name])
                turns += [_TURN[scene.language] + opening, *others]
        if random.random() < 1 / 3:
            turns += random.choice(_CLOSINGS[scene.language])
        turns = [_casual(text, random) if place % 2 == 0 else text for place, text in enumerate(turns)]
        found.setdefault(tuple(turns), alternate(turns))
    return list(found.values())


def _courses(scene: Scene, random: Random) -> list[list[str]]:
    """Ways through a scene: written openings and spelled-out ones in turn, all of them before one comes again."""
    ways: dict[str, list[list[str]]] = {}
    for opening, reply in product(scene.openings, scene.replies):
        for pairs in product(*scene.later):
            ways.setdefault(opening, []).append([opening, reply, *(text for pair in pairs for text in pair)])
    for own in ways.values():
        random.shuffle(own)
    openings = list(ways)
    random.shuffle(openings)
    return [ways[opening][place] for place in range(min(map(len, ways.values()))) for opening in openings]


def _casual(text: str, random: Random) -> str:
    """What a user in a hurry types."""
    if random.random() < 0.12:
        text = text.rstrip("。.!！?？")
    return text.lower() if random.random() < 0.08 else text
