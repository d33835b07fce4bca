"""The course of a training as pictures: loss, smoothed and beside the one on examples set aside, deciding score, learning rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

from jieyue.report import Picture
from jieyue.tasks import Deciding

from .course import Course, Points

__all__ = ["curves_of", "smoothed"]

_PARTS = 40  # a mean is over so small a part of the run


def curves_of(course: Course, deciding: Deciding) -> list[Picture]:
    """Loss in training and on examples set aside; the deciding score where it is another one; the rate; without what was not noted."""
    both = deciding.quantity == "loss"
    aside = {"set aside": course.scores} if course.scores else {}
    pictures = []
    if course.losses:
        beside = aside if both else {"set aside": course.aside} if course.aside else {}
        means = smoothed(course.losses)
        drawn = {"training": course.losses, **means, **beside}
        pictures.append(_lines("Loss", drawn, ("nats per label", ""), thin=["training"] if means else []))
    if aside and not both:
        pictures.append(_lines(deciding.title, aside, (deciding.quantity, deciding.unit)))
    if course.rates:
        pictures.append(_lines("Learning rate", {"": course.rates}, ("learning rate", "")))
    return pictures


def smoothed(losses: Points) -> dict[str, Points]:
    """The mean over the updates up to each; nothing for a run so short that it would hide the course.

    >>> smoothed([(step, 1.0) for step in range(1, 21)])["training, mean of 5 updates"][0]
    (5, 1.0)
    """
    wide = max(5, len(losses) // _PARTS)
    if len(losses) < 4 * wide:
        return {}
    sums = [0.0, *accumulate(loss for _, loss in losses)]
    means = [(losses[at - 1][0], (sums[at] - sums[at - wide]) / wide) for at in range(wide, len(losses) + 1)]
    return {f"training, mean of {wide} updates": means}


def _lines(title: str, drawn: Mapping[str, Points], y: tuple[str, str], thin: Sequence[str] = ()) -> Picture:
    unzipped = {name: ([x for x, _ in points], [y for _, y in points]) for name, points in drawn.items()}
    return Picture.lines(title, unzipped, x="update", y=y, thin=thin)
