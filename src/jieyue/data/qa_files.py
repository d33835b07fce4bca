"""Questions with their passages, read from the files that are in use.

Layouts, told apart by their keys: SQuAD 1.1 and 2.0 (also DRCD, CMRC 2018 and this package's corpus: ``data`` ->
``paragraphs`` -> ``qas``), CMRC 2018's own (list of ``context_text`` + ``qas`` with ``query_text``), flat SQuAD rows
(``context``, ``question``, ``answers: {text, answer_start}``) and multi-passage rows (``question``, ``passages:
[{passage, answer}]``, the WebQA and SogouQA shape); rows as a JSON list or as JSON lines.

Texts are kept letter for letter: answers are places in them. A stated place that disagrees with the text is corrected to
the nearest occurrence of the answer, or kept as a gold without a place; either is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jieyue.errors import InputError, message

from .files import Document, load
from .findings import Findings, note_duplicates
from .questions import Passage, Question

__all__ = ["Passage", "Question", "read_questions"]


class _Broken(Exception):
    """One record that cannot be read: what was found, what was expected, how many questions are lost with it."""

    def __init__(self, found: str, expected: str) -> None:
        super().__init__(f"found {found}, expected {expected}")


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    shown = repr(value) if isinstance(value, int | float | str | bool) else ""
    return f"{names.get(type(value), 'a number')}{' ' + shown[:40] if shown else ''}"


def _get(record: Any, names: Sequence[str], kind: type, expected: str) -> Any:
    """The first of the named fields, of the wanted type."""
    if not isinstance(record, Mapping):
        raise _Broken(_kind(record), f"an object with {names[0]!r}")
    for name in names:
        if name in record:
            if not isinstance(record[name], kind):
                raise _Broken(f"{name!r} = {_kind(record[name])}", expected)
            return record[name]
    raise _Broken(f"no {names[0]!r} among {sorted(map(str, record))[:8]}", expected)


def _text(record: Any, *names: str) -> str:
    text = _get(record, names, str, f"{names[0]!r}: text that is not empty")
    if not text.strip():
        raise _Broken(f"an empty {names[0]!r}", "text that is not empty")
    return text


def _extras(*levels: Any) -> dict[str, str]:
    """Title, topic and language from the innermost record that has them."""
    found = {}
    for name in ("title", "topic", "language"):
        for level in levels:
            if isinstance(level, Mapping) and isinstance(level.get(name), str):
                found[name] = level[name]
                break
    return found


def _occurrences(text: str, answer: str) -> list[int]:
    starts, start = [], text.find(answer)
    while start >= 0:
        starts.append(start)
        start = text.find(answer, start + 1)
    return starts


def _locate(text: str, answer: str, stated: int | None, findings: Findings) -> tuple[int, int] | None:
    """Where the answer stands: as stated if the text agrees, else its occurrence nearest to that, else None."""
    if stated is not None and stated >= 0 and text.startswith(answer, stated):
        return stated, stated + len(answer)
    starts = _occurrences(text, answer)
    if stated is not None:
        findings.counts["offsets_wrong"] += 1
        findings.counts["offsets_repaired"] += bool(starts)
    if not starts:
        findings.counts["answers_not_in_text"] += 1
        return None
    start = min(starts, key=lambda at: abs(at - (stated or 0)))
    return start, start + len(answer)


def _golds(record: Mapping[str, Any]) -> list[tuple[str, int | None]] | None:
    """(text, stated start or None) of every answer; None where the record does not say, or says with placeholders."""
    if "answers" not in record and "answer" not in record:
        return [] if record.get("is_impossible") is True else None
    answers = record.get("answers", record.get("answer"))
    if isinstance(answers, str):
        answers = [answers] if answers else []
    if isinstance(answers, Mapping):  # flat rows: two parallel lists
        texts = _get(answers, ["text"], list, "'text': a list")
        starts = _get(answers, ["answer_start"], list, "'answer_start': a list") if "answer_start" in answers else []
        if starts and len(starts) != len(texts):
            raise _Broken(f"{len(texts)} texts and {len(starts)} starts", "as many 'answer_start' as 'text'")
        answers = [
            {"text": text, "answer_start": start}
            for text, start in zip(texts, starts or [None] * len(texts), strict=True)
        ]
    if not isinstance(answers, list):
        raise _Broken(f"'answers' = {_kind(answers)}", "a list of answers, empty where there is none")
    found: list[tuple[str, int | None]] = []
    for answer in answers:
        text = answer if isinstance(answer, str) else _text(answer, "text")
        start = None if isinstance(answer, str) else answer.get("answer_start")
        if start is not None and (not isinstance(start, int) or isinstance(start, bool)):
            raise _Broken(f"'answer_start' = {_kind(start)}", "a whole number of characters, counted from 0")
        found.append((text, start))
    if found and all(start is not None and start < 0 for _, start in found):
        return None  # the placeholders of CMRC 2018's test file
    if found and record.get("is_impossible") is True:
        raise _Broken(f"'is_impossible' = true and {len(found)} answers", "no answers where 'is_impossible' is true")
    return found


def _one_passage(record: Any, context: str, number: int, levels: tuple[Any, ...], findings: Findings) -> Question:
    """A question about one context: SQuAD's, CMRC 2018's own or a flat row."""
    text = _text(record, "question", "query_text")
    golds = _golds(record)
    spans: dict[tuple[int, int], None] = {}
    for answer, stated in golds or ():
        span = _locate(context, answer, stated, findings)
        if span is not None:
            spans[span] = None
    return Question(
        id=str(record.get("id", record.get("query_id", number))),
        text=text,
        passages=(Passage(context, tuple(spans), bool(golds) and not spans),),
        golds=None if golds is None else tuple(dict.fromkeys(answer for answer, _ in golds)),
        **_extras(record, *levels),
    )


def _many_passages(record: Mapping[str, Any], number: int, findings: Findings) -> Question:
    """A question about several passages. As in the article, an answer given for one passage counts wherever it stands."""
    text = _text(record, "question")
    rows = _get(record, ["passages"], list, "'passages': a list of {passage, answer}")
    if not rows:
        raise _Broken("an empty list of passages", "at least one passage")
    given = [_golds(row) if isinstance(row, Mapping) else None for row in rows]
    texts = [_text(row, "passage", "text") for row in rows]
    golds = [answer for answers in given for answer, _ in answers or ()]
    golds += [answer for answer, _ in _golds(record) or ()]
    golds = list(dict.fromkeys(golds))
    passages = []
    for passage, answers in zip(texts, given, strict=True):
        spans: dict[tuple[int, int], None] = {}
        for answer, stated in answers or ():
            span = _locate(passage, answer, stated, findings)
            if span is not None:
                spans[span] = None
        if not spans:
            for answer in golds:
                start = passage.find(answer)
                if start >= 0:
                    findings.counts["passages_copied_answers"] += 1
                    spans[start, start + len(answer)] = None
                    break
        passages.append(Passage(passage, tuple(spans), bool(answers) and not spans))
    known = any(answers is not None for answers in given) or _golds(record) is not None
    return Question(
        id=str(record.get("id", number)),
        text=text,
        passages=tuple(passages),
        golds=tuple(golds) if known else None,
        **_extras(record),
    )


_Thunk = Callable[[Findings], Question]


def _of_paragraph(paragraph: Any, place: str, number: int, levels: tuple[Any, ...]) -> Iterator[tuple[str, _Thunk]]:
    """(place, how to read it) of every question of one paragraph; a broken paragraph is one broken record."""
    try:
        context = _text(paragraph, "context", "context_text")
        questions = _get(paragraph, ["qas"], list, "'qas': a list of questions")
    except _Broken as broken:
        yield place, _raise(broken)
        return
    for index, record in enumerate(questions):

        def read(findings: Findings, record: Any = record, number: int = number + index) -> Question:
            return _one_passage(record, context, number, (paragraph, *levels), findings)

        yield f"{place}.qas[{index}]", read


def _raise(broken: _Broken) -> _Thunk:
    def read(findings: Findings) -> Question:
        raise broken

    return read


def _of_row(row: Any, place: str, number: int) -> Iterator[tuple[str, _Thunk]]:
    """A row is an article, a paragraph, a multi-passage question or a flat one."""
    if isinstance(row, Mapping):
        if "paragraphs" in row:
            yield from _of_article(row, place, number)
            return
        if "qas" in row:
            yield from _of_paragraph(row, place, number, ())
            return
        if "passages" in row:
            yield place, lambda findings: _many_passages(row, number, findings)
            return
        if "context" in row or "context_text" in row:
            yield (
                place,
                lambda findings: _one_passage(row, _text(row, "context", "context_text"), number, (), findings),
            )
            return
    expected = "'paragraphs' (SQuAD), 'qas' (CMRC 2018), 'passages' (multi-passage) or 'context' (flat)"
    found = f"an object with {sorted(map(str, row))[:8]}" if isinstance(row, Mapping) else _kind(row)
    yield place, _raise(_Broken(found, f"an object with {expected}"))


def _of_article(article: Any, place: str, number: int) -> Iterator[tuple[str, _Thunk]]:
    try:
        paragraphs = _get(article, ["paragraphs"], list, "'paragraphs': a list")
    except _Broken as broken:
        yield place, _raise(broken)
        return
    for index, paragraph in enumerate(paragraphs):
        for at, read in _of_paragraph(paragraph, f"{place}.paragraphs[{index}]", number, (article,)):
            yield at, read
            number += 1


def _records(document: Document, name: str) -> Iterator[tuple[str, _Thunk]]:
    """(place, how to read it) of every question of a file, in order."""
    number = 1
    if document.is_lines:
        import json

        for line, text in document.value:
            try:
                row = json.loads(text)
            except json.JSONDecodeError as error:
                yield f"line {line}", _raise(_Broken(f"{error.msg} at column {error.colno}", "one JSON object a line"))
            else:
                for place, read in _of_row(row, f"line {line}", number):
                    yield place, read
                    number += 1
        return
    value, place = document.value, ""
    if isinstance(value, Mapping):
        value, place = (value["data"], "data") if "data" in value else ([value], "")
    if not isinstance(value, list):
        raise InputError(message(name, f"{_kind(value)} at the top", "a list of records, or an object with 'data'"))
    for index, row in enumerate(value):
        for at, read in _of_row(row, f"{place}[{index}]", number):
            yield at, read
            number += 1


def _read_file(path: Path, skip_bad: bool, findings: Findings) -> list[Question]:
    document = load(path)
    findings.encodings[str(path)] = document.encoding
    findings.counts["files"] += 1
    findings.counts["files_with_bom"] += document.has_bom
    findings.counts["files_with_crlf"] += document.has_crlf
    findings.counts["files_not_utf8"] += document.encoding != "utf-8"
    questions = []
    for number, (place, read) in enumerate(_records(document, str(path)), 1):
        try:
            questions.append(read(findings))
        except _Broken as broken:
            line = f"{path}, record {number} ({place}): {broken}"
            if not skip_bad:
                raise InputError(f"{line}; correct it, or pass --skip-bad to leave such records out") from None
            findings.counts["records_skipped"] += 1
            findings.skipped.append(line)
    return questions


def read_questions(
    paths: str | Path | Sequence[str | Path], *, skip_bad: bool = False
) -> tuple[list[Question], Findings]:
    """All questions of the files, in order, and what was found on the way.

    A broken record raises ``InputError`` with file, record number, place in the document, what is wrong and what was
    expected; with ``skip_bad`` it is left out, counted and listed in ``findings.skipped``. A file that is not JSON at all
    is always refused. Cost: one pass; contexts are shared by their questions.
    """
    files = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    findings = Findings()
    for name in ("files", "questions", "passages", "answerable", "unanswerable", "golds_unknown", "records_skipped"):
        findings.counts[name] = 0
    questions = [question for path in files for question in _read_file(path, skip_bad, findings)]
    if not questions:
        names = ", ".join(map(str, files)) or "no file"
        raise InputError(
            message(names, f"no questions ({len(findings.skipped)} records skipped)", "at least one question")
        )
    findings.counts["questions"] = len(questions)
    findings.counts["passages"] = len({passage.text for question in questions for passage in question.passages})
    findings.counts["golds_unknown"] = sum(question.golds is None for question in questions)
    findings.counts["answerable"] = sum(question.answerable for question in questions)
    findings.counts["unanswerable"] = sum(question.golds == () for question in questions)
    note_duplicates(questions, findings)
    return questions, findings
