"""The server as a process: connections that say nothing, ports, signals, and what one client may take from another."""

import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")

from serving_models import LONG, ScriptedModel, make_tokenizer, random_model, served, talker
from test_cli import jieyue

from jieyue.errors import InputError
from jieyue.hf.loading import save
from jieyue.serving.bounds import Bounds
from jieyue.serving.listening import listen

CHAT = "/v1/chat/completions"
HALF = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: "


def place(address):
    host, port = address.removeprefix("http://").split(":")
    return host, int(port)


def opened(address, data=b""):
    one = socket.create_connection(place(address), timeout=10)
    one.sendall(data)
    return one


def is_closed(one):
    one.setblocking(False)
    try:
        return one.recv(4096) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def is_let_go(one, data, seconds=8, pause=0.0):
    """Whether the other side ends the connection while this one goes on sending."""
    one.settimeout(0.2)
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        try:
            one.send(data)
        except TimeoutError:
            continue
        except OSError:
            return True
        time.sleep(pause)
    return False


def until(holds, seconds=10):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def asked(address, text="hello", timeout=20, **more):
    """A reply and the seconds until it was whole."""
    one = http.client.HTTPConnection(*place(address), timeout=timeout)
    body = {"messages": [{"role": "user", "content": text}], "temperature": 0, **more}
    started = time.perf_counter()
    one.request("POST", CHAT, json.dumps(body), {"content-type": "application/json"})
    answer = one.getresponse()
    found = answer.read()
    one.close()
    assert answer.status == 200, found
    return found.decode(), time.perf_counter() - started


def health(address, timeout=5):
    one = http.client.HTTPConnection(*place(address), timeout=timeout)
    one.request("GET", "/health")
    status = one.getresponse().status
    one.close()
    return status


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def test_silent_half_open_and_trickling_connections_end(tokenizer):
    """None of the three outlives the bound; a stream that takes far longer does."""
    bounds = Bounds(idle_seconds=0.4)
    with served([talker(ScriptedModel(tokenizer, seconds=0.02), tokenizer, bounds)], bounds) as address:
        kept = http.client.HTTPConnection(*place(address), timeout=20)
        body = {"messages": [{"role": "user", "content": "long"}], "stream": True, "max_tokens": 60}
        kept.request("POST", CHAT, json.dumps(body))
        silent, half = opened(address), opened(address, HALF)
        trickling = opened(address, HALF)
        ends = time.monotonic() + 1.0
        while time.monotonic() < ends:
            try:
                trickling.sendall(b"a")
            except OSError:
                break
            time.sleep(0.05)
        assert all(map(is_closed, (silent, half, trickling)))
        assert kept.getresponse().read().decode().endswith("data: [DONE]\n\n")  # about 1.2 seconds
        time.sleep(0.6)
        assert is_closed(kept.sock) if kept.sock else True


def test_a_refused_body_that_goes_on_trickling_ends(tokenizer):
    bounds = Bounds(idle_seconds=0.4, body_bytes=100)
    with served([talker(ScriptedModel(tokenizer), tokenizer, bounds)], bounds) as address:
        host = f"Host: {address.removeprefix('http://')}\r\n".encode()
        one = opened(address, b"POST /v1/chat/completions HTTP/1.1\r\n" + host + b"Content-Length: 100000\r\n\r\n{")
        assert b" 413 " in one.recv(4096)
        assert is_let_go(one, b"a", pause=0.05)


def test_at_the_bound_the_oldest_idle_connection_goes(tokenizer):
    bounds = Bounds(connections=6, backlog=4, idle_seconds=30)
    with served([talker(ScriptedModel(tokenizer, seconds=0.02), tokenizer, bounds)], bounds) as address:
        found = []
        thread = threading.Thread(target=lambda: found.append(asked(address, "long", max_tokens=60)))
        thread.start()
        time.sleep(0.2)
        silent = []
        for _ in range(30):
            silent.append(opened(address))
            time.sleep(0.005)
        assert health(address) == 200
        until(lambda: sum(map(is_closed, silent)) >= 24)
        assert [is_closed(one) for one in silent[:20]] == [True] * 20  # the oldest; a moment later the newest are there
        assert not is_closed(silent[-1])
        thread.join()
        assert "One two three" in found[0][0]  # one that is being answered never goes


def test_where_all_are_busy_the_newcomer_is_told(tokenizer):
    bounds = Bounds(connections=4, backlog=4)
    with served([talker(ScriptedModel(tokenizer, seconds=0.02), tokenizer, bounds)], bounds) as address:
        threads = [threading.Thread(target=asked, args=(address, "long"), kwargs={"max_tokens": 60}) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.4)
        one = opened(address)
        told = one.recv(4096)
        assert b" 503 " in told and json.loads(told.split(b"\r\n\r\n")[1])["error"]["code"] == "too_many_connections"
        for thread in threads:
            thread.join()


