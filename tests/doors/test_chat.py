"""Dialogue from the command line: train, evaluate, talk over a pipe, commands, and one clear line for each mistake."""

import json

import pytest
from serving_models import at_a_terminal
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
    talk = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    file.write_text(json.dumps({"conversations": talk}), encoding="utf-8")
    said = " ".join(jieyue("doctor", "chat", file).stdout.split())
    assert "1 dialogues read" in said and "human = user, gpt = assistant" in said and "Hello" in said
    assert jieyue("plan", "chat", "--limit", "40", "--attention", "local(16)").returncode == 0


def test_talking_at_a_terminal(trained, tmp_path):
    kept = tmp_path / "talk.jsonl"
    lines = ["你好！", "/seed 3", "/retry", f"/save {kept}", f"/save {kept}", "/undo", "/undo", "/clear", "/help"]
    lines += ["/nonsense", "/seed x", "/seed ²", "/seed --5", "/seed " + "9" * 40, "/seed 9999999999999999999", "/save"]
    lines += ["/save " + str(tmp_path / "no" / "such" / "folder"), "/retry", "two\nlines", "/exit", "never read"]
    with at_a_terminal(lines):
        done = jieyue("chat", trained, "--max-tokens", "6", "--seed", "1")
    assert done.returncode == 0, done.stderr
    for told in ("seed 3", "saved", "taken back", "nothing to take back", "forgotten", "/retry", "/nonsense: unknown"):
        assert told in done.stdout
    for told in ("whole number", "expected a file", "nothing said", "exists, expected a new file", "64 bits"):
        assert told in done.stdout.replace("\n", " ")
    assert json.loads(kept.read_text(encoding="utf-8"))["messages"][0]["content"] == "你好！"


def test_text_over_a_pipe_is_text(trained, monkeypatch):
    """Commands are a terminal's: what begins with a slash is said like anything else."""
    from jieyue.run.conversation import Conversation

    again = [
        jieyue("chat", trained, "--max-tokens", "9", "--seed", "4", stdin="\ufeff你好！\n\nThanks!").stdout
        for _ in range(2)
    ]
    assert again[0] == again[1] and len(again[0].splitlines()) == 2
    wrong = jieyue("chat", trained, stdin="很" * 9000 + "\n你好\n")
    assert wrong.returncode == 0 and "newest turn" in wrong.stdout and len(wrong.stdout.splitlines()) == 2
    heard = []

    def say(self, text):
        heard.append(text)
        yield "\x1b[2J\x9b31mred\r\x07\tone\n😀"

    monkeypatch.setattr(Conversation, "say", say)
    done = jieyue("chat", trained, stdin="/exit\n/save x\n")
    assert heard == ["/exit", "/save x"]
    assert done.stdout == "[2J31mred\tone\n😀\n" * 2


def test_bad_bytes_and_narrow_outputs_are_told(trained, monkeypatch):
    """A line that is not UTF-8, an output that is ASCII: the talk goes on."""
    import io
    import sys

    from jieyue.cli import main
    from jieyue.run.conversation import Conversation

    monkeypatch.setattr(Conversation, "say", lambda self, text: iter_closing(f"{text} 你好"))

    def iter_closing(text):
        yield text

    out = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\n\xff\xfe\nb\n"), "utf-8"))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "argv", ["jieyue", "chat", str(trained)])
    monkeypatch.setattr("jieyue.cli.start_again", lambda *_: None)  # this process is the tests'
    with pytest.raises(SystemExit) as ended:
        main()
    out.flush()
    told = out.buffer.getvalue().decode("ascii").splitlines()
    assert (ended.value.code or 0) == 0
    assert told == ["a ??", "(line 2 is not UTF-8 at byte 1: passed over)", "b ??"]


def test_pasted_lines_are_one_message_and_earlier_ones_come_back():
    from prompt_toolkit.application import create_app_session
    from prompt_toolkit.input import create_pipe_input
    from prompt_toolkit.output import DummyOutput

    from jieyue.cli.typed import prompter

    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        ask = prompter()
        keys.send_text("\x1b[200~one\ntwo\x1b[201~\r")
        assert ask() == "one\ntwo"
        keys.send_text("first\x1b\rsecond\r")
        assert ask() == "first\nsecond"
        keys.send_text("\x1b[A\x1b[A\x1b[A!\r")
        assert ask().replace("!", "") in ("one\ntwo", "first\nsecond")
        keys.send_text("\x04")
        with pytest.raises(EOFError):
            ask()


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
