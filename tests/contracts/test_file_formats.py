"""Files as they come: packed in every way, in every encoding, damaged, empty, something else; said in one line."""

import bz2
import gzip
import io
import json
import lzma
import random
import sys
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jieyue.data.encodings import find_encoding, is_damaged
from jieyue.data.files import read_text
from jieyue.data.json_shapes import is_json
from jieyue.data.labelled import read_labelled
from jieyue.data.plain import read_lines
from jieyue.data.qa_files import read_questions
from jieyue.data.streams import Unreadable, records
from jieyue.data.textstream import TextStream
from jieyue.data.titles import read_titles
from jieyue.errors import InputError, MissingExtra

TEXT = "节约 hello\n" * 2000


def zipped(data, *others):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("folder/data.txt", data)
        for name in ("__MACOSX/folder/._data.txt", "folder/.DS_Store", *others):
            archive.writestr(name, "x")
    return out.getvalue()


def zstandard(data):
    package = pytest.importorskip("zstandard")
    half = len(data) // 2  # two frames, as `cat a.zst b.zst` makes them
    return package.compress(data[:half]) + package.compress(data[half:])


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress, bz2.compress, zipped, zstandard])
def test_packed_files_are_read_whole_or_refused(pack, tmp_path):
    path, packed = tmp_path / "any.name", pack(TEXT.encode())
    path.write_bytes(packed)
    assert read_text(path).text == TEXT
    if pack is not bytes:
        for kept in (len(packed) - 9, len(packed) // 2 + 3):
            path.write_bytes(packed[:kept])
            with pytest.raises(InputError, match=r"damaged archive"):
                read_text(path)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n", "git lfs pull"),
        (zipped(b"a", "b.txt"), "2 files in it: folder/data.txt, b.txt"),
        (b"x" * 257 + b"ustar" + b"x" * 300, "a tar archive"),
        (b"PAR1....", "a Parquet file"),
        (b"7z\xbc\xaf\x27\x1c....", "a 7z archive"),
        (b"SQLite format 3\x00", "an SQLite database"),
    ],
)
def test_what_is_no_text_is_named(content, found, tmp_path):
    path = tmp_path / "data.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=found) as error:
        read_text(path)
    assert "\n" not in str(error.value)


def test_packages_that_are_not_installed_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.zst").write_bytes(b"\x28\xb5\x2f\xfd1234")
    (tmp_path / "a.parquet").write_bytes(b"PAR1PAR1")
    for name, package in (("a.zst", "zstandard"), ("a.parquet", "pyarrow")):
        with pytest.raises(MissingExtra, match=rf"{package} is not installed.*jieyue\[data\]"):
            read_lines(tmp_path / name)


def test_parquet(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [
        {"context": "Opened in 1900.", "question": "When?", "answers": {"text": ["1900"], "answer_start": [10]}},
        {"context": "Nothing.", "question": "Who?", "answers": {"text": [], "answer_start": []}},
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "q.parquet")
    assert [one.golds for one in read_questions(tmp_path / "q.parquet")[0]] == [("1900",), ()]
    labelled = pyarrow.Table.from_pylist([{"text": "a", "label": 0}, {"text": "b", "label": 1}])
    parquet.write_table(labelled, tmp_path / "l.parquet")
    assert [one.label for one in read_labelled(tmp_path / "l.parquet")[0]] == ["0", "1"]


LANGUAGES = {
    "gb18030": "昨天和朋友一起去看了电影，非常好看，还想再看一遍。",
    "big5": "這個商品比我想像的要小，有點失望，不過樣子還可以。",
    "cp932": "昨日は友達と一緒に映画を見に行きました。とても面白かったです。",
    "euc_jp": "この商品は期待していたよりも小さくて、少しがっかりしました。",
    "cp949": "어제 친구와 함께 영화를 보러 갔습니다. 아주 재미있었어요.",
    "cp1252": "Où est passé le café que j'avais préparé à l'hôtel ?",
    "utf-16-le": "plain words, twenty of them",
}


@pytest.mark.parametrize("encoding", LANGUAGES)
def test_encodings_are_told_apart_and_decide_when_named(encoding, tmp_path):
    text = LANGUAGES[encoding]
    data = json.dumps([text], ensure_ascii=False).encode(encoding)
    found = find_encoding(data, "x")
    assert found.name == encoding
    path = tmp_path / "lines.txt"
    path.write_bytes((text + "\n").encode(encoding))
    assert read_lines(path, encoding=encoding)[0] == [text]
    (tmp_path / "wrong").write_bytes("とても".encode("cp932"))
    with pytest.raises(InputError, match="damaged characters"):
        read_lines(tmp_path / "wrong", encoding="ascii")


def test_doubt_about_an_encoding_is_said(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_bytes("鮨鰻鯖鰹".encode("cp932"))  # four rare characters, which every code page explains
    with pytest.warns(UserWarning, match="not UTF-8; read as .*--encoding"):
        read_lines(path)
    assert read_lines(path, encoding="shift_jis")[0] == ["鮨鰻鯖鰹"]
    with pytest.raises(InputError, match="encoding: found 'klingon'"):
        read_lines(path, encoding="klingon")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'text,label\n"one, two",x\nthree,y\n'),
        ("b.tsv", "label\tcontent\nx\tone, two\ny\tthree\n"),
        ("c.csv", "正文;id\none, two;1\nthree;2\n"),
        ("d.csv", 'text\n"one, two"\nthree\n'),
    ],
)
def test_of_a_table_only_the_text_is_learned(tmp_path, name, content):
    """Headers, labels, quotes and commas of a .csv are no text."""
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert read_lines(tmp_path / name)[0] == ["one, two", "three"]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("id,kind\n1,x\n2,y\n", "columns id, kind, expected a header with one of text"),
        ("text,label\none,x\ntwo\n", "line 3: found 1 cells, expected 2"),
    ],
)
def test_a_table_without_a_text_is_no_text(tmp_path, content, why):
    (tmp_path / "a.csv").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=why):
        read_lines(tmp_path / "a.csv")


