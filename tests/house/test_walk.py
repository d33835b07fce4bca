"""How far an example of reading walks: from its record over training to its score.

Counted by a profile of one example through ``TASK.read``, ``encode``, ``collate``, ``accumulate(objective)``, ``answer`` and ``score``:
a file is on the walk where one of its functions is handed the example, or what was made of it: the question or its text, tokens, row,
batch, window, reading or answer. Not counted: how bytes become records (the same for every task), and what is handed sums over many
examples alone (``Tally``, gradients). A climb is such a call from a file on one floor to a file on a higher one.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy
import pytest
from torch import Tensor

import jieyue
from jieyue.data.questions import Passage, Question
from jieyue.data.windows import Candidate, Tokens
from jieyue.decoding.constraints import Reading
from jieyue.tasks import RunConfig
from jieyue.tasks.read.reader import Answer, Window
from jieyue.tasks.read.settings import ReadSettings
from jieyue.tasks.read.task import TASK
from jieyue.training.accumulation import accumulate
from jieyue.training.microbatch import MicroBatch

ROOT = Path(jieyue.__file__).parent
FLOORS = {"cli": 6, "bench": 5, "evidence": 5, "serving": 5, "run": 4, "tasks": 4, "planning": 3, "hf": 2}
FLOORS |= dict.fromkeys(("attention", "linear", "activations", "metrics", "data", "decoding", "training"), 1)
MADE_OF_IT = (Question, Passage, Tokens, Candidate, Window, Reading, Answer, Tensor, numpy.ndarray)
RECORDS = {"data/streams.py", "data/json_shapes.py", "data/textstream.py", "data/encodings.py", "data/rows.py"}
SUMS = {"tally.py", "training/ranks.py", "training/trained.py"}
QUESTION = "When did it open?"
MOST_FILES, MOST_CLIMBS = 15, 3


class Walk:
    """The files on the walk in the order in which it enters them, and its climbs, each (from, to)."""

    def __init__(self):
        self.files, self.climbs = {}, set()

    def __enter__(self):
        sys.setprofile(self.heard)
        return self

    def __exit__(self, *_):
        sys.setprofile(None)

    def heard(self, frame, event, _):
        here = place_of(frame)
        if event != "call" or here is None or here in RECORDS | SUMS or not is_handed(frame):
            return
        self.files[here] = True
        caller = frame.f_back
        while caller is not None and place_of(caller) is None:
            caller = caller.f_back
        if caller is not None and floor_of(place_of(caller)) < floor_of(here):
            self.climbs.add((place_of(caller), here))


def place_of(frame):
    path = Path(frame.f_code.co_filename)
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else None


def floor_of(place):
    return FLOORS.get(place.split("/")[0], 0)


def is_handed(frame):
    code = frame.f_code
    count = code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & 4) + bool(code.co_flags & 8)
    return any(holds(frame.f_locals.get(name)) for name in code.co_varnames[:count])


def holds(value, depth=0):
    if isinstance(value, MADE_OF_IT) or (isinstance(value, str) and value == QUESTION):
        return True
    if depth == 3 or not isinstance(value, Mapping | list | tuple):
        return False
    some = list(value.values() if isinstance(value, Mapping) else value)[:20]
    return any(holds(one, depth + 1) for one in some)


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    record = {
        "id": "1",
        "question": "When did it open?",
        "context": "The depot opened in 1900 by the sea.",
        "answers": ["1900"],
    }
    path = tmp_path_factory.mktemp("walk") / "one.jsonl"
    path.write_text(json.dumps(record) + "\n", encoding="utf-8")
    settings = ReadSettings(answer_slots=8, question_tokens=16, window_tokens=64, overlap_tokens=8)
    source = TASK.open_model(RunConfig(), settings, lambda: [QUESTION, record["context"]])
    settings, model, tokenizer = settings.fitted(source.positions), source.build(), source.tokenizer
    with Walk() as found:
        questions, _ = TASK.read([path], settings)
        rows, _ = TASK.encode(questions, tokenizer, settings)
        batch = TASK.collate(rows, tokenizer, settings)
        micro = MicroBatch(1, mask="attention_mask", columns=TASK.columns(settings))
        accumulate(TASK.objective(settings), model.train(), batch, micro_batch=micro)
        answers = TASK.answer(model, tokenizer, questions, settings)
        scores = TASK.score(answers, questions)
    assert scores["questions"] == 1
    return found


def test_an_example_walks_through_few_files(walk):
    assert len(walk.files) <= MOST_FILES, list(walk.files)
    assert {"data/qa_files.py", "training/accumulation.py", "metrics/extraction.py"} <= set(walk.files)


def test_an_example_climbs_seldom(walk):
    """Training calls back the objective that it was given; nothing else goes up."""
    assert ("training/accumulation.py", "tasks/read/masked.py") in walk.climbs
    assert len(walk.climbs) <= MOST_CLIMBS, walk.climbs


def test_the_alarm_rings():
    """The broken twin: a file in which the example is handed on is seen."""
    with Walk() as found:
        holds_nothing = TASK.groups([])
        TASK.groups([Question("1", "?", (Passage("text"),))])
    assert holds_nothing == [] and list(found.files) == ["tasks/read/task.py"]
