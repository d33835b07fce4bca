"""Pages that hold together: links resolve, Chinese twins say the same, tables name the file that their numbers are from."""

import importlib.util
import re
import sys
import unicodedata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "README.zh.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TWINS = [(path, path.with_name(path.name.replace(".zh.md", ".md"))) for path in PAGES if path.name.endswith(".zh.md")]
ARTICLES = sorted(path for path in (ROOT / "docs" / "articles").glob("*.md") if ".zh." not in path.name)
FENCE = re.compile(r"^```.*?^```|^<!-- before:.*?-->", re.S | re.M)


def script(name, folder="docs"):
    """A script of docs or benchmarks as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / folder / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fill_numbers, fill_demo, write_docs = script("fill_numbers"), script("fill_demo"), script("write_docs", "benchmarks")


def named(path):
    return str(path.relative_to(ROOT))


def read(path):
    return path.read_text(encoding="utf-8")


def headings(text):
    return [line for line in FENCE.sub("", text).splitlines() if re.match(r"#+ ", line)]


def anchor(heading):
    """A heading's anchor, as GitHub makes it."""
    text = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", lambda m: m[1] or "", heading.lstrip("#").strip().lower())
    kept = (letter for letter in text if letter in " -_" or unicodedata.category(letter)[0] in "LN")
    return "".join(kept).replace(" ", "-")


def broken_links(path, text):
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text)):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, place = target.partition("#")
        found = (path.parent / file).resolve() if file else path
        if not found.exists() or (place and place not in {anchor(line) for line in headings(read(found))}):
            yield target


def numbers(text):
    """The numbers of a page outside its code, in no order: languages put them elsewhere in a sentence."""
    text = re.sub(r"\]\([^)]*\)|<!--.*?-->", "", FENCE.sub("", text), flags=re.S)
    return sorted(re.findall(r"(?<![A-Za-z\d])\d+(?:,\d{3})*(?:\.\d+)?", text))


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_links_resolve(path):
    assert list(broken_links(path, read(path))) == []


def test_every_article_has_its_page_and_twin():
    assert [path.name[:2] for path in ARTICLES] == [f"{number}-" for number in range(1, 9)]
    for path in [*ARTICLES, ROOT / "README.md", ROOT / "docs" / "from-bert4keras.md"]:
        assert path.with_name(path.name.replace(".md", ".zh.md")).is_file(), named(path)


@pytest.mark.parametrize(("chinese", "english"), TWINS, ids=[named(twin[0]) for twin in TWINS])
def test_twins_say_the_same(chinese, english):
    ours, theirs = read(chinese), read(english)
    assert [line.split(" ")[0] for line in headings(ours)] == [line.split(" ")[0] for line in headings(theirs)]
    if english.parent != ROOT:  # the README's blocks have their comments translated
        assert FENCE.findall(ours) == FENCE.findall(theirs)
        assert numbers(ours) == numbers(theirs)
    else:
        python = re.compile(r"^```python\n.*?^```", re.S | re.M)
        assert python.findall(ours) == python.findall(theirs)
        assert [text.count("\n| ") for text in (ours, theirs)] == [ours.count("\n| ")] * 2  # a row for each row


@pytest.mark.parametrize("path", [path for path, _ in fill_numbers.pages()], ids=named)
def test_tables_are_those_of_the_results(path):
    """Every table of ours on an article's page is made from a file in benchmarks/results, and names file and command."""
    text, language = read(path), ".zh" if path.name.endswith(".zh.md") else ""
    made = fill_numbers.filled(text, language, fill_numbers.up_from(path))
    assert text == made, f"{named(path)} is stale: python docs/fill_numbers.py"
    ours = re.search(r"^## (?:Our numbers|我们的数字)\n(.*?)^## ", text, re.S | re.M)[1]
    assert "|" not in fill_numbers.MARK.sub("", ours), f"{named(path)} has a table that no result file made"


@pytest.mark.parametrize("path", fill_demo.PAGES, ids=named)
def test_the_demo_prints_what_the_pages_show(path):
    text = read(path)
    assert fill_demo.block() in text and text == fill_demo.filled(text), "stale: python docs/fill_demo.py"


