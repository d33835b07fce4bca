"""Short rows that share a long one in training: loss, gradients and answers as without, or refused."""

import copy
import types

import numpy
import pytest
import torch
import transformers

import jieyue
from jieyue.errors import InputError
from jieyue.hf import packed_rows
from jieyue.hf.attention import attention_of
from jieyue.hf.packed_rows import Packing, packing_of
from jieyue.hf.tiny import tiny_config
from jieyue.hf.tokenizers import learn_vocabulary, make_tokenizer
from jieyue.hf.use import use
from jieyue.report.values import Fact
from jieyue.run import packing
from jieyue.run.config import TrainingConfig
from jieyue.tasks.classify.settings import ClassifySettings
from jieyue.tasks.classify.task import TASK as CLASSIFY
from jieyue.tasks.mlm.settings import MaskSettings
from jieyue.tasks.mlm.task import TASK as MLM
from jieyue.tasks.read.settings import ReadSettings
from jieyue.tasks.read.task import TASK as READ
from jieyue.training.microbatch import MicroBatch
from jieyue.training.remedies.adversarial import fgm

TOKENIZER = make_tokenizer(learn_vocabulary(["a b c abc"]))
LENGTHS = (9, 2, 14, 5)
MASK = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
HEADS = {
    "mlm": "AutoModelForMaskedLM",
    "classify": "AutoModelForSequenceClassification",
    "masked": "AutoModelForMaskedLM",
    "span": "AutoModelForQuestionAnswering",
}
OBJECTIVES = {
    "mlm": MLM.objective(MaskSettings()),
    "classify": CLASSIFY.objective(ClassifySettings(problem="single-label", labels=("a", "b"))),
    "masked": READ.objective(ReadSettings()),
    "span": READ.objective(ReadSettings(reader="span")),
}


def build(model_type, head):
    torch.manual_seed(0)
    config = tiny_config(model_type)
    config.num_labels = 2
    model = getattr(transformers, head).from_config(config).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.normal_(0, 0.2)
    return model


def batch_for(kind):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 90, MASK.shape, generator=generator).masked_fill(MASK == 0, 0)
    batch = {"input_ids": ids, "attention_mask": MASK}
    few = torch.tensor([[1, 3], [1, 0], [2, 13], [4, 1]])
    return batch | {
        "mlm": {"places": few, "labels": ids.gather(1, few)},
        "classify": {"labels": few[:, :1] % 2},
        "masked": {"labels": ids[:, 1:4].masked_fill(MASK[:, 1:4] == 0, -100)},
        "span": {"labels": few, "places": MASK},
    }[kind]  # fmt: skip


def trained(model, kind):
    model.zero_grad()
    tally = OBJECTIVES[kind](model, batch_for(kind))
    tally.total.backward()
    return float(tally.total.detach()), {key: p.grad for key, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("model_type", "kind"),
    [("bert", "classify"), ("albert", "classify"), ("roberta", "mlm"), ("modernbert", "mlm"), ("eurobert", "masked"),
     ("bert", "span"), ("electra", "classify")],
)  # fmt: skip
def test_packed_rows_train_as_padded_ones(model_type, kind):
    """Poolers, heads and losses see the batch that they know; the body sees one row without padding."""
    model = build(model_type, HEADS[kind])
    loss, gradients = trained(model, kind)
    told = model.config.to_dict()
    way = packing_of(model)
    widths = []
    spy = model.base_model.register_forward_pre_hook(
        lambda _, args, given: widths.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    with way.rows():
        found, own = trained(model, kind)
    spy.remove()
    assert widths == [(1, sum(LENGTHS))]
    assert found == pytest.approx(loss, rel=1e-11) and own.keys() == gradients.keys()
    for key, value in gradients.items():
        torch.testing.assert_close(own[key], value, rtol=0, atol=1e-9 * max(1, float(value.abs().max())), msg=key)
    assert model.config.to_dict() == told  # a checkpoint that is written meanwhile is a plain one
    way.take_off()
    assert not attention_of(model) and trained(model, kind)[0] == loss


@pytest.mark.parametrize("attention", ["local(3)", "first(1)+local(2)", "linear(elu)"])
def test_a_pattern_stays_while_rows_are_packed(attention):
    model = build("bert", HEADS["classify"])
    use(model, attention=attention)
    loss, _ = trained(model, "classify")
    way = packing_of(model)
    with way.rows():
        assert trained(model, "classify")[0] == pytest.approx(loss, rel=1e-11)
    way.take_off()
    assert set(attention_of(model).values()) == {attention}


def test_answers_are_the_same():
    """Through inference, whatever the batch."""
    model = build("bert", HEADS["classify"])
    texts = [CLASSIFY.from_row({"text": "abc" * (1 + n % 5)}, ClassifySettings()) for n in range(7)]
    settings = ClassifySettings(problem="single-label", labels=("a", "b"))
    expected = CLASSIFY.answer(model, TOKENIZER, texts, settings, batch_size=3)
    with packing_of(model).rows():
        found = CLASSIFY.answer(model, TOKENIZER, texts, settings, batch_size=3)
    assert [one.label for one in found] == [one.label for one in expected]
    assert [one.confidence for one in found] == pytest.approx([one.confidence for one in expected], rel=1e-6)


def test_documents_and_positions_matter(monkeypatch):
    """Broken twins: rows that see one another, and positions that begin elsewhere."""
    model = build("bert", HEADS["classify"])
    loss, _ = trained(model, "classify")
    way = packing_of(model)
    with Packing(model, 1).rows():
        assert abs(trained(model, "classify")[0] - loss) > 1e-6
    pack = packed_rows._Way.pack

    def together(self, *given):
        args, packed = pack(self, *given)
        return args, packed | {"seq_idx": torch.zeros_like(packed["seq_idx"])}

    monkeypatch.setattr(packed_rows._Way, "pack", together)
    with way.rows():
        assert abs(trained(model, "classify")[0] - loss) > 1e-6


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [("mobilebert", "states that change"), ("fnet", "no self-attention"), ("convbert", "outside")],
)
def test_models_that_cannot_are_refused_and_left_as_they_were(model_type, reason):
    """MobileBERT joins neighbouring embeddings, so that tokens meet outside of attention."""
    model = build(model_type, HEADS["mlm"])
    told = model.config.to_dict()
    with pytest.raises(InputError, match=reason):
        packing_of(model)
    assert model.config.to_dict() == told and not attention_of(model)