def test_warnings_are_one_line():
    from jieyue.cli import warning_line
    from jieyue.data import files

    assert warning_line("doubt", UserWarning, files.__file__, 3) == "jieyue: doubt\n"
    assert warning_line("doubt", UserWarning, json.__file__, 3).startswith(json.__file__)


def test_one_damaged_place_breaks_one_record(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_bytes("第一行，很好。\n第二".encode() + b"\xff" + "行\n第三行，很好。\n".encode())
    with pytest.raises(InputError, match="line 2"):
        read_lines(path)
    assert read_lines(path, skip_bad=True)[0] == ["第一行，很好。", "第三行，很好。"]


@pytest.mark.parametrize(
    ("read", "good"),
    [
        (read_labelled, {"text": "a", "label": "b"}),
        (read_titles, {"source": "a longer text", "title": "b"}),
        (read_questions, {"context": "a", "question": "b", "answers": []}),
        (read_lines, {"text": "a"}),
    ],
)
def test_one_line_that_python_cannot_hold_breaks_one_record(read, good, tmp_path):
    path, line = tmp_path / "data.jsonl", json.dumps(good)
    deep = '{"text": ' + "[" * 100_000 + "]" * 100_000 + "}"
    half = line.replace('"a', '"\\ud83d a')
    for bad, found in (
        (half, r"half of a surrogate pair \(\\ud83d\)"),
        ('{"n": ' + "9" * 5000 + "}", "digits"),
        (deep, "too deep"),
    ):
        for lines in ([bad, line, line], [line, bad, line]):
            path.write_text("\n".join(lines))
            with pytest.raises(InputError, match=found) as error:
                read(path)
            assert "\n" not in str(error.value)
            assert len(read(path, skip_bad=True)[0]) == 2


def test_mlm_reads_the_texts_of_records_not_their_syntax(tmp_path):
    path = tmp_path / "text.jsonl"
    rows = [{"id": 1, "text": "First words.\nMore of them."}, {"content": "二"}, {"paragraphs": ["三", "四"]}]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    lines, findings = read_lines(path)
    assert lines == ["First words.", "More of them.", "二", "三", "四"] and findings.counts["lines"] == 5
    path.write_text(json.dumps({"data": rows}))
    assert read_lines(path)[0] == lines
    path.write_text('{"id": 1}\n{"text": "a"}')
    with pytest.raises(InputError, match=r"line 1: found the fields \['id'\]"):
        read_lines(path)


def everything(path):
    with TextStream(path) as text:
        return [value for _, value in records(text)]


def test_all_of_a_file_is_read_or_its_trouble_is_placed(tmp_path):
    path, one, two = tmp_path / "data.json", [{"n": 1}, {"n": 2}], [{"n": 3}]
    for text in (
        json.dumps(one) + "\n" + json.dumps(two),
        json.dumps(one, indent=1) + json.dumps(two, indent=1),
        "\n".join(map(json.dumps, one + two)),
        "".join(map(json.dumps, one + two)),
        "\n".join(json.dumps(row, indent=2) for row in one + two),
        json.dumps({"version": 1, "data": one + two}),
        json.dumps({"data": one}) + "\n" + json.dumps({"data": two}),
    ):
        path.write_text(text)
        assert everything(path) == one + two, text
    path.write_text(json.dumps(one, indent=1) + "\nrubbish")
    with pytest.raises(
        InputError, match=r"line 9, column 1: found something that is no JSON behind document 1 before 'rubbish'"
    ):
        everything(path)
    path.write_text(json.dumps(one, indent=1)[:-4])
    with pytest.raises(InputError, match="the end of the file"):
        everything(path)
    path.write_text('{"n": 1}\n{"n": 2} rubbish\n{"n": 3}')
    assert [type(value) is Unreadable for value in everything(path)] == [False, False, True, False]
    path.write_text(json.dumps({"train": one, "test": two}))
    with pytest.raises(InputError, match="several lists, train, test"):
        everything(path)


json_values = st.recursive(
    st.text('ab\n"\\[]{},:节😀', max_size=5) | st.integers() | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("kv", max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=40)
@given(
    st.lists(st.dictionaries(st.text("kv", min_size=1, max_size=3), json_values, min_size=1, max_size=3), min_size=1),
    st.sampled_from(["lines", "list", "indented", "one after another"]),
    st.integers(3, 40),
    st.booleans(),
)
def test_records_come_back_whatever_the_layout_and_the_block(tmp_path_factory, rows, layout, block, ascii_only):
    def dumped(value, indent=None):
        return json.dumps(value, ensure_ascii=ascii_only, indent=indent)

    text = {
        "lines": "\n".join(map(dumped, rows)),
        "list": dumped(rows),
        "indented": dumped(rows, 1),
        "one after another": "\n".join(dumped(row, 2) for row in rows),
    }[layout]
    path = tmp_path_factory.getbasetemp() / "values.json"
    path.write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jieyue.data.textstream.BLOCK", block)
        assert everything(path) == rows


@given(st.text("[]{}\"'a1 ,\t\n:"))
def test_no_text_is_taken_for_json_and_json_is(text):
    is_json(text)  # never raises
    assert is_json(json.dumps({"text": text})) and is_json(json.dumps([text, {"a": 1}]))
    assert not is_damaged(text) and is_damaged(text + "\ud800")


GOOD = [{"n": 1, "m": [1, 2]}, {"n": 2, "m": []}, {"n": 3, "m": [3]}]


def salvaged(path):
    with TextStream(path) as text:
        return [value for _, value in records(text, goes_on=True)]


@pytest.mark.parametrize("spaces", [1, 2, "\t"])
@pytest.mark.parametrize("wrap", ["%s", '{"data": %s}', '{"version": 1, "train": %s, "test": [{"n": 9}]}'])
def test_one_broken_place_of_a_laid_out_document_breaks_one_record(spaces, wrap, tmp_path):
    path, one = tmp_path / "data.json", [*GOOD, *GOOD]
    part = "train" if "train" in wrap else None

    def read(text, **options):
        path.write_text(text)
        with TextStream(path) as found:
            return [value for _, value in records(found, part=part, **options)]

    whole = json.dumps(json.loads(wrap % json.dumps(one)), indent=spaces)
    assert read(whole) == read(whole, goes_on=True) == one
    for broken in (
        whole.replace('"n": 2', '"n": two', 1),
        whole.replace('"n": 2', '"n" 2', 1),
        whole.replace('"n": 2', "rubbish\n\n<html>", 1),
        whole.replace('"n": 3', '"n": [', 1),
    ):
        with pytest.raises(InputError, match=r"line \d+, column"):
            read(broken)
        found = read(broken, goes_on=True)
        assert [type(value) is Unreadable for value in found].count(True) == 1 and len(found) == len(one)
        assert all(value == good or isinstance(value, Unreadable) for value, good in zip(found, one, strict=True))


def test_what_cannot_be_salvaged_is_refused_all_the_same(tmp_path):
    path = tmp_path / "data.json"
    for text in (
        '[{"n": 1}, {"n": two}, {"n": 3}]',
        json.dumps(GOOD, indent=0).replace("2", "two", 1),
        '{"train": [\n {"n": 1},\n {"n": two}],\n "test": [\n {"n": 9}]}',
    ):
        path.write_text(text)
        with pytest.raises(InputError, match="line"):
            salvaged(path)


def test_documents_one_after_another_are_salvaged_and_the_end_is_told(tmp_path):
    path = tmp_path / "data.json"
    laid_out = [json.dumps(row, indent=2) for row in GOOD]
    for text, good in (
        ("\n".join([*laid_out, "rubbish"]), GOOD),
        ("\n".join([laid_out[0], "rubbish", *laid_out[1:]]), GOOD),
        ("\n".join([laid_out[0], laid_out[1].replace(":", ""), laid_out[2]]), [GOOD[0], GOOD[2]]),
        ("\n".join(laid_out)[:-3], GOOD[:2]),
        (json.dumps(GOOD[:2], indent=1)[:-4], GOOD[:1]),
    ):
        path.write_text(text)
        with pytest.raises(InputError):
            everything(path)
        found = salvaged(path)
        assert [one for one in found if not isinstance(one, Unreadable)] == good, text
        assert sum(isinstance(one, Unreadable) for one in found) == 1, text


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"%PDF-1.7\n1 0 obj << /Type /Catalog >>\n", "found a PDF, expected plain text"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a document of Office"),
        (random.Random(0).randbytes(2000), "a binary file"),
        (("这是一段文字，没有标记。" * 90).encode("utf-16-le"), "name its encoding"),
    ],
    ids=["pdf", "office", "picture", "utf-16 without its mark"],
)
def test_what_is_no_text_is_refused_and_not_read_as_an_old_code_page(data, told):
    with pytest.raises(InputError, match=told):
        find_encoding(data, "x")
