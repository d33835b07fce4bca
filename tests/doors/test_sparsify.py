"""Sparse attention in a trained model: switched layers are what ``use`` gives, costs are the plain ones, and the folder opens."""

import json
import random
import shutil
from dataclasses import replace

import numpy
import pytest
import torch
import transformers
from attention_models import inputs, make

import jieyue
from jieyue.decoding.slots import positions_of
from jieyue.errors import InputError
from jieyue.hf.attention import attention_of
from jieyue.hf.loading import load, load_model, read_record
from jieyue.hf.position_losses import token_losses
from jieyue.hf.remembered_layers import RememberedLayers
from jieyue.hf.switched_layers import switch_off_linear, switched_layers
from jieyue.hf.tokenizers import learn_vocabulary, make_tokenizer
from jieyue.hf.trained_part import attention_matrices, merged_weights, train_part, without_dropout
from jieyue.run.bars import Bars
from jieyue.run.config import TrainingConfig
from jieyue.run.layer_prices import Text
from jieyue.run.prepare import prepare
from jieyue.run.resume import check_resumed, write_resolved
from jieyue.run.sparse_sections import TRAINED
from jieyue.run.sparsify import CHOICE, _tell_trained
from jieyue.tasks import RunConfig
from jieyue.tasks.sparsify.costs import costs_of, encoded, price
from jieyue.tasks.sparsify.objectives import Distilled, text_loss
from jieyue.tasks.sparsify.rows import Line, blocks_of, encode_rows
from jieyue.tasks.sparsify.settings import SparseSettings
from jieyue.tasks.sparsify.task import TASK
from jieyue.training.accumulation import accumulate

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]
CAUSAL, MASKED, ENCODER = (SparseSettings(row_tokens=32, kind=kind) for kind in ("causal", "masked", "encoder"))
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.4,
}


def batches(length=24, count=2):
    torch.manual_seed(3)
    found = []
    for _ in range(count):
        ids = torch.randint(3, 40, (2, length))
        found.append({"input_ids": ids, "labels": torch.cat([ids[:, 1:], torch.full((2, 1), -100)], 1)})
    return found


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_a_switch_is_what_use_gives(name):
    model, twin, ids = make(name), make(name), inputs(21)[0]
    twin.load_state_dict(model.state_dict())
    before = model(ids).logits
    with switched_layers(model, "first(1)+local(2)") as switched:
        for chosen in ((), (1,), (0, 1)):
            switched.keep_full(chosen)
            jieyue.use(twin, attention=switched.text(chosen))
            assert torch.equal(model(ids).logits, twin(ids).logits)
        assert switched.text((1,)) == "first(1)+local(2),full()" and switched.text((0, 1)) == "full()"
    assert torch.equal(model(ids).logits, before) and not attention_of(model)


def test_layers_with_a_window_of_their_own_keep_it():
    model = make("mistral", num_hidden_layers=1)
    model.config.sliding_window = 4
    with pytest.warns(UserWarning, match="nothing changes"), switched_layers(model, "local(2)") as switched:
        assert switched.free == () and switched.text(()) == "local(3)"


def test_remembered_layers_change_nothing_and_save_half():
    model, given = make("llama", num_hidden_layers=4), batches()
    with switched_layers(model, "local(2)") as switched:
        memory, trials = switched.memory, [(0, 1, 2), (0, 1, 3), (0, 1)]

        def measured(with_memory):
            return [
                (switched.keep_full(one), costs_of(model, given, memory=memory if with_memory else None).mean)[1]
                for one in trials
            ]

        plain = measured(False)
        switched.keep_full((0, 1, 2, 3))
        memory.keep()
        with memory.remembering():
            costs_of(model, given, memory=memory)
            memory.computed = 0
            assert measured(True) == plain
            assert memory.computed == 2 * (1 + 2 + 2), "of each of two batches: only what lies behind a switched layer"
            memory.setting = ()  # a twin that does not say what changed
            memory._kept = ()
            switched.layers[0].put(switched.sparse[0])
            memory.setting = (True,) * 4
            assert costs_of(model, given, memory=memory).mean not in plain
        assert measured(False) == plain and "forward" not in vars(memory.layers[0])


def test_a_layer_that_leaves_something_for_later_ones_runs_each_time():
    """The fault: Gemma 3n's layers hand keys on in a dict, which a layer that answered from memory did not fill."""

    class Giver(torch.nn.Module):
        def forward(self, x, kept):
            kept["keys"] = x + 1
            return x

    class Taker(torch.nn.Module):
        def forward(self, x, kept):
            return x + kept["keys"]

    layers = [Giver(), Taker()]
    memory = RememberedLayers(layers)
    memory.setting = (1, 1)
    memory.keep()
    with memory.remembering():
        for given in (1.0, 2.0, 2.0):
            kept, x = {}, torch.tensor(given)
            for layer in layers:
                x = layer.forward(x, kept=kept)
            assert float(x) == 2 * given + 1


