"""Key-value heads that stay full, chosen one by one: a switch is what ``use`` gives, the folder opens, and bad input is refused."""

import json

import numpy
import pytest
import torch
import transformers
from attention_models import inputs, make

import jieyue
from jieyue.errors import InputError
from jieyue.hf.attention import attention_of
from jieyue.hf.attention_check import verify_attention
from jieyue.hf.attention_deviation import measure_deviation
from jieyue.hf.dense import patterns_of
from jieyue.hf.switched_layers import switched_layers
from jieyue.hf.tokenizers import learn_vocabulary, make_tokenizer
from jieyue.run.layer_choice import Choice
from jieyue.run.layer_options import Choosing
from jieyue.run.layer_prices import Measured
from jieyue.run.sparse_sections import unlearned_note
from jieyue.run.sparsify import CHOICE
from jieyue.tasks.sparsify.costs import Costs, costs_of

NEAR = "first(1)+local(2)"
THREE = {"num_key_value_heads": 3, "num_attention_heads": 6, "hidden_size": 48}
SMALL = {"row_tokens": 32, "calibration_tokens": 64, "price_tokens": 64, "budget": "4GiB"}


def test_a_switch_of_heads_is_what_use_gives_and_is_remembered_rightly():
    model, twin = make("llama", **THREE), make("llama", **THREE)
    twin.load_state_dict(model.state_dict())
    batch = {"input_ids": inputs(21)[0]}
    batch["labels"] = batch["input_ids"]
    choices = [(0, 1, 2, 3, 4, 5), (0, 1, 2, 4), (1, 2, 4), (4, 5), ()]
    with switched_layers(model, NEAR, by_heads=True) as switched:
        assert switched.free == (0, 1, 2, 3, 4, 5) and switched.heads == 3
        assert switched.text((0, 2, 5)) == f"heads(0,2: full(), else: {NEAR}),heads(2: full(), else: {NEAR})"
        assert switched.text((0, 1, 2)) == f"full(),{NEAR}" and switched.text(()) == NEAR
        memory, found = switched.memory, []
        switched.keep_full(choices[0])
        memory.keep()
        with memory.remembering():
            for one in choices:
                switched.keep_full(one)
                found.append(costs_of(model, [batch], memory=memory).mean)
            assert memory.computed == 2 + 1 + 2 + 2 + 2
    for one, cost in zip(choices, found, strict=True):
        jieyue.use(twin, attention=switched.text(one))
        assert costs_of(twin, [batch]).mean == cost
    assert len(set(found)) == len(found) and not attention_of(model)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with text, and one of a tiny Llama with two key-value heads in each of two layers."""
    folder = tmp_path_factory.mktemp("heads")
    generator = torch.Generator().manual_seed(0)
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]
    drawn = torch.randint(8, (200, 9), generator=generator).tolist()
    lines = [" ".join(words[number] for number in line) for line in drawn]
    (folder / "text.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    tokenizer = make_tokenizer(learn_vocabulary(lines))
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.4,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder / "llama")
    tokenizer.save_pretrained(folder / "llama")
    return folder


@pytest.mark.slow
def test_heads_are_chosen_and_the_folder_has_them(place, tmp_path):
    given = {"attention": NEAR, "data": place / "text.txt", "full_heads": 1, **SMALL}
    done = jieyue.sparsify(place / "llama", **given, out=tmp_path / "out")
    kept = json.loads((tmp_path / "out" / CHOICE).read_text(encoding="utf-8"))["attention"]
    values = list(attention_of(done.model).values())
    assert kept == ",".join(values)
    assert sorted(values)[0] == NEAR and sorted(values)[1] in [f"heads({n}: full(), else: {NEAR})" for n in (0, 1)]
    facts = {fact.what: fact for _, fact in done.report.facts()}
    assert facts["full heads"].value == "1 of 4" and facts["full heads"].how in ("0.0", "0.1", "1.0", "1.1")
    assert "chosen heads full, on held out" in facts and facts["prices asked for"].value == 4 + 3 + 2
    again, _ = jieyue.load(tmp_path / "out")
    assert attention_of(again) == attention_of(done.model)
    titles = {section.title for section in done.report.sections}
    assert "Heads that stay full" in titles and "Layers that stay full" not in titles


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"full_heads": "3-4"}, "a number of key-value heads"),
        ({"full_heads": 2, "full_layers": 1}, "one of the two"),
        ({"full_heads": 5}, "at most 4, the heads that can be sparse"),
        ({"full_heads": 2, "attention": "local(4)+linear(elu)"}, "choose layers"),
        ({"attention": "heads(0: full(), else: local(4))"}, "a pattern for all heads"),
    ],
)
def test_bad_input_is_refused_at_the_door(given, says, place, tmp_path):
    asked = {"attention": "local(4)", "data": place / "text.txt", **SMALL} | given
    with pytest.raises(InputError, match=says):
        jieyue.sparsify(place / "llama", out=tmp_path / "out", **asked)
    assert not (tmp_path / "out" / "config.json").exists()


def test_one_key_value_head_leaves_nothing_to_choose():
    with (
        pytest.raises(InputError, match="1 key-value head, expected as many in every layer"),
        switched_layers(make("llama", num_key_value_heads=1), NEAR, by_heads=True),
    ):
        pass
    assert Choosing(full_heads="auto:+1%").wanted.most == 0.01 and Choosing(full_layers="3").wanted.count == 3


def test_what_else_reads_an_attention_honours_heads_or_refuses_them_by_name():
    model, (ids, mask) = make("llama", **THREE), inputs(13)
    text, batch = f"heads(1: full(), else: {NEAR})", {"input_ids": ids, "attention_mask": mask}
    found = {row.name: row.entropies[0] for row in verify_attention(model, [batch], (text, NEAR)).rows}
    assert found[NEAR] < found[text] < found["softmax"]
    with pytest.raises(InputError, match=r"patterns alone, without linear\(\.\.\.\) or heads"):
        measure_deviation(model, [batch], text)
    jieyue.use(model, attention=text)
    with pytest.raises(InputError, match="a mask for each head"):
        patterns_of(model)


@pytest.mark.slow
def test_judging_reads_as_many_held_out_tokens_as_pricing_and_says_so(place, tmp_path):
    """The rows are spread over the held-out text, and the report tells how many of how many were read."""
    given = {"attention": NEAR, "data": place / "text.txt", "held_out": place / "text.txt", "full_layers": [0], **SMALL}
    done = jieyue.sparsify(place / "llama", **given, tokens=64, effective_batch=2, control=True, out=tmp_path / "out")
    facts = {(title, fact.what): fact.value for title, fact in done.report.facts()}
    read, there = facts["Quality on held-out text", "judged on"].removesuffix(" tokens").split(" of ")
    assert read == "64" and int(there.replace(",", "")) > 1000
    rest = jieyue.Report.load(tmp_path / "out" / "control")
    titles = {section.title for section in rest.sections}
    assert "What each saving was worth" not in titles, "the control's savings are the other's: measured once"
    assert "What each saving was worth" in {section.title for section in done.report.sections}


def test_a_text_that_the_model_does_not_know_is_told():
    one, choice = numpy.array([1.0, 1.0]), Choice((), (), (), {}, 0)
    costs = Costs(4.5 * one, one, one, one, True)
    for guess, is_told in ((4.0, True), (5.0, False)):
        report = jieyue.Report("")
        unlearned_note(report, Measured("local(2)", choice, 2, {"held out": {"every layer full": costs}}, guess=guess))
        assert bool(report.sections) == is_told


def test_slow_updates_are_timed_fewer_times(monkeypatch):
    from jieyue.run import measure

    clock, calls = [0.0], []
    monkeypatch.setattr(measure, "ROUNDS", 3)
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])

    def taking(name, seconds):
        def call():
            calls.append(name)
            clock[0] += seconds + (not calls.count(name) - 1)  # the first one is cold

        return call

    for seconds, rounds in ((1.0, 3), (5.0, 1), (12.0, 0)):
        calls.clear()
        found = measure._alternating({"a": taking("a", seconds), "b": taking("b", 2 * seconds)})
        assert calls.count("a") == calls.count("b") == 1 + rounds
        assert found == {"a": [seconds] * rounds or [seconds + 1], "b": [2 * seconds] * rounds or [2 * seconds + 1]}
