"""unshare: every ALBERT head of transformers, before and after, saved and loaded by transformers alone; optimizers told."""

import copy
import gc
import json

import pytest
import torch
import transformers
from transformers import AlbertConfig

import jieyue
from jieyue.hf.adapters import low_rank_adapters, merge_adapters, tie_layers
from jieyue.hf.albert import sharing_of
from jieyue.hf.attention import attention_of
from jieyue.hf.loading import load_model

SIZES = {
    "vocab_size": 30, "embedding_size": 8, "hidden_size": 16, "num_hidden_layers": 6, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 32, "hidden_act": "gelu_new",
}  # fmt: skip
HEADS = {
    "AlbertModel": "AutoModel",
    "AlbertForPreTraining": "AutoModelForPreTraining",
    "AlbertForMaskedLM": "AutoModelForMaskedLM",
    "AlbertForSequenceClassification": "AutoModelForSequenceClassification",
    "AlbertForTokenClassification": "AutoModelForTokenClassification",
    "AlbertForQuestionAnswering": "AutoModelForQuestionAnswering",
    "AlbertForMultipleChoice": "AutoModelForMultipleChoice",
}


def make(head="AlbertForMaskedLM", **more):
    return getattr(transformers, head)(AlbertConfig(**SIZES | more)).double().eval()


def ids_for(head, length=9):
    return torch.randint(1, 30, (2, 3, length) if head == "AlbertForMultipleChoice" else (2, length))


def test_every_head_is_here():
    module = transformers.models.albert.modeling_albert
    assert set(HEADS) == {name for name in module.__all__ if name != "AlbertPreTrainedModel"}


@pytest.mark.parametrize("groups", [None, 2, 3])
@pytest.mark.parametrize("head", HEADS)
def test_outputs_are_the_same_bits_and_plain_transformers_loads(head, groups, tmp_path):
    model, ids = make(head), ids_for(head)
    before = model(ids, output_hidden_states=True, output_attentions=False)
    assert jieyue.unshare(model, groups) is model
    after = model(ids, output_hidden_states=True)
    assert len(after.hidden_states) == 7
    for one, other in zip(after.to_tuple(), before.to_tuple(), strict=True):
        pairs = zip(one, other, strict=True) if isinstance(one, tuple) else [(one, other)]
        assert all(torch.equal(a, b) for a, b in pairs)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    model.save_pretrained(tmp_path)
    again, found = getattr(transformers, HEADS[head]).from_pretrained(
        tmp_path, output_loading_info=True, dtype=torch.float64
    )
    assert type(again) is type(model) and not any(found.values())
    saved = model.state_dict()
    assert again.state_dict().keys() == saved.keys()
    assert all(torch.equal(value, saved[name]) for name, value in again.state_dict().items())
    assert torch.allclose(again.eval()(ids)[0], model(ids)[0], rtol=0, atol=1e-12)


def test_transformers_own_way_leaves_layers_random_and_ours_refuses_it(tmp_path):
    """The broken twin: asking ``from_pretrained`` for more groups."""
    model, ids = make(), ids_for("AlbertForMaskedLM")
    model.save_pretrained(tmp_path)
    naive, found = transformers.AlbertForMaskedLM.from_pretrained(
        tmp_path, num_hidden_groups=6, output_loading_info=True
    )
    assert found["missing_keys"] and not torch.allclose(naive.double().eval()(ids).logits, model(ids).logits)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_groups": 6}))
    with pytest.raises(ValueError, match=r"no weights for albert\.encoder\.albert_layer_groups\.1"):
        load_model(tmp_path)


def test_other_models_of_the_same_configuration_are_left_alone():
    config = AlbertConfig(**SIZES)
    one, other = transformers.AlbertForMaskedLM(config), transformers.AlbertForMaskedLM(config)
    jieyue.unshare(one)
    assert one.config.num_hidden_groups == 6 and other.config.num_hidden_groups == 1
    assert other(ids_for("AlbertForMaskedLM")).logits.isfinite().all()


