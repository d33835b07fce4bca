"""The needle benchmark: prompts are of one length and share nothing, the needle stands where it should, and only a number counts."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from jieyue.errors import InputError
from jieyue.report import Report
from jieyue.run.needles import FULL, Prompt, find_needles, needle_prompts, needles_section


@pytest.fixture(scope="module")
def needle():
    folder = Path(__file__).parents[2] / "benchmarks"
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # one benchmark finds another beside it, as when it is run
    spec = importlib.util.spec_from_file_location("needle", folder / "needle.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Words:
    """A tokenizer of words; of text the ids are 1,000 and more, every fourth a full stop."""

    def __init__(self):
        self.known = {}

    def __call__(self, text, **_):
        return {"input_ids": [self.known.setdefault(word, len(self.known)) for word in text.split()]}

    def decode(self, ids):
        words = list(self.known)
        return " ".join(words[one] if one < 1000 else "." if one % 4 == 3 else "x" for one in ids)


def test_prompts_share_nothing_and_hold_the_needle_at_its_depth():
    words, text = Words(), list(range(1000, 3000))
    made, taken = needle_prompts(words, text, 100, [0, 0.5, 1], 4)
    seen = [[one for one in prompt.ids if one >= 1000] for prompt in made]
    assert [one for own in seen for one in own] == text[:taken], "each text token once, in order"
    assert len({prompt.number for prompt in made}) == len(made) == 12 and {len(one.ids) for one in made} == {100}
    for prompt, own in zip(made, seen, strict=True):
        told = words.decode(prompt.ids[prompt.place :])
        assert told.startswith("The secret number of ") and told.split()[6] == f"{prompt.number}."
        assert told.endswith(" is") and words.decode(prompt.ids).count(prompt.number) == 1
        assert abs(prompt.place - prompt.depth * len(own)) <= 2
        assert prompt.place in (0, len(own)) or prompt.ids[prompt.place - 1] % 4 == 3, "after a sentence"
    with pytest.raises(InputError, match="200 tokens of text for 8 prompts of 100 that share none"):
        needle_prompts(words, text[:200], 100, [0, 1], 4)


def test_mixes_have_as_many_full_layers_and_nothing_is_claimed_for_a_weak_model(needle):
    ways = needle.mixes("local(4),full(),full(),local(4)", 4)
    assert ways == {
        needle.FULL: None,
        needle.CHOSEN: "local(4),full(),full(),local(4)",
        needle.SPACED: "local(4),full(),local(4),full()",
        needle.NONE: "local(4)",
    }
    asked = [Prompt([1, 2], 0, "12345", depth) for depth in (0, 1) for _ in range(5)]
    for found, claims in (
        ({needle.FULL: [True] * 4 + [False] * 6}, False),
        ({needle.FULL: [True] * 5 + [False] * 5}, True),
    ):
        report = Report("")
        needles_section(report, 2, asked, found)
        assert ("nothing is claimed" in report.text()) is not claims


class Writer:
    """What ``finds`` asks of a model: it repeats the numbers of prompts that its attention lets it see."""

    device = torch.device("cpu")

    def __init__(self, words):
        self.words, self.attention = words, None

    def generate(self, ids, **_):
        number = next(word for word in self.words.decode(ids[0].tolist()).split() if word.strip(".").isdigit())
        said = number if self.attention is None else "12"
        return torch.cat([ids, torch.tensor([[self.words.known.setdefault(said, len(self.words.known))]])], 1)


def test_a_number_is_found_where_it_is_written_whole(monkeypatch):
    words = Words()
    words.eos_token_id = 0
    model = Writer(words)
    monkeypatch.setattr("jieyue.run.needles.use", lambda model, attention: setattr(model, "attention", attention))
    asked, _ = needle_prompts(words, list(range(1000, 3000)), 100, [0, 1], 2)
    found = find_needles(model, words, {FULL: None, "none": "local(4)"}, asked)
    assert found == {FULL: [True] * 4, "none": [False] * 4} and model.attention is None
    weak = {FULL: "local(2)", "none": "local(4)"}
    assert find_needles(model, words, weak, asked) == {FULL: [False] * 4}, "of a weak model no other mix is asked"
