"""Tables of labelled texts, titles and questions: headers are never examples, columns never swapped, doubt is refused."""

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jieyue.data.labelled import Columns, Labelled, read_labelled
from jieyue.data.plain import read_lines
from jieyue.data.qa_files import read_questions
from jieyue.data.tables import read_table
from jieyue.data.titles import Pair, read_titles
from jieyue.errors import InputError

TEXTS = [
    f"{word} chair number {n}, I {verb} it" for n in range(6) for word, verb in (("awful", "return"), ("fine", "keep"))
]
EXAMPLES = [Labelled(text, "bad" if "awful" in text else "good") for text in TEXTS]


def table(header, delimiter=",", quoting=csv.QUOTE_MINIMAL, first=""):
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, quoting=quoting, lineterminator="\n")
    writer.writerows([*header, *([one.text, one.label] for one in EXAMPLES)])
    return first + out.getvalue()


def written(folder, text, name="file.csv"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


FILES = {
    "unknown header": table([["tweeted", "feeling"]]),
    "header we know in part": table([["tweet", "mood"]]),
    "Chinese header": table([["文本", "类别"]]),
    "sep= line": table([["text", "label"]], first="sep=,\n"),
    "sep=; line": table([["text", "label"]], ";", first="sep=;\n"),
    "Excel's semicolons": "\ufeff" + table([["text", "label"]], ";").replace("\n", "\r\n"),
    "semicolons beside one comma a line": table([], ";"),
    "bars": table([["text", "label"]], "|"),
    "tabs": table([], "\t"),
    "a column without name": "id,,label\n"
    + "".join(f'{n},"{one.text}",{one.label}\n' for n, one in enumerate(EXAMPLES)),
    "objects in one": json.dumps({"data": [{"text": one.text, "label": one.label} for one in EXAMPLES]}),
    "doccano": "\n".join(json.dumps({"id": 1, "text": one.text, "label": [one.label]}) for one in EXAMPLES),
}


@pytest.mark.parametrize("name", FILES)
def test_no_header_is_an_example(name, tmp_path):
    columns = Columns(text="2", label="3") if "without name" in name else None
    examples, findings = read_labelled(written(tmp_path, FILES[name]), columns=columns)
    assert examples == EXAMPLES and findings.counts["labels"] == 2


@pytest.mark.parametrize("header", [["text", "label"], ["tweeted", "feeling"]])
def test_numbered_columns_skip_the_header(header, tmp_path):
    path = written(tmp_path, table([header]))
    assert read_labelled(path, columns=Columns(text="1", label="2"))[0] == EXAMPLES
    swapped, _ = read_labelled(path, columns=Columns(text="2", label="1"))
    assert {one.text for one in swapped} == {"bad", "good"}
    for wrong in (Columns(text="1", label="3"), Columns(text="0", label="1"), Columns(text="1", label="1")):
        with pytest.raises(InputError, match="numbers from 1 to 2"):
            read_labelled(path, columns=wrong)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("".join(f"{n % 2} words {n}" + ", more" * (n % 4) + "\n" for n in range(40)), "commas give 1 to 4 cells"),
        ("".join(f"word {n} ,thing {n}\n" for n in range(40)), "40 different values|label column with far fewer"),
        (
            "".join(f"a{n % 3};b{n % 3},c{n}\n" for n in range(40)),
            "equally wide under commas and semicolons.*--delimiter",
        ),
        ("one column\nof words\n", "one column"),
        ("__label__a fine words\n__label__b other words\n", "fastText"),
        ("fruit,kind\napple,sweet\npear,sweet\nlemon,sour\nlime,sour\n", "may be names of columns or an example"),
        ("a,b,c\n1,2,3\n", "--text-column"),
        ("", "an empty file"),
        (" \n\n", "an empty file"),
    ],
)
def test_what_is_no_table_is_refused_even_where_bad_records_are_skipped(text, found, tmp_path):
    for skip_bad in (False, True):
        with pytest.raises(InputError, match=found) as error:
            read_labelled(written(tmp_path, text), skip_bad=skip_bad)
        assert "\n" not in str(error.value)


def test_a_delimiter_may_be_named(tmp_path):
    path = written(tmp_path, "".join(f"a{n % 3};b{n % 2},c{n}\n" for n in range(40)))
    assert read_labelled(path, delimiter=";")[0][:2] == [Labelled("b0,c0", "a0"), Labelled("b1,c1", "a1")]
    assert read_labelled(written(tmp_path, FILES["tabs"]), delimiter="tab")[0] == EXAMPLES
    with pytest.raises(InputError, match="delimiter: found 'xy'"):
        read_labelled(path, delimiter="xy")