@pytest.mark.parametrize("name", ["llama", "bert", "gpt2"])
def test_token_losses_are_the_cross_entropy(name):
    model, (batch, _) = make(name), batches()
    labels = batch["labels"]
    labels[0, 4] = -100
    logits = model(batch["input_ids"]).logits
    each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    torch.testing.assert_close(token_losses(model, {"input_ids": batch["input_ids"]}, labels), each.float())
    costs = costs_of(model, [batch])
    assert costs.weights.tolist() == [22, 23] and costs.mean == pytest.approx(float(each.detach().sum() / 45), rel=1e-6)
    assert costs.between(0, 4) == pytest.approx(float(each.detach()[:, :4].mean()), rel=1e-6)
    assert costs.between(23, 24) is None


def test_capped_logits_are_priced_as_they_are():
    config = transformers.Gemma2Config(
        vocab_size=40, num_hidden_layers=1, num_key_value_heads=1, head_dim=8, final_logit_softcapping=0.1, **SIZES
    )
    model, (batch, _) = transformers.Gemma2ForCausalLM(config).eval(), batches()
    each = torch.nn.functional.cross_entropy(
        model(batch["input_ids"]).logits.transpose(1, 2), batch["labels"], reduction="none"
    )
    torch.testing.assert_close(token_losses(model, {"input_ids": batch["input_ids"]}, batch["labels"]), each)


def test_an_encoder_is_priced_by_its_mean_state():
    model, given = (
        transformers.BertModel(transformers.BertConfig(vocab_size=40, num_hidden_layers=2, **SIZES)),
        batches(),
    )
    model = model.double().eval()
    known = encoded(model, given)
    base = costs_of(model, given, reference=known)
    assert abs(base.mean) < 1e-12 and not base.is_loss
    jieyue.use(model, attention="local(1)")
    found = costs_of(model, given, reference=known)
    means = [(states.mean(1), other.mean(1)) for states, other in zip(encoded(model, given), known, strict=True)]
    expected = torch.cat([1 - torch.nn.functional.cosine_similarity(*pair) for pair in means])
    assert found.mean == pytest.approx(float(expected.mean())) == pytest.approx(price(found, base).value)
    assert found.mean > 1e-4


@pytest.fixture(scope="module")
def lines():
    random.seed(0)
    return [" ".join(random.choice(WORDS) for _ in range(9)) for _ in range(300)]


@pytest.fixture(scope="module")
def tokenizer(lines):
    return make_tokenizer(learn_vocabulary(lines))


@pytest.mark.parametrize("settings", [CAUSAL, MASKED, ENCODER], ids=lambda one: one.kind)
def test_rows_are_full_and_never_cross_a_seam(lines, tokenizer, settings):
    cut = [line for line in blocks_of(lines, 32) if line.block % 3]
    rows, counts = encode_rows(cut, tokenizer, settings)
    texts = "\n".join(lines).split()
    assert rows and {len(row["input_ids"]) for row in rows} == {32} == {len(row["labels"]) for row in rows}
    assert counts["tokens"] == 32 * len(rows)
    if settings.kind == "causal":
        whole = " ".join(texts)
        assert all(
            " ".join(tokenizer.convert_ids_to_tokens(row["input_ids"])).replace(" ##", "") in whole for row in rows[:9]
        )
        assert all((row["labels"][:-1] == row["input_ids"][1:]).all() and row["labels"][-1] == -100 for row in rows)
        blocks = {line.block for line in cut}
        assert len(blocks) > 5 and not blocks & {0, 3}
    if settings.kind == "masked":
        hidden = numpy.stack([row["labels"] for row in rows]) >= 0
        assert (hidden.sum(1) == round(0.15 * 30)).all() and not hidden[:, [0, -1]].any()
        assert all((row["input_ids"][row["labels"] >= 0] == tokenizer.mask_token_id).all() for row in rows)


@pytest.mark.parametrize(("name", "count"), [("llama", 8), ("bert", 8), ("gpt2", 4)])
def test_what_is_trained(name, count):
    model = make(name)
    matrices = dict(attention_matrices(model))
    assert len(matrices) == count, list(matrices)
    train_part(model, "qkvo")
    trained = {path for path, own in model.named_parameters() if own.requires_grad}
    assert trained == {f"{path}.{kind}" for path, own in matrices.items() for kind, _ in own.named_parameters()}
    assert merged_weights(model) is None


