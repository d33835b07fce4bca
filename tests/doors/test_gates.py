"""Gates between a head's full and sparse output: the derivative is that of finite differences, and the choice begins with it."""

import pytest
import torch
from attention_models import inputs, make
from hypothesis import given
from hypothesis import strategies as st

from jieyue.hf.attention import attention_of
from jieyue.hf.gates import gate_derivatives
from jieyue.hf.switched_layers import switched_layers
from jieyue.run.layer_choice import choose_layers
from jieyue.run.layer_options import FullLayers
from jieyue.tally import Tally

NEAR = "first(1)+local(2)"


def batch_of(length=17):
    ids = inputs(length)[0]
    return {"input_ids": ids, "labels": torch.cat([ids[:, 1:], torch.full((2, 1), -100)], 1)}


def exact_loss(model, batch):
    """As ``text_loss``, in float64."""
    logits, labels = model(batch["input_ids"], use_cache=False).logits.flatten(0, 1), batch["labels"].flatten()
    return Tally(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"), (labels >= 0).sum())


def mean_loss(model, batch):
    tally = exact_loss(model, batch)
    return float(tally.total.detach()) / float(tally.weight)


@pytest.mark.parametrize("by_heads", [True, False])
def test_the_derivative_is_that_of_finite_differences(by_heads):
    """By hand: the output moved a little towards the sparse one, forth and back, one gate at a time; the twin's gates are shifted."""
    model, batch, step = make("gpt2", initializer_range=0.3), batch_of(), 1e-4  # Llama's norms round to float32
    before = {path: own.requires_grad for path, own in model.named_parameters()}
    with switched_layers(model, NEAR, by_heads) as switched:
        found = gate_derivatives(model, switched, [batch], exact_loss)
        expected, size = {}, [0.0]
        for one in switched.free:
            number, head = divmod(one, switched.heads)
            layer, losses = switched.layers[number], []

            def moved(module, q, k, v, ask, scale, layer=layer, number=number, head=head):
                layer.called = True
                out, near = (
                    entry.causal().attend(q, k, v, ask, scale=scale) for entry in (layer.entry, switched.sparse[number])
                )
                share = q.shape[1] // switched.heads
                gate = torch.zeros(q.shape[1], 1, 1, dtype=out.dtype)
                gate[head * share : (head + 1) * share] = size[0]
                return out + gate * (near - out)

            for size[0] in (step, -step):
                layer.watch = moved
                losses.append(mean_loss(model, batch))
                layer.watch = None
            expected[one] = (losses[0] - losses[1]) / (2 * step)
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-7)
        shifted = dict(zip(found, [*list(found.values())[1:], found[0]], strict=True))
        assert shifted != pytest.approx(expected, rel=1e-1, abs=1e-5)
        assert all(layer.watch is None for layer in switched.layers)
    assert not attention_of(model) and all(own.grad is None for own in model.parameters())
    assert before == {path: own.requires_grad for path, own in model.named_parameters()}


def test_three_layers_more_keep_three_outputs_more():
    """Each layer is computed anew in the backward pass: of it stays what it was given, one state a token."""
    kept = []
    for count in (2, 5):
        model, batch, held = make("llama", num_hidden_layers=count), batch_of(), [0]

        def pack(tensor, held=held):
            held[0] += tensor.nbytes
            return tensor

        with switched_layers(model, NEAR) as switched, torch.autograd.graph.saved_tensors_hooks(pack, lambda one: one):
            gate_derivatives(model, switched, [batch], exact_loss)
            assert all("forward" not in vars(layer) for layer in switched.memory.layers)
        kept.append(held[0])
    states = batch["input_ids"].numel() * model.config.hidden_size * 8
    assert 0 < kept[1] - kept[0] <= 3 * states


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6), st.data())
def test_a_choice_by_estimates_asks_for_no_price_alone(own, data):
    """With all candidates the estimates do not matter; with one, the choice begins with the smallest of them."""

    def price(full):
        asked.append(full)
        return sum(own[layer] for layer in range(len(own)) if layer not in full)

    asked, layers = [], range(len(own))
    count = data.draw(st.integers(0, len(own) - 1))
    estimates = dict(enumerate(data.draw(st.lists(st.floats(-1, 1), min_size=len(own), max_size=len(own)))))
    wanted = FullLayers(count=count)
    plain = choose_layers(price, layers, wanted, candidates=len(own))
    found = choose_layers(price, layers, wanted, candidates=len(own), estimates=estimates)
    assert (found.full, found.path, found.order) == (plain.full, plain.path, plain.order)
    assert found.alone == {} and found.estimates == estimates
    asked.clear()
    one = choose_layers(price, layers, wanted, candidates=1, estimates=estimates)
    assert one.order[0] == min(layers, key=lambda layer: (estimates[layer], layer))
    assert len(asked) == one.tried == len(own) - count, "one price a round"
