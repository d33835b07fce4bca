"""The command line and its reports in Chinese: every word of ours has its translation, and no word of anybody else's is touched."""

import ast
import json
import re
import sys
from pathlib import Path

import pytest
import typer

from jieyue.cli import build, main
from jieyue.cli.examples import EXAMPLES
from jieyue.cli.help import FLAGS, VERBS
from jieyue.cli.language import choose
from jieyue.data.advice import advise
from jieyue.data.findings import MEANING, Findings
from jieyue.errors import InputError
from jieyue.report import Example, Picture, Report
from jieyue.report.translation import Catalogue, catalogue
from jieyue.text import is_cjk

PACKAGE = Path(__file__).parents[2] / "src" / "jieyue"
ROOMS = ("run", "tasks", "cli", "data/advice.py")
CALLS = [
    *("fact", "section", "table", "note", "say", "picture", "lines", "bars", "stack", "waterfall", "histogram"),
    *("scatter", "examples", "Report", "Column", "Advice", "progress"),
]
NAMED = ("how", "unit", "title", "note", "x", "y", "value", "text")
UNITS = ("bytes", "seconds", "share", "text")
SAME = {
    "nats",
    "jieyue",
    "python",
    "torch",
    "transformers",
    "GPU",
    "GPU {}",
    "float32",
    "F1",
}  # names that Chinese writes so too
ZH = catalogue("zh")
ENTRIES = json.loads((PACKAGE / "report" / "zh.json").read_text(encoding="utf-8"))


def text_of(node):
    """A text as the source writes it, ``{}`` for what is put in; None for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return None


def texts_in(node):
    if (text := text_of(node)) is not None:
        yield text
    elif isinstance(node, ast.IfExp):
        yield from (*texts_in(node.body), *texts_in(node.orelse))
    elif isinstance(node, ast.List | ast.Tuple):
        yield from (text for one in node.elts for text in texts_in(one))
    elif isinstance(node, ast.Dict):
        yield from (text for one in node.keys if one is not None for text in texts_in(one))
    elif isinstance(node, ast.ListComp):
        yield from texts_in(node.elt)


def reported(path):
    """Every text in the source that a call hands to a report or to the terminal."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        name = getattr(getattr(node, "func", None), "attr", getattr(getattr(node, "func", None), "id", ""))
        if isinstance(node, ast.Call) and name in CALLS:
            given = [*node.args, *(one.value for one in node.keywords if one.arg in NAMED)]
            texts = (text for one in given for text in texts_in(one))
            yield from (
                text for text in texts if re.search("[A-Za-z]{3}", text.replace("{}", "")) and text not in UNITS
            )


def files():
    return [
        path
        for room in ROOMS
        for path in ([PACKAGE / room] if room.endswith(".py") else (PACKAGE / room).rglob("*.py"))
    ]


def explained(command):
    yield " ".join((command.help or "").split())
    for one in command.params:
        yield re.sub(r"\s+\[default: .*\]$", "", getattr(one, "help", None) or "")
    for own in getattr(command, "commands", {}).values():
        yield from explained(own)


def missing(texts):
    return sorted({text for text in texts if text and ZH.find(text) is None})


def test_every_reported_message_has_its_chinese():
    found = [text for path in files() for text in reported(path)]
    assert len(found) > 300
    assert missing(found) == []
    assert missing(MEANING.values()) == []
    assert missing(["no such message", "also {} missing"]) != []  # the broken twin


SHORT = {"a folder", "files", "none", "one", "one for {}", "text", "the same", "{} text"}  # what data may say as well
SHORT |= {"UTF-8", "columns", "distill='means'", "dtype=float32", "weight={}", "len(batches) = {}", "yarn, dynamic"}
SHORT |= {"EffectiveBatchTrainer(..., held_out=rows)", "hidden [..., H], weight [V, H], labels [...]"}
SHORT |= {"set_attn_implementation({})", "use(model, None)", "use(model, attention=None)"}  # is said so in Chinese too
SHORT |= {"{} rows", "{} in padding"}  # as a form of the catalogue it would stand for anything that ends so


def mistakes(path):
    """What the messages of mistakes say was expected, and what to do: the two parts that are never data."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("message", "InputError"):
            for text in (text for one in node.args[2:] for text in texts_in(one)):
                if re.search("[A-Za-z]{3}", text.replace("{}", "")) and text not in SHORT:
                    yield text
                    if re.search(r"\w\{\}$", text):
                        yield text[:-2]  # where there is no near name to tell


def whole_mistakes(path):
    """Of messages that are one text: what was expected, and what to do; the whole where nothing is said to be expected."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ERRORS and len(node.args) == 1:
            for text in texts_in(node.args[0]):
                told = re.fullmatch(r"(?:.*: found .*[,;]|[^:]*:|.*;) expected (.*)", text)
                parts = [text] if told is None or text in ENTRIES else told[1].split("; ")
                yield from (
                    one for one in parts if one not in SHORT and re.search("[A-Za-z]{3}", one.replace("{}", ""))
                )


ERRORS = ("InputError", "BudgetError", "MissingExtra")
ROOMS_BELOW = (
    *("cli", "run", "tasks", "data", "serving"),
    "budget.py",
)  # whose mistakes the command line prints as they are


def test_what_a_mistake_should_have_been_is_told_in_chinese():
    own = [p for p in PACKAGE.rglob("*.py") if p.relative_to(PACKAGE).parts[0] in ROOMS_BELOW]
    whole = {text for path in own for text in whole_mistakes(path)}
    assert len(whole) > 60
    assert len(missing(whole)) <= 0.02 * len(whole), missing(whole)  # one new one may come a little later
    found = {text for path in PACKAGE.rglob("*.py") for text in mistakes(path)}
    assert len(found) > 400
    assert len(missing(found)) <= 0.01 * len(found), missing(found)


