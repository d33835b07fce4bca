"""``--log``: transformers' own integrations, by name; what is not installed is said before anything is read."""

import pytest

from jieyue.errors import InputError
from jieyue.run import config as module
from jieyue.run.arguments import RATES, arguments_of
from jieyue.run.config import LOGS, TrainingConfig


def told(training, folder):
    return arguments_of(training, pace=next(iter(RATES)), folder=folder, steps=3, device="cpu").report_to


@pytest.mark.parametrize("name", LOGS)
def test_a_log_that_is_installed_is_transformers_own(name, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "find_spec", lambda package: package)
    training = TrainingConfig(log=name)
    assert told(training, tmp_path) == [name] and told(TrainingConfig(), tmp_path) == []
    assert "log" not in training.to_dict()  # a run may go on under another log


def test_a_log_that_is_not_known_or_not_installed_is_refused(monkeypatch):
    with pytest.raises(InputError, match="did you mean 'tensorboard'"):
        TrainingConfig(log="tensorbord")
    monkeypatch.setattr(module, "find_spec", lambda package: None)
    with pytest.raises(InputError, match=r"no package swanlab.*pip install swanlab"):
        TrainingConfig(log="swanlab")
