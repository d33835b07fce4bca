"""What the documentation shows is run: Python page by page in a fresh folder with tiny models, commands by the real parser.

Everything a page needs stands on it, or in a comment ``<!-- before: ... -->``, which is run and not shown.
"""

import itertools
import re
import shlex
import shutil
import warnings
from pathlib import Path

import pytest
import torch
import typer
from transformers import AlbertConfig, AlbertForMaskedLM, BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

from jieyue.cli import build
from jieyue.data.history import template_for
from jieyue.hf.lossless_pieces import learn_lossless_vocabulary, make_lossless_tokenizer

ROOT = Path(__file__).parents[2]
WRITTEN = {"docs/benchmarks.md", "docs/benchmarks.zh.md"}  # by a command, without code to run
PAGES = [
    path
    for path in [ROOT / "README.md", ROOT / "README.zh.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if str(path.relative_to(ROOT)) not in WRITTEN
]
TEXTS = [
    "It was sunny in Paris yesterday.",
    "我手机没电了。",
    "source",
    "新词",
    "the quick brown fox jumps over the lazy dog",
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```|^<!-- before:\n(.*?)-->", re.S | re.M)


def named(path):
    return str(path.relative_to(ROOT))


def python_of(text):
    """The Python of a page, in order, what is run unseen included."""
    return [body or unseen for kind, body, unseen in FENCE.findall(text) if unseen or kind == "python"]


def without_fences(text):
    return FENCE.sub("", text)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory):
    """Folders that the pages name: a BERT, an ALBERT and a Llama of a few thousand weights."""
    home = tmp_path_factory.mktemp("pages")
    tokenizer = make_lossless_tokenizer(learn_lossless_vocabulary(TEXTS, 300), max_length=512)
    tokenizer.chat_template = template_for(tokenizer)
    same = {"vocab_size": len(tokenizer), "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48}
    marks = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": None, "eos_token_id": tokenizer.sep_token_id}
    torch.manual_seed(0)
    bert = BertForMaskedLM(BertConfig(**same, **marks, num_hidden_layers=2, max_position_embeddings=512))
    albert = AlbertForMaskedLM(AlbertConfig(**same, **marks, embedding_size=16, num_hidden_layers=4))
    llama = LlamaForCausalLM(LlamaConfig(**same, **marks, num_hidden_layers=2, num_key_value_heads=1))
    for folder, model in {"or/name": bert, "to/bert": bert, "to/albert": albert, "to/llama": llama}.items():
        model.save_pretrained(home / "path" / folder)
        tokenizer.save_pretrained(home / "path" / folder)
    return home


def slow_page(path):
    """A page that trains on data that it makes takes its time."""
    return pytest.param(path, marks=pytest.mark.slow) if path.stem == "own-data" else path


def to_run(path):
    """Whether a page has Python; that of Chinese pages is their twins', letter for letter (house/test_pages.py)."""
    return bool(python_of(path.read_text(encoding="utf-8"))) and not path.name.endswith(".zh.md")


@pytest.mark.parametrize("page", [slow_page(path) for path in PAGES if to_run(path)], ids=named)
def test_python_runs(page, tiny_models, tmp_path, monkeypatch):
    shutil.copytree(tiny_models / "path", tmp_path / "path")
    monkeypatch.chdir(tmp_path)
    space = {"__name__": "page"}
    for number, code in enumerate(python_of(page.read_text(encoding="utf-8")), 1):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(compile(code, f"{named(page)}, block {number}", "exec"), space)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_no_python_escapes(page):
    """Python stands in fences, where it is run; an indented block or a bare fence would not be."""
    text = page.read_text(encoding="utf-8")
    bare = [body for kind, body, _ in FENCE.findall(text) if kind not in ("python", "math", "text")]
    indented = re.findall(r"(?:^ {4}\S.*\n)+", without_fences(text), re.M)
    looks = re.compile(r"^\s*(from \w+ import|import \w+|\w[\w, ]* = \w+[.(]|(jieyue|jy)\.\w+\()", re.M)
    assert [body for body in (*bare, *indented) if looks.search(body)] == []


def commands_of(text):
    """Every command line that a page shows: in blocks (complete), and in the running text (arguments may be left out)."""
    lines, plain = [], without_fences(text)
    for kind, body, unseen in FENCE.findall(text):
        if not unseen and kind in ("", "sh"):
            lines += [(line, True) for line in body.splitlines()]
        if kind == "console":  # a command, then what it printed
            lines += [(line, True) for line in body.splitlines() if line.startswith("$ ")]
    lines += [(line, True) for line in re.findall(r"^ {4}(\S.*)$", plain, re.M)]
    lines += [(code.replace("\\|", "|"), False) for code in re.findall(r"`((?:\.venv/bin/)?jieyue [^`]+)`", plain)]
    for line, complete in lines:
        for part in re.split(r" · ", re.split(r"\s{2,}|\s#\s", line.strip())[0]):
            part = part.strip().removeprefix("$ ").removeprefix(".venv/bin/")
            if part.startswith("jieyue "):
                yield part, complete


def spelled_out(line):
    """``train|plan read DIR…`` as each of the commands it stands for, placeholders filled."""
    words = shlex.split(re.sub(r"\s…(?=\s|$)", "", line))[1:]
    choices = [word.split("|") if re.fullmatch(r"[\w-]+(\|[\w-]+)+", word) else [word] for word in words]
    for chosen in itertools.product(*choices):
        yield [word.rstrip("…") or "FILE" for word in chosen]


def parse(command, arguments, complete=True, called="jieyue"):
    """The real parser down to the verb, which is not called; ``ValueError`` says what it does not accept."""
    try:
        context = command.make_context(called, list(arguments))
    except Exception as error:  # click's, or those of the click inside typer
        if not hasattr(error, "format_message"):
            raise
        if not complete and "missing" in type(error).__name__.lower():
            return
        raise ValueError(f"{called} {' '.join(arguments)}: {error.format_message()}") from None
    rest = [*getattr(context, "_protected_args", []), *context.args]
    if hasattr(command, "resolve_command") and rest:
        inner = command.commands.get(rest[0])
        if inner is None:
            raise ValueError(f"{called}: no verb {rest[0]!r}")
        parse(inner, rest[1:], complete, rest[0])


@pytest.fixture(scope="module")
def application():
    return typer.main.get_command(build())


SHOWN = [(page, *line) for page in PAGES for line in dict.fromkeys(commands_of(page.read_text(encoding="utf-8")))]


@pytest.mark.parametrize(("page", "line", "complete"), SHOWN, ids=[f"{named(page)}: {line}" for page, line, _ in SHOWN])
def test_commands_parse(page, line, complete, application, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words in spelled_out(line):
        parse(application, words, complete)


def test_scripts_and_targets_exist():
    targets = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for script in re.findall(r"python ((?:benchmarks|docs|examples)/[\w/]+\.py)", text):
            assert (ROOT / script).is_file(), f"{named(page)}: {script}"
        for target in re.findall(r"(?:`|^)make ([a-z-]+)", text, re.M):
            assert target in targets, f"{named(page)}: make {target}"


def launches():
    """Every line of a page that starts a script in several processes."""
    for page in PAGES:
        for line in re.findall(
            r"^(?: {4}|\$ )((?:torchrun|accelerate launch) .*)$", page.read_text(encoding="utf-8"), re.M
        ):
            yield page, line.split(" 2>&1")[0]


def parse_launch(line):
    """By torch's and accelerate's own parsers; they leave with an error where they do not accept it."""
    from accelerate.commands.launch import launch_command_parser
    from torch.distributed.run import get_args_parser

    words = shlex.split(line)
    parser, start = (get_args_parser(), 1) if words[0] == "torchrun" else (launch_command_parser(), 2)
    return parser.parse_args(words[start:])


@pytest.mark.parametrize(("page", "line"), list(launches()), ids=lambda value: value if isinstance(value, str) else "")
def test_launches_parse(page, line, application):
    found = parse_launch(line)
    if getattr(found, "module", False):
        assert found.training_script == "jieyue"
        parse(application, found.training_script_args)
    else:
        assert found.training_script == "script.py"


def test_several_machines_are_documented():
    lines = [line for _, line in launches()]
    for option in ("torchrun --nnodes=2", "--num_machines=2 --machine_rank=1"):
        assert any(option in line for line in lines)
    with pytest.raises(SystemExit):
        parse_launch(lines[0].replace("--nproc_per_node", "--no-such-option"))


def test_the_alarm_rings(application):
    """The broken twins: an option that does not exist, a verb that does not, Python outside a fence."""
    with pytest.raises(ValueError, match="no-such-option"):
        parse(application, ["train", "read", "--no-such-option"])
    with pytest.raises(ValueError, match="teach"):
        parse(application, ["teach", "read"])
    assert len(SHOWN) > 20 and len(PAGES) >= 10
