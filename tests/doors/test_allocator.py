"""Verbs that train or read much run under tcmalloc where it is found, once, and what they start does not."""

import json
import os
import signal
import subprocess
import sys

import pytest

from jieyue.cli import allocator
from jieyue.errors import InputError

SEEN = """
import json, os, subprocess, sys
from jieyue.cli.allocator import start_again
start_again(sys.argv[1:])
from jieyue.malloc import malloc_name
child = [sys.executable, "-c", "from jieyue.malloc import malloc_name; print(malloc_name())"]
own = {name: value for name, value in os.environ.items() if name in ("LD_PRELOAD", "JIEYUE_STARTED_AGAIN")}
print(json.dumps([malloc_name(), subprocess.run(child, capture_output=True, text=True).stdout.strip(), own, sys.argv[1:]]))
"""
needs_tcmalloc = pytest.mark.skipif(allocator.find() is None, reason="no libtcmalloc_minimal here")


def seen(*arguments, **environment):
    done = subprocess.run(
        [sys.executable, "-c", SEEN, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@needs_tcmalloc
def test_a_long_verb_starts_again_once_and_its_children_do_not():
    arguments = ["train", "mlm", "--steps", "2"]
    assert seen(*arguments) == ["tcmalloc", "glibc", {}, arguments]


def test_verbs_that_train_or_read_much_start_again(monkeypatch):
    """The fault: what reads with a model (chat, serve, predict, evaluate), and sparsify, ran under glibc."""
    started = []
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(allocator, "find", lambda: "/a/library.so")
    monkeypatch.setattr(os, "execve", lambda program, words, environment: started.append(environment["LD_PRELOAD"]))
    for verb in ("train", "compare", "reproduce", "sparsify", "chat", "serve", "predict", "evaluate"):
        allocator.start_again([verb, "folder"])
        assert started.pop() == "/a/library.so", verb
    for words in (
        ["read"],
        ["title"],
        ["bench", "attention"],
        ["verify", "attention"],
        ["plan", "mlm"],
        ["--version"],
        [],
    ):
        allocator.start_again(words)
        assert not started, words


TALKING = """
import os, signal, sys
from jieyue.cli.allocator import start_again
start_again(sys.argv[1:])
from jieyue.malloc import malloc_name
print(malloc_name(), os.getpid(), signal.getsignal(signal.SIGINT) is signal.SIG_IGN, flush=True)
for line in sys.stdin:
    print(line.strip(), flush=True)
"""


@needs_tcmalloc
def test_what_a_process_has_it_keeps_when_it_starts_again():
    """The same number, so that a signal reaches it; all of standard input; signals that are ignored, as behind nohup."""
    command = ["/bin/sh", "-c", 'trap "" INT; exec "$0" "$@"', sys.executable, "-c", TALKING, "chat", "folder"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as talking:
        print("one", "two", sep="\n", file=talking.stdin, flush=True)  # before the second start has read anything
        assert talking.stdout.readline().split() == ["tcmalloc", str(talking.pid), "True"]
        assert [talking.stdout.readline() for _ in range(2)] == ["one\n", "two\n"]
        talking.terminate()
    assert talking.returncode == -signal.SIGTERM


@needs_tcmalloc
@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        (["read", "folder"], {}),  # a short one
        (["train", "mlm", "--allocator", "system"], {}),
        (["train", "mlm", "--allocator=system"], {}),
        (["train", "mlm"], {"MALLOC_ARENA_MAX": "1"}),  # chosen already
        (["train", "mlm", "--help"], {}),
    ],
)
def test_what_was_chosen_wins(arguments, environment):
    assert seen(*arguments, **environment) == ["glibc", "glibc", {}, arguments]


def test_kernels_of_many_lengths_are_not_kept_for_good(monkeypatch):
    monkeypatch.setattr(allocator, "find", lambda: None)
    for arguments, before, after in (
        (["train", "mlm"], {}, "256"),
        (["train", "mlm"], {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "8"}, "8"),  # chosen already
        (["read", "folder"], {}, None),
        (["serve", "folder"], {}, None),
    ):
        monkeypatch.setattr(os, "environ", dict(before))
        allocator.start_again(arguments)
        assert os.environ.get("ONEDNN_PRIMITIVE_CACHE_CAPACITY") == after


def test_without_tcmalloc(monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(allocator, "find", lambda: None)
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("started again"))
    allocator.start_again(["train", "mlm"])
    allocator.start_again(["serve", "folder"])
    with pytest.raises(InputError, match="libtcmalloc-minimal4"):
        allocator.start_again(["train", "mlm", "--allocator", "tcmalloc"])
    with pytest.raises(InputError, match="one of auto, tcmalloc, system"):
        allocator.start_again(["train", "mlm", "--allocator", "jemalloc"])


HELD = """
import json
from jieyue import machine, malloc
before = machine.resident_bytes()
blocks = [bytearray(b"x") * (1 << 20) for _ in range(64)]
del blocks
held = machine.resident_bytes() - before
given = [malloc.give_back_beyond(1 << 50), malloc.give_back_beyond(before + (16 << 20))]
print(json.dumps([held, given, machine.resident_bytes() - before]))
"""


@needs_tcmalloc
def test_what_is_held_beyond_a_number_of_bytes_goes_back():
    done = [
        subprocess.run(
            [sys.executable, "-c", HELD], env=os.environ | more, capture_output=True, text=True, check=True
        ).stdout
        for more in (allocator.preloaded(allocator.find(), os.environ), {})
    ]
    held, given, after = json.loads(done[0])
    assert held > 60 << 20 and given == [False, True]
    assert 0 < after < 18 << 20  # the rest is kept, for time
    assert json.loads(done[1])[1] == [False, False]  # glibc is left alone


WALLED = """
import json
from jieyue import malloc
from jieyue.machine import resident_bytes
MB = 1 << 20
before = resident_bytes()
wall = before + 48 * MB
def churn(most):  # blocks of all sizes, of which none fits where another was
    highest = 0
    for number in range(1, most):
        blocks = [b"x" * (number * MB // 2), b"x" * (number * MB // 3)]
        highest = max(highest, resident_bytes())
        del blocks
    return highest
refused = False
with malloc.walled(wall):
    inside = churn(40)
    kept = resident_bytes() - before
    try:
        b"x" * (64 * MB)
    except MemoryError:
        refused = True
after = resident_bytes()
beyond = b"x" * (64 * MB)
with malloc.walled(None):
    pass
print(json.dumps([inside <= wall, kept, wall - after, refused, len(beyond)]))
"""


def run_alone(code, more):
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | more, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_tcmalloc
def test_below_a_wall_freed_memory_is_kept_and_no_more_is_taken():
    below, kept, room, refused, beyond = run_alone(WALLED, allocator.preloaded(allocator.find(), os.environ))
    assert below and kept > 16 << 20 and room > 3 << 20  # kept within; some of it goes back for what is done outside
    assert refused and beyond == 64 << 20
    assert run_alone(WALLED, {})[3:] == [False, 64 << 20]  # another malloc: nothing is done