def test_adapters_change_nothing_at_first_and_are_merged_into_the_weights(tmp_path):
    model, twin, ids = make("llama"), make("llama"), inputs(9)[0]
    names, before = set(model.state_dict()), model(ids).logits
    train_part(model, "adapters", rank=2)
    assert torch.equal(model(ids).logits, before)
    assert {path.rpartition(".")[2] for path, own in model.named_parameters() if own.requires_grad} == {"up", "down"}
    for path, own in model.named_parameters():
        if path.endswith("up"):
            torch.nn.init.normal_(own)
    weights = merged_weights(model)
    assert set(weights) == names
    twin.load_state_dict(weights)
    torch.testing.assert_close(twin(ids).logits, model(ids).logits)
    assert not torch.allclose(twin(ids).logits, before)


@pytest.mark.parametrize("what", ["outputs", "means", "logits"])
def test_learning_from_the_full_model(what):
    """0 for the same model, the plain formula for another, and the update of the whole batch whatever the pieces."""
    model, teacher, (batch, _) = make("llama"), make("llama"), batches()
    objective = Distilled(teacher, what)
    assert float(Distilled(make_same(model), what)(model, batch).total.detach()) == pytest.approx(0, abs=1e-9)
    with torch.no_grad():
        own, full = (one(batch["input_ids"], output_hidden_states=True) for one in (model, teacher))
    if what == "logits":
        p, q = full.logits.log_softmax(-1)[:, :-1], own.logits.log_softmax(-1)[:, :-1]
        expected, weight = (p.exp() * (p - q)).sum(), 46
    else:
        expected, weight = 0.0, 48
        for a, b in zip(own.hidden_states[1:], full.hidden_states[1:], strict=True):
            expected += ((a - b).square().sum(-1) / b.square().sum(-1)).sum() / 2
        if what == "means":
            a, b = a.mean(1), b.mean(1)
            expected += 24 * ((a - b).square().sum(-1) / b.square().sum(-1)).sum()
    found = objective(model, batch)
    assert float(found.total) == pytest.approx(float(expected), rel=1e-5) and int(found.weight) == weight
    accumulate(objective, model, batch, micro_batch=2)
    whole = [own.grad.clone() for own in model.parameters() if own.grad is not None]
    model.zero_grad()
    accumulate(objective, model, batch, micro_batch=1)
    for one, own in zip(whole, [own.grad for own in model.parameters() if own.grad is not None], strict=True):
        torch.testing.assert_close(own, one, rtol=1e-4, atol=1e-7)
    assert all(own.grad is None for own in teacher.parameters())


def test_many_texts_are_held_against_an_encoder_that_is_read_once(place, tokenizer, monkeypatch):
    """The fault: the full model was read from its folder for every text."""
    read = []
    monkeypatch.setattr("jieyue.tasks.sparsify.task.load_model", lambda *given: (read.append(1), load_model(*given))[1])
    settings = SparseSettings(row_tokens=32, kind="encoder", teacher=str(place / "bert"))
    texts = [Line(number, 0, "alpha beta gamma") for number in range(3)]
    answers = TASK.answer(load(place / "bert")[0], tokenizer, texts, settings)
    assert len(read) == 1 and all(abs(one.cost) < 1e-9 and one.count == 1 for one in answers)


RATES = {
    "bert": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
    "modernbert": ("embedding_dropout", "mlp_dropout", "attention_dropout"),
    "gpt2": ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
    "llama": ("attention_dropout",),
    "bart": ("dropout", "activation_dropout", "attention_dropout", "encoder_layerdrop", "decoder_layerdrop"),
}


@pytest.mark.parametrize("name", RATES)
def test_without_dropout_a_model_in_training_says_what_it_says_else(name):
    model, ids = make(name, **dict.fromkeys(RATES[name], 0.4)), inputs(9)[0]
    if name != "bart":
        jieyue.use(model, attention="local(2)", dropout=0.4)
    before = model(ids).logits
    assert not torch.allclose(model.train()(ids).logits, before), "dropout was on"
    assert torch.equal(without_dropout(model)(ids).logits, before)
    assert all(getattr(model.config, rate) == 0.4 for rate in RATES[name]), "what is saved keeps its rates"


def test_who_says_what_the_full_model_says_has_nothing_to_learn(place):
    """The model that distillation trains is the full model's equal while it trains: no dropout stands between them."""
    settings = SparseSettings(row_tokens=32, kind="encoder", distill="outputs", teacher=str(place / "bert"))
    model = TASK.open_model(RunConfig(model=str(place / "bert"), attention="full()"), settings, list).build().train()
    ids = torch.randint(3, 12, (4, 32))
    tally = accumulate(TASK.objective(settings), model, {"input_ids": ids, "labels": ids}, micro_batch=2)
    assert tally.mean() < 1e-9
    assert max(float(own.grad.abs().max()) for own in model.parameters() if own.grad is not None) < 1e-5


def make_same(model):
    twin = make("llama")
    twin.load_state_dict(model.state_dict())
    return twin