def test_every_help_text_has_its_chinese():
    texts = [*explained(typer.main.get_command(build())), *FLAGS, *VERBS]
    texts += [does for examples in EXAMPLES.values() for _, does in examples]
    assert len(set(texts)) > 250
    assert missing(texts) == []


def test_every_finding_has_its_chinese():
    counts = {"examples": 100, "labels": 1, "entities": 0, "questions": 10, "unanswerable": 10, "texts_contradicted": 2}
    counts |= {"labels_unseen": 1, "answers_not_in_text": 9, "records_skipped": 3, "texts_truncated": 50, "pairs": 9}
    own = Findings(skipped=["a: found an empty text"])
    own.counts.update(counts)
    encoded = {"tokens": 10, "unknown_tokens": 9, "sources_truncated": 9}
    found = advise({"training files": own}, encoded, {"examples": 5, "ids": 3})
    assert len(found) >= 11
    for text in (text for one in found for text in (one.severity, one.found, one.do)):
        said = ZH.find(text)
        assert said and not re.search(r"[a-z]{3}(?![\w-]*`)", re.sub(r"--[\w-]+", "", said)), text


def test_the_catalogue_is_chinese_and_its_gaps_are_the_texts_own():
    for text, said in {**ZH.exact}.items():
        assert text in SAME or any(map(is_cjk, said)) or not re.search("[A-Za-z]{3}", said), text
        assert not re.search(r"\{\d", said), text
    for pattern, said in ZH.forms:
        gaps = set(map(int, re.findall(r"\{(\d)", said)))
        assert gaps <= set(range(pattern.groups)), said


def test_gaps_are_data_unless_the_catalogue_says_otherwise():
    words = Catalogue.of({"error": "错误", "{} in {}": "{1:t}中的{0}"})
    assert words.said("error in error") == "错误中的error"
    assert words.find("errors") is None and words.said("errors") == "errors"


def test_data_stay_as_they_are_in_a_translated_report():
    report = Report("Classification · error", language="en")
    section = report.section("Quality on held-out examples")
    section.table(["label", "examples"], [["error", 3], ["none", 4]], title="Each label")
    section.fact("accuracy", 0.5, "share", how="8 examples, 2 labels; 95 % bootstrap interval").fact("on", True)
    section.examples([Example(question="none?", passage="error", answer="", gold=("error",), right=False)])
    section.picture(Picture.bars("Accuracy", {"error": 0.5, "none": 0.25}))
    report.section("Settings").fact("labels", "error, none").fact("head", "none")
    chinese = report.in_language("zh")
    text, page = chinese.text(), chinese.html()
    assert chinese.title == "文本分类 · error" and "留出样本上的质量" in text and "8 个样本，2 个标签" in text
    assert re.findall(r"^(\S+) +\d$", text, re.M) == ["error", "none"]
    assert "error, none" in text and re.search("^输出头 +none", text, re.M) and re.search("^开 +是", text, re.M)
    assert "✗ 错误" in page and '<html lang="zh">' in page and "没有答案" not in page and "无答案" in page
    assert list(chinese.pictures()[0].series[0].x) == ["error", "none"]
    assert report.in_language("en") == report


@pytest.mark.parametrize(
    ("arguments", "environment", "language", "kept"),
    [
        (["--lang", "zh", "read"], {}, "zh", ["read"]),
        (["read", "--lang=zh", "--json"], {"LANG": "en_GB.UTF-8"}, "zh", ["read", "--json"]),
        (["read"], {"LANG": "zh_CN.UTF-8"}, "zh", ["read"]),
        (["read"], {"LC_ALL": "C", "LANG": "zh_CN.UTF-8"}, "en", ["read"]),
        (["read", "--lang", "en"], {"LANG": "zh_TW"}, "en", ["read"]),
        (["read", "--", "--lang", "zh"], {}, "en", ["read", "--", "--lang", "zh"]),
    ],
)
def test_the_language_is_chosen(arguments, environment, language, kept):
    assert choose(arguments, environment) == (language, kept)


def test_an_unknown_language_is_refused():
    for given in (["--lang", "fr"], ["--lang"], ["--lang="]):
        with pytest.raises(InputError, match=r"--lang: found .*, expected one of en, zh"):
            choose(given, {})


def test_help_and_mistakes_are_chinese_where_it_is_spoken(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("jieyue.cli.start_again", lambda *_: None)

    def called(*words):
        monkeypatch.setattr(sys, "argv", ["jieyue", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0, *capsys.readouterr()

    code, page, _ = called("train", "read", "--help", "--lang", "zh")
    assert code == 0 and "训练文件" in page and "[默认: tiny]" in page
    assert all(sum(2 if is_cjk(char) else 1 for char in line) <= 100 for line in page.splitlines())
    (tmp_path / "noo.toml").touch()
    code, _, error = called("--lang", "zh", "train", "read", "--config", tmp_path / "no.toml")
    assert "应为 一个 TOML 文件，是不是 '" in error
    (tmp_path / "noo.toml").unlink()
    code, _, error = called("--lang", "zh", "train", "read", "--config", tmp_path / "no.toml")
    assert code == 2 and "得到 没有文件 " in error and "应为 一个 TOML 文件" in error
    assert "训练" not in called("--help")[1]  # and English again
