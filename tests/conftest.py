"""Makes the framework strict: our warnings are errors, seeds are named, GPU and slow tests say why they do not run."""

import os
import random

import numpy
import pytest
import torch
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach the network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["LC_ALL"] = "C.UTF-8"  # the command line speaks English here, whoever runs the tests

SEED = 20190708
settings.register_profile("jieyue", deadline=None)  # a time limit would fail on a busy machine
settings.load_profile("jieyue")


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="run the tests marked slow too")


def pytest_configure(config):
    config.addinivalue_line("filterwarnings", "error:::jieyue")


def pytest_collection_modifyitems(config, items):
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device here"))
        if "slow" in item.keywords and not config.getoption("--all"):
            item.add_marker(pytest.mark.skip(reason="slow; run by `make test-all`"))


@pytest.fixture(autouse=True)
def seeded():
    random.seed(SEED)
    numpy.random.seed(SEED)
    torch.manual_seed(SEED)


@pytest.fixture(autouse=True, scope="session")
def fill_uninitialised_memory():
    """Reads of uninitialised memory must not hide: torch.empty gives NaN under deterministic algorithms."""
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
