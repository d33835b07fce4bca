"""Activations inside transformers' models: names in configurations, swaps, saved folders, and what a checkpoint minds."""

import functools
import warnings

import pytest
import torch
import transformers as tr
from transformers.activations import ACT2FN

import jieyue.hf.activations as places
from jieyue.activations import NAMED, Gelu, fit, gelu
from jieyue.errors import InputError
from jieyue.hf.activation_check import verify_activation
from jieyue.hf.row_losses import text_batches

SMALL = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "vocab_size": 40, "max_position_embeddings": 24,
}  # fmt: skip
MODELS = {
    "bert": lambda: tr.BertForMaskedLM(tr.BertConfig(**SMALL)),
    "albert": lambda: tr.AlbertForMaskedLM(tr.AlbertConfig(**SMALL, embedding_size=8)),
    "distilbert": lambda: tr.DistilBertForMaskedLM(
        tr.DistilBertConfig(dim=16, hidden_dim=32, n_layers=2, n_heads=2, vocab_size=40, max_position_embeddings=24)
    ),
    "gpt2": lambda: tr.GPT2LMHeadModel(
        tr.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=40, n_positions=24, bos_token_id=1, eos_token_id=1)
    ),
    "t5": lambda: tr.T5ForConditionalGeneration(
        tr.T5Config(
            d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=40, feed_forward_proj="gated-gelu"
        )
    ),
}
VARIANTS = ["none", "tanh", "sigmoid", "tanh-minimax", "tanh5(a=0.7975,b=0.037,c=-0.00035)"]


def batch(seed=0, rows=3, length=9):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, 40, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, length // 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def logits(model, inputs):
    extra = {"decoder_input_ids": inputs["input_ids"]} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model.eval()(**inputs, **extra).logits


def test_names_are_in_transformers_table():
    x = torch.linspace(-3, 3, 7)
    for name in ("none", *NAMED):
        assert torch.equal(ACT2FN[f"jieyue:{name}"](x), gelu(x, name))
    model = tr.BertModel(tr.BertConfig(**SMALL, hidden_act="jieyue:tanh-minimax"))
    assert {holder.kind for holder in places.find_activations(model)} == {
        "tanh-minimax",
        None,
    }  # None: the pooler's tanh
    with pytest.raises(InputError, match="begins with 'jieyue:'"):
        places.register("tanh")


PAIRS = [("bert", name) for name in VARIANTS] + [
    (family, name) for family in MODELS for name in (VARIANTS[0], VARIANTS[-1])
][2:]


@pytest.mark.parametrize(("family", "name"), PAIRS)
def test_swapped_saved_and_loaded(family, name, tmp_path):
    model, inputs = MODELS[family](), batch()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    swapped = places.use_gelu(model, name)
    assert swapped and all(isinstance(holder.held, Gelu) for holder in swapped)
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(before[key], after[key]) for key in before)
    own = logits(model, inputs)
    model.save_pretrained(tmp_path)
    config = tr.AutoConfig.from_pretrained(tmp_path)
    places.register_config(config)
    loaded = type(model).from_pretrained(tmp_path)
    assert {holder.kind for holder in places.find_activations(loaded)} == {swapped[0].kind}
    assert torch.allclose(logits(loaded, inputs), own, atol=1e-6)


def test_the_swap_computes_another_function():
    model, inputs = MODELS["bert"](), batch()
    exact = logits(model, inputs)
    changes = []
    for name in ("sigmoid", "tanh", "tanh5-minimax", "none"):
        places.use_gelu(model, name)
        changes.append(float((logits(model, inputs) - exact).abs().max()))
    assert changes[0] > changes[1] > 0 and changes[3] < 1e-6


def test_a_fit_goes_in_in_one_line():
    found = fit("tanh", "gelu", fixed={"b": 0.035})
    model = MODELS["gpt2"]()
    places.use_gelu(model, found)
    assert model.config.activation_function == f"jieyue:{found}"
    assert model.config.activation_function in ACT2FN