@pytest.fixture(scope="module")
def place(tmp_path_factory, lines, tokenizer):
    """A folder with text, and folders of a tiny Llama and a tiny BERT encoder."""
    folder = tmp_path_factory.mktemp("sparsify")
    (folder / "text.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    torch.manual_seed(0)
    own = SIZES | {"vocab_size": len(tokenizer)}
    llama = transformers.LlamaConfig(num_hidden_layers=3, num_key_value_heads=1, **own)
    transformers.LlamaForCausalLM(llama).save_pretrained(folder / "llama")
    transformers.BertModel(transformers.BertConfig(num_hidden_layers=2, **own)).save_pretrained(folder / "bert")
    for name in ("llama", "bert"):
        tokenizer.save_pretrained(folder / name)
    return folder


SMALL = {"row_tokens": 32, "calibration_tokens": 128, "price_tokens": 256, "budget": "4GiB"}


def told(report):
    return {fact.what: fact.value for _, fact in report.facts()}


@pytest.mark.parametrize(("name", "pattern"), [("llama", "first(2)+local(4)"), ("bert", "global(1)+local(4)")])
def test_measuring_and_choosing_without_training(name, pattern, place, tmp_path):
    given = {"attention": pattern, "data": place / "text.txt", "held_out": place / "text.txt"}
    done = jieyue.sparsify(place / name, **given, full_layers=1, out=tmp_path / "out", **SMALL)
    chosen = list(attention_of(done.model).values())
    assert chosen.count("full()") == 1 and set(chosen) == {"full()", pattern}
    record, kept = read_record(tmp_path / "out"), json.loads((tmp_path / "out" / CHOICE).read_text(encoding="utf-8"))
    assert record["recipe"] == "sparsify" and kept["attention"] == ",".join(chosen)
    before, _ = load(place / name)
    assert all(torch.equal(own, done.model.state_dict()[path]) for path, own in before.state_dict().items())
    facts = told(done.report)
    assert facts["full layers"] == f"1 of {len(chosen)}" and "chosen layers full, on held out" in facts
    assert told(jieyue.Report.load(tmp_path / "out")) == facts
    with pytest.raises(InputError, match="holds a finished model"):
        jieyue.sparsify(place / name, **given, out=tmp_path / "out", **SMALL)


def test_what_was_held_out_of_the_choice_is_held_out_of_the_training(place, lines, tmp_path, monkeypatch):
    """The fault: a model with fewer positions than a usual row was chosen for by one part of the text and trained on another parting
    of it, by blocks that went by its own rows, so that it learned lines on which its price was then told."""
    (tmp_path / "more.txt").write_text("\n".join(f"{n} {line}" for n, line in enumerate(lines * 3)), encoding="utf-8")
    parted, sources = [], TASK.sources
    monkeypatch.setattr(
        "jieyue.tasks.Task.sources", lambda self, *given: (parted.append(sources(*given)), parted[-1])[1]
    )
    given = {"attention": "local(4)", "full_layers": [0], "calibration_tokens": 64, "price_tokens": 64}
    jieyue.sparsify(
        place / "llama", data=tmp_path / "more.txt", tokens=64, effective_batch=1, out=tmp_path / "out", **given
    )
    assert len(parted) == 2 and [one.text for one in parted[0].held_out] == [one.text for one in parted[1].held_out]
    assert not {one.text for one in parted[0].held_out} & {one.text for one in parted[1].train}


def test_usual_rows_become_as_short_as_the_text_needs(place, lines, tmp_path):
    """The fault: a few hundred lines were refused for rows of a length that nobody had asked for."""
    (tmp_path / "text.txt").write_text("\n".join(lines[:80]), encoding="utf-8")
    given = {"data": tmp_path / "text.txt", "full_layers": [0], "out": tmp_path / "out", "overwrite": True}
    noted = Noted()
    jieyue.sparsify(place / "llama", attention="local(4)", listener=noted, **given)
    assert read_record(tmp_path / "out")["settings"]["row_tokens"] == 32
    assert [line for line in noted.said if "fills none" in line] == [
        "Rows of 32 tokens: the text fills none that is longer"
    ]
    with pytest.raises(InputError, match=r"fill no row of 64 tokens"):
        jieyue.sparsify(place / "llama", attention="local(4)", row_tokens=64, **given)
    with pytest.raises(InputError, match=r"fill no row of 64 tokens"):
        jieyue.sparsify(place / "llama", attention="local(40)", **given)


def test_what_it_saves_and_still_finds_is_told(place, tmp_path):
    shutil.copytree(place / "llama", tmp_path / "long")
    config = json.loads((tmp_path / "long" / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "long" / "config.json").write_text(
        json.dumps(config | {"max_position_embeddings": 128}), encoding="utf-8"
    )
    given = {"data": place / "text.txt", "held_out": place / "text.txt", "full_layers": [0], **SMALL}
    given |= {"row_tokens": 128, "price_tokens": "1k", "attention": "first(1)+local(2)", "out": tmp_path / "out"}
    report = jieyue.sparsify(tmp_path / "long", savings_at="48,1k", needles=1, **given).report
    tables = {item.title: item.rows for section in report.sections for item in section.items if hasattr(item, "rows")}
    ((length, full, sparse, share),) = tables["Cache"]
    assert (length, full) == (48, 3 * 2 * 48 * 8 * 4), (
        "keys and values of three layers, one key-value head of 8 numbers"
    )
    assert full / 3 < sparse < 0.6 * full and share == sparse / full, "one layer whole, and some keys of two"
    for title in ("Reading in one pass", "One more token"):
        ((length, *seconds, times),) = tables[title]
        assert length == 48 and min(seconds) > 0 and times == seconds[0] / seconds[1]
    assert "Not measured at 1,000 tokens: the model has 128 positions" in report.text()
    assert [row[0] for row in tables["Found, by depth, 128 tokens"]] == ["0", "0.25", "0.5", "0.75", "1"]
    assert "nothing is claimed" in report.text(), "random weights find nothing"
    with pytest.raises(InputError, match="resume: found another needles, savings_at than the interrupted run had"):
        jieyue.sparsify(tmp_path / "long", resume=True, **given)
    given["out"] = tmp_path / "other"
    for name, wrong, says in (
        ("long", {"needles": 20}, "1,024 tokens of text for 100 prompts of 128 that share none"),
        ("bert", {"needles": 1, "row_tokens": 64}, "needles=1: found a model of the kind encoder"),
        ("llama", {"savings_at": "8", "row_tokens": 64}, "savings_at: found '8'"),
    ):
        folder = tmp_path if name == "long" else place
        with pytest.raises(InputError, match=says):
            jieyue.sparsify(folder / name, **{**given, **wrong})


def test_named_layers_stay_full_and_nothing_is_chosen(place, tmp_path, monkeypatch):
    second = [{"text": line} for line in (place / "text.txt").read_text(encoding="utf-8").splitlines()[:60]]
    given = {"attention": jieyue.local(4), "data": place / "text.txt", "second_data": second, **SMALL}
    priced = []
    monkeypatch.setattr(
        "jieyue.run.layer_prices.costs_of", lambda *some, **named: (priced.append(1), costs_of(*some, **named))[1]
    )
    done = jieyue.sparsify(place / "llama", **given, full_layers=[0, 1], out=tmp_path / "out")
    assert list(attention_of(done.model).values()) == ["full()", "full()", "local(4)"]
    assert len(priced) == 3 * 4, "the told settings on three texts, and no price besides"
    facts = told(done.report)
    assert facts["full layers"] == "2 of 3" and facts["chosen"] == "as asked" and "prices asked for" not in facts


def test_a_hybrid_is_told_without_its_linear_branch(place, tmp_path):
    given = {"attention": "local(4)+linear(elu)", "data": place / "text.txt", "full_layers": 0, **SMALL}
    with pytest.warns(UserWarning, match="trained with softmax"):
        report = jieyue.sparsify(place / "llama", **given, out=tmp_path).report
    rows = {row[0] for section in report.sections for item in section.items for row in getattr(item, "rows", ())}
    assert "chosen layers full, linear branch off" in rows
    assert "chosen layers full" in rows and "evenly spaced layers full" not in rows, "no layer is full to be spaced"
    model, given = load(tmp_path)[0], {"input_ids": torch.randint(5, 12, (2, 32))}
    given["labels"] = given["input_ids"]
    settings, again = SparseSettings(row_tokens=32, kind="causal"), jieyue.Report("again")
    texts = [Text(name, [given], 2, 2) for name in ("calibration", "held out")]
    config = RunConfig(model=str(place / "llama"), data=[])
    _tell_trained(again, config, settings, texts, {TRAINED: tmp_path}, "cpu")
    (losses,) = (item.rows for item in again.sections[0].items if getattr(item, "title", "") == "On held out")
    jieyue.use(model, attention="local(4)")
    by_name = {row[0]: row[1] for row in losses}
    assert by_name["sparse, trained, linear branch off"] == pytest.approx(costs_of(model, [given]).mean, abs=1e-8)
    assert by_name["sparse, trained, linear branch off"] != by_name["sparse, trained"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"model": "tiny"}, "no folder"),
        ({"attention": "local(4"}, "local"),
        ({"attention": None}, "attention: found None, expected a pattern"),
        ({"attention": ["local(4)", "full()"]}, "a list of layers is one text"),
        ({"data": None}, "data: found None, expected files, or rows in hand"),
        ({"held_out": None}, "held_out: found None, expected files, or rows in hand"),
        ({"data": ["alpha beta gamma", "delta"]}, "no file 'alpha beta gamma'.*texts in hand are rows"),
        ({"data": "alpha beta\n" * 99}, "texts in hand are rows"),
        ({"out": None}, "out: found None, expected a folder"),
        ({"model": "bert", "tokens": 100}, "distill='means'"),
        ({"model": "bert", "tokens": 100, "distill": "logits"}, "distill='means'"),
        ({"distill": "everything"}, "one of none, outputs, means, logits"),
        ({"train": "some"}, "one of all, qkvo, adapters"),
        ({"tokens": "many"}, "a whole number of tokens"),
        ({"full_layers": "auto:+x"}, "a number of layers, or auto"),
        ({"full_layers": 4}, "at most 3"),
        ({"full_layers": 1.5}, "a number of layers, or auto"),
        ({"second_data": "nothing.txt"}, "no file nothing.txt"),
        ({"full_layers": [1, 3]}, "found layer 3, expected some of 0-2"),
        ({"full_layers": "1,1"}, "1 twice"),
        ({"data": "nothing.txt"}, "no file"),
        ({"row_tokens": 4}, "at least 16"),
        ({"row_tokens": 128}, "at most 64, the model's positions"),
        ({"steps": 3}, "tokens says how long"),
        ({"windows": 3}, r"expected some of .*calibration_tokens"),
        ({"device": "gpu"}, "cuda"),
    ],
)
def test_bad_input_is_refused_at_the_door(given, says, place, tmp_path):
    asked = {"attention": "local(4)", "data": place / "text.txt", "out": tmp_path / "out", **SMALL} | given
    model = asked.pop("model", "llama")
    with pytest.raises(ValueError, match=says):
        jieyue.sparsify(model if model == "tiny" else place / model, **asked)
    assert not (tmp_path / "out" / "config.json").exists()


