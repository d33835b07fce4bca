"""Contract of reading: every layout, packing and encoding gives the same questions; every broken record says what it is."""

import gzip
import json
import lzma

import pytest

from jieyue.data.findings import MEANING
from jieyue.data.qa_files import Passage, Question, read_questions
from jieyue.data.questions import overlap
from jieyue.errors import InputError

TEXT = "渡船每天早上七点从北岸出发，票价两元。The ferry is called Heron."
AT = TEXT.index("七点")

SQUAD = {
    "version": "v2.0",
    "data": [
        {
            "title": "渡船",
            "topic": "timetable",
            "paragraphs": [
                {
                    "context": TEXT,
                    "qas": [
                        {"id": "a", "question": "几点出发？", "answers": [{"text": "七点", "answer_start": AT}]},
                        {"id": "b", "question": "谁开船？", "answers": [], "is_impossible": True},
                    ],
                }
            ],
        }
    ],
}
CMRC_OWN = [
    {
        "context_id": "T",
        "context_text": TEXT,
        "title": "渡船",
        "qas": [
            {"query_id": "a", "query_text": "几点出发？", "answers": ["七点"]},
            {"query_id": "b", "query_text": "谁开船？", "answers": []},
        ],
    }
]
MANY = [
    {"id": "a", "question": "几点出发？", "passages": [{"passage": TEXT, "answer": "七点"}], "title": "渡船"},
    {"id": "b", "question": "谁开船？", "passages": [{"passage": TEXT, "answer": ""}], "title": "渡船"},
]
FLAT = [
    {
        "id": "a",
        "title": "渡船",
        "context": TEXT,
        "question": "几点出发？",
        "answers": {"text": ["七点"], "answer_start": [AT]},
    },
    {"id": "b", "title": "渡船", "context": TEXT, "question": "谁开船？", "answers": {"text": [], "answer_start": []}},
]
LAYOUTS = {"squad": SQUAD, "cmrc's own": CMRC_OWN, "multi-passage": MANY, "flat": FLAT}


def expected(**extras):
    passage = Passage(TEXT, ((AT, AT + 2),))
    return [
        Question("a", "几点出发？", (passage,), ("七点",), title="渡船", **extras),
        Question("b", "谁开船？", (Passage(TEXT),), (), title="渡船", **extras),
    ]


def write(path, value, encoding="utf-8", lines=False, mark=b"", ends="\n"):
    rows = value if lines else [value]
    text = ends.join(json.dumps(row, ensure_ascii=False, indent=None if lines else 1) for row in rows)
    path.write_bytes(mark + text.replace("\n", ends if not lines else "\n").encode(encoding))
    return path


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_agree(tmp_path, name):
    questions, findings = read_questions(write(tmp_path / "f.json", LAYOUTS[name]))
    assert questions == expected(topic="timetable" if name == "squad" else "")
    assert {
        "questions": 2,
        "passages": 1,
        "answerable": 1,
        "unanswerable": 1,
        "files": 1,
    }.items() <= findings.counts.items()


@pytest.mark.parametrize("name", ["cmrc's own", "multi-passage", "flat"])
def test_lines_agree_with_lists(tmp_path, name):
    path = write(tmp_path / "f.jsonl", LAYOUTS[name], lines=True, ends="\r\n")
    questions, findings = read_questions(path)
    assert questions == expected() and findings.counts["files_with_crlf"] == (len(LAYOUTS[name]) > 1)


def test_one_line_and_articles_a_line(tmp_path):
    assert len(read_questions(write(tmp_path / "one.jsonl", MANY[:1], lines=True))[0]) == 1
    assert len(read_questions(write(tmp_path / "articles.jsonl", SQUAD["data"] * 2, lines=True))[0]) == 4


@pytest.mark.parametrize(("pack", "suffix"), [(gzip.compress, ".gz"), (lzma.compress, ".xz")])
def test_packed_files(tmp_path, pack, suffix):
    path = tmp_path / ("f.json" + suffix)
    path.write_bytes(pack(json.dumps(SQUAD).encode()))
    assert read_questions(path)[0] == expected(topic="timetable")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="damaged archive"):
        read_questions(path)


