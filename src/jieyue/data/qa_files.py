"""Questions with their passages, read from the files that are in use.

Layouts, told apart by their keys: SQuAD 1.1 and 2.0 (also DRCD, CMRC 2018 and this package's corpus: ``data`` ->
``paragraphs`` -> ``qas``), CMRC 2018's own (list of ``context_text`` + ``qas`` with ``query_text``), flat SQuAD rows
(``context``, ``question``, ``answers: {text, answer_start}``, lists or single values) and multi-passage rows (``question``,
``passages: [{passage, answer}]``, the WebQA and SogouQA shape); rows as a JSON list, JSON lines, a table with a header, Parquet.

Texts are kept letter for letter: answers are places in them. A stated place that disagrees with the text is corrected to
the nearest occurrence of the answer, or kept as a gold without a place; either is counted. An empty answer says that there
is none, ``null`` that it is not known.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from jieyue.errors import InputError

from .files import as_paths
from .findings import BadRecord, Findings
from .json_shapes import Json, Layout
from .questions import Passage, Question, note_duplicates
from .rows import open_rows
from .streams import Unreadable
from .tables import Table, columns_by_name

__all__ = ["Passage", "Question", "read_questions"]

NAMES = {
    "context": ("context", "context_text", "passage", "paragraph", "文章", "段落"),
    "question": ("question", "query_text", "query", "问题"),
    "answers": ("answers", "answer", "答案"),
    "answer_start": ("answer_start", "start"),
    "is_impossible": ("is_impossible",),
    "id": ("id", "query_id"),
    "title": ("title", "标题"),
    "topic": ("topic",),
    "language": ("language",),
}
_KEYS = ("paragraphs", "qas", "passages", "context", "context_text")


def _is_row(value: Mapping[str, Json]) -> bool:
    return any(key in value for key in _KEYS)


_LAYOUT = Layout(is_record=_is_row)


def _kind(value: Json) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    shown = repr(value) if isinstance(value, int | float | str | bool) else ""
    return f"{names.get(type(value), 'a number')}{' ' + shown[:40] if shown else ''}"


def _get(record: Json, names: Sequence[str], expected: str) -> Json:
    """The first of the named fields."""
    if not isinstance(record, Mapping):
        raise BadRecord(_kind(record), f"an object with {names[0]!r}")
    for name in names:
        if name in record:
            return record[name]
    raise BadRecord(f"no {names[0]!r} among {sorted(map(str, record))[:8]}", expected)


def _list(record: Json, name: str, expected: str) -> list[Json]:
    value = _get(record, [name], expected)
    if not isinstance(value, list):
        raise BadRecord(f"{name!r} = {_kind(value)}", expected)
    return value


def _text(record: Json, *names: str) -> str:
    expected = f"{names[0]!r}: text that is not empty"
    text = _get(record, names, expected)
    if not isinstance(text, str):
        found = next(name for name in names if isinstance(record, Mapping) and name in record)
        raise BadRecord(f"{found!r} = {_kind(text)}", expected)
    if not text.strip():
        raise BadRecord(f"an empty {names[0]!r}", "text that is not empty")
    return text


def _extra(name: str, levels: Sequence[Json]) -> str:
    """Title, topic or language, from the innermost record that has it."""
    for level in levels:
        if isinstance(level, Mapping):
            found = level.get(name)
            if isinstance(found, str):
                return found
    return ""


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


def _golds(record: Mapping[str, Json]) -> list[tuple[str, int | None]] | None:
    """(text, stated start or None) of every answer; None where the record does not say, or says with placeholders."""
    is_impossible = record.get("is_impossible") in (True, "true", "True", "1")
    answers = record.get("answers", record.get("answer"))
    if answers is None:
        return [] if is_impossible else None
    found = [_gold(answer) for answer in _answers(answers)]
    given = [(text, start) for text, start in found if text.strip()]  # an empty text says that there is no answer
    if given and all(start is not None and start < 0 for _, start in given):
        return None  # the placeholders of CMRC 2018's test file
    if given and is_impossible:
        raise BadRecord(f"'is_impossible' = true and {len(given)} answers", "no answers where 'is_impossible' is true")
    return given


def _answers(answers: Json) -> list[Json]:
    """Answers as a list of texts or of {text, answer_start}, whether they came as that, as one, or as two parallel lists."""
    if isinstance(answers, str):
        return [answers]
    if isinstance(answers, Mapping):
        texts = _get(answers, ["text"], "'text': an answer or a list of them")
        starts = answers.get("answer_start")
        texts = texts if isinstance(texts, list) else [texts]
        starts = starts if isinstance(starts, list) else [] if starts is None else [starts]
        if starts and len(starts) != len(texts):
            raise BadRecord(f"{len(texts)} texts and {len(starts)} starts", "as many 'answer_start' as 'text'")
        pairs = zip(texts, starts or [None] * len(texts), strict=True)
        return [{"text": text, "answer_start": start} for text, start in pairs]
    if not isinstance(answers, list):
        raise BadRecord(f"'answers' = {_kind(answers)}", "a list of answers, empty where there is none")
    return answers


def _gold(answer: Json) -> tuple[str, int | None]:
    if isinstance(answer, str):
        return answer, None
    text = _get(answer, ["text"], "'text': an answer, empty where there is none")
    if not isinstance(text, str):
        raise BadRecord(f"'text' = {_kind(text)}", "text")
    start = answer.get("answer_start") if isinstance(answer, Mapping) else None
    if isinstance(start, float) and start.is_integer():
        start = int(start)
    elif isinstance(start, str) and start.strip().removesuffix(".0").lstrip("-").isdigit():
        start = int(float(start))
    if start is None or (isinstance(start, int) and not isinstance(start, bool)):
        return text, start
    raise BadRecord(f"'answer_start' = {_kind(start)}", "a whole number of characters, counted from 0")


def _one_passage(record: Json, context: str, number: int, levels: tuple[Json, ...], findings: Findings) -> Question:
    """A question about one context: SQuAD's, CMRC 2018's own or a flat row."""
    text = _text(record, "question", "query_text")
    assert isinstance(record, Mapping)  # or there would be no text in it
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
        title=_extra("title", (record, *levels)),
        topic=_extra("topic", (record, *levels)),
        language=_extra("language", (record, *levels)),
    )


def _many_passages(record: Mapping[str, Json], number: int, findings: Findings) -> Question:
    """A question about several passages. As in the article, an answer given for one passage counts wherever it stands."""
    text = _text(record, "question")
    rows = _list(record, "passages", "'passages': a list of {passage, answer}")
    if not rows:
        raise BadRecord("an empty list of passages", "at least one passage")
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
        title=_extra("title", (record,)),
        topic=_extra("topic", (record,)),
        language=_extra("language", (record,)),
    )


_Thunk = Callable[[Findings], Question]


def _of_paragraph(paragraph: Json, place: str, number: int, levels: tuple[Json, ...]) -> Iterator[tuple[str, _Thunk]]:
    """(place, how to read it) of every question of one paragraph; a broken paragraph is one broken record."""
    try:
        context = _text(paragraph, "context", "context_text")
        questions = _list(paragraph, "qas", "'qas': a list of questions")
    except BadRecord as broken:
        yield place, _raise(broken)
        return
    for index, record in enumerate(questions):

        def read(findings: Findings, record: Json = record, number: int = number + index) -> Question:
            return _one_passage(record, context, number, (paragraph, *levels), findings)

        yield f"{place}.qas[{index}]", read


def _raise(broken: BadRecord) -> _Thunk:
    def read(findings: Findings) -> Question:
        raise broken

    return read


def _of_row(row: Json | Unreadable, place: str, number: int) -> Iterator[tuple[str, _Thunk]]:
    """A row is an article, a paragraph, a multi-passage question or a flat one."""
    if isinstance(row, Unreadable):
        yield place, _raise(BadRecord(row.why, "a JSON object"))
        return
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
    yield place, _raise(BadRecord(found, f"an object with {expected}"))


def _of_article(article: Json, place: str, number: int) -> Iterator[tuple[str, _Thunk]]:
    try:
        paragraphs = _list(article, "paragraphs", "'paragraphs': a list")
    except BadRecord as broken:
        yield place, _raise(broken)
        return
    for index, paragraph in enumerate(paragraphs):
        for at, read in _of_paragraph(paragraph, f"{place}.paragraphs[{index}]", number, (article,)):
            yield at, read
            number += 1


def _of_table(name: str, table: Table) -> Iterator[tuple[str, Json | Unreadable]]:
    """A table's rows as flat rows; an answer's cell may hold text, or JSON or Python's way to write such."""
    advice = "a header with 'context', 'question' and 'answers'"
    if table.header is None:
        raise InputError(name, f"a table without known header: {', '.join(table.rows[0][1])[:60]}", advice)
    places = columns_by_name(name, table.header, NAMES, {}, "")
    if not {"context", "question"} <= set(places):
        raise InputError(name, f"the columns {', '.join(table.header)[:80]}", advice)
    for place, cells in table.whole():
        if isinstance(cells, BadRecord):
            yield place, Unreadable(cells.found)
            continue
        row: dict[str, Json] = {role: cells[at] for role, at in places.items()}
        answers = _cell(str(row.get("answers", ""))) if "answers" in places else None
        if isinstance(answers, str) and (start := row.pop("answer_start", "")):
            answers = [{"text": answers, "answer_start": start}]
        yield place, {**row, "answers": answers}


