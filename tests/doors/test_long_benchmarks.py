"""The benchmarks of long rows: the same tokens in rows of half the length, chapters held apart, the nearest centroid, pictures that
say what the tables say."""

import importlib.util
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from jieyue.data.batch import IGNORED
from jieyue.report import Picture, Report, Table
from jieyue.run.course import Course

FOLDER = Path(__file__).parents[2] / "benchmarks"


def script(name):
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))  # one benchmark finds another beside it, as when it is run
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_rows_of_half_the_length_ask_for_the_same_tokens_but_one():
    ids = torch.arange(16).view(2, 8)
    labels = torch.cat([ids[:, 1:], torch.full((2, 1), IGNORED)], 1)
    (short,) = script("long").halves([{"input_ids": ids, "labels": labels}])
    assert short["input_ids"].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]
    assert short["labels"].tolist() == [
        [1, 2, 3, IGNORED],
        [5, 6, 7, IGNORED],
        [9, 10, 11, IGNORED],
        [13, 14, 15, IGNORED],
    ]


class Letters:
    """A tokenizer of words; w7 is 7."""

    cls_token_id, sep_token_id = 101, 102

    def __call__(self, text, **_):
        return {"input_ids": [int(word[1:]) for word in text.split() if word[1:].isdigit()]}


@pytest.fixture(scope="module")
def encoder():
    return script("long_encoder")


def test_no_chapter_is_known_and_asked(encoder):
    chapters = ["\n".join(f"w{100 * number + place}" for place in range(30)) for number in range(9)]
    book, short = "Title\nby one\n\n\n\n" + "\n\n\n".join(chapters), "Short\n\n\n" + "\n\n\n".join(chapters[:4])
    known, asked = encoder.passages(Letters(), [book, short], 20, most=4)
    assert list(known) == ["Title"] and len(known["Title"]) == len(asked["Title"]) == 4
    starts = [row[1] // 100 for part in (known, asked) for row in part["Title"]]
    assert len(set(starts)) == 8 and {len(row) for row in known["Title"]} == {20}
    assert all(row[0] == 101 and row[-1] == 102 for row in asked["Title"])


def test_the_nearest_centroid_is_right_where_books_are_apart(encoder):
    one, other = torch.tensor([[1.0, 0.1], [1.0, -0.1]]), torch.tensor([[0.1, 1.0], [0.9, 0.1]])
    assert encoder.told_right({"a": one, "b": other[:1]}, {"a": one, "b": other}) == [True, True, True, False]


def test_excerpts_take_from_every_book(encoder, tmp_path):
    file = encoder.excerpts(["a" * 100, "b" * 100], 50, tmp_path / "new" / "text.txt")
    assert file.read_text(encoding="utf-8") == "a" * 25 + "\n" + "b" * 25 + "\n"


@pytest.fixture(scope="module")
def pictures():
    return script("long_pictures")


KEPT = [*sorted((FOLDER / "results").glob("long*.json")), FOLDER / "results" / "needle.json"]


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_kept_pictures_are_those_of_the_tables(path, pictures):
    kept = Report.load(path)
    assert pictures.with_pictures(Report.load(path)) == kept, "stale: python benchmarks/long_pictures.py"
    bare = replace(kept, sections=[replace(one, items=[*one.items]) for one in kept.sections])
    drawn = {one.title for one in kept.pictures()} - {"Loss while distilling", "Loss while training"}  # of courses
    for section in bare.sections:
        section.items = [
            one for one in section.items if getattr(one, "title", "") not in drawn or isinstance(one, Table)
        ]
    assert {one.title for one in pictures.with_pictures(bare).pictures()} >= drawn


def test_a_picture_follows_its_table(pictures, tmp_path):
    """The broken twin: one cell of each table is another, and the picture that was drawn from it with it."""
    for path in KEPT:
        kept = Report.load(path)
        for section in kept.sections:
            for number, item in enumerate(section.items):
                if isinstance(item, Table) and item.title in (
                    "Round by round",
                    "Cache",
                    "Seed by seed",
                    "One more token",
                ):
                    cells = item.rows[-1]
                    other = "+9.99 %" if isinstance(cells[2], str) else 2 * cells[2] + 1
                    if len(cells) == 6:
                        cells = (*cells[:3], 7.0, *cells[4:])
                    rows = (*item.rows[:-1], (*cells[:2], other, *cells[3:]))
                    if [one for one in section.items if isinstance(one, Picture)]:
                        section.items[number] = replace(item, rows=rows)
                        assert pictures.with_pictures(replace(kept), tmp_path) != Report.load(path), item.title


def test_a_price_and_a_count_are_read_as_they_are_told(pictures):
    told = pictures.share("+1.01 % [+0.71, +1.32]")
    assert (told.value, told.low, told.high) == pytest.approx((0.0101, 0.0071, 0.0132))
    assert pictures.share("-0.39 %") == pytest.approx(-0.0039) and pictures.parts("4 of 5") == 0.8


def test_a_distillation_shows_its_course_by_tokens(encoder):
    own, report = Report(""), Report("")
    loss = {"training": {1: 4.0, 2: 2.0}, "training, mean of 2 updates": {2: 3.0}, "set aside": {2: 9.0}}
    report.section("Training").picture(Picture.lines("Loss", loss))
    report.section("Training").picture(Picture.lines(encoder.TASK.deciding.title, {"set aside": {1: 0.25, 2: 0.125}}))
    encoder.learning(own.section("Distillation"), {"seed-0": report}, 1000)
    (picture,) = own.pictures()
    assert [(one.name, one.x, one.y) for one in picture.series] == [("seed-0", (2000,), (3.0,))]
    (looked,) = (one for one in own.sections[0].items if isinstance(one, Table))
    assert looked.rows == (("seed-0", 1000, 0.75), ("seed-0", 2000, 0.875))


def test_one_arm_alone_is_drawn_from_its_untrained_loss_beside_the_full_model(tmp_path):
    seeds = script("long_seeds")
    course = Course(tmp_path / "sparse-0" / "checkpoints")
    course.note(1, 2.0, loss=3.5)
    course.note(2, 4.0, loss=3.0, score=2.75)
    given = Namespace(seeds=[0], arms=["sparse"], runs=tmp_path, effective_batch=2, row_tokens=8)
    report = Report("")
    seeds.drawn(report, given, {0: {"sparse": 3.25, "control": 3.0}})
    (picture,) = report.pictures()
    assert [(one.x, one.y) for one in picture.series] == [((0, 32), (3.25, 2.75)), ((0, 32), (3.0, 3.0))]
