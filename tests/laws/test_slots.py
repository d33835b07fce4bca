"""Law: logits at the slots = those rows of the whole logits, gradients too, for every kind of masked-LM head."""

import threading

import pytest
import torch
import transformers as hf

from jieyue.decoding.slots import positions_of, slot_logits, slot_probabilities
from jieyue.tally import Tally
from jieyue.tasks.read.masked import objective

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 50}
DROPLESS = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "max_position_embeddings": 64}


def models():
    return {
        "bert": lambda: hf.BertForMaskedLM(hf.BertConfig(**SMALL, **DROPLESS)),
        "roberta": lambda: hf.RobertaForMaskedLM(hf.RobertaConfig(**SMALL, **DROPLESS)),
        "albert": lambda: hf.AlbertForMaskedLM(hf.AlbertConfig(**SMALL, **DROPLESS, embedding_size=8)),
        "electra": lambda: hf.ElectraForMaskedLM(hf.ElectraConfig(**SMALL, **DROPLESS, embedding_size=8)),
        "modernbert": lambda: hf.ModernBertForMaskedLM(hf.ModernBertConfig(**SMALL, pad_token_id=0)),
        "eurobert": lambda: hf.EuroBertForMaskedLM(
            hf.EuroBertConfig(**SMALL, max_position_embeddings=64, pad_token_id=0, tie_word_embeddings=True)
        ),
        "distilbert": lambda: hf.DistilBertForMaskedLM(
            hf.DistilBertConfig(
                vocab_size=50, dim=16, n_layers=2, n_heads=2, hidden_dim=24, dropout=0.0, attention_dropout=0.0
            )
        ),
    }


def example(batch=3, length=14, slots=4):
    ids = torch.randint(3, 50, (batch, length))
    mask = torch.ones_like(ids)
    mask[0, -3:] = 0
    labels = torch.randint(3, 50, (batch, slots))
    labels[0, 2:] = labels[1, 1:] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize("name", models())
def test_slots_equal_rows_of_the_whole(name):
    model = models()[name]().double().eval()
    batch = example()
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    seen = []
    head_rows = model.get_output_embeddings().register_forward_hook(lambda m, i, o: seen.append(o.shape[1]))
    narrow = slot_logits(model, inputs, 1, 4)
    whole = model(**inputs).logits
    head_rows.remove()
    assert seen == [4, 14]  # the vocabulary was computed at the slots alone, and the model is as it was
    assert (narrow - whole[:, 1:5]).abs().max() <= 1e-12
    tally = objective(model, batch)
    expected = torch.nn.functional.cross_entropy(
        whole[:, 1:5].reshape(-1, 50), batch["labels"].flatten(), reduction="sum", ignore_index=-100
    )
    assert tally.weight == (batch["labels"] != -100).sum()
    own = torch.autograd.grad(tally.total, [p for p in model.parameters() if p.requires_grad], allow_unused=True)
    reference = torch.autograd.grad(expected, [p for p in model.parameters() if p.requires_grad], allow_unused=True)
    assert tally.detach().total == pytest.approx(expected.item(), rel=1e-12)
    for a, b in zip(own, reference, strict=True):
        assert (a is None and b is None) or (a - b).abs().max() <= 1e-12 * max(1, b.abs().max())


def test_tallies_of_pieces_add_up_and_means_do_not():
    """Law: total and weight of parts = those of the whole. Twin: a mean of means differs when label counts do."""
    model, batch = models()["bert"]().double(), example()
    pieces = [objective(model, {key: value[at : at + 1] for key, value in batch.items()}) for at in range(3)]
    whole = objective(model, batch)
    pieces, whole = [piece.detach() for piece in pieces], whole.detach()
    assert sum(pieces).mean() == pytest.approx(whole.mean(), rel=1e-12)
    assert sum(piece.mean() for piece in pieces) / 3 != pytest.approx(whole.mean(), rel=1e-3)


class Headless(torch.nn.Module):
    """A model with no ``base_model``: the whole logits are computed and sliced."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(50, 50)

    def forward(self, input_ids, attention_mask=None):
        return hf.modeling_outputs.MaskedLMOutput(logits=self.table(input_ids))


class Wrapped(torch.nn.Module):
    """As DistributedDataParallel wraps."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, **inputs):
        return self.module(**inputs)


def test_models_without_a_body_and_wrapped_ones():
    inputs = {"input_ids": example()["input_ids"]}
    model = Headless()
    assert torch.equal(slot_logits(model, inputs, 2, 3), model(**inputs).logits[:, 2:5])
    bert = models()["bert"]().eval()
    assert torch.allclose(slot_logits(Wrapped(bert), inputs, 1, 4), bert(**inputs).logits[:, 1:5], atol=1e-6)


def test_an_error_inside_leaves_no_hook_behind():
    bert = models()["bert"]()
    with pytest.raises(IndexError):
        slot_logits(bert, {"input_ids": torch.tensor([[1, 2, 99, 4]])}, 1, 2)  # 99 is not in the vocabulary
    assert not bert.base_model._forward_hooks


def test_another_thread_sees_the_whole_logits():
    bert = models()["bert"]().eval()
    inputs = {"input_ids": example()["input_ids"]}
    shapes = []

    def other(module, arguments, output):  # runs while this thread's narrowing is in place
        if threading.current_thread() is threading.main_thread() and not shapes:
            worker = threading.Thread(target=lambda: shapes.append(bert(**inputs).logits.shape[1]))
            worker.start()
            worker.join()

    handle = bert.base_model.embeddings.register_forward_hook(other)
    assert slot_logits(bert, inputs, 1, 4).shape[1] == 4
    handle.remove()
    assert shapes == [14]


def test_probabilities_are_the_whole_softmax_at_the_inputs_own_tokens():
    bert, batch = models()["bert"]().eval(), example()
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        found = slot_probabilities(bert, inputs, 1, 4)
        whole = bert(**inputs).logits.softmax(-1)
    for b in range(3):
        for slot in range(4):
            expected = whole[b, 1 + slot, inputs["input_ids"][b]]
            assert torch.allclose(torch.from_numpy(found[b, slot]), expected, atol=1e-6)


def test_zero_labels_weigh_nothing():
    model, batch = models()["bert"](), example()
    batch["labels"][:] = -100
    tally = objective(model, batch)
    assert isinstance(tally, Tally) and tally.detach() == Tally(0.0, 0.0)


def test_positions_are_what_the_model_can_take():
    """A row of that many tokens runs; one more does not, where positions are a table."""
    for name, make in models().items():
        model = make().eval()
        positions = positions_of(model)
        assert positions is not None
        if name in ("modernbert", "eurobert"):
            continue
        with torch.no_grad():
            model(input_ids=torch.full((1, positions), 5))
            with pytest.raises((IndexError, RuntimeError)):
                model(input_ids=torch.full((1, positions + 1), 5))
    assert positions_of(Headless()) is None
