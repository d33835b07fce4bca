"""A saved dialogue model without us: transformers alone, ``transformers serve`` and ``transformers chat`` say what we say."""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
from serving_models import at_a_terminal, make_tokenizer, random_model
from test_cli import jieyue

from jieyue.hf.loading import save

TURNS = ["hello zh", "say long", "你好"]
MOST = 24
WAIT = 300  # seconds; far more than any of these takes on an idle machine
ALONE = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, most, *turns = sys.argv[1:]
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
messages, said, ended = [], [], 0
for turn in turns:
    messages.append({"role": "user", "content": turn})
    asked = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True, add_generation_prompt=True)
    made = model.generate(**asked, do_sample=False, max_new_tokens=int(most))[0, asked["input_ids"].shape[1] :]
    ended += int(made[-1] == tokenizer.sep_token_id)
    said.append(tokenizer.decode(made, skip_special_tokens=True).strip())
    messages.append({"role": "assistant", "content": said[-1]})
assert "jieyue" not in sys.modules
print(json.dumps([said, ended]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved model with random weights that ends some of its replies."""
    tokenizer, place = make_tokenizer(), tmp_path_factory.mktemp("saved") / "model"
    model = random_model(tokenizer).float()
    with torch.no_grad():
        model.get_output_embeddings().weight[tokenizer.sep_token_id] *= -2
    save(model, tokenizer, place, {"recipe": "chat", "settings": {}})
    return place


@pytest.fixture(scope="module")
def own(folder):
    """Our own greedy replies to the talk, as the terminal's chat saves them."""
    talk = folder.parent / "talk.jsonl"
    with at_a_terminal([*TURNS, f"/save {talk}"]):
        jieyue("chat", folder, "--temperature", "0", "--max-tokens", MOST)
    messages = json.loads(talk.read_text(encoding="utf-8"))["messages"]
    return [one["content"] for one in messages if one["role"] == "assistant"]


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """A folder, and an environment for programs that are started there, in which nothing of ours can be imported."""
    place = tmp_path_factory.mktemp("outside")
    (place / "jieyue.py").write_text("raise ImportError('not here')", encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    return place, kept | {"PYTHONPATH": str(place), "TERM": "dumb", "COLUMNS": "200"}


@pytest.mark.slow
def test_transformers_alone_says_the_same(folder, own, outside):
    place, environment = outside
    command = [sys.executable, "-c", ALONE, folder, str(MOST), *TURNS]
    environment = environment | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, cwd=place, env=environment, capture_output=True, text=True, check=False, timeout=WAIT
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said, ended = json.loads(done.stdout)
    assert said == own and all(said)
    assert 0 < ended < len(TURNS)  # some replies end by themselves, and some are cut


@pytest.fixture(scope="module")
def address(folder, outside):
    """``transformers serve`` with the folder, on a free port of this machine."""
    (place, environment), program = outside, _transformers()
    for name in ("fastapi", "uvicorn", "rich"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed: transformers serve and chat need it")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [program, "serve", folder, "--host", "127.0.0.1", "--port", str(port)]
    with (place / "serve.log").open("w") as log:
        server = subprocess.Popen(command, cwd=place, env=environment | {"HF_HUB_OFFLINE": "1"}, stdout=log, stderr=log)
        try:
            _until_it_lives(server, f"http://127.0.0.1:{port}/health", place / "serve.log")
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(WAIT)


def _transformers():
    program = shutil.which("transformers", path=str(Path(sys.executable).parent)) or shutil.which("transformers")
    return program or pytest.skip("the command transformers is not installed")


def _until_it_lives(server, url, log):
    deadline = time.monotonic() + WAIT
    while True:
        assert server.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                assert answer.status == 200
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.2)


def _asked(address, body):
    sent = urllib.request.Request(
        address + "/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(sent, timeout=WAIT) as answer:
        return answer.read().decode()


@pytest.mark.slow
def test_transformers_serve_says_the_same(folder, own, address):
    """The whole talk, each reply whole and streamed."""
    messages, ends = [], set()
    for turn, expected in zip(TURNS, own, strict=True):
        messages.append({"role": "user", "content": turn})
        body = {"model": str(folder), "messages": messages, "temperature": 0, "max_tokens": MOST}
        (choice,) = json.loads(_asked(address, body | {"stream": False}))["choices"]
        assert choice["message"]["content"].strip() == expected
        ends.add(choice["finish_reason"])
        lines = [line[6:] for line in _asked(address, body | {"stream": True}).splitlines() if line[:6] == "data: "]
        pieces = [json.loads(line)["choices"][0]["delta"].get("content") for line in lines if line != "[DONE]"]
        assert "".join(filter(None, pieces)).strip() == expected
        messages.append({"role": "assistant", "content": expected})
    assert ends == {"stop", "length"}


@pytest.mark.slow
def test_transformers_chat_says_the_same(folder, own, address, outside):
    """Over a pipe, as a client of ``transformers serve``: two messages, its question whether to go on, and out."""
    place, environment = outside
    command = [_transformers(), "chat", folder, address, "do_sample=False", f"max_new_tokens={MOST}"]
    typed = "\n".join(TURNS[:2]) + "\nn\n!exit\n"  # the second reply is cut, and then it asks whether to go on
    done = subprocess.run(
        command, cwd=place, env=environment, input=typed, capture_output=True, text=True, check=False, timeout=WAIT
    )
    told = done.stdout + done.stderr
    shown = "".join(done.stdout.split())
    assert done.returncode == 0 and all("".join(said.split()) in shown for said in own[:2]), told[-3000:]