def test_attention_follows_the_copies():
    model, ids = make(), ids_for("AlbertForMaskedLM")
    jieyue.use(model, attention="local(2)")
    before = model(ids).logits
    jieyue.unshare(model, 3)
    assert torch.equal(model(ids).logits, before) and set(attention_of(model).values()) == {"local(2)"}
    with pytest.raises(ValueError, match="share one module"):
        jieyue.use(model, attention="local(1),full()")
    jieyue.unshare(model)
    jieyue.use(model, attention="local(1),full()")
    assert list(attention_of(model).values()) == ["local(1)", "full()"] * 3
    jieyue.use(model, attention=None)
    model.set_attn_implementation("eager")
    assert model(ids, output_attentions=True).attentions[5].shape == (2, 2, 9, 9)


def trained(model, optimizer, steps=3):
    for _ in range(steps):
        model(torch.randint(1, 30, (2, 9))).logits.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def grouped(model):
    return [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim < 2]},
    ]


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adafactor, lambda p: torch.optim.SGD(p, 0.1, 0.9)])
@pytest.mark.parametrize("before", [1, 2])
def test_optimizer_states_are_copied(kind, before):
    model = make(num_hidden_groups=before)
    optimizer = kind(grouped(model))
    trained(model, optimizer)
    states = {p: copy.deepcopy(optimizer.state[p]) for p in model.parameters()}
    names = dict(model.named_parameters())
    jieyue.unshare(model, optimizer=optimizer)
    assert [[id(p) for p in group["params"]] for group in optimizer.param_groups] == [
        [id(p) for p in group["params"]] for group in grouped(model)
    ]
    for name, p in model.named_parameters():
        head, group, tail = name.partition("albert_layer_groups.")
        if group:
            number, _, rest = tail.partition(".")
            name = f"{head}{group}{int(number) * before // 6}.{rest}"
        found, expected = optimizer.state[p], states[names[name]]
        assert found.keys() == expected.keys()
        assert all(torch.equal(torch.as_tensor(found[key]), torch.as_tensor(expected[key])) for key in found)
    blocks = model.albert.encoder.albert_layer_groups
    trained(model, optimizer, 1)
    assert not torch.equal(blocks[0].albert_layers[0].ffn.weight, blocks[1].albert_layers[0].ffn.weight)
    fresh = kind(grouped(model))
    fresh.load_state_dict(optimizer.state_dict())
    assert all(fresh.state[p].keys() == optimizer.state[p].keys() for p in model.parameters())
    del optimizer, fresh
    gc.collect()


def test_optimizers_that_cannot_be_told_are_refused():
    model = make()
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    with pytest.raises(ValueError, match="a AdamW that holds the weights"):
        jieyue.unshare(model)
    del optimizer, schedule
    gc.collect()
    with pytest.raises(ValueError, match="LBFGS"):
        jieyue.unshare(model, optimizer=torch.optim.LBFGS(model.parameters()))
    with pytest.raises(ValueError, match=r"expected a torch\.optim\.Optimizer"):
        jieyue.unshare(model, optimizer="adam")
    gc.collect()
    model(torch.ones(1, 4, dtype=torch.long)).logits.sum().backward()
    with pytest.raises(ValueError, match="gradients waiting"):
        jieyue.unshare(model)
    model.zero_grad(set_to_none=False)
    handle = next(model.albert.encoder.albert_layer_groups.parameters()).register_hook(lambda grad: grad)
    with pytest.raises(ValueError, match="hooks"):
        jieyue.unshare(model)
    handle.remove()
    assert jieyue.unshare(model).config.num_hidden_groups == 6


@pytest.mark.parametrize(
    ("groups", "found"),
    [
        (4, "groups one of 2, 3, 6"),
        (0, "groups one of"),
        (12, "groups one of"),
        (1, "groups one of"),
        (-1, "groups one of"),
    ],
)
def test_groups_that_do_not_divide(groups, found):
    with pytest.raises(ValueError, match=found):
        jieyue.unshare(make(), groups)