def test_batches_that_cannot_are_refused():
    model = build("bert", HEADS["classify"])
    way = packing_of(model)
    batch = {"input_ids": batch_for("mlm")["input_ids"], "attention_mask": MASK}
    with way.rows():
        with pytest.raises(InputError, match="on the left"):
            model(**batch | {"attention_mask": MASK.flip(1)})
        with pytest.raises(InputError, match="output_hidden_states"):
            model(**batch, output_hidden_states=True)
        assert model(input_ids=batch["input_ids"][:1]).logits.shape == (1, 2)  # nothing to pack


def prepared(packed, short, model):
    """What ``packed_run`` asks of a run: twenty batches of four rows, of which ``short`` are short."""
    lengths = [3] * short + [14] * (4 - short)
    rows = [{"input_ids": numpy.arange(5, 5 + length), "labels": numpy.array([length % 2])} for length in lengths]
    settings = ClassifySettings(problem="single-label", labels=("a", "b"), packed=packed)
    own = types.SimpleNamespace(
        settings=settings, lengths=lengths, task=CLASSIFY, plain=CLASSIFY.objective(settings),
        objective="the run's own", batch=lambda some: CLASSIFY.collate([rows[at] for at in some], TOKENIZER, settings),
    )  # fmt: skip
    return own, TrainingConfig(), model, [numpy.arange(4)] * 20, MicroBatch(4)


@pytest.mark.parametrize(
    ("packed", "short", "done"),
    [(None, 2, True), (None, 1, False), (True, 1, True), (False, 3, False), (True, 0, True)],
)
def test_much_padding_decides_where_nobody_did(packed, short, done):
    model = build("bert", HEADS["classify"])
    state = copy.deepcopy(model.state_dict())
    given = prepared(packed, short, model)
    before = torch.random.get_rng_state()
    found = packing.packed_run(*given)
    assert (found.packing is not None) == done and bool(found.facts) == done
    assert (found.objective(given[0], given[1]) == "the run's own") != done
    if done:
        share = 1 - (3 * short + 14 * (4 - short)) / 56
        assert found.facts["padding_before"] == pytest.approx(share) and found.facts["padding_after"] == 0
        assert found.facts["seconds_before"] > 0 and found.facts["seconds_after"] > 0
    assert torch.equal(before, torch.random.get_rng_state()) and all(p.grad is None for p in model.parameters())
    found.end()
    assert not attention_of(model) and all(torch.equal(state[key], own) for key, own in model.state_dict().items())


def test_what_cannot_is_told_by_itself_and_refused_when_asked_for():
    model = build("mobilebert", HEADS["classify"])
    told = packing.packed_run(*prepared(None, 3, model)).facts
    assert told["packed"] is False and "states that change" in told["packed_how"]
    with pytest.raises(InputError, match="packed=True: found MobileBert"):
        packing.packed_run(*prepared(True, 3, model))
    own, _, *others = prepared(True, 3, build("bert", HEADS["classify"]))
    with pytest.raises(InputError, match="fgm"):
        packing.packed_run(own, TrainingConfig(remedies=(fgm(0.5),)), *others)
    with pytest.raises(InputError, match="prefix"):
        ReadSettings(reader="prefix", packed=True)
    assert ReadSettings(reader="prefix").packing() is False


def test_packing_is_not_kept_with_a_model():
    assert "packed" not in MaskSettings(packed=True).to_dict()


@pytest.mark.slow
def test_a_run_packs_and_says_so(tmp_path):
    """From the command line's settings to the report; the folder and its checkpoint are plain ones."""
    rows = [{"text": "cat " * (1 + 60 * (n % 4 == 0)) + f"{n}", "label": "ab"[n % 2]} for n in range(200)]
    given = {"task": "classify", "data": rows, "steps": 4, "effective_batch": 16, "optimizer": "momentum"}
    found = {}
    for packed in (True, False):
        out = tmp_path / str(packed)
        found[packed] = jieyue.train("tiny", out=out, settings={"packed": packed}, **given)
        saved = [out / "config.json", *out.glob("checkpoints/*/config.json")]
        assert len(saved) > 1 and not any("jieyue_attention" in one.read_text() for one in saved)
    items = found[True].report.section("Training").items
    facts = {one.what: one.value for one in items if isinstance(one, Fact)}
    assert facts["packed rows"] is True and facts["padding of packed rows"] == 0
    for own, other in zip(found[True].model.parameters(), found[False].model.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-5)
