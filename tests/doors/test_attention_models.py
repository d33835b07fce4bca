"""A pattern inside transformers' models equals the same model under a dense additive mask, padding and gradients included."""

import copy

import pytest
import torch
from attention_models import MODELS, inputs, make, twins
from transformers import masking_utils

import jieyue
from jieyue.attention import parse
from jieyue.hf.attention import attention_of
from jieyue.hf.masks import ask_of, asked_mask

PATTERNS = {"bert": "local(5)", "gpt2": "local(4)+atrous(3)", "llama": "atrous(5)", "roberta": "local(2, step=3)"}


def dense_mask(pattern, mask, causal):
    """The additive mask [B, 1, N, N] that means the same: hugely negative where the pattern or the padding hides a key."""
    length = mask.shape[1]
    pattern = parse(pattern).causal() if causal else parse(pattern)
    sees = pattern.mask(length, length) & mask.bool()[:, None, None, :]
    return torch.zeros(sees.shape, dtype=torch.float64).masked_fill(~sees, -1e30)


def assert_equal_gradients(model, twin):
    for (key, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        if q.grad is not None:
            assert torch.allclose(p.grad, q.grad, atol=1e-9), key


@pytest.mark.parametrize("name", [name for name in MODELS if name != "bart"])
def test_equals_the_dense_mask(name):
    pattern = PATTERNS.get(name, "sparse(6)")
    model, twin = twins(name)
    ids, mask = inputs()
    given = jieyue.use(model, attention=pattern)
    assert set(given.values()) == {pattern}
    out = model(input_ids=ids, attention_mask=mask).logits
    expected = twin(input_ids=ids, attention_mask=dense_mask(pattern, mask, MODELS[name][3])).logits
    real = mask.bool()
    assert torch.allclose(out[real], expected[real], atol=1e-11)
    out[real].square().sum().backward()
    expected[real].square().sum().backward()
    assert_equal_gradients(model, twin)


def test_bart_gets_patterns_on_both_sides_and_keeps_cross_attention_full():
    model, twin = twins("bart")
    given = jieyue.use(model, attention="local(3)")
    assert [name.split(".")[1] for name in given] == ["encoder"] * 2 + ["decoder"] * 2
    assert not any("encoder_attn" in name for name in given)
    ids, mask = inputs(23)
    targets, seen = inputs(17)
    model.config.use_cache = twin.config.use_cache = False
    out = model(ids, attention_mask=mask, decoder_input_ids=targets, decoder_attention_mask=seen).logits
    hidden = twin.model.encoder(ids, attention_mask=dense_mask("local(3)", mask, False))
    expected = twin(
        encoder_outputs=hidden,
        attention_mask=mask,
        decoder_input_ids=targets,
        decoder_attention_mask=dense_mask("local(3)", seen, True),
    ).logits
    real = seen.bool()
    assert torch.allclose(out[real], expected[real], atol=1e-11)
    out[real].square().sum().backward()
    expected[real].square().sum().backward()
    assert_equal_gradients(model, twin)


def test_the_pattern_matters():
    """The broken twin: another pattern gives other logits."""
    model, twin = twins("bert")
    ids, mask = inputs()
    jieyue.use(model, attention="local(5)")
    out = model(input_ids=ids, attention_mask=mask).logits
    other = twin(input_ids=ids, attention_mask=dense_mask("local(6)", mask, False)).logits
    assert not torch.allclose(out, other, atol=1e-6)


def test_a_list_is_tiled_over_the_layers_and_taken_off():
    model, twin = twins("bert", num_hidden_layers=3)
    given = jieyue.use(model, attention="local(3),atrous(4)")
    assert list(given.values()) == ["local(3)", "atrous(4)", "local(3)"]
    assert attention_of(model) == given
    ids, mask = inputs()
    out = model(input_ids=ids, attention_mask=mask).logits
    plain = twin(input_ids=ids, attention_mask=mask).logits
    assert not torch.allclose(out, plain, atol=1e-6)
    assert jieyue.use(model, attention=None) == {}
    assert attention_of(model) == {}
    assert torch.equal(model(input_ids=ids, attention_mask=mask).logits, plain)


def test_a_copied_model_has_its_own_attention():
    model = make("gpt2")
    jieyue.use(model, attention="local(3)")
    other = copy.deepcopy(model)
    jieyue.use(model, attention=None)
    ids, mask = inputs(9)
    assert set(attention_of(other).values()) == {"local(3)"} and not attention_of(model)
    found = other.generate(ids, attention_mask=mask, max_new_tokens=2, return_dict_in_generate=True)
    assert type(found.past_key_values).__name__ == "StateCache"


def test_layers_with_a_window_keep_it_unless_named():
    layers = {
        "num_hidden_layers": 3,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        "local_attention": 8,
    }
    model, twin = twins("modernbert", **layers)
    assert list(jieyue.use(model, attention="full()").values()) == ["full()", "local(4)", "full()"]
    ids, mask = inputs()
    real = mask.bool()
    expected = twin(ids, attention_mask=mask).logits
    assert torch.allclose(model(ids, attention_mask=mask).logits[real], expected[real], atol=1e-11)
    given = jieyue.use(model, attention="full(),local(7)")
    assert list(given.values()) == ["full()", "local(7)", "full()"]


def test_mistral_keeps_its_window():
    model, twin = twins("mistral", sliding_window=6)
    assert set(jieyue.use(model, attention="full()").values()) == {"local(5)"}
    ids, mask = inputs()
    real = mask.bool()
    ours, theirs = model(ids, attention_mask=mask).logits, twin(ids, attention_mask=mask).logits
    assert torch.allclose(ours[real], theirs[real], atol=1e-11)


@pytest.mark.parametrize("attention", ["linear(elu)", "linear(softmax)", "linear(elu),local(4)"])
def test_linear_maps_train_and_never_see_padding(attention):
    """What lies behind the padding changes neither logits nor gradients."""
    model = make("bert", attention_probs_dropout_prob=0.0)
    jieyue.use(model, attention=attention)
    ids, mask = inputs()
    found = []
    for other in (ids, ids.where(mask.bool(), torch.randint(3, 40, ids.shape))):
        model.zero_grad()
        out = model(other, attention_mask=mask).logits[mask.bool()]
        out.square().sum().backward()
        query = model.bert.encoder.layer[0].attention.self.query.weight
        found.append((out.detach(), query.grad.clone()))
    assert found[0][1].abs().max() > 0
    for one, two in zip(*found, strict=True):
        assert torch.allclose(one, two, atol=1e-12)


def test_training_under_checkpointing_and_dropout():
    """Recomputation draws the same dropout: gradients with and without checkpointing agree."""
    found = []
    for name, checkpointing in (("bert", False), ("bert", True), ("gpt2", False), ("gpt2", True)):
        torch.manual_seed(3)
        drop = {"attention_probs_dropout_prob": 0.3} if name == "bert" else {"attn_pdrop": 0.3}
        model = make(name, **drop).train()
        jieyue.use(model, attention="sparse(4)")
        if checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable()
        torch.manual_seed(4)
        ids, mask = inputs()
        model(input_ids=ids, attention_mask=mask).logits.square().sum().backward()
        found.append(model.get_input_embeddings().weight.grad)
    assert torch.equal(*found[:2]) and torch.equal(*found[2:])


def test_dropout_is_the_models_unless_overridden():
    model = make("bert", attention_probs_dropout_prob=0.3, hidden_dropout_prob=0.0)
    ids, mask = inputs()
    for dropout, same in ((None, False), (0.0, True), (0.2, False)):
        jieyue.use(model, attention="local(4)", dropout=dropout)
        model.train()
        assert torch.equal(model(ids, mask).logits, model(ids, mask).logits) is same
        model.eval()
        assert torch.equal(model(ids, mask).logits, model(ids, mask).logits)


def test_a_compiled_model_needs_no_graph_break():
    model = make("llama", num_hidden_layers=1)
    jieyue.use(model, attention="sparse(4)")
    model.train()
    ids, mask = inputs(12)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    grads = []
    for call in (compiled, model):
        model.zero_grad()
        out = call(ids, attention_mask=mask).logits
        out.square().sum().backward()
        grads.append((out.detach(), model.get_input_embeddings().weight.grad.clone()))
    for one, two in zip(*grads, strict=True):
        assert torch.allclose(one, two, atol=1e-12)


def test_masks_carry_causality_window_and_padding():
    kept = torch.tensor([[True, True, False]])
    for function, means in (
        (masking_utils.causal_mask_function, (True, None)),
        (masking_utils.bidirectional_mask_function, (False, None)),
        (masking_utils.sliding_window_causal_mask_function(4), (True, 3)),
        (masking_utils.sliding_window_bidirectional_mask_function(4), (False, 4)),
        (masking_utils.or_masks(masking_utils.causal_mask_function, lambda *_: torch.tensor(True)), (False, None)),
    ):
        mask = asked_mask(1, 3, 3, mask_function=function, attention_mask=kept)
        ask = ask_of(mask)
        assert (ask.causal, ask.window) == means and ask.keys.tolist() == kept.tolist()
        assert mask.shape == (1, 1, 3, 3) and mask.stride()[2] == 0
        assert ask_of(asked_mask(1, 3, 3, mask_function=function, attention_mask=kept | True)).keys is None
        assert ask_of(mask[:, :, -1:]).rows == 1 and ask_of(mask.clone()) is None and ask_of(mask[..., :2]) is None


def test_masks_carry_packed_documents():
    ids, positions = torch.tensor([[0, 0, 1]]), torch.tensor([[0, 1, 0]])
    for window, function in (
        (None, masking_utils.causal_mask_function),
        (1, masking_utils.sliding_window_causal_mask_function(2)),
    ):
        if hasattr(masking_utils, "packed_sequence_compatibility_function"):
            packed = masking_utils.packed_sequence_compatibility_function(function, positions, ids)
        else:  # transformers 5.17
            packed = masking_utils.and_masks(function, masking_utils.packed_sequence_mask_function(ids))
        ask = ask_of(asked_mask(1, 3, 3, mask_function=packed))
        assert (ask.causal, ask.window, ask.segments.tolist()) == (True, window, ids.tolist())


def test_masks_of_other_kinds_are_refused():
    packed = masking_utils.packed_sequence_mask_function(torch.zeros(1, 3))
    causal = masking_utils.causal_mask_function
    for odd in (
        masking_utils.or_masks(causal, packed),
        masking_utils.or_masks(causal, lambda *args: args[2] == args[3]),
        masking_utils.chunked_causal_mask_function(2, torch.zeros(1)),
        masking_utils.sliding_window_overlay(3),
        lambda *_: torch.tensor(False),
    ):
        with pytest.raises(ValueError, match=r"the model asks for a mask \("):
            asked_mask(1, 3, 3, mask_function=odd, attention_mask=torch.ones(1, 3, dtype=torch.bool))


def _train_one_rank(rank, folder):
    """A row to each of two processes; the first writes its gradients."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(3)
    model = make("gpt2", attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0).train()
    jieyue.use(model, attention="sparse(4),linear(elu)")
    ids, mask = inputs()
    wrapped = torch.nn.parallel.DistributedDataParallel(model)
    wrapped(ids[rank : rank + 1], attention_mask=mask[rank : rank + 1]).logits.square().sum().backward()
    if rank == 0:
        torch.save({name: 2 * p.grad for name, p in model.named_parameters()}, f"{folder}/gradients.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_give_the_gradients_of_one(tmp_path):
    torch.multiprocessing.spawn(_train_one_rank, (str(tmp_path),), nprocs=2)
    torch.manual_seed(3)
    model = make("gpt2", attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0).train()
    jieyue.use(model, attention="sparse(4),linear(elu)")
    ids, mask = inputs()
    model(ids, attention_mask=mask).logits.square().sum().backward()
    found = torch.load(tmp_path / "gradients.pt", weights_only=True)
    for name, p in model.named_parameters():
        assert torch.allclose(found[name], p.grad, atol=1e-8), name
