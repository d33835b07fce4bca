"""The report: lossless JSON, escaped pages, readable colours, true numbers in every rendering, pictures as data."""

import base64
import hashlib
import itertools
import json
import math
import re
import subprocess
import sys
import warnings
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from xml.etree import ElementTree

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jieyue.errors import InputError
from jieyue.report import (
    Column,
    Estimate,
    Example,
    Fact,
    Picture,
    Report,
    format_value,
    model_card,
    save_picture,
    write_whole,
)
from jieyue.report.canvas import Canvas
from jieyue.report.colours import DARK, LIGHT, SERIES, contrast
from jieyue.report.drawing import svg
from jieyue.report.plaintext import escape

HOSTILE = "<img src=x onerror=\"alert('a')\"> </style></p><script>b</script> & ]]> ${c} `d` | e"


def hostile_report():
    """The hostile text in every field that holds text."""
    report = Report(HOSTILE, HOSTILE)
    section = report.section(HOSTILE)
    section.fact(HOSTILE, 1.5, HOSTILE, HOSTILE, key=True).fact(HOSTILE, HOSTILE).fact(
        HOSTILE, Estimate(1, 0, 2, HOSTILE)
    )
    section.table([HOSTILE, (HOSTILE, HOSTILE)], [[HOSTILE, 1], [HOSTILE, None]], title=HOSTILE, note=HOSTILE)
    points = {HOSTILE: ([1, 2], [3, 4]), f"{HOSTILE}2": ([1, 2], [2, 1])}
    section.picture(Picture.lines(HOSTILE, points, x=(HOSTILE, HOSTILE), y=HOSTILE, rules={HOSTILE: 2}, note=HOSTILE))
    section.picture(Picture.bars(HOSTILE, {HOSTILE: {HOSTILE: 1}, f"{HOSTILE}2": {HOSTILE: 2}}, value=HOSTILE))
    section.examples(
        [
            Example(
                question=HOSTILE,
                passage=HOSTILE,
                answer="<script>",
                gold=("onerror", HOSTILE),
                title=HOSTILE,
                language=HOSTILE,
            ),
            Example(question=HOSTILE, passage=HOSTILE * 40, answer="x", span=(9000 // 10, 9500 // 10), right=False),
        ],
        title=HOSTILE,
        note=HOSTILE,
    )
    section.note(f"{HOSTILE}\n\n{HOSTILE}")
    report.section(f"{HOSTILE}2").note("")
    return report


def sample():
    report = Report("Reading · tiny preset", "2 cores")
    quality = report.section("Quality")
    quality.fact("exact match", 0.713, "share", "SQuAD rule", interval=(0.684, 0.741), key=True)
    quality.fact("on CUDA", None, "seconds", "no CUDA device here")
    quality.table(
        ["setting", ("peak", "bytes"), "exact"], [["whole", 3 * 2**29, True], ["pieces", None, True]], title="Savings"
    )
    quality.picture(Picture.lines("Loss", {"训练": ([0, 10, 20], [4.0, 2.0, 1.5])}, x="update", y="loss"))
    passage = "城东图书馆自三月一日起调整开放时间，晚上八点半闭馆。"
    quality.examples(
        [
            Example(
                question="几点闭馆？",
                passage=passage,
                answer="八点半",
                gold=("晚上八点半",),
                confidence=0.9,
                right=False,
            )
        ]
    )
    return report


OURS = files("jieyue.report").joinpath("page.js").read_text(encoding="utf-8")


class Reader(HTMLParser):
    """What a page holds, as a browser would split it: tags with attributes, and text outside the style sheet."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self.style, self.script = [], "", "", ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag == "script":
            self.lasttag = ""  # what follows is no part of it

    def handle_data(self, data):
        if self.lasttag == "style":
            self.style += data
        elif self.lasttag == "script":
            self.script += data
        else:
            self.text += data

    def dangers(self):
        """Elements and attributes that could run or fetch anything."""
        for tag, attributes in self.tags:
            if tag == "script" and self.script == OURS and not attributes:
                continue
            if tag in ("script", "img", "iframe", "object", "embed", "form", "base", "image", "foreignobject"):
                yield tag
            for name, value in attributes.items():
                outside = name in ("src", "href", "xlink:href", "action", "srcset", "data") and not value.startswith(
                    ("#", "data:image/svg+xml,")
                )
                if "download" in attributes and value.startswith("data:text/csv;charset=utf-8,"):
                    outside = False  # a picture's numbers, saved on a click
                if name.startswith("on") or name == "style" or outside:
                    yield f"{tag} {name}={value}"


@pytest.mark.parametrize("make", [hostile_report, sample])
def test_text_from_data_is_only_ever_text(make):
    page = make().html()
    assert list(Reader(page).dangers()) == []
    assert not re.search(r"url\((?!#)|@import|https?://(?!www\.w3\.org/)", page.split("<body>")[0].split("<style>")[1])


def test_hostile_text_is_shown_as_it_is():
    read = Reader(hostile_report().html())
    assert read.text.count(HOSTILE) >= 30
    assert len([tag for tag, _ in read.tags if tag == "style"]) == 1


def test_the_alarm_rings():
    """The broken twin: text pasted into the page as markup is found."""
    page = sample().html().replace("SQuAD rule", HOSTILE)
    assert {danger.split()[0] for danger in Reader(page).dangers()} == {"img", "script"}


def test_policy_allows_the_style_sheet_and_nothing_else():
    read = Reader(sample().html())
    policy = next(a["content"] for tag, a in read.tags if a.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(read.style.encode()).digest()).decode()
    script = base64.b64encode(hashlib.sha256(read.script.encode()).digest()).decode()
    assert read.script == OURS
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}'; script-src 'sha256-{script}'; img-src")
    assert "unsafe" not in policy and "http" not in policy


def test_a_page_without_curves_has_no_script():
    report = Report("r")
    report.section("s").picture(Picture.bars("b", {"a": 1, "b": 2}))
    read = Reader(report.html())
    assert read.script == "" and "script-src" not in report.html()


def test_every_point_of_a_curve_tells_its_value():
    steps = range(0, 1000)
    report = Report("r")
    curves = {"loss": (steps, [4 - step / 500 for step in steps]), "few": ([0, 500], [1.0, Estimate(2.0, 1.5, 2.5)])}
    report.section("s").picture(Picture.lines("Loss", curves, x="update", y=("loss", "nats")))
    report.section("s").picture(Picture.histogram("h", [1, 2, 2, 3], bins=[0, 2, 4], x="value"))
    report.section("s").picture(Picture.lines("l", {"a": ([1, 10, 100], [1, -1, 10])}, log="xy"))
    titles = re.findall(r'<circle class="point" cx="([\d.]+)" cy="([\d.]+)" r="5"><title>(.*?)</title>', report.html())
    told = [words for *_, words in titles]
    assert (
        told.count("loss · update 0 · 4 nats") == 2 == told.count("loss · update 999 · 2.002 nats")
    )  # wide and narrow
    assert told.count("few · update 500 · 2.0 [1.5, 2.5] nats") == 2
    assert told.count("value 2 … 4 · 3") == 2 and "a · -1" not in str(told) and told.count("a · 100 · 10") == 2
    assert len(told) == 2 * (60 + 2 + 2 + 2)
    first = [(float(x), float(y)) for x, y, _ in titles[:60]]
    assert first == sorted(first) and first[0][0] < 100 < 600 < first[-1][0] <= 720  # falls from left to right
    slopes = [(y1 - y0) / (x1 - x0) for (x0, y0), (x1, y1) in itertools.pairwise(first)]
    assert max(slopes) - min(slopes) < 0.1 * max(slopes) and min(slopes) > 0


def test_verdicts_are_words_with_a_colour():
    report = Report("r")
    report.section("s").fact("scale", "holds").fact("the rest", "a claim holds here")
    report.section("s").table(["claim", "minutes"], [["a", "fails"], ["holds", "not decided"]])
    page, chinese = report.html(), report.in_language("zh").html()
    for text, role in (("holds", "right"), ("fails", "wrong"), ("not decided", "doubt")):
        assert re.search(f'class="[a-z ]*tone-{role}"[^>]*>(<span>)?{text}<', page)
    assert page.count("tone-") - page.split("</style>")[0].count("tone-") == 4
    assert chinese.split("</style>")[1].count("tone-") == 4


def test_page_is_well_built():
    """Ids are unique, whatever points at one finds it, headings skip no level, pictures and tables have names."""
    read = Reader(hostile_report().html())
    ids = [a["id"] for _, a in read.tags if "id" in a]
    assert len(ids) == len(set(ids))
    pointers = [a["href"][1:] for _, a in read.tags if a.get("href", "").startswith("#")]
    pointers += [a["aria-labelledby"] for _, a in read.tags if "aria-labelledby" in a]
    pointers += [v for _, a in read.tags for v in re.findall(r"url\(#([^)]+)\)", a.get("clip-path", ""))]
    assert len(pointers) > 6 and set(pointers) <= set(ids)
    levels = [int(tag[1]) for tag, _ in read.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and all(b <= a + 1 for a, b in itertools.pairwise(levels))
    assert all(a.get("aria-label") for _, a in read.tags if a.get("role") in ("img", "region"))
    landmarks = [a["aria-label"] for _, a in read.tags if a.get("role") == "region"]
    assert len(set(landmarks)) == len(landmarks) >= 3  # a title may return, and be a section's
    assert read.tags[0] == ("html", {"lang": "en"})


def test_chinese_parts_say_so():
    page = sample().html()
    assert '<h3 class="question" lang="zh">几点闭馆？</h3>' in page
    assert '<p class="passage" lang="zh">' in page
    mixed = Report("r").section("s")
    mixed.note("the word 节约 means thrift")
    report = Report("r", sections=[mixed])
    assert 'the word <span lang="zh">节约</span> means thrift' in report.html()


def test_answer_and_gold_are_marked_where_they_stand():
    page = sample().html()
    assert '<span class="gold">晚上</span><mark class="answer gold">八点半</mark>闭馆' in page
    report = Report("r")
    report.section("s").examples(
        [Example(question="q", passage="a b a b", answer="a", span=(4, 5), gold=("b",), gold_spans=((6, 7),))]
    )
    assert 'a b <mark class="answer">a</mark> <span class="gold">b</span>' in report.html()


@given(st.integers(0, 5000), st.integers(0, 60), st.integers(0, 5000), st.integers(0, 60), st.integers(1, 5000))
@settings(max_examples=60)
def test_long_passages_are_cut_around_the_marks_and_count_what_is_left_out(a, na, g, ng, count):
    passage = "".join(chr(97 + i % 26) for i in range(count))
    span, gold = (min(a, count), min(a + na, count)), (min(g, count), min(g + ng, count))
    report = Report("r")
    report.section("s").examples(
        [Example(question="q", passage=passage, answer="x", span=span, gold=("y",), gold_spans=(gold,))]
    )
    shown = re.search(r'<p class="passage">(.*?)</p>', report.html())[1]
    left_out = sum(int(n.replace(",", "")) for n in re.findall(r"([\d,]+) more characters", shown))
    text = re.sub(r'<span class="cut">.*?</span>', "", shown)
    assert len(re.sub("<[^>]+>", "", text)) + left_out == count
    assert left_out == 0 or count > 1000
    if span[0] < span[1] and abs(a - g) < 500:
        assert "".join(re.findall(r"<mark[^>]*>(.*?)</mark>", text)) == passage[slice(*span)]


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_contrast_is_enough(palette):
    for ground in ("ground", "surface"):
        for role in ("ink", "muted", "accent", "right", "wrong"):
            assert contrast(palette[role], palette[ground]) >= 4.5, (role, ground)
        for role in (*SERIES, "right"):
            assert contrast(palette[role], palette[ground]) >= 3, (role, ground)
    for ground in ("mark", "miss"):
        assert all(contrast(palette[role], palette[ground]) >= 4.5 for role in ("ink", "muted", "right", "wrong")), (
            ground
        )


TEXT = st.text(max_size=12)
NUMBER = st.integers(-(10**20), 10**20) | st.floats(allow_nan=True, allow_infinity=True)
CELL = st.none() | st.booleans() | NUMBER | TEXT | st.builds(Estimate, NUMBER, NUMBER, NUMBER, TEXT)


@st.composite
def reports(draw):
    report = Report(draw(TEXT), draw(TEXT), draw(st.sampled_from(["en", "zh"])))
    section = report.section(draw(TEXT))
    for _ in range(draw(st.integers(0, 3))):
        section.fact(
            draw(TEXT), draw(CELL), draw(st.sampled_from(["", "bytes", "seconds", "share", "x", "rows"])), draw(TEXT)
        )
    width = draw(st.integers(1, 3))
    columns = [draw(TEXT) for _ in range(width)]
    section.table(columns, draw(st.lists(st.lists(CELL, min_size=width, max_size=width), max_size=3)), title=draw(TEXT))
    ys = draw(st.lists(NUMBER | st.builds(Estimate, NUMBER, NUMBER, NUMBER), max_size=4))
    section.picture(
        Picture.lines(draw(TEXT), {draw(TEXT): (list(range(len(ys))), ys)}, rules={draw(TEXT): draw(NUMBER)})
    )
    passage = draw(TEXT)
    spans = draw(st.lists(st.integers(0, len(passage)), min_size=2, max_size=2).map(sorted))
    section.examples([Example(question=draw(TEXT), passage=passage, answer=draw(TEXT), span=tuple(spans), gold=(draw(TEXT),),
                              confidence=draw(st.floats(0, 1)), right=draw(st.none() | st.booleans()))])  # fmt: skip
    report.section(draw(TEXT)).note(draw(TEXT))
    return report


def refuse(token):
    raise AssertionError(f"{token} is not JSON")


@given(reports())
@settings(max_examples=80)
def test_json_is_lossless(report):
    text = report.json()
    json.loads(text, parse_constant=refuse)  # standard JSON: no NaN, no Infinity
    assert Report.parse(text) == report
    assert Report.parse(text).json() == text


@given(reports())
@settings(max_examples=40)
def test_every_report_can_be_told_in_text(report):
    assert report.text()
    assert report.markdown()
    for block in report.blocks():
        assert all(isinstance(cell, str) for row in block.rows for cell in row)
        assert {len(row) for row in block.rows} <= ({len(block.columns)} if block.kind == "table" else {2, 3})


def test_equality_can_fail():
    """The broken twin of losslessness: a changed number, a dropped item, another NaN-free value make another report."""
    text = sample().json()
    assert Report.parse(text.replace("0.713", "0.714")) != sample()
    shorter = sample()
    shorter.sections[0].items.pop()
    assert Report.parse(text) != shorter


def test_save_and_load(tmp_path):
    report = sample()
    saved = report.save(tmp_path / "new" / "folder")
    assert saved.html.read_text(encoding="utf-8") == report.html()
    assert Report.load(saved.json) == Report.load(tmp_path / "new" / "folder") == report
    assert sorted(p.name for p in saved.html.parent.iterdir()) == ["report.html", "report.json"]


def test_every_picture_has_its_data_in_the_json():
    found = json.loads(sample().json())["sections"][0]["items"]
    picture = next(item for item in found if item["kind"] == "picture")
    assert picture["series"] == [{"kind": "series", "name": "训练", "x": [0, 10, 20], "y": [4.0, 2.0, 1.5]}]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not JSON"),
        ("[]", "expected 'jieyue report 1'"),
        ('{"format": "jieyue report 0"}', "another version"),
        ('{"format": "jieyue report 1", "sections": [{"kind": "sections"}]}', "kind 'sections'"),
        ('{"format": "jieyue report 1", "sections": [{"kind": "note", "text": ""}]}', "kind 'section'"),
        (
            '{"format": "jieyue report 1", "sections": [{"kind": "section", "title": "t", "items": [{"kind": "fact"}]}]}',
            "broken",
        ),
        ('{"format": "jieyue report 1", "sections": [{"kind": "section", "title": "t", "rows": []}]}', "broken"),
    ],
)
def test_broken_json_is_refused(text, says):
    with pytest.raises(InputError, match=says):
        Report.parse(text)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda s: s.table(["a", "b"], [[1, 2], [1]], title="T"), "'T', row 2: found 1 cells, expected 2"),
        (lambda s: s.fact("f", object()), "fact 'f': found object"),
        (lambda s: s.fact("f", torch.ones(2)), "of many values"),
        (lambda s: s.fact(1, 2), "what"),
        (lambda s: s.picture(Picture.lines("P", {"a": ([1, 2], [1])})), "found 2 x for 1 y"),
        (lambda s: s.picture(Picture.lines("P", {"a": [1, 2, 3]})), "expected \\(xs, ys\\)"),
        (lambda s: s.picture(Picture.lines("P", {"a": ([1], ["x"])})), "expected a number"),
        (lambda s: s.picture(Picture.lines("P", {}, log="z")), "log='z'"),
        (lambda s: s.picture(Picture.histogram("P", [1], bins=[2, 1])), "rising"),
        (lambda s: s.picture(Picture.bars("P", {"a": {"b": Estimate(1, 0, 2)}}, stacked=True)), "stacked"),
        (lambda s: s.picture(Picture(title="P", form="pie", series=())), "form='pie'"),
        (lambda s: s.examples([Example(question="", passage="abc", span=(1, 9))]), "3 characters"),
        (lambda s: save_picture(Picture.lines("P", {}), "picture.jpg"), ".svg or .png"),
        (lambda s: model_card(Report("r"), command="c", header={"a b": "c"}), "plain name"),
        (lambda s: model_card(Report("r"), command="c", header={"tags": [1]}), "expected a text"),
        (lambda s: Report.load("no/such/report.json"), "found no file"),
    ],
)
def test_refusals(make, says):
    with pytest.raises(InputError, match=says):
        make(Report("r").section("s"))


def test_numbers_of_any_library_become_plain():
    section = Report("r").section("s")
    section.fact("numpy", numpy.float32(0.5)).fact("torch", torch.tensor(3)).fact("path", Path("a/b")).fact(
        "none", None
    )
    assert [fact.value for fact in section.items] == [0.5, 3, "a/b", None]
    assert [type(fact.value) for fact in section.items] == [float, int, str, type(None)]
    assert Fact("a", "\ud800").value == "\ufffd"


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (1234567, "", "1,234,567"),
        (0.00012345, "", "0.0001234"),
        (1e-9, "", "1e-9"),
        (math.nan, "bytes", "undefined"),
        (-math.inf, "", "-∞"),
        (0.0, "seconds", "0.0 ms"),
        (-75.0, "seconds", "-1 min 15 s"),
        (Estimate(0.5, 0.5, 0.5), "share", "50.0% [50.0%, 50.0%]"),
        (Estimate(1234.5, 1200, 1300), "tokens/s", "1,234 [1,200, 1,300] tokens/s"),
        (Estimate(2**30, 2**29, 2**31), "bytes", "1.00 GiB [512.0 MiB, 2.00 GiB]"),
        (True, "bytes", "yes"),
    ],
)
def test_numbers_are_said_with_their_units(value, unit, shown):
    assert format_value(value, unit) == shown


def test_renderings_hold_the_same_numbers():
    report = sample()
    card = model_card(report, command="jieyue train read")
    for text in (report.text(), report.markdown(), card, Reader(report.html()).text):
        for part in ("71.3%", "68.4%", "74.1%", "1.50 GiB", "not measured", "no CUDA device here", "八点半", "90.0%"):
            assert part in text


def test_text_columns_stand_under_each_other():
    report = Report("r")
    report.section("s").table(["名字", "n", "how"], [["中文", 5, "a " * 60], ["English", 1234, "b"]])
    lines = report.text(width=60).splitlines()
    assert max(map(len, lines)) <= 60
    assert "中文         5  a" in report.text() and "English  1,234  b" in report.text()


def test_markdown_tables_keep_their_columns():
    report = hostile_report()
    for line in report.markdown().splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) in (4, 3)
        assert not re.search("<(?!/?$)[a-z/!]", line), line
    assert escape("1. a\n# b") == "1\\. a # b" and escape("# b") == "\\# b" and escape("[a](b)") == "\\[a\\](b)"


def test_model_card_is_valid_for_the_hub():
    yaml = pytest.importorskip("yaml")
    header = {
        "language": ["zh", "en", "no"],
        "pipeline_tag": "question-answering",
        "base_model": "a: b # c\n- d",
        "tags": ["on"],
    }
    command = ["jieyue", "train", "read", "--attention", "local(128)+atrous(8)", "``` $x"]
    card = model_card(
        sample(), command=command, header=header, usage="import jieyue", limits="Small.\n\nNot <b>for</b> law."
    )
    _, head, body = card.split("---\n", 2)
    assert yaml.safe_load(head) == {"library_name": "transformers", **header}  # no licence that nobody named
    assert "````bash\njieyue train read --attention 'local(128)+atrous(8)' '``` $x'\n````" in body
    assert "## Use\n\n```python\nimport jieyue\n```" in body and "Not &lt;b&gt;for&lt;/b&gt; law." in body
    assert (
        body.index("## Use") < body.index("## Quality")
        and "| exact match | 71.3% [68.4%, 74.1%] | SQuAD rule |" in body
    )


def test_files_are_whole_or_untouched(tmp_path, monkeypatch):
    target = write_whole(tmp_path / "a" / "report.html", "old")

    def fail(self, other):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_whole(target, "new")
    assert target.read_text() == "old" and [p.name for p in target.parent.iterdir()] == ["report.html"]


PICTURES = [
    Picture.lines(
        "lines", {"a": ([0, 1, 2], [Estimate(3, 2, 4), 2, 1]), "b": ([0, 2], [1, math.nan])}, rules={"limit": 2}
    ),
    Picture.lines(
        "log", {"a": ([128, 512, 2048], [2.0**20, 2.0**25, 2.0**33])}, x="tokens", y=("peak", "bytes"), log="xy"
    ),
    Picture.points("points", {"a": ([1, 2], [Estimate(3, 2, 4), 2])}, x=("time", "seconds"), y=("rate", "tokens/s")),
    Picture.bars("bars", {"中文 name": Estimate(0.7, 0.6, 0.8), "b": -0.1, "c": math.nan}, value=("share", "share")),
    Picture.bars("groups", {"s": {"a": 3, "b": 2}, "t": {"b": 1}}, log="y", value=("time", "seconds")),
    Picture.bars("stack", {"s": {"a": 3, "b": 2}, "t": {"a": 1}}, stacked=True, rules={"budget": 4}),
    Picture.waterfall("waterfall", {"first": ("predicted", 4), "second": ("measured", 1), "third": ("measured", 2)}),
    Picture.histogram("histogram", {"right": [1, 2, 2.5], "wrong": [0, 9]}, bins=3),
    Picture.lines("nothing", {}),
    Picture.bars("no bars", {}),
    Picture.lines("undefined", {"a": ([1], [math.nan])}),
    Picture.histogram("no values", []),
    Picture.lines("one", {"$a_b$": ([5], [0])}),
]


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.title)
def test_pictures_draw_at_both_widths_and_keep_their_words(picture):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for width in (336, 720):
            root = svg(picture, width=width, prefix="q", titled=True)
            text = ElementTree.tostring(root, encoding="unicode")
            words = [element.text for element in root.iter("text")]
            assert root.get("viewBox") == f"0 0 {width} {root.get('viewBox').split()[-1]}"
            assert "#0000" not in text and "style=" not in text and "font-family" not in text  # all colours are roles
            roles = {role[2:] for element in root.iter() for role in element.get("class", "").split()}
            assert roles <= set(LIGHT) and "ink" in roles
            assert picture.title in words and "{http" not in text
            blank = not any(math.isfinite(y) for series in picture.series for y in series.y)
            named = [series.name for series in picture.series if series.name and not blank]
            assert set(named) <= set(words)
            assert root.get("aria-label").startswith(picture.title)


def test_pictures_keep_every_point():
    picture = PICTURES[0]
    assert picture.note == "1 of 5 points cannot be drawn: not finite."
    assert picture.num_points == 5
    path = next(p for p in svg(PICTURES[1], width=720, prefix="q").iter("path") if p.get("class") == "k-s1")
    xs = [float(x) for x in re.findall(r"[ML] ([\d.]+)", path.get("d"))]
    assert len(xs) == 3 and xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.05)  # equal steps on a logarithmic axis


def test_a_waterfall_says_each_kind_and_each_change():
    steps = {"first": ("predicted", 4.0), "second": ("measured", 1.0), "third": ("measured", 2.0)}
    picture = Picture.waterfall("any", steps)
    assert picture.summary() == "measured: second 1, third 2; predicted: first 4"
    root = svg(picture, width=720, prefix="q")
    words = [element.text for element in root.iter("text")]
    assert {"4", "1 (−75 %)", "2 (+100 %)"} <= set(words)
    pale = [path for path in root.iter("path") if path.get("opacity") == "0.25"]
    assert len(pale) == 1  # what the second took away; the third took nothing
    turned = Picture.waterfall("any", dict(reversed(steps.items())))
    assert [series.name for series in turned.series] == ["measured", "predicted"]  # and so their colours


def test_drawing_is_the_same_every_time_and_ids_are_apart():
    first, again = (ElementTree.tostring(svg(PICTURES[0], width=720, prefix="a")) for _ in range(2))
    assert first == again
    other = svg(PICTURES[0], width=720, prefix="b")
    assert not {e.get("id") for e in other.iter() if e.get("id")} & set(re.findall(r'id="([^"]+)"', first.decode()))


def test_picture_files(tmp_path):
    path = save_picture(PICTURES[3], tmp_path / "bars.svg")
    root = ElementTree.parse(path).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    style = root.find("{http://www.w3.org/2000/svg}style").text
    assert (
        "prefers-color-scheme:dark" in style
        and f".f-ink{{fill:{DARK['ink']}}}" in style
        and f".f-ink{{fill:{LIGHT['ink']}}}" in style
    )
    assert "中文 name" in path.read_text(encoding="utf-8")
    hostile = save_picture(Picture.bars(HOSTILE + "\x00\x1b", {HOSTILE: 1}), tmp_path / "hostile.svg")
    assert {e.tag.partition("}")[2] for e in ElementTree.parse(hostile).iter()} <= {
        "svg",
        "style",
        "rect",
        "g",
        "path",
        "defs",
        "use",
        "text",
        "clipPath",
    }
    png = save_picture(PICTURES[2], tmp_path / "points.png").read_bytes()
    assert png.startswith(b"\x89PNG") and int.from_bytes(png[16:20], "big") == 1440


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=40), st.integers(1, 9))
@settings(max_examples=60)
def test_histograms_count_like_numpy(values, bins):
    series = Picture.histogram("h", values, bins=bins).series[0]
    assert sum(series.y) == len(values)
    assert list(series.y) == numpy.histogram(values, bins=numpy.array(series.x))[0].tolist()


def test_values_outside_the_bins_are_counted():
    picture = Picture.histogram("h", [0, 1, 1.5, 2, 3, math.nan], bins=[1, 2])
    assert picture.series[0].y == (3,) and picture.note == "3 values lie outside the bins."


def test_a_section_is_found_again():
    report = Report("r")
    report.section("a").fact("x", 1)
    report.section("b")
    report.section("a").fact("y", 2)
    assert [section.title for section in report.sections] == ["a", "b"]
    assert [(title, fact.what) for title, fact in report.facts()] == [("a", "x"), ("a", "y")]
    assert Column("a", "bytes") == Column(name="a", unit="bytes")


def test_import_is_light():
    code = "import sys, jieyue.report; assert not {'torch', 'numpy', 'matplotlib', 'PIL'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_two_of_many_curves_look_alike():
    canvas = Canvas(Picture.lines("many", {"a": {1: 1.0}}), width=720, colours=LIGHT, titled=False, stand_in=False)
    assert len({canvas._style(number) for number in range(36)}) == 36
