"""The parts of the data: set aside and held out are never empty, never overlap, and a limit samples."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jieyue.errors import InputError
from jieyue.tasks import RunConfig
from jieyue.tasks.sources import sampled, set_apart
from jieyue.tasks.table import TASKS, task

COUNT = 400


@given(st.lists(st.integers(0, 30), min_size=2, max_size=120), st.floats(0.01, 0.5), st.integers(1, 20))
def test_groups_are_never_parted_and_the_share_is_kept(numbers, share, most):
    groups, examples = [f"group {one}" for one in numbers], list(enumerate(numbers))
    rest, apart = set_apart(examples, groups, share, "salt", most)
    assert sorted(rest + apart) == sorted(examples) and rest == sorted(rest) and apart == sorted(apart)
    assert not {number for _, number in rest} & {number for _, number in apart}
    if len(set(numbers)) == 1:
        assert not apart
        return
    assert apart and rest
    smallest = min(numbers.count(number) for number in set(numbers))
    assert len(apart) <= max(smallest, min(most, max(1, round(share * len(examples)))))


@given(st.permutations(range(60)))
def test_the_order_of_the_examples_does_not_matter(order):
    plain = set_apart(list(range(60)), [str(one) for one in range(60)], 0.1, "salt")[1]
    assert sorted(set_apart(order, [str(one) for one in order], 0.1, "salt")[1]) == plain


def test_two_splits_of_one_run_are_independent():
    """The fault: by one checksum without salt, what the first split left had nothing for the second."""
    names = [str(one) for one in range(1000)]
    rest, held = set_apart(names, names, 0.1, "held out")
    assert len(held) == 100 and len(set_apart(rest, rest, 0.02, "set aside", 400)[1]) == 18
    low = sorted(set_apart(names, names, 0.02, "held out")[1])
    assert set(low) <= set(held), "with one salt the smaller part lies inside the larger one"


def test_a_sample_is_drawn_from_everywhere():
    chosen = sampled(list(range(1000)), 50, "a")
    assert len(set(chosen)) == 50 and chosen == sorted(chosen) and chosen[-1] > 900
    assert chosen == sampled(list(range(1000)), 50, "a") != sampled(list(range(1000)), 50, "b")
    assert sampled([1, 2], None, "a") == sampled([1, 2], 5, "a") == [1, 2]


def line_of(name, number):
    """One example of each task, as its files have it; the second half differs from the first."""
    half = "late" if number >= COUNT // 2 else "early"
    text = f"{half} text number {number} about something"
    passage = {"passage": f"{text}. The answer is {number}.", "answer": str(number)}
    return {
        "read": json.dumps({"id": str(number), "question": "Which number is it?", "passages": [passage]}),
        "classify": f"{text}\t{half}",
        "mlm": text,
        "tag": json.dumps({"text": text, "entities": [[0, 4, half]]}),
        "title": json.dumps({"title": f"{half} {number}", "content": text}),
        "chat": json.dumps([f"{half} {number}?", f"{half} {number}."]),
    }[name]


def file_of(name, folder, count=COUNT):
    path = folder / f"{name}.{ {'classify': 'tsv', 'mlm': 'txt'}.get(name, 'jsonl') }"
    lines = [line_of(name, number) for number in range(count)]
    header = ["text\tlabel"] if name == "classify" else []
    path.write_text("\n".join([*header, *lines]) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("name", [name for name in TASKS if name not in ("chat", "sparsify")])
def test_own_files_without_a_held_out_one_are_parted_in_three(name, tmp_path):
    job = task(name)
    config = RunConfig(data=[file_of(name, tmp_path)])
    sources = job.sources(config, job.default_settings(config, 0), 0)
    parts = [len(sources.train), len(sources.set_aside), len(sources.held_out)]
    assert sum(parts) == COUNT, "what was read is trained on, set aside or held out"
    assert parts[1] in range(6, 9) and parts[2] in range(36, 41), parts
    for one, other in ((sources.train, sources.set_aside), (sources.train, sources.held_out)):
        assert not {str(each) for each in one} & {str(each) for each in other}
    assert not {str(each) for each in sources.set_aside} & {str(each) for each in sources.held_out}


def test_the_part_of_a_dialogue_run_that_is_held_out_is_set_aside_too(tmp_path):
    job = task("chat")
    config = RunConfig(data=[file_of("chat", tmp_path)])
    sources = job.sources(config, job.default_settings(config, 0), 0)
    assert sources.set_aside == sources.held_out and len(sources.train) + len(sources.held_out) == COUNT


@pytest.mark.parametrize("name", [name for name in TASKS if name not in ("chat", "sparsify")])
def test_a_limit_samples_the_whole_file(name, tmp_path):
    """The fault: the first N were taken, of a file in order of its labels all of one label."""
    job = task(name)
    config = RunConfig(data=[file_of(name, tmp_path)], limit=60)
    sources = job.sources(config, job.default_settings(config, 0), 0)
    assert len(sources.train) + len(sources.set_aside) == 60
    late = sum("late" in str(one) for one in sources.train)
    assert 15 < late < 45
    other = job.sources(config, job.default_settings(config, 0), 1)
    assert list(other.held_out) == list(sources.held_out), "runs of several seeds are judged by the same examples"


def test_a_limit_of_running_text_keeps_stretches(tmp_path):
    """The fault: lines drawn here and there had no neighbour left, and filled no row."""
    job, path = task("sparsify"), tmp_path / "text.txt"
    path.write_text("\n".join(f"line {number} of a text that runs on" for number in range(4000)) + "\n")
    settings = job.default_settings(RunConfig(), 0)
    sources = job.sources(RunConfig(data=[path], limit=300), settings, 0)
    parts = [[one.place for one in part] for part in (sources.train, sources.set_aside, sources.held_out)]
    assert len(parts[0]) + len(parts[1]) == 300 == len(parts[2])
    assert not set(parts[0]) & set(parts[1]) and not set(parts[0] + parts[1]) & set(parts[2])
    assert {one.place: one.text.split()[1] for one in sources.train} == {place: str(place) for place in parts[0]}
    kept = sorted(parts[0] + parts[1])
    seams = sum(after != before + 1 for before, after in itertools.pairwise(kept))
    assert seams <= 3, "of lines drawn one by one nearly all stand alone"
    few = job.sources(RunConfig(data=[path], limit=20), settings, 0)
    assert len(few.train) + len(few.set_aside) == 20 and len(few.set_aside) == 1
    assert job.sources(RunConfig(data=[path], limit=300), settings, 1).train == sources.train


def test_a_limit_of_a_masked_models_text_keeps_neighbours_from_everywhere(tmp_path):
    """The fault: its rows are made of neighbouring lines too, and of lines drawn one by one they held no text that runs on."""
    job, path = task("mlm"), tmp_path / "text.txt"
    path.write_text("\n".join(f"line {number} of a text that runs on" for number in range(4000)) + "\n")
    sources = job.sources(RunConfig(data=[path], limit=300), job.default_settings(RunConfig(), 0), 0)
    kept = sorted(int(line.split()[1]) for line in (*sources.train, *sources.set_aside))
    assert len(kept) == 300 == len(sources.held_out) and not set(sources.train) & set(sources.held_out)
    seams = sum(after != before + 1 for before, after in itertools.pairwise(kept))
    assert 10 < seams < 30 and kept[-1] > 2500, "of lines drawn one by one nearly all stand alone"


@pytest.mark.parametrize("name", ["read", "classify", "title"])
def test_too_few_to_part_is_one_line(name, tmp_path):
    job = task(name)
    config = RunConfig(data=[file_of(name, tmp_path, count=2)])
    with pytest.raises(InputError, match="too few to hold some out"):
        job.sources(config, job.default_settings(config, 0), 0)
    with pytest.raises(InputError, match="limit=5"):
        job.sources(RunConfig(limit=5), job.default_settings(config, 0), 0)


def test_another_tasks_settings_are_refused():
    other = task("mlm").default_settings(RunConfig(), 0)
    with pytest.raises(InputError, match="found MaskSettings, expected ClassifySettings"):
        task("classify").settings(RunConfig(settings=other), 0)
