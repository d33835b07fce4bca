"""Dialogue from the command line: train, evaluate, talk over a pipe, commands, and one clear line for each mistake."""

import json

import pytest
from test_cli import jieyue
from transformers import AutoModelForCausalLM, AutoTokenizer

from jieyue.cli import chat as verbs
from jieyue.report import Report


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "model"
    done = jieyue("train", "chat", "--steps", "3", "--limit", "60", "--budget", "2GiB", "--out", folder, "--json")
    assert done.returncode == 0, done.stderr
    return folder


def test_training_leaves_a_plain_model_that_anybody_loads(trained):
    tokenizer = AutoTokenizer.from_pretrained(trained)
    model = AutoModelForCausalLM.from_pretrained(trained)
    assert model.generation_config.eos_token_id == tokenizer.sep_token_id
    asked = tokenizer.apply_chat_template([{"role": "user", "content": "你好！"}], return_tensors="pt")["input_ids"]
    assert tokenizer.decode(asked[0]) == "[CLS]你好！[SEP]"
    assert model.generate(asked, max_new_tokens=3).shape[1] > asked.shape[1]
    said = {fact.what for section in Report.load(trained).sections for fact in section.items if hasattr(fact, "what")}
    assert {"perplexity, token", "perplexity, character", "BLEU-2", "NIST-4", "Dist-2", "key phrase said"} <= said
    card = (trained / "README.md").read_text(encoding="utf-8")
    assert "small model" in card and "jieyue train chat" in card


def test_evaluating_on_a_file(trained, tmp_path):
    file = tmp_path / "talks.jsonl"
    file.write_text('["你好", "你好呀"]\n["Hi", "Hello", "Bye", "Bye"]\n', encoding="utf-8")
    done = jieyue("evaluate", trained, file, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["event"] == "report"


def test_plan_and_doctor(tmp_path):
    file = tmp_path / "talks.jsonl"
    file.write_text("\n".join(json.dumps([f"q{n}", "a " * 40]) for n in range(300)), encoding="utf-8")
    done = jieyue("doctor", "chat", file, "--max-tokens", "20")
    assert done.returncode == 0, done.stderr
    assert "turns dropped" in " ".join(done.stdout.split())
    assert jieyue("plan", "chat", "--limit", "40", "--attention", "local(16)").returncode == 0


def test_talking_over_a_pipe(trained, tmp_path):
    lines = [
        "你好！",
        "/seed 3",
        "/retry",
        "/save " + str(tmp_path / "talk.jsonl"),
        "/undo",
        "/undo",
        "/clear",
        "/help",
        "/nonsense",
    ]
    done = jieyue(
        "chat", trained, "--max-tokens", "6", "--seed", "1", stdin="\ufeff" + "\n".join([*lines, "/exit", "never read"])
    )
    assert done.returncode == 0, done.stderr
    for told in ("seed 3", "saved", "taken back", "nothing to take back", "forgotten", "/retry", "/nonsense: unknown"):
        assert told in done.stdout
    assert json.loads((tmp_path / "talk.jsonl").read_text(encoding="utf-8"))["messages"][0]["content"] == "你好！"
    again = [
        jieyue("chat", trained, "--max-tokens", "9", "--seed", "4", stdin="你好！\nThanks!").stdout for _ in range(2)
    ]
    assert again[0] == again[1] and len(again[0].splitlines()) == 2
    wrong = jieyue("chat", trained, stdin="很" * 9000 + "\n/seed x\n/save\n/retry\n")
    assert wrong.returncode == 0
    for told in ("newest turn", "whole number", "expected a file", "nothing said"):
        assert told in wrong.stdout


def test_ctrl_c_ends_the_reply_and_not_the_chat(trained, monkeypatch):
    from jieyue.run.conversation import Conversation

    def say(self, text):
        self.messages.append(text)
        yield "first "
        raise KeyboardInterrupt

    monkeypatch.setattr(Conversation, "say", say)
    done = jieyue("chat", trained, stdin="one\ntwo\n")
    assert done.returncode == 0 and done.stdout == "first  …\nfirst  …\n"


def test_serving_is_told_what_to_serve(trained, tmp_path, monkeypatch):
    served = {}
    monkeypatch.setattr("jieyue.serving.server.serve", lambda models, **options: served.update(options, models=models))
    (tmp_path / "key").write_text("0123456789abcdef")
    done = jieyue(
        "serve", trained, "--port", "9000", "--api-key-file", tmp_path / "key", "--rows", "3", "--context", "99"
    )
    assert done.returncode == 0, done.stderr
    (model,) = served["models"]
    assert (model.name, model.kind, model.context, served["port"]) == ("model", "chat", 99, 9000)
    assert served["key"] == "0123456789abcdef" and served["host"] == "127.0.0.1" and served["bounds"].rows == 3
    model.stop()
    assert "Anyone who can reach" in jieyue("serve", trained, "--host", "0.0.0.0").stdout


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["train", "chat", "--data", "missing.json"], "missing.json"),
        (["train", "chat", "--loss-on", "everything"], "loss_on"),
        (["train", "chat", "--model", "gigantic"], "gigantic"),
        (["train", "chat", "--max-tokens", "2"], "max_tokens=2"),
        (["train", "chat", "--vocabulary", "missing.txt"], "missing.txt"),
        (["chat", "nowhere"], "nowhere"),
        (["chat", "nowhere", "--top-p", "0"], "top_p"),
        (["serve", "nowhere"], "nowhere"),
        (["serve", "nowhere", "--rows", "0"], "rows=0"),
        (["serve", "nowhere", "--api-key-file", "nokey"], "api-key-file"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, found, tmp_path):
    done = jieyue(*arguments, cwd=tmp_path)
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert found in done.stderr and "Traceback" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("jieyue: ")]) == 1


def test_the_reply_is_printed_with_its_speed_on_a_terminal(monkeypatch, capsys):
    class Talk:
        num_tokens, seconds, num_dropped = 10, 0.5, 2

    verbs._told(lambda: (piece for piece in ("Hel", "lo")), Talk(), verbs.Console(), True)
    assert "Hello" in capsys.readouterr().out
