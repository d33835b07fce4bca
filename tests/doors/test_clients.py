"""The clients that people use, against this server: openai-node, langchain-openai and ``transformers chat``, where they are there.

openai-node is found where Node looks for packages (``NODE_PATH`` too). openai-python is in test_serving.py. Slow.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")

from serving_models import LONG, ScriptedModel, make_tokenizer, served, talker

pytestmark = pytest.mark.slow
KEY = "0123456789abcdef"
SAID = "你好，我们聊聊天气吧。"
NODE = """
const OpenAI = require("openai").default ?? require("openai");
const api = new OpenAI({ baseURL: process.argv[1] + "/v1", apiKey: process.argv[2], maxRetries: 0 });
(async () => {
  const messages = [{ role: "user", content: "zh" }], found = {};
  const whole = await api.chat.completions.create({ model: "small", messages, temperature: 0, logprobs: true, metadata: { a: "b" } });
  found.whole = whole.choices[0].message.content;
  found.logprobs = whole.choices[0].logprobs.content.length;
  messages.push(whole.choices[0].message, { role: "user", content: "long" });
  let streamed = "";
  for await (const one of await api.chat.completions.create({ model: "small", messages, temperature: 0, stream: true, max_tokens: 40 }))
    streamed += one.choices[0]?.delta?.content ?? "";
  found.streamed = streamed;
  found.models = [];
  for await (const one of api.models.list()) found.models.push(one.id);
  try { await api.chat.completions.create({ model: "big", messages }); } catch (error) { found.error = [error.status, error.code]; }
  console.log(JSON.stringify(found));
})();
"""


@pytest.fixture(scope="module")
def address():
    tokenizer = make_tokenizer()
    with served([talker(ScriptedModel(tokenizer), tokenizer)], key=KEY) as found:
        yield found


def test_openai_node(address):
    node = shutil.which("node") or pytest.skip("node is not installed")
    if subprocess.run([node, "-e", "require.resolve('openai')"], capture_output=True, check=False).returncode:
        pytest.skip("the npm package openai is not installed")
    done = subprocess.run([node, "-e", NODE, address, KEY], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["whole"] == SAID and found["logprobs"] > 3 and LONG.startswith(found["streamed"]) and found["streamed"]
    assert found["models"] == ["small"] and found["error"] == [404, "model_not_found"]


def test_langchain(address):
    langchain = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")
    chat = langchain.ChatOpenAI(base_url=address + "/v1", api_key=KEY, model="small", temperature=0, max_retries=0)
    talk = [("system", "be kind"), ("user", "zh")]
    first = chat.invoke(talk)
    assert first.content == SAID and first.usage_metadata["output_tokens"] > 3
    assert "".join(piece.content for piece in chat.stream([*talk, first, ("user", "zh")])) == SAID
    assert [one.content for one in chat.batch(["zh", "hello"])] == [SAID, "Hello there, nice to meet you."]


def test_transformers_chat(tmp_path):
    """Over a pipe: two messages and out. (It sends its generation settings in one text, and no key.)"""
    folder = str(Path(sys.executable).parent)
    program = shutil.which("transformers", path=folder) or shutil.which("transformers")
    if program is None:
        pytest.skip("the command transformers is not installed")
    pytest.importorskip("rich", reason="transformers chat needs rich")
    tokenizer = make_tokenizer()
    with served([talker(ScriptedModel(tokenizer), tokenizer)]) as address:
        command = [program, "chat", "small", address, "do_sample=False", "max_new_tokens=40"]
        kept = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "PYTHONPATH")}
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=kept | {"TERM": "dumb", "COLUMNS": "200"},
            input="zh\nhello\n!exit\n",
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
    shown = "".join(done.stdout.split())
    assert done.returncode == 0 and SAID in shown and "Hellothere,nicetomeetyou." in shown, done.stdout + done.stderr