def test_texts_that_begin_with_brackets(tmp_path):
    marks = ["[quote] ", "{smile} ", "[1] ", '["so" they say] ', "[[link]] "]
    for mark in marks:
        lines = "".join(f"{mark if n == 0 else ''}{one.text}\t{one.label}\n" for n, one in enumerate(EXAMPLES))
        assert read_labelled(written(tmp_path, lines))[0][0] == Labelled(mark + TEXTS[0], "bad")
        pairs = "".join(f"{mark}Title {n}\tA source that is longer, number {n}.\n" for n in range(9))
        assert read_titles(written(tmp_path, pairs))[0][0].title == f"{mark}Title 0"
        if mark[:2] != '["':  # without a tab that begins as JSON does
            assert read_lines(written(tmp_path, lines.replace("\t", " "), "file.txt"))[0][0] == f"{mark}{TEXTS[0]} bad"


def test_labels_as_people_have_them(tmp_path):
    rows = [["good"], [], None, 1.0, 2.5, True, "x", 3]
    path = written(tmp_path, "\n".join(json.dumps({"text": "t", "label": row}) for row in rows))
    assert [one.label for one in read_labelled(path)[0]] == ["good", None, None, "1", "2.5", "True", "x", "3"]
    pandas = written(tmp_path, "text,label\na b c,1.0\nd e f,\ng h i,0.0\nj k l,1.0\n")
    assert [one.label for one in read_labelled(pandas)[0]] == ["1", None, "0", "1"]
    for label in (["a", "b"], {"a": 1}, [[0, 5, "X"]]):
        with pytest.raises(InputError, match="one label"):
            read_labelled(written(tmp_path, json.dumps({"text": "t", "label": label})))


PAIRS = [
    Pair(f"On day {n} the harbour opened a depot. It stores tea, said Anna{n}.", f"Harbour {n} opens depot")
    for n in range(20)
]


def test_titles_are_never_swapped(tmp_path):
    def lines(*columns, header=""):
        return header + "".join("\t".join(getattr(one, name) for name in columns) + "\n" for one in PAIRS)

    shapes = [
        lines("title", "source"),
        lines("source", "title"),
        lines("source", "title", header="正文\t标题\n"),
        lines("title", "source", header="标题\t正文\n"),
        lines("source", "title", header="Artikel\tÜberschrift\n"),
    ]
    for text in shapes:
        assert read_titles(written(tmp_path, text, "t.tsv"))[0] == PAIRS
    numbered = read_titles(written(tmp_path, shapes[2], "t.tsv"), source_column="1", title_column="2")[0]
    assert numbered == PAIRS
    unclear = "".join(f"{'long ' * (n % 3)}one {n}\t{'long ' * (n % 2)}two {n}\n" for n in range(20))
    with pytest.raises(InputError, match="neither is the shorter one"):
        read_titles(written(tmp_path, unclear, "t.tsv"))


def test_an_outlet_is_never_the_text(tmp_path):
    news = [{"source": f"Daily {n}", "title": one.title, "content": one.source} for n, one in enumerate(PAIRS)]
    assert read_titles(written(tmp_path, "\n".join(map(json.dumps, news)), "n.jsonl"))[0] == PAIRS
    news[3].pop("content")
    with pytest.raises(InputError, match=r"line 4: found the fields"):
        read_titles(written(tmp_path, "\n".join(map(json.dumps, news)), "n.jsonl"))
    alone = [{"source": f"Daily {n}", "title": one.title} for n, one in enumerate(PAIRS)]
    with pytest.raises(InputError, match="the name of an outlet"):
        read_titles(written(tmp_path, json.dumps(alone), "n.json"))
    text = "source\ttitle\n" + "".join(f"Daily\t{one.title}\n" for one in PAIRS)
    with pytest.raises(InputError, match="the name of an outlet"):
        read_titles(written(tmp_path, text, "n.tsv"))
    real = [{"source": one.source, "title": one.title} for one in PAIRS]
    assert read_titles(written(tmp_path, json.dumps(real), "n.json"))[0] == PAIRS


def test_questions_in_tables(tmp_path):
    header = "id,context,question,answers,answer_start\n"
    rows = [
        'a,"The depot, opened in 1900.",When?,1900,21.0',
        "b,\"The depot, opened in 1900.\",When?,\"{'text': ['1900'], 'answer_start': [21]}\",",
        'c,"The depot, opened in 1900.",When?,"[""1900""]",',
        'd,"The depot, opened in 1900.",Who?,,',
    ]
    questions, _ = read_questions(written(tmp_path, header + "\n".join(rows)))
    assert [one.golds for one in questions] == [("1900",)] * 3 + [()]
    assert [one.passages[0].spans for one in questions] == [((21, 25),)] * 3 + [()]
    with pytest.raises(InputError, match="a header with 'context'"):
        read_questions(written(tmp_path, rows[0]))


cells = st.text("ab ,;|\"'\n好。", min_size=1, max_size=8).filter(lambda text: text.strip() == text)


@given(st.lists(st.lists(cells, min_size=3, max_size=3), min_size=1, max_size=8), st.sampled_from(",;|"))
def test_every_quoted_table_comes_back(rows, delimiter):
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(
        [["text", "label", "id"], *rows]
    )
    found = read_table("x", out.getvalue(), {"text": ["text"], "label": ["label"]}, delimiter)
    assert found.header == ("text", "label", "id") and [row for _, row in found.rows] == rows