def _cell(written: str) -> Json:
    """What a cell of answers holds: text, or a list or object that was written into it."""
    if written.lstrip()[:1] not in ("[", "{"):
        return written
    try:
        found: Json = json.loads(written)
        return found
    except (ValueError, RecursionError):
        pass
    try:  # pandas writes Python's own form
        literal = ast.literal_eval(written)
        return literal if isinstance(literal, list | dict) else written
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return written


def _read_file(
    path: Path, skip_bad: bool, findings: Findings, delimiter: str | None, encoding: str | None
) -> list[Question]:
    found = open_rows(path, NAMES, findings, layout=_LAYOUT, delimiter=delimiter, encoding=encoding, goes_on=skip_bad)
    rows = _of_table(str(path), found) if isinstance(found, Table) else iter(found)
    questions: list[Question] = []
    number = 0
    for place, row in rows:
        for at, read in _of_row(row, place, number + 1):
            number += 1
            try:
                questions.append(read(findings))
            except BadRecord as bad:
                findings.refuse(f"{path}, record {number} ({at}): {bad}", skip_bad)
    return questions


def read_questions(
    paths: str | Path | Sequence[str | Path],
    *,
    skip_bad: bool = False,
    delimiter: str | None = None,
    encoding: str | None = None,
) -> tuple[list[Question], Findings]:
    """All questions of the files, in order, and what was found on the way.

    ``delimiter``, ``encoding``: decide where given, else they are found (``data.tables``, ``data.encodings``).
    A broken record raises ``InputError`` with file, record number, place in the document, what is wrong and what was
    expected; with ``skip_bad`` it is left out, counted and listed in ``findings.skipped``. A file that is not JSON at all
    is always refused. Cost: one pass; contexts are shared by their questions.
    """
    files = as_paths(paths)
    findings = Findings()
    for name in ("files", "questions", "passages", "answerable", "unanswerable", "golds_unknown", "records_skipped"):
        findings.counts[name] = 0
    questions = [question for path in files for question in _read_file(path, skip_bad, findings, delimiter, encoding)]
    if not questions:
        names = ", ".join(map(str, files)) or "no file"
        raise InputError(
            names, f"no questions ({findings.counts['records_skipped']} records skipped)", "at least one question"
        )
    findings.counts["questions"] = len(questions)
    findings.counts["passages"] = len({passage.text for question in questions for passage in question.passages})
    findings.counts["golds_unknown"] = sum(question.golds is None for question in questions)
    findings.counts["answerable"] = sum(question.answerable for question in questions)
    findings.counts["unanswerable"] = sum(question.golds == () for question in questions)
    note_duplicates(questions, findings)
    return questions, findings
