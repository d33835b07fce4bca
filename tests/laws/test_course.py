"""The course of a training in pictures: smoothing is a running mean, a loss set aside stands beside the training's."""

import pytest

from jieyue.report import Picture
from jieyue.run.course import Course
from jieyue.run.curves import curves_of, smoothed
from jieyue.tasks import Deciding

LOSS = Deciding(score="loss", title="Loss while training", quantity="loss", unit="", higher_is_better=False)
MATCH = Deciding(score="exact_match", title="Exact match while training", quantity="exact match", unit="share")


@pytest.mark.parametrize("updates", [20, 57, 400])
def test_smoothing_is_the_mean_of_the_updates_before(updates):
    losses = [(step, 3.0 / step + step % 7) for step in range(3, updates + 3)]
    ((name, found),) = smoothed(losses).items()
    wide = int(name.split()[3])
    assert name == f"training, mean of {wide} updates" and len(found) == updates - wide + 1
    for at, (step, value) in enumerate(found):
        window = losses[at : at + wide]
        assert step == window[-1][0] and value == pytest.approx(sum(loss for _, loss in window) / wide)


def test_short_runs_are_not_smoothed():
    assert smoothed([(step, 1.0) for step in range(19)]) == {}


def names(pictures: list[Picture]):
    return {picture.title: [series.name for series in picture.series] for picture in pictures}


def test_a_loss_set_aside_stands_beside_the_training_loss():
    losses = [(step, 1.0) for step in range(1, 41)]
    noted = Course(losses=losses, rates=[(step, 0.1) for step, _ in losses], scores=[(20, 2.0), (40, 1.5)])
    together = ["training", "training, mean of 5 updates", "set aside"]
    assert names(curves_of(noted, LOSS)) == {"Loss": together, "Learning rate": [""]}
    apart = {"Loss": together[:2], "Exact match while training": ["set aside"], "Learning rate": [""]}
    assert names(curves_of(noted, MATCH)) == apart
    beside = Course(losses=losses, rates=noted.rates, scores=noted.scores, aside=[(20, 1.2), (40, 1.1)])
    assert names(curves_of(beside, MATCH)) == {
        **apart,
        "Loss": together,
    }  # the score is another one: both losses in one picture
    assert [series.is_thin for series in curves_of(beside, MATCH)[0].series] == [True, False, False]
    assert (
        not curves_of(Course(losses=losses[:9], rates=[], scores=[]), MATCH)[0].series[0].is_thin
    )  # no mean in front of it
    assert curves_of(Course(losses=[], rates=[], scores=[]), LOSS) == []


def test_what_a_run_goes_on_from_is_all_that_it_noted(tmp_path):
    first = Course.begun(tmp_path, 0)
    for step in range(1, 6):
        first.note(step, 2.0 * step, loss=1 / step, rate=0.1, score=3.0 if step == 4 else None)
    with open(tmp_path / "course.jsonl", "a") as stream:
        stream.write('{"step": 6, "seco')  # killed while it was written
    assert Course.read(tmp_path).losses == first.losses
    second = Course.begun(tmp_path, 4)
    assert second.seconds == 8.0 and second.updates == {1, 2, 3, 4}
    assert second.losses == first.losses[:4] and second.scores == [(4, 3.0)] == first.scores
    second.note(5, 9.5, loss=0.5, rate=0.2)
    assert Course.begun(tmp_path, 5) == second and second.rates[-1] == (5, 0.2)
    assert Course.begun(tmp_path, 0).losses == []  # a new run in the folder
    assert Course.begun(tmp_path, 9).losses == []