LONGER = "".join(
    ["的一是在了不和有大这主中人上为们地个用工时要动国产以我到他会作来分生对于学下级就年阶义发成部民可出能方进同"]
)


@pytest.mark.parametrize(
    ("encoding", "mark", "found"),
    [
        ("utf-8", b"\xef\xbb\xbf", "utf-8"),
        ("utf-16-le", b"\xff\xfe", "utf-16-le"),
        ("utf-16-be", b"\xfe\xff", "utf-16-be"),
        ("gb18030", b"", "gb18030"),
        ("gbk", b"", "gb18030"),
    ],
)
def test_encodings_are_found_and_counted(tmp_path, encoding, mark, found):
    path = write(tmp_path / "f.json", SQUAD, encoding, mark=mark)
    questions, findings = read_questions(path)
    assert questions == expected(topic="timetable")
    assert findings.encodings == {str(path): found}
    assert findings.counts["files_with_bom"] == bool(mark)
    assert findings.counts["files_not_utf8"] == (found != "utf-8")


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("big5", "這個人是誰？他說我們都在這裡，不會有事的，時間還來得及。"),
        ("cp1252", "Où est le café du père Noël à Orléans?"),
    ],
)
def test_other_code_pages(tmp_path, encoding, text):
    path = write(tmp_path / "f.json", [{"question": text, "context": text, "answers": []}], encoding)
    questions, findings = read_questions(path)
    assert questions[0].text == text and findings.encodings[str(path)] == encoding


def one(**changes):
    record = {"id": "a", "question": "Q?", "context": TEXT, "answers": [{"text": "七点", "answer_start": AT}]}
    record.update(changes)
    return {key: value for key, value in record.items() if value != "absent"}


BROKEN = {
    "no question": (one(question="absent"), ["no 'question'", "text that is not empty"]),
    "empty question": (one(question=" "), ["empty 'question'"]),
    "question is a number": (one(question=7), ["'question' = a number 7"]),
    "empty context": (one(context=""), ["empty 'context'"]),
    "answers are a number": (one(answers=3), ["'answers' = a number 3", "a list of answers"]),
    "answer without text": (one(answers=[{"answer_start": 1}]), ["no 'text'"]),
    "answer's text is a number": (one(answers=[{"text": 3}]), ["'text' = a number 3"]),
    "answer is a number": (one(answers=[3]), ["a number 3", "an object with 'text'"]),
    "start is text": (
        one(answers=[{"text": "七点", "answer_start": "eight"}]),
        ["'answer_start' = text 'eight'", "whole number"],
    ),
    "start is a fraction": (
        one(answers=[{"text": "七点", "answer_start": 8.5}]),
        ["'answer_start' = a number 8.5", "whole number"],
    ),
    "impossible but answered": (one(is_impossible=True), ["'is_impossible' = true and 1 answers"]),
    "unequal lists": (one(answers={"text": ["a"], "answer_start": [1, 2]}), ["1 texts and 2 starts"]),
    "unknown shape": ({"premise": "x"}, ["'premise'", "'paragraphs' (SQuAD)"]),
    "no object": (["x"], ["a list", "an object"]),
    "no passages": ({"question": "Q?", "passages": []}, ["empty list of passages"]),
    "passage is text": ({"question": "Q?", "passages": ["x"]}, ["text 'x'", "an object with 'passage'"]),
    "qas is no list": ({"context": TEXT, "qas": 3}, ["'qas' = a number 3", "a list of questions"]),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("lines", [False, True], ids=["list", "lines"])
def test_a_broken_record_stops_and_says_why(tmp_path, name, lines):
    record, parts = BROKEN[name]
    path = write(tmp_path / "f.json", [one(), record, one(id="c")], lines=lines)
    with pytest.raises(InputError) as error:
        read_questions(path)
    for part in [str(path), "record 2", "line 2" if lines else "[1]", "expected", "--skip-bad", *parts]:
        assert part in str(error.value)
    questions, findings = read_questions(path, skip_bad=True)
    assert [question.id for question in questions] == ["a", "c"]
    assert findings.counts["records_skipped"] == 1 == len(findings.skipped)
    assert all(part in findings.skipped[0] for part in ["record 2", *parts])


def test_a_broken_line_is_a_broken_record(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_text(json.dumps(MANY[0]) + "\n{broken\n" + json.dumps(MANY[1]), encoding="utf-8")
    with pytest.raises(InputError, match=r"record 2 \(line 2\).*column 2"):
        read_questions(path)
    assert len(read_questions(path, skip_bad=True)[0]) == 2


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "an empty file"),
        ("{not json", "line 1, column 2"),
        ("[]", "no questions"),
        ("3", "one column"),
        ('{"data": 5}', "no questions"),
    ],
)
def test_files_that_are_no_data(tmp_path, content, complaint):
    path = tmp_path / "f.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=complaint):
        read_questions(path, skip_bad=True)
    with pytest.raises(InputError, match="no such file"):
        read_questions(tmp_path / "absent.json")