def test_gradients_flow_through_a_swapped_model():
    model = MODELS["bert"]()
    places.use_gelu(model, "tanh5-minimax")
    model(**batch(), labels=batch()["input_ids"]).loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_a_wired_in_gelu_is_reported_not_touched():
    model = tr.RobertaForMaskedLM(tr.RobertaConfig(**SMALL))
    assert places.wired_in(model) == ["lm_head: RobertaLMHead"]
    with pytest.warns(UserWarning, match="lm_head: RobertaLMHead"):
        places.use_gelu(model, "tanh")


def test_a_place_that_the_configuration_cannot_name_is_reported():
    model = tr.ElectraForMaskedLM(tr.ElectraConfig(**SMALL, embedding_size=16))
    with pytest.warns(UserWarning, match=r"generator_predictions\.activation"):
        places.use_gelu(model, "tanh")


def test_an_activation_shared_by_the_whole_library_is_not_altered():
    """XLM holds transformers' own global object; swapping must not reach other models through it."""
    config = tr.XLMConfig(emb_dim=16, n_layers=2, n_heads=2, vocab_size=40, n_words=40, max_position_embeddings=24)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        places.use_gelu(tr.XLMModel(config), "sigmoid")
    other = tr.XLMModel(config)
    assert {holder.kind for holder in places.find_activations(other)} == {"none"}


def test_functions_held_as_attributes_are_found():
    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.act = torch.nn.functional.gelu
            self.late = functools.partial(torch.nn.functional.gelu, approximate="tanh")
            self.inner = torch.nn.GELU("tanh")

        def forward(self, x):
            return self.inner(self.late(self.act(x)))

    block = Block()
    assert {h.path: h.kind for h in places.find_activations(block)} == {"act": "none", "late": "tanh", "inner": "tanh"}
    with pytest.warns(UserWarning, match="cannot say so"):
        places.use_gelu(block, "sigmoid")
    x = torch.randn(4)
    step = functools.partial(gelu, approximate="sigmoid")
    assert torch.equal(block(x), step(step(step(x))))


def test_a_model_without_gelu_is_refused():
    llama = tr.LlamaForCausalLM(
        tr.LlamaConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=40)
    )
    with pytest.raises(InputError, match="found SiLUActivation in LlamaForCausalLM"):
        places.use_gelu(llama, "tanh")
    with pytest.raises(InputError, match="found no GELU"):
        verify_activation(llama, [batch()])
    with pytest.raises(InputError, match="found no GELU"):
        places.collect_inputs(llama, [batch()])


def test_known_mismatches():
    albert = tr.AlbertConfig(**SMALL, hidden_act="gelu")
    assert "tanh form" in places.known_mismatch(albert) and "#2395" in places.known_mismatch(albert)
    assert places.known_mismatch(tr.AlbertConfig(**SMALL, hidden_act="gelu_new")) is None
    assert places.known_mismatch(tr.BertConfig(**SMALL)) is None
    assert "GPT-2" in places.known_mismatch(tr.GPT2Config(activation_function="gelu"))


def confident(family="bert"):
    """A model whose predictions are sharp, so that its activation can be told from its own samples."""
    torch.manual_seed(3)
    model = MODELS[family]().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(200 if "word_embeddings" in name else 15)
    return model


@pytest.mark.parametrize("trained", ["none", "sigmoid"])
@pytest.mark.parametrize("loaded", ["none", "sigmoid"])
def test_the_activation_of_training_is_told_from_the_loss(trained, loaded):
    """Labels drawn from the model's own predictions: no other model has a lower expected loss."""
    model = confident()
    places.use_gelu(model, trained)
    batches = []
    for seed in range(6):
        inputs = batch(seed, rows=96, length=20)
        inputs["attention_mask"][:] = 1
        inputs["labels"] = torch.distributions.Categorical(logits=logits(model, inputs)).sample()
        batches.append(inputs)
    places.use_gelu(model, loaded)
    check = verify_activation(model, batches)
    others = {"none", "tanh"} if trained == "none" else {"sigmoid"}
    assert set(check.possible) <= others and check.possible, check.verdict
    assert check.loaded == loaded
    assert any("was most likely trained with" in text for text in check.warnings) is (trained != loaded)
    assert {holder.kind for holder in places.find_activations(model)} == {loaded}  # put back


