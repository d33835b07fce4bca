"""Article 5's remedies as derivatives: ours agree with finite differences, a penalty without a second derivative is noticed."""

import sys
from dataclasses import replace
from types import ModuleType

import pytest
import torch

from jieyue.evidence import penalties
from jieyue.evidence.claims import FAILS, HOLDS, Place

(CLAIM,) = penalties.CLAIMS


def cells():
    return [
        replace(cell, settings={**cell.settings, "tokens": 5, "words": 8, "width": 4, "directions": 3})
        for cell in CLAIM.cells("minutes", (0, 1))
    ]


def with_peer(monkeypatch, callback):
    peer = ModuleType("bert4torch.callbacks")
    peer.AdversarialTraining = callback
    monkeypatch.setitem(sys.modules, "bert4torch", ModuleType("bert4torch"))
    monkeypatch.setitem(sys.modules, "bert4torch.callbacks", peer)
    monkeypatch.setattr(penalties, "version", lambda name: "0.0")


class Again:
    """Adds a constant to the loss and goes backward once more, as a penalty made of ``.grad`` does."""

    def __init__(self, mode, adversarial):
        self.adversarial = adversarial

    def on_train_begin(self):
        pass

    def train_step(self, ids, labels):
        _, loss, _ = self.trainer.train_step(ids, labels)
        slope = self.model.word_embeddings.weight.grad
        (loss + 0.5 * self.adversarial["epsilon"] * slope.square().sum()).backward()


def test_ours_are_derivatives_and_a_second_plain_gradient_is_told(monkeypatch, tmp_path):
    with_peer(monkeypatch, Again)
    results = [(cell, CLAIM.measure(cell, Place(tmp_path, None, 1))) for cell in cells()]
    verdict = CLAIM.judge(results)
    assert verdict.word == HOLDS
    words = {(row[0], row[1]): row[-1] for row in verdict.rows}
    assert (
        words["gradient penalty", "ours"] == words["FGM, clean loss added", "ours"] == "the derivative of what it says"
    )
    assert words["gradient penalty", "bert4torch 0.0"] == "the plain gradient once more"


def test_a_peer_that_is_not_installed_is_told(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "bert4torch", None)
    cell = cells()[0]
    verdict = CLAIM.judge([(cell, CLAIM.measure(cell, Place(tmp_path, None, 1)))])
    assert verdict.word == HOLDS and "cannot be tested here (bert4torch" in verdict.rows[1][-1]


@pytest.mark.parametrize("broken", ["nothing", "plain"])
def test_a_remedy_that_is_no_derivative_fails(monkeypatch, tmp_path, broken):
    def remedy(epsilon, add_clean=False):
        return lambda objective: objective if broken == "nothing" else lambda m, b: objective(m, b) + objective(m, b)

    monkeypatch.setattr(penalties, "penalize_gradient", remedy)
    cell = cells()[0]
    assert CLAIM.judge([(cell, CLAIM.measure(cell, Place(tmp_path, None, 1)))]).word == FAILS


def test_directions_belong_to_the_seed(tmp_path):
    cell = cells()[0]
    torch.manual_seed(1)
    one = CLAIM.measure(cell, Place(tmp_path, None, 1))
    assert one["gradient penalty"]["ours"] == CLAIM.measure(cell, Place(tmp_path, None, 1))["gradient penalty"]["ours"]
