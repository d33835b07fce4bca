"""Remedies on transformers' models: the same second derivatives from every attention, encoder-decoders, half precision, Trainer."""

import copy
import warnings

import pytest
import torch
import transformers
from attention_models import make

import jieyue
from jieyue.errors import InputError
from jieyue.hf.prefix import as_prefix_lm
from jieyue.training.objective import IGNORED, token_loss
from jieyue.training.remedies.adversarial import fgm, penalize_gradient
from jieyue.training.remedies.consistency import rdrop, unlikelihood
from jieyue.training.remedies.remedy import apply
from jieyue.training.remedies.replacement import replace_tokens
from jieyue.training.remedies.sampling import sample_scheduled

STILL = {
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "llama": {},
    "bart": {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0},
}
T5 = {
    "vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0,
    "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 2,
}  # fmt: skip


def model_of(name, attention=None):
    torch.manual_seed(2)
    if name == "t5":
        model = transformers.T5ForConditionalGeneration(transformers.T5Config(**T5)).double()
    else:
        model = make(name, **STILL[name])
    if attention == "jieyue":
        jieyue.use(model, attention="full()")
    elif attention:
        model.set_attn_implementation(attention)
        for part in (
            model.modules()
        ):  # T5's encoder and decoder have configurations of their own; 5.17 leaves them as they were
            if isinstance(part, transformers.PreTrainedModel):
                part.config._attn_implementation = attention
    return model.train()


def writes_next(name):
    return name in ("gpt2", "llama")


def objective(model, batch):
    logits = model(**{name: value for name, value in batch.items() if name != "labels"}, use_cache=False).logits
    if model.config.is_encoder_decoder:
        return token_loss(logits, batch["labels"])
    return token_loss(logits[:, :-1], batch["labels"][:, 1:])


def batch_of(name, model, rows=4):
    torch.manual_seed(7)
    ids = torch.randint(3, 40, (rows, 12))
    ids[:, 9], ids[1, 7:], ids[:, 10:] = 2, 0, 0
    mask = (ids != 0).long()
    mask[:, 9] = 1
    if writes_next(name):
        labels = ids.masked_fill((torch.arange(12) < 4) | (ids == 0), IGNORED)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}
    labels = ids.flip(0)[:, :8].masked_fill(ids.flip(0)[:, :8] == 0, IGNORED)
    begun = model.prepare_decoder_input_ids_from_labels(labels=labels)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "decoder_input_ids": begun}


def gradient(model, run, batch, cuts=(slice(None),)):
    model.zero_grad()
    weight = 0
    for piece in cuts:
        tally = run(model, {name: value[piece] for name, value in batch.items()})
        tally.total.backward()
        weight += tally.weight
    return torch.cat([p.grad.flatten() / weight for p in model.parameters() if p.grad is not None])


def far(one, other):
    return float((one - other).norm() / other.norm())


def test_a_part_with_an_attention_of_its_own_is_seen():
    """The whole says eager, its encoder runs SDPA, which has a second derivative in its mathematical form alone."""
    model = model_of("bart", "eager")
    encoder = model.get_encoder()
    encoder.config = copy.deepcopy(model.config)
    encoder.config._attn_implementation = "sdpa"
    for layer in encoder.layers:
        layer.self_attn.config = encoder.config
    batch = batch_of("bart", model)
    with pytest.warns(UserWarning, match="mathematical form"):
        found = gradient(model, penalize_gradient(0.5)(objective), batch)
    eager = gradient(model_of("bart", "eager"), penalize_gradient(0.5)(objective), batch)
    torch.testing.assert_close(found, eager, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["gpt2", "llama", "bart", "t5"])
def test_penalty_is_the_same_under_every_attention(name):
    """eager, ours, and SDPA switched to its mathematical form with a warning; the fused kernel has no second derivative."""
    run, found = penalize_gradient(0.5)(objective), {}
    kinds = ["eager", "jieyue", "sdpa"] if name != "t5" else ["eager"]
    for attention in kinds:
        model = model_of(name, attention)
        batch = batch_of(name, model)
        if attention == "sdpa":
            with pytest.warns(UserWarning, match="mathematical form"):
                found[attention] = gradient(model, run, batch)
        else:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message="penalize_gradient")
                found[attention] = gradient(model, run, batch)
    for attention in kinds[1:]:
        assert far(found[attention], found["jieyue"]) < 1e-11
    assert far(found["eager"], found[kinds[-1]]) < (1e-6 if name == "llama" else 1e-11)  # its eager softmax is float32
    model = model_of(name, "eager")
    assert far(gradient(model, objective, batch_of(name, model)), found["eager"]) > 1e-3


def test_sdpa_under_checkpointing_is_refused():
    model = model_of("llama", "sdpa")
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    with pytest.raises(InputError, match="checkpointing"):
        penalize_gradient()(objective)(model, batch_of("llama", model))


@pytest.mark.parametrize("attention", ["eager", "jieyue"])
def test_checkpointing_changes_nothing(attention):
    run = apply([replace_tokens(0.5, 1.0), fgm(0.2), penalize_gradient(0.5)], objective)
    model = model_of("llama", attention)
    batch = batch_of("llama", model) | {"seeds": torch.arange(4)}
    plain = gradient(model, run, batch)
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    assert far(gradient(model, run, batch), plain) < 1e-12