def test_verification_measures_what_a_swap_does():
    model, inputs = MODELS["albert"](), batch()
    model.config.hidden_act = "gelu"
    places.use_gelu(model, "none")
    inputs["labels"] = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    check = verify_activation(model, [inputs], ["none", "tanh", "sigmoid", "tanh-minimax"])
    by_name = {row.name: row for row in check.rows}
    reference, real = logits(model, {k: v for k, v in inputs.items() if k != "labels"}), inputs["attention_mask"].bool()
    places.use_gelu(model, "sigmoid")
    swapped = logits(model, {k: v for k, v in inputs.items() if k != "labels"})
    assert by_name["sigmoid"].logit_change == pytest.approx(float((swapped - reference)[real].abs().max()), rel=1e-4)
    with torch.no_grad():
        loss = float(model(**inputs).loss)
    assert by_name["sigmoid"].loss == pytest.approx(loss, rel=1e-5)
    assert by_name["none"].logit_change < 1e-6 and len(by_name["tanh"].layer_errors) == 3
    assert by_name["tanh"].layer_errors[0] == 0 < by_name["tanh"].layer_errors[1]
    assert by_name["sigmoid"].layer_errors[2] > 10 * by_name["tanh"].layer_errors[2]
    assert any("#2395" in text for text in check.warnings)
    assert check.num_labels == int(real.sum())
    text = check.report().text()
    assert "tanh-minimax" in text and "Warning" in text


def test_without_labels_there_is_no_verdict():
    model = MODELS["t5"]()
    inputs = {**batch(), "decoder_input_ids": batch()["input_ids"]}
    check = verify_activation(model, iter([inputs]))
    assert check.possible == () and check.likely is None and "needs labels" in check.verdict
    assert all(row.loss is None for row in check.rows)
    with pytest.raises(InputError, match="no batch"):
        verify_activation(model, [])


def test_a_failing_batch_leaves_the_model_as_it_was():
    model = MODELS["bert"]().train()
    former = [holder.held for holder in places.find_activations(model)]
    with pytest.raises(IndexError):
        verify_activation(model, [{"input_ids": torch.full((1, 4), 99)}])
    assert model.training and [holder.held for holder in places.find_activations(model)] == former


def test_inputs_are_collected_without_padding():
    model, inputs = MODELS["bert"](), batch()
    weight = places.collect_inputs(model, [inputs, inputs], bins=50)
    assert float(weight.shares.sum()) == pytest.approx(1)
    seen = []
    hook = places.find_activations(model)[0].held.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    logits(model, inputs)
    hook.remove()
    real = seen[0][inputs["attention_mask"].bool()]
    assert weight.domain[0] <= float(real.min()) and float(real.max()) <= weight.domain[1]
    mean = float((weight.points * weight.shares).sum())
    assert abs(mean) < 0.1 and len(weight.points) <= 60
    found = fit("tanh", "gelu", weight)
    assert found.rms < 1e-3 and found.criterion == "the model's own inputs"


def test_batches_from_text():
    class Words:
        all_special_ids, mask_token_id, pad_token_id, eos_token = [0, 1, 2], 2, 0, None

        def __call__(self, texts, **_):
            rows = [[1, *(3 + ord(c) % 30 for c in text), 1] for text in texts]
            longest = max(map(len, rows))
            ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
            return {"input_ids": ids, "attention_mask": (ids != 0).long()}

    texts = ["the quick brown fox", "jumps over", " ", "the lazy dog and more"]
    first, second = text_batches(MODELS["bert"](), Words(), texts, rows=2)
    chosen = first["labels"] != -100
    assert chosen.any() and (first["input_ids"][chosen] == 2).all() and (first["labels"][chosen] > 2).all()
    assert len(second["input_ids"]) == 1
    causal = text_batches(MODELS["gpt2"](), Words(), texts)[0]
    assert torch.equal(causal["labels"] == -100, causal["attention_mask"] == 0)
    with pytest.raises(InputError, match="not blank"):
        text_batches(MODELS["bert"](), Words(), ["  "])
