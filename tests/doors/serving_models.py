"""Models to serve in tests: one with random weights, and one that says what is written for it, at the pace it is told."""

import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from transformers import DynamicCache, LlamaConfig

from jieyue.data.history import template_for
from jieyue.hf.causal_presets import build_causal
from jieyue.hf.lossless_pieces import learn_lossless_vocabulary, make_lossless_tokenizer
from jieyue.serving.app import build_app
from jieyue.serving.bounds import Bounds
from jieyue.serving.chat_model import ChatModel
from jieyue.serving.guard import allowed_hosts
from jieyue.serving.listening import BoundedServer, listen

HOSTILE = '<img src=x onerror="document.body.dataset.harmed=1"><script>document.body.dataset.harmed=1</script>'
LONG = "One two three four five six seven eight nine ten. " * 12
WRITTEN = {"html": HOSTILE, "long": LONG, "zh": "你好，我们聊聊天气吧。", "": "Hello there, nice to meet you."}


def make_tokenizer():
    texts = [*WRITTEN.values(), "say html long zh hello be kind 说点什么", "user question"]
    tokenizer = make_lossless_tokenizer(learn_lossless_vocabulary(texts, 400), max_length=256)
    tokenizer.chat_template = template_for(tokenizer)
    return tokenizer


def random_model(tokenizer, **settings):
    small = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48, "max_position_embeddings": 256}
    return build_causal("tiny", tokenizer, seed=3, **(small | {"initializer_range": 0.5} | settings)).double().eval()


class ScriptedModel(torch.nn.Module):
    """Answers by the words of the last message (``WRITTEN``). Its cache holds the tokens themselves."""

    def __init__(self, tokenizer, seconds=0.0):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.config = LlamaConfig(num_hidden_layers=1, max_position_embeddings=256)
        self.generation_config = None
        self.tokenizer, self.seconds = tokenizer, seconds

    def forward(self, input_ids, past_key_values=None, use_cache=True, attention_mask=None):
        past_key_values = DynamicCache() if past_key_values is None else past_key_values
        time.sleep(self.seconds)
        new = input_ids[:, None, :, None].to(self.weight.dtype)
        ids = past_key_values.update(new, new, 0)[0][:, 0, :, 0].long()
        logits = torch.zeros(len(ids), 1, len(self.tokenizer))
        for row, talk in zip(logits, ids.tolist(), strict=True):
            row[0, self.next_token(talk)] = 1e3
        return SimpleNamespace(logits=logits, past_key_values=past_key_values)

    def next_token(self, talk):
        sep = self.tokenizer.sep_token_id
        ends = [place for place, token in enumerate(talk) if token == sep]
        asked = self.tokenizer.decode(talk[ends[-2] + 1 if len(ends) > 1 else 0 : ends[-1]]) if ends else ""
        script = next(text for word, text in WRITTEN.items() if word in asked)
        reply = [*self.tokenizer(script, add_special_tokens=False)["input_ids"], sep]
        said = len(talk) - ends[-1] - 1 if ends else 0
        return reply[min(said, len(reply) - 1)]


def app_of(talkers, bounds=Bounds(), key=None, port=8000, origins=frozenset()):
    return build_app(talkers, hosts=allowed_hosts("127.0.0.1", port), bounds=bounds, key=key, origins=origins)


@contextmanager
def served(talkers, bounds=Bounds(), port=0, **options):
    """The application behind a real socket, as ``jieyue serve`` puts it there; gives its address."""
    sockets = listen("127.0.0.1", port)
    port = sockets[0].getsockname()[1]
    is_ready = threading.Event()
    server = BoundedServer(app_of(talkers, bounds, port=port, **options), bounds, ready=is_ready.set)
    thread = threading.Thread(target=server.run, args=(sockets,), daemon=True)
    thread.start()
    assert is_ready.wait(20)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(20)


@contextmanager
def at_a_terminal(lines):
    """``jieyue chat`` finds a terminal, and these lines are typed there."""
    remaining = iter(lines)

    def ask():
        try:
            return next(remaining)
        except StopIteration:
            raise EOFError from None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jieyue.cli.chat._is_terminal", lambda: True)
        patch.setattr("jieyue.cli.typed.prompter", lambda: ask)
        yield


def talker(model, tokenizer, bounds=Bounds(), name="small", **options):
    return ChatModel(name, model, tokenizer, bounds, **options)