@pytest.mark.parametrize("name", ["llama", "bart", "t5"])
@pytest.mark.parametrize("remedy", [
    replace_tokens(0.5, 1.0), replace_tokens(0.5, 1.0, "sequence"), replace_tokens(0.5, 1.0, "vocabulary"), sample_scheduled(0.7),
    sample_scheduled(0.7, "sample"), sample_scheduled(0.7, "gumbel"), fgm(0.5), penalize_gradient(0.5), rdrop(), unlikelihood(),
], ids=str)  # fmt: skip
def test_pieces_are_the_whole(name, remedy):
    model = model_of(name, "eager")
    batch = batch_of(name, model) | {"seeds": torch.arange(4)}
    run = remedy(objective)
    whole = gradient(model, run, batch)
    assert far(gradient(model, run, batch, (slice(0, 1), slice(1, 4))), whole) < 1e-12
    if "rdrop" not in str(remedy):
        assert far(gradient(model, objective, {k: v for k, v in batch.items() if k != "seeds"}), whole) > 1e-4


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_fgm_moves_source_and_target_of_an_encoder_decoder(name):
    """By hand, through ``inputs_embeds`` and ``decoder_inputs_embeds``."""
    model = model_of(name, "eager")
    batch = batch_of(name, model)
    embed = model.get_input_embeddings()
    source, target = (embed(batch[key]).detach().requires_grad_() for key in ("input_ids", "decoder_input_ids"))

    def loss(source, target):
        out = model(
            inputs_embeds=source, decoder_inputs_embeds=target, attention_mask=batch["attention_mask"], use_cache=False
        )
        return token_loss(out.logits, batch["labels"]).total

    grads = torch.autograd.grad(loss(source, target), (source, target))
    norm = sum(grad.flatten(1).square().sum(1) for grad in grads).sqrt()[:, None, None]
    expected = loss(*(e + 0.5 * grad / norm for e, grad in zip((source, target), grads, strict=True)))
    found = fgm(0.5)(objective)(model, batch).total
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)


def test_decoder_inputs_are_made_where_the_batch_has_none():
    """Labels that are the targets: replaced tokens reach the decoder though the batch brought no decoder_input_ids."""
    model = model_of("bart")
    batch, read = batch_of("bart", model), []

    def look(model, given):
        read.append(given)
        return objective(model, given)

    replace_tokens(1.0, 1.0)(look)(model, {name: value for name, value in batch.items() if name != "decoder_input_ids"})
    made = read[0]["decoder_input_ids"]
    labelled = torch.nn.functional.pad(batch["labels"][:, :-1] != IGNORED, (1, 0))
    assert torch.equal(made[~labelled], batch["decoder_input_ids"][~labelled])
    assert not torch.equal(made, batch["decoder_input_ids"])
    assert torch.equal(read[0]["input_ids"], batch["input_ids"])


@pytest.mark.parametrize("remedy", [fgm(0.5), penalize_gradient(0.5), unlikelihood()], ids=str)
def test_half_precision_stays_near(remedy):
    """In bfloat16 the error is at most three times that of the plain gradient in bfloat16, plus 8 eps."""
    exact = model_of("llama", "eager")
    batch = batch_of("llama", exact)
    half = model_of("llama", "eager").bfloat16()
    exact.load_state_dict({name: value.double() for name, value in half.state_dict().items()})
    plain = far(gradient(half, objective, batch).double(), gradient(exact, objective, batch))
    own = far(gradient(half, remedy(objective), batch).double(), gradient(exact, remedy(objective), batch))
    assert own <= 3 * plain + 8 * torch.finfo(torch.bfloat16).eps


def test_in_plain_transformers_trainer(tmp_path):
    """``compute_loss`` is the one line that a user of transformers writes."""

    class Remedied(transformers.Trainer):
        run = staticmethod(apply([replace_tokens(0.3), fgm(0.5)], objective))

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return self.run(model, inputs).mean()

    model = model_of("llama").float()
    batch = batch_of("llama", model)
    rows = [{name: value[row] for name, value in batch.items()} for row in range(4)]
    arguments = transformers.TrainingArguments(
        tmp_path, max_steps=3, per_device_train_batch_size=2, report_to=[], disable_tqdm=True, use_cpu=True, save_strategy="no",
        learning_rate=1e-2,
    )  # fmt: skip
    before = [p.detach().clone() for p in model.parameters()]
    Remedied(model, arguments, train_dataset=rows).train()
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_penalty_of_a_prefix_model_is_that_of_plain_attention():
    """Two bands are merged there, of which one is empty for most queries: its second derivative is no NaN."""
    torch.manual_seed(3)
    sizes = {
        "vocab_size": 40,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
    }
    config = transformers.BertConfig(**sizes, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = as_prefix_lm(transformers.BertForMaskedLM(config)).double().train()
    ids = torch.randint(4, 40, (3, 12))
    segments = (torch.arange(12) >= 6).long().expand(3, -1).clone()
    mask = torch.ones_like(ids)
    mask[1, 10:] = ids[1, 10:] = segments[1, 10:] = 0
    batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": segments}
    batch["labels"] = ids.masked_fill((segments == 0) | (mask == 0), IGNORED)
    run = penalize_gradient(0.5)(objective)
    ours = gradient(model, run, batch)
    model.set_attn_implementation("eager")
    assert far(ours, gradient(model, run, batch)) < 1e-12
    assert far(ours, gradient(model, objective, batch)) > 1e-3