def test_what_is_no_http_is_answered_in_one_shape(tokenizer):
    with served([talker(ScriptedModel(tokenizer), tokenizer)]) as address:
        for data in (b"\x16\x03\x01\x02\x00\r\n\r\n", b"GET /\r\n\r\n", b"GET / HTTP/1.1\r\nHost : a\r\n\r\n"):
            told = opened(address, data).recv(4096)
            assert b" 400 " in told and set(json.loads(told.split(b"\r\n\r\n")[1])["error"]) == {
                "message",
                "type",
                "param",
                "code",
            }


def test_a_client_that_does_not_read_is_given_up(tokenizer):
    """Its buffers full, it is let go after a while; the server goes on."""
    bounds = Bounds(stalled_seconds=0.3)
    with served([talker(ScriptedModel(tokenizer), tokenizer, bounds)], bounds) as address:
        one = socket.socket()
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        one.connect(place(address))
        request = f"GET / HTTP/1.1\r\nHost: {address.removeprefix('http://')}\r\n\r\n".encode()
        assert is_let_go(one, request * 50)  # pages, never read
        assert health(address) == 200


def test_errors_in_a_row_do_not_fill_the_log(tokenizer, caplog):
    import logging

    from jieyue.serving.connections import Sparing

    sparing = Sparing(most=5)
    records = [logging.LogRecord("asyncio", logging.ERROR, "", 0, "out of files", (), None) for _ in range(1000)]
    assert sum(map(sparing.filter, records)) == 5
    sparing.muted = True
    assert not sparing.filter(records[0])


def tiny(folder, tokenizer, **settings):
    save(random_model(tokenizer, **settings).float(), tokenizer, folder, {"recipe": "chat", "settings": {}})
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    return tiny(tmp_path_factory.mktemp("served") / "model", tokenizer)


class Serving:
    """``jieyue serve`` in a process of its own."""

    def __init__(self, folder, *options, files=None):
        limit = (lambda: _limit(files)) if files else None
        command = [sys.executable, "-m", "jieyue", "serve", str(folder), "--port", "0", *options]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=limit
        )
        self.address = ""
        while not self.address:
            line = self.process.stdout.readline()
            assert line, self.process.stderr.read()
            self.address = line.split()[1].rstrip("/") if line.split()[:1] == ["page"] else ""

    def ended(self, timeout=30):
        _, told = self.process.communicate(timeout=timeout)
        return self.process.returncode, told


def _limit(files):
    import resource

    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))


@pytest.fixture
def serving(folder):
    made = []

    def start(*options, **more):
        made.append(Serving(folder, *options, **more))
        return made[-1]

    yield start
    for one in made:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait(10)


def streaming(serving, most=1000):
    one = http.client.HTTPConnection(*place(serving.address), timeout=20)
    body = {"messages": [{"role": "user", "content": "hello"}], "stream": True, "max_tokens": most, "min_tokens": most}
    one.request("POST", CHAT, json.dumps(body))
    answer = one.getresponse()
    answer.read(10)
    return answer


@pytest.mark.slow
def test_sigterm_finishes_what_was_begun_and_ends_with_0(serving):
    server = serving()
    answer = streaming(server, 120)
    server.process.send_signal(signal.SIGTERM)
    assert answer.read().decode().endswith("data: [DONE]\n\n")
    assert server.ended() == (0, "")


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once_without_a_traceback(serving):
    server = serving("--context", "200000")
    answers = [streaming(server, 250) for _ in range(4)]
    server.process.send_signal(signal.SIGINT)
    time.sleep(0.15)
    server.process.send_signal(signal.SIGINT)
    code, told = server.ended(10)
    assert code == 130 and "Traceback" not in told and len(told) < 100
    del answers


@pytest.mark.slow
def test_ports_that_cannot_be_are_one_line(folder, tmp_path):
    for port in ("-1", "65536", "99999"):
        done = jieyue("serve", folder, "--port", port)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and port in done.stderr
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = str(taken.getsockname()[1])
        started = time.perf_counter()
        done = jieyue("serve", folder, "--port", port)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and port in done.stderr
        assert time.perf_counter() - started < 15
    done = jieyue("serve", folder, "--host", "no.such.host.invalid")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    done = jieyue("serve", folder, "--allow-origin", "app.example")
    assert done.returncode == 2 and "allow-origin" in done.stderr


def test_a_free_port_is_taken_for_all_addresses():
    sockets = listen("localhost", 0)
    try:
        assert len({one.getsockname()[1] for one in sockets}) == 1
        with pytest.raises(InputError, match="port"):
            listen("127.0.0.1", sockets[0].getsockname()[1])
    finally:
        for one in sockets:
            one.close()