def test_too_little_text_for_a_row_is_told(place, tmp_path):
    (tmp_path / "short.txt").write_text("alpha beta\n" * 30, encoding="utf-8")
    asked = {"attention": "local(4)", "data": tmp_path / "short.txt", **SMALL} | {"row_tokens": 64}
    with pytest.raises(InputError, match=r"--row-tokens|too few to hold some out"):
        jieyue.sparsify(place / "llama", out=tmp_path / "out", **asked)
    asked = {"attention": "local(4)", "data": place / "text.txt", **SMALL} | {"row_tokens": 64, "limit": 20}
    with pytest.raises(InputError, match=r"held out text that fill no row of 64 tokens.*raise --limit"):
        jieyue.sparsify(place / "llama", held_out=tmp_path / "short.txt", out=tmp_path / "out", **asked)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("llama", {"control": True}),
        ("llama", {"train": "adapters", "distill": "logits"}),
        ("bert", {"distill": "means", "train": "qkvo"}),
    ],
)
def test_training_leaves_a_better_folder_and_is_told(name, how, place, tmp_path):
    given = {"attention": "first(1)+local(2)", "data": place / "text.txt", "full_layers": 0, **SMALL, **how}
    done = jieyue.sparsify(place / name, **given, tokens="8k", learning_rate=5e-3, out=tmp_path / "out")
    facts = told(done.report)
    if "distill" not in how:
        assert facts["sparse, trained, on held out"].value < facts["chosen layers full, on held out"].value
        assert facts["sparse, trained, on held out, against the full model trained alike"].value > -0.5, (
            "the full model learned too"
        )
    if name == "bert":
        rates = [own.p for own in done.model.modules() if isinstance(own, torch.nn.Dropout)]
        assert rates and set(rates) == {0.1}, "who learned from the full model without dropout has it again"
        assert facts["sparse, trained, on held out"].value < 0.6 * facts["chosen layers full, on held out"].value
    (losses,) = (own.series[0].y for own in done.report.pictures() if own.title == "Loss")
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])
    again, _ = load(tmp_path / "out")
    assert set(again.state_dict()) == set(load(place / name)[0].state_dict())
    assert list(attention_of(again).values()) == list(attention_of(done.model).values())
    assert (tmp_path / "out" / "control" / "config.json").is_file() == ("control" in how)
    if name == "llama":
        answers = jieyue.predict(tmp_path / "out", ["alpha beta gamma delta"])
        assert answers[0]["answer"] > 0
        assert (
            text_loss(again, {"input_ids": torch.tensor([[5, 6, 7]]), "labels": torch.tensor([[6, 7, -100]])}).weight
            == 2
        )
    again_given = given | {"tokens": "8k", "learning_rate": 5e-3, "resume": True, "full_layers": 1}
    with pytest.raises(InputError, match="another full_layers"):
        jieyue.sparsify(place / name, **again_given, out=tmp_path / "out")


