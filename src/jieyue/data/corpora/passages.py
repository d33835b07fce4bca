"""One passage: a few subjects, sentences that state facts of them, sentences that state none, a title, questions.

Within a passage no two values are equal or part of one another, several subjects share attributes, and one subject has
several values of a kind, so a question is answered by reading which value belongs to what it asks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from .patterns import Pattern, Topic
from .values import draw

__all__ = ["Passage", "Question", "compose_passage"]

NUM_FACTS = (1, 2, 2, 3, 3, 4)  # drawn evenly
NUM_FILLERS = (0, 0, 0, 1, 1, 2)


@dataclass(slots=True)
class Subject:
    kind: str
    shorts: tuple[str, ...]
    name: str
    origin: int
    values: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Fact:
    """A pattern with its subject and values, and the sentence it made: where each slot stands in it."""

    pattern: Pattern
    subject: Subject
    sentence: str
    starts: dict[str, int]


@dataclass(frozen=True, slots=True)
class Question:
    text: str
    answer: str  # empty: the passage does not tell
    start: int
    pattern: str


@dataclass(frozen=True, slots=True)
class Passage:
    title: str
    context: str
    num_sentences: int
    questions: tuple[Question, ...]


class _Writer:
    """The drawing of one passage: remembers every value used, so that no two can be confused."""

    def __init__(self, topic: Topic, heldout: bool, random: Random) -> None:
        self.topic, self.heldout, self.random = topic, heldout, random
        self.patterns = [p for p in topic.patterns if heldout or not p.heldout]
        self.used: list[str] = []

    def value(self, kind: str, origin: int = 0, latest: str = "") -> str:
        """A new value, neither part of nor containing an earlier one."""
        for _ in range(30):
            drawn = draw(kind, language=self.topic.language, heldout=self.heldout, random=self.random, origin=origin)
            lowered = drawn.lower()
            if not any(lowered in old or old in lowered for old in self.used):
                self.used.append(lowered)
                return drawn
        raise LookupError(f"no new value of kind {kind!r}")

    def subject(self, kind: str, shorts: tuple[str, ...]) -> Subject:
        return Subject(kind, shorts, self.value(kind), self.random.randrange(1938, 1979))

    def plan(self, num_facts: int) -> list[tuple[Subject, Pattern]]:
        """Who is said what: one to three subjects, no attribute twice for a subject, now and then the same for two."""
        kinds = self.topic.subjects
        kind, shorts = self.random.choice(kinds)
        num_subjects = min(num_facts, self.random.choice((1, 1, 2, 2, 3)))
        subjects = [self.subject(kind, shorts)]
        for _ in range(num_subjects - 1):
            subjects.append(self.subject(*self.random.choice(kinds)))
        planned: list[tuple[Subject, Pattern]] = []
        for index in sorted(number % num_subjects for number in range(num_facts)):
            subject = subjects[index]
            free = [p for p in self.patterns if not any(a in subject.values for a in p.kinds)]
            echoes = [p for p in free if any(s is not subject and p.kinds.keys() & q.kinds.keys() for s, q in planned)]
            if echoes and self.random.random() < 0.6:
                free = echoes
            if not free:
                raise LookupError(f"{self.topic.name}: no pattern left")
            pattern = self.random.choice(free)
            for attribute, kind in pattern.kinds.items():
                subject.values[attribute] = self.value(kind, subject.origin)
            planned.append((subject, pattern))
        return planned

    def fill(self, pieces: tuple[str, ...], subject: Subject, name: str = "") -> tuple[str, dict[str, int]]:
        """Text of alternating pieces, and where each slot begins. ``a`` becomes ``an`` before a vowel."""
        text, starts = "", dict[str, int]()
        for index, piece in enumerate(pieces):
            if index % 2 == 0:
                text += piece
                continue
            value = (name or subject.name) if piece == "s" else subject.values[piece]
            if text.endswith((" a ", "A ")) and value[0].lower() in "aeiou":
                text = text[:-1] + "n "
            starts.setdefault(piece, len(text))
            text += value
        if self.topic.language == "en" and text[0].islower():
            text = text[0].upper() + text[1:]
        return text, starts

    def fact(self, subject: Subject, pattern: Pattern, follows: bool) -> Fact:
        """The sentence; one that follows another about the same subject may call it by a short reference."""
        pieces = pattern.pieces
        if follows and subject.shorts and self.random.random() < 0.5:
            pieces = _shortened(pieces, self.random.choice(subject.shorts), subject.name, self.topic.language)
        return Fact(pattern, subject, *self.fill(pieces, subject))


def _shortened(pieces: tuple[str, ...], short: str, name: str, language: str) -> tuple[str, ...]:
    """The sentence with its subject called by ``short``; as it was where grammar forbids that.

    ``$last`` (the name's last word) and Chinese references fit everywhere, English pronouns only at the beginning.
    """
    place = pieces[1::2].index("s") * 2 + 1
    before, after = pieces[place - 1], pieces[place + 1]
    if short == "$last":
        short = name.split(" ")[-1]
    elif language == "zh":
        before, after = before.removesuffix("《"), after.removeprefix("》")
    elif before in ("", "The ") and place == 1 and not after.startswith("'"):
        before = ""
    else:
        return pieces
    return (*pieces[: place - 1], before + short + after, *pieces[place + 2 :])


def _answerable(fact: Fact, start: int, context: str, writer: _Writer) -> list[Question]:
    """Every slot that can be asked for, with one question form each."""
    found = []
    for attribute, forms in fact.pattern.questions.items():
        if attribute not in fact.starts:
            continue  # the sentence calls its subject by a short reference
        value = fact.subject.name if attribute == "s" else fact.subject.values[attribute]
        place = start + fact.starts[attribute]
        answer = context[place : place + len(value)]
        if attribute != "s" and context.lower().count(value.lower()) > 1:
            continue
        text, _ = writer.fill(writer.random.choice(forms), fact.subject)
        found.append(Question(text, answer, place, fact.pattern.name))
    return found


def _unanswerable(facts: list[Fact], writer: _Writer) -> Question | None:
    """A question the passage does not answer: a fact of its subject left untold, or a told fact of somebody else."""
    random = writer.random
    subject = random.choice(facts).subject
    if random.random() < 0.5:
        told = set(subject.values).union(*(near for near in writer.topic.near if near & subject.values.keys()))
        asked = [
            (p, form)
            for p in writer.patterns
            for attribute, forms in p.questions.items()
            if attribute != "s" and attribute not in told
            for form in forms
            if set(form[1::2]) == {"s"}
        ]
        name = subject.name
    else:
        asked = [
            (fact.pattern, form)
            for fact in facts
            for attribute, forms in fact.pattern.questions.items()
            if attribute != "s"
            for form in forms
            if set(form[1::2]) == {"s"}
        ]
        name = writer.value(subject.kind)
    if not asked:
        return None
    pattern, form = random.choice(asked)
    text, _ = writer.fill(form, subject, name)
    return Question(text, "", 0, pattern.name)


def _title(facts: list[Fact], topic: Topic, writer: _Writer) -> str:
    subject = facts[0].subject
    fitting = [pieces for pieces in topic.titles if set(pieces[1::2]) <= {"s", *subject.values}]
    told = [pieces for pieces in fitting if set(pieces[1::2]) - {"s"}]
    text, _ = writer.fill(writer.random.choice(told if told and writer.random.random() < 0.7 else fitting), subject)
    return text


def compose_passage(topic: Topic, *, heldout: bool, unanswerable: float, most: int, random: Random) -> Passage:
    """A passage of one to six sentences with up to ``most`` questions; ``LookupError`` when its draw runs out of values.

    ``unanswerable`` is the chance that a question has no answer in the passage.
    """
    writer = _Writer(topic, heldout, random)
    planned = writer.plan(random.choice(NUM_FACTS))
    facts = [writer.fact(s, p, i > 0 and planned[i - 1][0] is s) for i, (s, p) in enumerate(planned)]
    sentences: list[Fact | str] = list(facts)
    for filler in random.sample(topic.fillers, min(random.choice(NUM_FILLERS), len(topic.fillers))):
        sentences.insert(random.randint(1, len(sentences)), filler)
    gap = " " if topic.language == "en" else ""
    context, starts = "", []
    for sentence in sentences:
        text = sentence.sentence if isinstance(sentence, Fact) else sentence
        context += gap if context else ""
        if isinstance(sentence, Fact):
            starts.append(len(context))
        context += text
    answerable = [q for f, start in zip(facts, starts, strict=True) for q in _answerable(f, start, context, writer)]
    random.shuffle(answerable)
    questions: list[Question] = []
    for _ in range(min(most, len(answerable))):
        missing = _unanswerable(facts, writer) if random.random() < unanswerable else None
        questions.append(missing or answerable.pop())
    unique = {question.text: question for question in questions}
    return Passage(_title(facts, topic, writer), context, len(sentences), tuple(unique.values()))