def test_wrong_places_are_repaired_or_kept_without_place(tmp_path):
    text = "七点，八点，七点。"
    answers = [
        {"text": "七点", "answer_start": 5},
        {"text": "九点", "answer_start": 0},
        {"text": "八点", "answer_start": 3},
    ]
    path = write(tmp_path / "f.json", [one(context=text, answers=answers)])
    (question,), findings = read_questions(path)
    assert question.golds == ("七点", "九点", "八点")
    assert question.passages[0].spans == ((6, 8), (3, 5))  # the nearest occurrence; the absent one has no place
    assert {"offsets_wrong": 2, "offsets_repaired": 1, "answers_not_in_text": 1}.items() <= findings.counts.items()


def test_placeholder_answers_are_not_golds(tmp_path):
    answers = [{"text": "FAKE_ANSWER_1", "answer_start": -1}]
    (question,), findings = read_questions(write(tmp_path / "f.json", [one(answers=answers)]))
    assert question.golds is None and findings.counts["golds_unknown"] == 1
    (question,), _ = read_questions(write(tmp_path / "g.json", [one(answers="absent")]))
    assert question.golds is None and not question.answerable


def test_multi_passage_answers(tmp_path):
    """An answer of one passage counts wherever it stands; one that is in no passage letter for letter has no place."""
    rows = [
        {"passage": "甲在家。", "answer": "甲"},
        {"passage": "没人，除了甲。", "answer": ""},
        {"passage": "是乙！", "answer": "丙"},
    ]
    (question,), findings = read_questions(write(tmp_path / "f.json", [{"question": "谁？", "passages": rows}]))
    assert question.golds == ("甲", "丙") and question.id == "1"
    assert [passage.spans for passage in question.passages] == [((0, 1),), ((5, 6),), ()]
    assert [passage.unplaced for passage in question.passages] == [False, False, True]
    assert findings.counts["passages_copied_answers"] == 1


def test_duplicates_are_counted(tmp_path):
    path = write(tmp_path / "f.json", [one(), one(), one(question="Other?")])
    questions, findings = read_questions([path, path])
    assert len(questions) == 6 and set(findings.counts) <= set(MEANING)
    assert findings.counts["ids_duplicate"] == 5 and findings.counts["questions_repeated"] == 4
    assert sum([findings, findings], start=type(findings)()).counts["ids_duplicate"] == 10


def test_contamination():
    def ask(number, text, passage):
        return Question(number, text, (Passage(passage),), ())

    training = [ask("1", "Who?", "A man came."), ask("2", "What?", "It rains.")]
    held_out = [ask("9", "ＷＨＯ ?", "A man  came."), ask("2", "Why?", "Snow."), ask("8", "What?", "Fog.")]
    assert overlap(training, held_out) == {"examples": 1, "questions": 2, "passages": 1, "ids": 1}
    assert set(overlap(training, []).values()) == {0}