@pytest.mark.parametrize(("name", "language"), [("benchmarks.md", "en"), ("benchmarks.zh.md", "zh")])
def test_the_benchmarks_are_those_of_the_results(name, language, monkeypatch):
    monkeypatch.setattr(write_docs, "save_picture", lambda *_: None)
    assert read(ROOT / "docs" / name) == write_docs.whole(language), "stale: python benchmarks/write_docs.py"


def unsaid(results, commands, makefile):
    """Results, and scripts in benchmarks, that no command makes; commands that ``make bench`` leaves out."""
    scripts = {path.name for path in (ROOT / "benchmarks").glob("*.py")} - {"write_docs.py", "long_pictures.py"}
    yield from sorted(results - set(commands))
    yield from sorted(script for script in scripts if not any(f"benchmarks/{script}" in c for c in commands.values()))
    yield from sorted(command for command in commands.values() if f"\t$(BIN)/{command}\n" not in makefile)


def test_every_benchmark_is_said():
    results = {path.stem for path in (ROOT / "benchmarks" / "results").glob("*.json")}
    makefile = read(ROOT / "Makefile")
    commands = fill_numbers.COMMANDS
    assert list(unsaid(results, commands, makefile)) == []
    assert all(f"`{command}`" in read(ROOT / "docs" / "benchmarks.md") for command in commands.values())
    assert len(list(unsaid({*results, "no-such"}, {}, makefile))) > len(results)  # the broken twin: nothing is said


def unsaid_files(text):
    """Files of the repository that a page names, in backticks, and that are not there."""
    for named_file in re.findall(
        r"`((?:tests|src|docs|benchmarks|examples|scripts)/[\w/.-]+\.\w+)", FENCE.sub("", text)
    ):
        if not (ROOT / named_file).exists():
            yield named_file


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_named_files_exist(path):
    assert list(unsaid_files(read(path))) == []


def untranslated(text, folder):
    """Links of a Chinese page to an English one that has a Chinese twin, the page's own twin aside."""
    for words, target in re.findall(r"\[([^\]]*)\]\(([^)\s#]+)[^)]*\)", FENCE.sub("", text)):
        english = target.endswith(".md") and not target.endswith(".zh.md") and words != "English"
        if english and (folder / target.replace(".md", ".zh.md")).is_file():
            yield target


@pytest.mark.parametrize("path", [chinese for chinese, _ in TWINS], ids=named)
def test_chinese_pages_lead_to_chinese_pages(path):
    assert list(untranslated(read(path), path.parent)) == []


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_shown_commands_have_their_output(path):
    """A console block is filled by ``python docs/fill_outputs.py``: a command without a line under it was never run."""
    for body in re.findall(r"^```console\n(.*?)^```", read(path), re.S | re.M):
        assert re.search(r"^[^$\n]", body, re.M), body


def test_a_command_that_fails_is_not_shown_as_if_it_worked(tmp_path):
    fill_outputs = script("fill_outputs")
    assert fill_outputs.printed_by("echo done", tmp_path) == "done"
    with pytest.raises(SystemExit, match="ended with 3"):
        fill_outputs.printed_by("echo wrong; exit 3", tmp_path)


def test_the_alarm_rings(tmp_path):
    """The broken twins: a dead link, a dead anchor, a number that only one language has, a file, a page in the wrong language."""
    assert list(unsaid_files("as `tests/laws/test_gone.py` and `docs/words.md` say")) == ["tests/laws/test_gone.py"]
    assert list(untranslated("[一](README.md) [English](README.md) [二](CONTRIBUTING.md)", ROOT)) == ["README.md"]
    page = tmp_path / "page.md"
    page.write_text("# Title\n\n[a](gone.md) [b](#gone) [c](#title)\n", encoding="utf-8")
    assert list(broken_links(page, read(page))) == ["gone.md", "#gone"]
    assert numbers("In 3 of 4.5 cases") == numbers("4.5 个中有 3 个") != numbers("4.5 个中有 2 个")
