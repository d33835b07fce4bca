"""The benchmarks of long rows: the same tokens in rows of half the length, chapters held apart, the nearest centroid."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from jieyue.data.batch import IGNORED

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