@pytest.mark.slow
def test_a_choice_that_was_made_is_taken_up(place, tmp_path, monkeypatch):
    """A run that stopped between choosing and the first update goes on with its choice, and does not measure again."""
    given = {"attention": "local(4)", "data": place / "text.txt", "full_layers": 1, **SMALL}
    first = jieyue.sparsify(place / "llama", **given, out=tmp_path)
    monkeypatch.setattr("jieyue.run.sparsify.measure_layers", lambda *_: pytest.fail("measured again"))
    done = jieyue.sparsify(place / "llama", **given, tokens=600, out=tmp_path, resume=True)
    assert attention_of(done.model) == attention_of(first.model)
    assert told(done.report)["full layers"] == told(first.report)["full layers"]


TWO = {"attention": "local(4)", "full_layers": [0], **SMALL, "calibration_tokens": 64, "price_tokens": 64}


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_a_model_in_hand_goes_on_and_is_judged_when_it_is_gone(name, place, lines, tmp_path, monkeypatch):
    """The fault: its temporary folder had another name each time, and an encoder was to be held against what lay there."""
    model, tokenizer = load(place / name, None if name == "bert" else "causal-lm")
    given = {"data": [{"text": line} for line in lines], "out": tmp_path / "out", **TWO}
    jieyue.sparsify(model, tokenizer, **given)
    found = jieyue.evaluate(tmp_path / "out", [place / "text.txt"])
    assert told(found)["judged on"] == f"64 of {told(found)['judged on'].rpartition(' of ')[2]}"
    monkeypatch.setattr("jieyue.run.sparsify.measure_layers", lambda *_: pytest.fail("measured again"))
    again = jieyue.sparsify(model, tokenizer, **given, resume=True)
    assert list(attention_of(again.model).values())[:2] == ["full()", "local(4)"]
    with torch.no_grad():
        next(model.parameters()).add_(1)
    with pytest.raises(InputError, match="another model than"):
        jieyue.sparsify(model, tokenizer, **given, resume=True)
    given["data"] = given["data"][:150]
    with pytest.raises(InputError, match="another model, rows than"):
        jieyue.sparsify(model, tokenizer, **given, resume=True)
    shutil.rmtree(tmp_path / "out" / "full", ignore_errors=True)
    if name == "bert":
        with pytest.raises(InputError, match="put the full model back there"):
            jieyue.evaluate(tmp_path / "out", [place / "text.txt"])