@pytest.mark.slow
def test_more_silent_sockets_than_files(serving):
    """300 idle sockets under a limit of 256 files: /health answers, and the log stays small."""
    server = serving(files=256)
    silent = []
    for _ in range(300):
        silent.append(opened(server.address))
    for _ in range(5):
        assert health(server.address, 8) == 200
        time.sleep(1)
    server.process.send_signal(signal.SIGTERM)
    code, told = server.ended()
    assert code == 0 and len(told) < 20_000


def test_rows_that_are_all_taken_leave_room_for_another_client(tokenizer):
    """One client's streams fill every row, and more of its own wait; another's four tokens do not wait for them."""
    bounds = Bounds(rows=4, waiting=4)
    one = talker(ScriptedModel(tokenizer, seconds=0.01), tokenizer, bounds)
    with served([one], bounds) as address:
        _, alone = asked(address, "long", max_tokens=4, user="b")
        long = {"max_tokens": 100, "user": "a"}
        threads = [threading.Thread(target=asked, args=(address, "long"), kwargs=long) for _ in range(8)]
        for number, thread in enumerate(threads):
            thread.start()
            until(lambda number=number: one.batcher.num_active + one.batcher.num_waiting == number + 1)
        assert (one.batcher.num_active, one.batcher.num_waiting) == (4, 4)
        _, beside = asked(address, "long", max_tokens=4, user="b")
        assert beside < 2 * alone + 0.1, (beside, alone)
        for thread in threads:
            thread.join()


def test_eight_open_streams_hardly_delay_another(tokenizer):
    """Talks that cannot be stepped together take turns by client: the ninth has every second step, not every ninth."""
    from jieyue.hf.use import use

    model = random_model(tokenizer)
    use(model, attention="local(4)")
    forward = model.forward

    def slow(*inputs, **more):
        time.sleep(0.01)
        return forward(*inputs, **more)

    model.forward = slow
    one = talker(model, tokenizer)
    with served([one]) as address:
        short = {"max_tokens": 4, "min_tokens": 4, "user": "b"}
        alone = min(asked(address, "h", **short)[1] for _ in range(3))
        long = {"max_tokens": 40, "min_tokens": 40, "user": "a"}
        threads = [threading.Thread(target=asked, args=(address, "hello"), kwargs=long) for _ in range(8)]
        for thread in threads:
            thread.start()
            time.sleep(0.03)
        until(lambda: one.batcher.num_active == 8)
        beside = sorted(asked(address, "h", **short)[1] for _ in range(3))[1]
        assert beside < 2 * alone + 0.03, (beside, alone)
        for thread in threads:
            thread.join()


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["full()", "local(64)"])
def test_eight_streams_of_a_real_model_hardly_delay_another(attention):
    """The preset ``small``, where a step of nine rows costs more than a step of one: medians, at most twice as long as alone."""
    from jieyue.hf.causal_presets import build_causal
    from jieyue.hf.use import use

    tokenizer = make_tokenizer()
    model = build_causal("small", tokenizer).eval()
    if attention != "full()":
        use(model, attention=attention)
    one = talker(model, tokenizer)
    with served([one]) as address:
        short = {"max_tokens": 4, "min_tokens": 4, "user": "b"}

        def median():
            return sorted(asked(address, "h", **short)[1] for _ in range(9))[4]

        asked(address, "h", **short)
        alone = median()
        long = {"max_tokens": 900, "min_tokens": 900, "user": "a", "stream": True}
        threads = [threading.Thread(target=asked, args=(address, "hello"), kwargs=long, daemon=True) for _ in range(8)]
        for thread in threads:
            thread.start()
        until(lambda: one.batcher.num_active == 8)
        beside = median()
        assert one.batcher.num_active >= 8 and beside < 2 * alone, (beside, alone)
        one.stop()


def test_prompts_are_written_behind_the_bound(tokenizer, monkeypatch):
    """No more prompts are being written than may wait: the others hear 429 at once."""
    bounds = Bounds(waiting=2)
    one = talker(ScriptedModel(tokenizer), tokenizer, bounds)
    free = threading.Event()
    write = one._prompt
    monkeypatch.setattr(one, "_prompt", lambda *given: free.wait(10) and write(*given))
    with served([one], bounds) as address:
        threads = [threading.Thread(target=asked, args=(address,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        until(lambda: one.batcher.num_waiting == 2)
        with pytest.raises(AssertionError, match="queue_full"):
            asked(address)
        assert health(address) == 200  # and the event loop is free
        free.set()
        for thread in threads:
            thread.join()
        until(lambda: one.batcher.num_waiting == 0)


def test_streams_are_whole(tokenizer):
    with served([talker(ScriptedModel(tokenizer), tokenizer)]) as address:
        text, _ = asked(address, "long", stream=True, max_tokens=200)
        pieces = [json.loads(line[6:]) for line in text.split("\n\n") if line.startswith("data: {")]
        said = "".join(one["choices"][0]["delta"].get("content", "") for one in pieces)
        assert LONG.startswith(said) and len(said) > 100