def test_models_that_do_not_share():
    bert = transformers.BertModel(transformers.BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1,
                                  num_attention_heads=1, intermediate_size=8))  # fmt: skip
    for call in (jieyue.unshare, jieyue.reshare, sharing_of, low_rank_adapters):
        with pytest.raises(ValueError, match=r"found BertModel, expected an ALBERT.*unshare_modules"):
            call(bert)
    model = jieyue.unshare(make())
    with pytest.raises(ValueError, match="6 layers with 6 blocks of their own"):
        jieyue.unshare(model)
    with pytest.raises(ValueError, match="groups one of 1, 2, 3"):
        jieyue.reshare(model, 4)
    with pytest.raises(ValueError, match="a model that was unshared"):
        jieyue.reshare(make())
    with pytest.raises(ValueError, match="a number that divides"):
        sharing_of(model, 5)


def test_costs_are_counted_before_and_after():
    model = make()
    told = sharing_of(model, 3)
    assert sharing_of(model).text == "6 layers in 1 block" and told.text == "6 layers in 3 blocks"
    jieyue.unshare(model, 3)
    assert told == sharing_of(model)
    assert told.num_parameters == model.num_parameters()
    assert told.training_bytes == 4 * 8 * model.num_parameters()
    with torch.device("meta"):
        free = transformers.AlbertModel(AlbertConfig(**SIZES))
    assert sharing_of(jieyue.unshare(free)).num_groups == 6


def test_a_checkpoint_that_says_the_exact_gelu_is_warned_of(tmp_path):
    make(hidden_act="gelu").save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="trained its English ALBERT with the tanh form"):
        jieyue.unshare(load_model(tmp_path))
    (tmp_path / "jieyue.json").write_text("{}")  # trained here, with the GELU that it says
    jieyue.unshare(load_model(tmp_path))


@pytest.mark.parametrize("head", ["AlbertForMaskedLM", "AlbertForSequenceClassification"])
def test_low_rank_adapters(head, tmp_path):
    peft = pytest.importorskip("peft")
    model, ids = make(head, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), ids_for(head)
    base, before = copy.deepcopy(model), model(ids).logits
    adapted = low_rank_adapters(model, 2)
    assert torch.equal(adapted(ids).logits, before)
    names = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert {name.split("albert_layer_groups.")[1][0] for name in names if "lora_" in name} == set("012345")
    assert any("classifier" in name for name in names) == (head == "AlbertForSequenceClassification")
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], 1.0)
    trained(adapted, optimizer)
    after = adapted(ids).logits
    assert (after - before).abs().max() > 1e-6
    adapted.save_pretrained(tmp_path / "adapters")
    again = peft.PeftModel.from_pretrained(tie_layers(base), tmp_path / "adapters").double().eval()
    assert torch.equal(again(ids).logits, after)
    with pytest.raises(ValueError, match="merge_adapters"):
        adapted.merge_and_unload()
    merged = merge_adapters(adapted)
    assert torch.allclose(merged(ids).logits, after, rtol=0, atol=1e-12)
    merged.save_pretrained(tmp_path / "merged")
    plain = getattr(transformers, HEADS[head]).from_pretrained(tmp_path / "merged", dtype=torch.float64).eval()
    assert torch.allclose(plain(ids).logits, merged(ids).logits, rtol=0, atol=1e-12)


def test_low_rank_refusals():
    pytest.importorskip("peft")
    for settings, found in (
        ({"rank": 0}, "1 or more"),
        ({"targets": ("q_proj",)}, "q_proj"),
        ({"targets": ()}, "none"),
    ):
        with pytest.raises(ValueError, match=found):
            low_rank_adapters(make(), **settings)
    with pytest.raises(ValueError, match="the model that low_rank_adapters returned"):
        merge_adapters(make())
    with pytest.raises(ValueError, match="blocks of their own"):
        tie_layers(jieyue.unshare(make()))


def test_without_peft_the_extra_is_named(fresh):
    code = (
        "import sys; sys.modules['peft'] = None\nfrom jieyue.errors import MissingExtra\n"
        "from jieyue.hf.adapters import low_rank_adapters\n"
        "try: low_rank_adapters(None)\nexcept MissingExtra as error: print(error)"
    )
    done = fresh(code)
    assert done.returncode == 0, done.stderr
    assert "pip install 'jieyue[adapters]'" in done.stdout