def test_the_models_own_folder_is_no_place_for_what_is_made_of_it(place):
    before = (place / "llama" / "model.safetensors").read_bytes()
    for overwrite in (False, True):
        with pytest.raises(InputError, match="the folder of the model itself"):
            jieyue.sparsify(place / "llama", data=place / "text.txt", out=place / "llama", overwrite=overwrite, **TWO)
    with pytest.raises(InputError, match="the folder of the model itself"):
        jieyue.train(place / "llama", task="mlm", data=place / "text.txt", out=place / "llama")
    assert (place / "llama" / "model.safetensors").read_bytes() == before


class Noted(Bars):
    """What is said and told in tables."""

    def __init__(self):
        self.said = []

    def say(self, line):
        self.said.append(line)

    def table(self, title, columns, rows, event=None):
        self.said += [" · ".join(row) for row in rows]


def test_what_the_data_hide_is_told_without_training_too(place, tokenizer, tmp_path):
    """Held-out lines of the training text, lines that were skipped, of the second text too; and no padding token is needed."""
    shutil.copytree(place / "llama", tmp_path / "bare")
    bare = transformers.PreTrainedTokenizerFast.from_pretrained(place / "llama")
    bare.pad_token = None
    bare.save_pretrained(tmp_path / "bare")
    assert load(tmp_path / "bare")[1].pad_token is None
    long = [
        f"{number} " + "alpha beta gamma delta epsilon zeta eta theta alpha beta gamma delta " for number in range(90)
    ]
    (tmp_path / "text.txt").write_text("\n".join([*long, "bad \ufffd"]), encoding="utf-8")
    noted, text = Noted(), tmp_path / "text.txt"
    given = {"data": text, "held_out": text, "second_data": [text], "skip_bad": True, "listener": noted, **TWO}
    done = jieyue.sparsify(tmp_path / "bare", out=tmp_path / "out", **given)
    assert any("Leakage: " in line for line in noted.said) and any("skipped: " in line for line in noted.said)
    facts = {(title, fact.what): fact.value for title, fact in done.report.facts()}
    assert facts["Price without training, held out", "lines that stand in training"] > 80


def test_training_does_not_go_on_under_another_attention(place, tmp_path):
    settings = SparseSettings(row_tokens=32, teacher=str(place / "llama"))
    config = RunConfig(model=str(place / "llama"), data=[place / "text.txt"], attention="local(4)", settings=settings)
    training = TrainingConfig(steps=2)
    prepared = prepare(TASK, config, training)
    write_resolved(tmp_path, training, prepared, 2)
    check_resumed(tmp_path, training, prepared)
    with pytest.raises(InputError, match=r"attention is 'local\(2\)'"):
        check_resumed(tmp_path, training, replace(prepared, attention="local(2)"))


