"""Makes the framework strict: our warnings are errors, seeds are named, GPU and slow tests say why they do not run."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

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


@pytest.fixture(autouse=True, scope="session")
def time_once():
    """A run times each saving once here, not in rounds after a warm one: no test asks how fast it was."""
    if "jieyue.run.measure" in sys.modules:
        sys.modules["jieyue.run.measure"].ROUNDS = 0


WARM = """
import json, os, sys, traceback
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer, BertForMaskedLM, LlamaForCausalLM, Trainer

assert not [name for name in sys.modules if name.startswith("jieyue")]
for line in sys.stdin:
    code, *files = json.loads(line)
    child = os.fork()
    if not child:
        status = 1
        try:
            for stream, file in zip((1, 2), files):
                os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
            exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
            status = 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="session")
def fresh(tmp_path_factory):
    """Runs code in a process in which nothing of ours was imported, and returns it done. One process that knows transformers is
    started; each piece of code has a fork of its own, since that import takes seconds."""
    if sys.platform != "linux":  # where torch may not be forked

        def run(code):
            return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

        yield run
        return
    files = [str(tmp_path_factory.mktemp("fresh") / name) for name in ("out", "err")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", WARM], **pipes) as warm:

        def forked(code):
            print(json.dumps([code, *files]), file=warm.stdin, flush=True)
            status = int(warm.stdout.readline())
            return subprocess.CompletedProcess(
                code, status, *(Path(file).read_text(encoding="utf-8") for file in files)
            )

        yield forked
        warm.stdin.close()
