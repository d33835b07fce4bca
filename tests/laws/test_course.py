"""The course of a training in pictures: smoothing is a running mean, a loss set aside stands beside the training's."""

import pytest

from jieyue.report import Picture
from jieyue.run.curves import Curves, course, smoothed
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
    noted = Curves(losses=losses, rates=[(step, 0.1) for step, _ in losses], points=[(20, 2.0), (40, 1.5)])
    together = ["training", "training, mean of 5 updates", "set aside"]
    assert names(course(noted, LOSS)) == {"Loss": together, "Learning rate": [""]}
    apart = {"Loss": together[:2], "Exact match while training": ["set aside"], "Learning rate": [""]}
    assert names(course(noted, MATCH)) == apart
    beside = Curves(losses=losses, rates=noted.rates, points=noted.points, aside=[(20, 1.2), (40, 1.1)])
    assert names(course(beside, MATCH)) == {
        **apart,
        "Loss": together,
    }  # the score is another one: both losses in one picture
    assert [series.is_thin for series in course(beside, MATCH)[0].series] == [True, False, False]
    assert (
        not course(Curves(losses=losses[:9], rates=[], points=[]), MATCH)[0].series[0].is_thin
    )  # no mean in front of it
    assert course(Curves(losses=[], rates=[], points=[]), LOSS) == []
