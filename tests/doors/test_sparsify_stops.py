"""A run of sparsify that cannot end well is refused before it measures, and one that was stopped goes on to the same end."""

import contextlib
import json
import random
import shutil

import pytest
import torch
import transformers
from test_cli import jieyue as command

import jieyue
from jieyue.errors import BudgetError, InputError
from jieyue.hf.loading import load_tokenizer
from jieyue.hf.progress import Progress
from jieyue.hf.tokenizers import learn_vocabulary, make_tokenizer
from jieyue.planning.search import fixed_cost
from jieyue.run import layer_prices
from jieyue.run.bars import Bars
from jieyue.run.best import BestWeights
from jieyue.run.config import TrainingConfig
from jieyue.run.fit import _Watched
from jieyue.run.folder import MEMORY
from jieyue.run.layer_doors import check_set_aside
from jieyue.run.layer_notes import Notes
from jieyue.run.sparsify import CHOICE, NOTES
from jieyue.tasks.sources import Sources
from jieyue.tasks.sparsify.costs import Costs, costs_of
from jieyue.tasks.sparsify.rows import blocks_of
from jieyue.tasks.sparsify.settings import SparseSettings

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]
SMALL = {"row_tokens": 32, "calibration_tokens": 64, "price_tokens": 64}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A text, a tiny Llama, and one of so many words that to train it takes 50 MiB at least."""
    folder = tmp_path_factory.mktemp("stops")
    random.seed(0)
    lines = [" ".join(random.choice(WORDS) for _ in range(9)) for _ in range(200)]
    (folder / "text.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    tokenizer = make_tokenizer(learn_vocabulary(lines))
    for name, words, layers in (("llama", len(tokenizer), 3), ("many", 200_000, 1)):
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=words, hidden_size=16, intermediate_size=24, num_hidden_layers=layers, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.4, tie_word_embeddings=True,
        )  # fmt: skip
        transformers.LlamaForCausalLM(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


class Listening(Bars):
    """Notes what is said, and stops the run at so many steps of one of its parts."""

    def __init__(self, what="", after=0):
        self.what, self.after, self.said, self.facts = what, after, [], {}

    def say(self, line):
        self.said.append(line)

    def fact(self, event, **values):
        self.facts[event] = values

    @contextlib.contextmanager
    def progress(self, what):
        def update(done, of, facts):
            if what == self.what and done >= self.after:
                raise KeyboardInterrupt

        yield update


@pytest.fixture
def unmeasured(monkeypatch):
    monkeypatch.setattr("jieyue.run.sparsify.measure_layers", lambda *_: pytest.fail("measured"))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"attention": "full()"}, "every key in every layer.*such as first"),
        ({"attention": "local(31)"}, "no key that it drops in rows of 32 tokens.*--row-tokens"),
        ({"attention": "local(40)+linear(elu)"}, "no key that it drops"),
        ({"train": "qkvo"}, "train='qkvo': found tokens=0"),
        ({"distill": "logits"}, "distill='logits': found tokens=0"),
        ({"tokens": 64, "rank": 2}, "rank=2: found train='all'"),
        ({"position_factor": 4.0}, "position_factor=4: found positions='none'"),
        ({"tokens": 64, "optimizer": "adam"}, "adamw"),
    ],
)
def test_what_would_do_nothing_is_refused(given, says, place, tmp_path, unmeasured):
    asked = {"attention": "local(4)", "data": place / "text.txt", **SMALL, **given}
    with pytest.raises(InputError, match=says):
        jieyue.sparsify(place / "llama", out=tmp_path / "out", **asked)


def test_models_that_have_no_row_or_no_attention_of_their_own(place, tmp_path, unmeasured):
    given = {"attention": "local(4)", "data": place / "text.txt", "out": tmp_path / "out", **SMALL}
    for name, entries, says in (
        ("bare", {"architectures": ["LlamaModel"]}, "encoder, whose tokenizer has no cls_token, sep_token"),
        ("sparse", {"jieyue_attention": "local(2)"}, r"whose attention is local\(2\).*made from, my/llama"),
    ):
        shutil.copytree(place / "llama", tmp_path / name)
        path = tmp_path / name / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | entries), encoding="utf-8")
        tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(place / "llama")
        tokenizer.cls_token = tokenizer.sep_token = None
        tokenizer.save_pretrained(tmp_path / name)
        record = {"recipe": "sparsify", "settings": {}, "model": "my/llama"}
        (tmp_path / name / "jieyue.json").write_text(json.dumps(record), encoding="utf-8")
        with pytest.raises(InputError, match=says):
            jieyue.sparsify(tmp_path / name, **given)
    told = command("verify", "attention", tmp_path / "sparse", "--attention", "local(2)")
    assert told.returncode == 2 and "verify attention: found" in told.stderr and "name the model" in told.stderr


def test_a_training_that_does_not_fit_is_refused_before_anything_is_measured(place, tmp_path, unmeasured, monkeypatch):
    """And what an earlier run had chosen there is still there."""
    monkeypatch.setattr("jieyue.run.ways.other_ways", lambda *_: iter(()))  # which are looked for at length
    (tmp_path / CHOICE).write_text("{}", encoding="utf-8")
    given = {"attention": "local(4)", "data": place / "text.txt", "tokens": 64, "effective_batch": 1, **SMALL}
    with pytest.raises(BudgetError, match="too much"):
        jieyue.sparsify(place / "many", out=tmp_path, budget=fixed_cost() + 30 * 2**20, **given)
    assert (tmp_path / CHOICE).is_file()


def test_tokens_that_the_text_has_not_are_told(place, tmp_path, monkeypatch):
    class Measured(Exception):
        pass

    def measured(*_):
        raise Measured

    monkeypatch.setattr("jieyue.run.sparsify.measure_layers", measured)
    given = {"attention": "local(4)", "data": place / "text.txt", "tokens": "20k", "effective_batch": 2, **SMALL}
    listening = Listening()
    with pytest.raises(Measured):
        jieyue.sparsify(place / "llama", out=tmp_path, listener=listening, **given)
    there = listening.facts["training"]["tokens_there"]
    assert 1000 < there < 1900 and listening.facts["training"]["tokens"] == 64 * round(20_000 / 64)
    assert any(f"rows of {there:,} tokens" in line and "times" in line for line in listening.said)
    with pytest.raises(Measured):
        jieyue.sparsify(place / "llama", out=tmp_path, listener=listening, **{**given, "tokens": 20})
    assert "An update reads 64 tokens, more than the 20 asked for: there is one" in listening.said


def test_text_set_aside_that_fills_no_row_is_told_and_draws_nothing(place):
    """The fault: its score was no number at every look, drawn as an empty curve, and the weights could not be chosen by it."""
    tokenizer = load_tokenizer(place / "llama")
    lines = blocks_of([" ".join(WORDS)] * 3, 32)
    sources, listening = Sources("text", lines, lines, lines, None, None, {}), Listening()
    for row_tokens, says in ((16, []), (64, ["fills no row of 64 tokens"])):
        settings = SparseSettings(row_tokens=row_tokens)
        check_set_aside(sources, tokenizer, settings, TrainingConfig(), listening)
        assert len(listening.said) == len(says) and all(part in listening.said[0] for part in says)
    with pytest.raises(InputError, match="keep='best': found text set aside that fills no row of 64 tokens"):
        check_set_aside(sources, tokenizer, settings, TrainingConfig(keep="best"), listening)
    for score, noted in ((float("nan"), []), (2.0, [(1, 2.0)])):
        best = BestWeights(place, False, False, None)
        watched = _Watched(None, listening, lambda model, prepared, score=score: score, best, 1)
        watched.model = torch.nn.Linear(1, 1)
        watched(
            Progress(
                step=1,
                steps=2,
                loss=3.0,
                learning_rate=0.1,
                tokens_per_second=1.0,
                remaining_seconds=1.0,
                micro_batch=1,
            )
        )
        assert watched.course.scores == noted and watched.course.losses == [(1, 3.0)]


@pytest.mark.parametrize(
    ("chosen", "part"),
    [
        ({"full_layers": 1}, "choosing layers"),
        pytest.param({"full_layers": 1}, "pricing", marks=pytest.mark.slow),
        pytest.param({"full_heads": 2}, "choosing heads", marks=pytest.mark.slow),
    ],
)
def test_a_choice_that_was_stopped_goes_on_where_it_was(chosen, part, place, tmp_path, monkeypatch):
    asked, listening = [], Listening()
    monkeypatch.setattr(layer_prices, "costs_of", lambda *some, **named: (asked.append(1), costs_of(*some, **named))[1])
    given = {"attention": "first(1)+local(2)", "data": place / "text.txt", "candidates": 2, **chosen, **SMALL}
    jieyue.sparsify(place / "llama", **given, out=tmp_path / "whole")
    needed, out = len(asked), tmp_path / "stopped"
    asked.clear()
    with pytest.raises(KeyboardInterrupt):
        jieyue.sparsify(place / "llama", **given, out=out, listener=Listening(part, 1 if part == "pricing" else 3))
    done = len(asked)
    with open(out / NOTES, "a", encoding="utf-8") as stream:
        stream.write('{"name": "price, full: [0')  # a kill in the middle of a line
    with pytest.raises(InputError, match="another candidates"):
        jieyue.sparsify(place / "llama", **{**given, "candidates": 3}, out=out, resume=True)
    jieyue.sparsify(place / "llama", **given, out=out, resume=True, listener=listening)
    assert len(asked) == needed and 3 <= done < needed, "nothing was measured twice"
    assert any(line.startswith("Going on with") for line in listening.said)
    assert (out / CHOICE).read_bytes() == (tmp_path / "whole" / CHOICE).read_bytes()
    assert not (out / NOTES).exists()
    assert (out / MEMORY).is_file(), "else jieyue evaluate says that something of the training is missing"


def test_notes_are_taken_up_for_the_same_question_alone(tmp_path):
    path, asked = tmp_path / NOTES, {"model": "a", "rows": "1f"}
    found = Notes.begun(path, asked, False).noted("price", lambda: {"price": 0.1 + 0.2})
    again = Notes.begun(path, asked, True)
    assert again.noted("price", lambda: pytest.fail("found again")) == found == {"price": 0.1 + 0.2}
    with pytest.raises(InputError, match="another rows than the interrupted run had"):
        Notes.begun(path, {**asked, "rows": "2f"}, True)
    assert Notes.begun(path, asked, False).known == {} == Notes.begun(path, asked, True).known, "it begins anew"


def test_noted_costs_are_those_that_were_found():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
    )
    model = transformers.LlamaForCausalLM(config)
    ids = torch.randint(3, 40, (3, 17))
    found = costs_of(model, [{"input_ids": ids, "labels": ids}])
    again = Costs.from_dict(json.loads(json.dumps(found.to_dict())))
    for name in ("rows", "weights", "by_position", "counts"):
        one, other = getattr(found, name), getattr(again, name)
        assert one.dtype == other.dtype and (one == other).all()
    assert again.is_loss is found.is_loss
