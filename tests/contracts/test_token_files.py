"""Temporary token files are removed on every end: a return, an error, SIGTERM, and SIGKILL (by the next that writes)."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy
import pytest

from jieyue.data.mapped import temporary_tokens

posix = pytest.mark.skipif(os.name != "posix", reason="files that are open cannot be removed here")
WRITES = """
import time, numpy
from jieyue.cli import _terminated_gently
from jieyue.data.mapped import temporary_tokens
def dialogues():
    yield numpy.arange(3), numpy.ones(3)
    print("writing", flush=True)
    time.sleep(60)
with _terminated_gently():
    temporary_tokens(dialogues(), {})
"""


def left(folder):
    return sorted(path for path in Path(folder).iterdir() if path.name.startswith("jieyue-tokens-"))


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@posix
def test_they_have_no_name_and_are_whole(temporary):
    tokens = temporary_tokens([(numpy.arange(5), numpy.ones(5)), (numpy.arange(2), numpy.ones(2))], {"a": 1})
    assert left(temporary) == [] and tokens.counts == {"a": 1}
    assert [tokens[n][0].tolist() for n in range(2)] == [[0, 1, 2, 3, 4], [0, 1]]


def test_an_error_leaves_nothing(temporary):
    with pytest.raises(ZeroDivisionError):
        temporary_tokens(((numpy.arange(1 // n), numpy.ones(1)) for n in (1, 0)), {})
    assert left(temporary) == []


@posix
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_process_that_is_ended(temporary, number):
    made = subprocess.Popen(
        [sys.executable, "-c", WRITES],
        env=os.environ | {"TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert made.stdout.readline() == "writing\n", made.stderr.read()
    (folder,) = left(temporary)
    os.utime(folder, (time.time() - 3600,) * 2)
    temporary_tokens([], {})
    assert left(temporary) == [folder]  # its owner lives
    made.send_signal(number)
    made.communicate(timeout=20)
    if number == signal.SIGKILL:
        assert left(temporary) == [folder]
        os.utime(folder, (time.time() - 3600,) * 2)
        temporary_tokens([], {})
    assert left(temporary) == []