@pytest.mark.parametrize("linear", ["linear(elu)", "linear(elu, window=4)"])
def test_linear_maps_alone_are_measured_and_switched_off(linear, place, tmp_path):
    """The fault: they were refused. With a map switched off, its layer's attention adds nothing."""
    given = {"attention": linear, "data": place / "text.txt", "full_layers": 1, **SMALL}
    with pytest.warns(UserWarning, match="trained with softmax"):
        done = jieyue.sparsify(place / "llama", **given, out=tmp_path)
    assert sorted(attention_of(done.model).values()) == ["full()", linear, linear]
    (rows,) = (item.rows for section in done.report.sections for item in section.items
               if getattr(item, "title", "") == "On held out")  # fmt: skip
    found = {row[0]: row[1] for row in rows}
    off = found["chosen layers full, linear branch off"]
    assert off != found["chosen layers full"] and "evenly spaced layers full" in found
    model, ids = load(tmp_path)[0], torch.randint(5, 12, (2, 32))
    assert switch_off_linear(model) and not switch_off_linear(load(place / "llama")[0])
    twin = load(place / "llama")[0]
    for number, own in enumerate(attention_of(done.model).values()):
        if own == linear:
            twin.model.layers[number].self_attn.o_proj.weight.data.zero_()
    torch.testing.assert_close(model(ids).logits, twin(ids).logits)


@pytest.mark.parametrize("how", ["yarn", "dynamic"])
def test_stretched_rotary_positions_are_those_of_transformers(how, place, tmp_path):
    from jieyue.hf.positions import stretch

    folder = stretch(place / "llama", how, 4, tmp_path / how, {"recipe": "sparsify"})
    model, _ = load(folder)
    config = transformers.LlamaConfig.from_pretrained(place / "llama")
    config.rope_parameters |= {"rope_type": how, "factor": 4.0}
    if how == "yarn":
        config.rope_parameters["original_max_position_embeddings"], config.max_position_embeddings = 64, 256
    twin = transformers.LlamaForCausalLM.from_pretrained(place / "llama", config=config)
    plain, _ = load(place / "llama")
    long, short = torch.randint(3, 20, (1, 200)), torch.randint(3, 20, (1, 40))
    assert positions_of(model) == 256
    assert torch.equal(model(long).logits, twin(long).logits) and not torch.allclose(
        model(long).logits, plain(long).logits
    )
    assert torch.equal(model(short).logits, plain(short).logits) is (how == "dynamic")
    assert stretch(place / "llama", how, 4, folder, {"recipe": "sparsify"}) == folder


def test_rows_past_the_trained_length_are_priced_beside_the_model_as_it_is(place, tmp_path):
    given = {"attention": "local(4)", "data": place / "text.txt", **SMALL, "row_tokens": 128, "full_layers": [0]}
    done = jieyue.sparsify(place / "llama", **given, positions="yarn", out=tmp_path / "out")
    assert done.model.config.rope_parameters["rope_type"] == "yarn" and done.model.config.max_position_embeddings == 128
    rows = [row for section in done.report.sections for item in section.items for row in getattr(item, "rows", ())]
    names = [row[0] for row in rows]
    assert names.count("every layer full, positions as they were") == 2 and "64 to 127" in names
    assert told(done.report)["positions"] == 128
    assert read_record(tmp_path / "out")["model"].endswith("yarn-2")


@pytest.mark.parametrize(
    ("name", "given", "says"),
    [
        ("bert", {"positions": "yarn"}, "no rotary positions"),
        ("llama", {"positions": "hierarchical"}, r"rotary positions \(llama\), expected a table of them"),
        ("llama", {"positions": "linear"}, "one of none, yarn"),
        ("llama", {"positions": "yarn", "position_factor": 1.0}, "more than 1"),
    ],
)
def test_positions_that_cannot_be_stretched(name, given, says, place, tmp_path):
    with pytest.raises(InputError, match=says):
        jieyue.sparsify(
            place / name, attention="local(4)", data=place / "text.txt", out=tmp_path / "o", **SMALL, **given
        )
    assert not list((tmp_path / "o").glob("*"))


def test_a_cost_that_is_the_loss_itself_is_measured_once():
    quantity = {
        (kind, distill): TASK.deciding_of(SparseSettings(kind=kind, distill=distill)).quantity
        for kind, distill in (("causal", "none"), ("masked", "none"), ("causal", "logits"), ("encoder", "means"))
    }
    assert list(quantity.values()) == ["loss", "loss", "cost", "cost"]
