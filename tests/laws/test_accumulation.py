"""Law of the batch: gradients of the pieces, summed and divided once, are the gradient of the undivided batch."""

import random
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from jieyue.budget import Plan
from jieyue.errors import BudgetError, InputError
from jieyue.tally import Tally
from jieyue.training.accumulation import accumulate, backward_pieces
from jieyue.training.checkpointing import checkpointed, layers_of
from jieyue.training.microbatch import MicroBatch
from jieyue.training.objective import token_loss

VOCABULARY, WIDTH = 11, 6


class Encoder(nn.Module):
    """A small transformer: attention under a padding mask, two layers in a ModuleList, float64."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        layer = {"d_model": WIDTH, "nhead": 2, "dim_feedforward": 8, "dropout": dropout, "batch_first": True}
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(**layer) for _ in range(2))
        self.head = nn.Linear(WIDTH, VOCABULARY)
        self.unused = nn.Linear(2, 2)
        self.double()

    def forward(self, input_ids, attention_mask):
        hidden = self.tokens(input_ids)
        for layer in self.layers:
            hidden = layer(hidden, src_key_padding_mask=attention_mask == 0)
        return self.head(hidden)


def objective(model, batch):
    return token_loss(model(batch["input_ids"], batch["attention_mask"]), batch["labels"])


def mean_of_means(model, batch):
    """The broken twin: each piece reports its own mean, which is what most accumulation code averages."""
    tally = objective(model, batch)
    return Tally(tally.mean() * batch["labels"].shape[0], batch["labels"].shape[0])


def ragged(lengths, labelled, width=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCABULARY, (len(lengths), width), generator=generator)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, -100)
    for row, (length, count) in enumerate(zip(lengths, labelled, strict=True)):
        mask[row, :length] = 1
        labels[row, : min(count, length)] = ids[row, : min(count, length)]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def undivided(model, batch, run=objective):
    model.zero_grad()
    run(model, batch).mean().backward()
    return gradients(model)


def gap(one, other):
    """Largest difference relative to the largest entry."""
    assert one.keys() == other.keys()
    scale = max(g.abs().max() for g in other.values())
    return float(max((one[name] - other[name]).abs().max() for name in one) / scale)


rows = st.lists(st.tuples(st.integers(1, 7), st.integers(0, 7)), min_size=1, max_size=9)


@settings(max_examples=40)
@given(
    rows=rows,
    size=st.integers(1, 10),
    trim=st.booleans(),
    tokens=st.none() | st.integers(1, 40),
    seed=st.integers(0, 9),
)
def test_pieces_equal_the_whole(rows, size, trim, tokens, seed):
    batch = ragged([a for a, _ in rows], [b for _, b in rows], seed=seed)
    batch["labels"][0, 0] = 1  # at least one counted label
    model = Encoder()
    whole = undivided(model, batch)
    model.zero_grad()
    micro = MicroBatch(size, mask="attention_mask" if trim or tokens else None, tokens=tokens)
    tally = accumulate(objective, model, batch, micro_batch=micro)
    assert gap(gradients(model), whole) <= 1e-12
    reference = objective(model, batch)
    assert tally.weight == int(reference.weight)
    assert tally.total == pytest.approx(reference.total.item(), rel=1e-12)
    held = sorted(
        row for cut in micro.cuts(batch) for row in (range(len(rows))[cut] if isinstance(cut, slice) else cut)
    )
    assert held == list(range(len(rows)))


def test_the_mean_of_means_is_not_the_mean():
    batch = ragged([7, 2, 7, 1], [7, 1, 5, 1])
    model = Encoder()
    whole = undivided(model, batch)
    model.zero_grad()
    accumulate(mean_of_means, model, batch, micro_batch=1)
    assert gap(gradients(model), whole) > 1e-2


def test_trimmed_pieces_are_narrow_and_bounded():
    batch = ragged([7, 2, 3, 1, 6], [7, 2, 3, 1, 6])
    micro = MicroBatch(4, mask="attention_mask", tokens=8)
    shapes = [tuple(piece["input_ids"].shape) for piece in micro.pieces(batch)]
    assert shapes == [(2, 2), (1, 3), (1, 6), (1, 7)]
    assert all(a * b <= 8 for a, b in shapes)
    square = {"attention_mask": batch["attention_mask"], "pairs": torch.ones(5, 1, 7, 7), "scores": torch.ones(5, 3)}
    piece = list(MicroBatch(2, mask="attention_mask", columns=("pairs",)).pieces(square))[1]
    assert piece["pairs"].shape == (2, 1, 3, 3) and piece["scores"].shape == (2, 3)
    batch["labels"][1, 5] = 4
    with pytest.raises(InputError, match="padding"):
        list(MicroBatch(2, mask="attention_mask", tokens=4).pieces(batch))


def test_earlier_gradients_stay_and_are_added_to():
    batch, other = ragged([7, 3, 5], [4, 3, 1]), ragged([2, 6], [2, 2], seed=1)
    model = Encoder()
    expected = {name: a + undivided(model, other)[name] for name, a in undivided(model, batch).items()}
    model.zero_grad()
    accumulate(objective, model, batch, micro_batch=2)
    accumulate(objective, model, other, micro_batch=1)
    assert gap(gradients(model), expected) <= 1e-12


def small_only(limit, seen):
    """An objective that runs out of memory above ``limit`` rows, after having used random numbers and memory."""

    def run(model, batch):
        tally = objective(model, batch)
        seen.append(len(batch["labels"]))
        if len(batch["labels"]) > limit:
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried ..."
            )
        return tally

    return run


def test_out_of_memory_halves_and_repeats_the_same_batch():
    batch = ragged([7] * 9, [7, 1, 2, 3, 7, 1, 1, 2, 5])
    model = Encoder(dropout=0.3)
    model.zero_grad()
    accumulate(objective, model, batch, micro_batch=9)
    earlier = gradients(model)  # gradients from before the failed attempt
    torch.manual_seed(5)
    random.seed(5)
    reference = {name: g + earlier[name] for name, g in clean(model, batch).items()}
    after = torch.rand(1), random.random()
    for parameter, name in zip(model.parameters(), dict(model.named_parameters()), strict=True):
        parameter.grad = earlier[name].clone() if name in earlier else None
    torch.manual_seed(5)
    random.seed(5)
    seen = []
    micro = MicroBatch(16)
    with pytest.warns(UserWarning, match="out of memory"):
        accumulate(small_only(2, seen), model, batch, micro_batch=micro)
    assert seen == [9, 4, 2, 2, 2, 2, 1] and micro.rows == 2 and micro.halvings == 2
    assert all(torch.equal(a, reference[name]) for name, a in gradients(model).items())
    assert torch.equal(torch.rand(1), after[0]) and random.random() == after[1]


def clean(model, batch):
    model.zero_grad()
    accumulate(objective, model, batch, micro_batch=2)
    return gradients(model)


def test_failure_in_the_last_piece_leaves_no_trace():
    batch = ragged([7] * 5, [7, 1, 2, 3, 7])
    model = Encoder()
    whole = undivided(model, batch)
    calls = []

    def last_fails(model, piece):
        calls.append(1)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("out of memory")
        return objective(model, piece)

    model.zero_grad()
    with pytest.warns(UserWarning, match="out of memory"):
        accumulate(last_fails, model, batch, micro_batch=2)
    assert gap(gradients(model), whole) <= 1e-12


def test_one_row_too_many_is_a_budget_error_and_other_errors_pass():
    batch = ragged([7, 7], [7, 7])
    model = Encoder()
    with pytest.warns(UserWarning, match="out of memory"), pytest.raises(BudgetError, match="one row"):
        accumulate(small_only(0, []), model, batch, micro_batch=2)

    def broken(model, batch):
        raise RuntimeError("shape mismatch")

    accumulate(objective, model, batch, micro_batch=2)
    kept = gradients(model)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        accumulate(broken, model, batch, micro_batch=2)
    assert all(torch.equal(g, kept[name]) for name, g in gradients(model).items())


def test_refusals():
    batch = ragged([7, 7], [7, 7])
    model = Encoder()
    empty = {**batch, "labels": torch.full_like(batch["labels"], -100)}
    with pytest.raises(InputError, match="at least one counted label"):
        accumulate(objective, model, empty, micro_batch=1)
    assert not gradients(model)
    with pytest.raises(InputError, match="Tally"):
        accumulate(lambda m, b: m(b["input_ids"], b["attention_mask"]).sum(), model, batch, micro_batch=1)
    with pytest.raises(InputError, match="same number of rows"):
        accumulate(objective, model, {**batch, "labels": batch["labels"][:1]}, micro_batch=1)
    with pytest.raises(InputError, match="without a graph"):
        accumulate(lambda m, b: objective(m, b).detach(), model, batch, micro_batch=1)
    with pytest.raises(InputError, match="micro_batch=0"):
        accumulate(objective, model, batch, micro_batch=0)


def test_whole_batch_layers_are_refused_or_allowed_by_name():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()
    batch = {"x": torch.randn(6, 3, dtype=torch.float64), "labels": torch.randint(0, 2, (6,))}

    def run(model, batch):
        return token_loss(model(batch["x"]), batch["labels"])

    with pytest.raises(InputError, match="BatchNorm1d in training"):
        accumulate(run, model, batch, micro_batch=3)
    accumulate(run, model, batch, micro_batch=6)  # not cut: nothing to refuse
    accumulate(run, model, batch, micro_batch=3, allow=("BatchNorm1d",))
    accumulate(run, model, batch, micro_batch=3, allow=("1",))
    model[1].eval()
    accumulate(run, model, batch, micro_batch=3)


def test_non_finite_updates_are_stopped_or_left_out():
    batch = ragged([7, 7], [7, 7])
    model = Encoder()
    model.head.weight.data[0, 0] = float("nan")
    with pytest.raises(InputError, match="finite"):
        accumulate(objective, model, batch, micro_batch=1)
    assert not gradients(model)
    micro = MicroBatch(1)
    with pytest.warns(UserWarning, match="left out"):
        accumulate(objective, model, batch, micro_batch=micro, non_finite="skip")
    assert micro.skipped == 1 and not gradients(model)
    accumulate(objective, model, batch, micro_batch=1, non_finite="allow")
    assert gradients(model)
    with pytest.raises(InputError, match="'stop', 'skip' or 'allow'"):
        accumulate(objective, model, batch, micro_batch=1, non_finite="maybe")


def test_checkpointing_is_exact_with_dropout_and_for_shared_layers():
    batch = ragged([7, 5, 3], [7, 5, 3])
    model = Encoder(dropout=0.2)
    assert layers_of(model) == list(model.layers)
    shared = Encoder(dropout=0.2)
    shared.layers[1] = shared.layers[0]
    assert layers_of(shared) == [shared.layers[0]]
    for each in (model, shared):
        found = []
        for plan in (2, Plan(effective_batch=3, micro_batch=2, checkpointing=True)):
            torch.manual_seed(3)
            each.zero_grad()
            accumulate(objective, each, batch, micro_batch=plan)
            found.append(gradients(each))
        assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
        assert all("forward" not in layer.__dict__ for layer in each.layers)
    with pytest.raises(InputError, match="ModuleList"), checkpointed(nn.Linear(2, 2)):
        pass


def test_checkpointing_runs_layers_again():
    """The broken twin of a saving is one that does nothing: the layers must really run twice."""
    batch = ragged([7, 5], [7, 5])
    model = Encoder()
    calls = []
    model.layers[0].register_forward_hook(lambda *_: calls.append("call"))
    model.layers[0].norm1.register_forward_hook(lambda *_: calls.append("inside"))
    with checkpointed(model):
        backward_pieces(objective, model, [batch])
    assert calls.count("inside") == 2


def test_sparse_gradients():
    table = nn.Embedding(20, 3, sparse=True).double()
    dense = nn.Embedding(20, 3).double()
    dense.load_state_dict(table.state_dict())
    batch = {"x": torch.randint(0, 20, (5, 4)), "labels": torch.randint(0, 3, (5, 4))}

    def run(model, batch):
        return Tally(F.cross_entropy(model(batch["x"]).flatten(0, 1), batch["labels"].flatten(), reduction="sum"), 20)

    accumulate(run, table, batch, micro_batch=2)
    run(dense, batch).total.div(20).backward()
    # five rows of weight 20 reported in three pieces: the weights add up to 60
    assert torch.allclose(table.weight.grad.to_dense() * 3, dense.weight.grad, rtol=1e-12)


def test_autocast_is_an_approximation():
    batch = ragged([7, 5], [7, 5])
    model = Encoder().float()
    whole = undivided(model, batch)
    model.zero_grad()
    accumulate(objective, model, batch, micro_batch=1, autocast=torch.bfloat16)
    assert 1e-4 < gap(gradients(model), whole) < 0.1
    assert all(g.dtype == torch.float32 for g in gradients(model).values())
    with pytest.raises(InputError, match="bfloat16"):
        accumulate(objective, model, batch, micro_batch=1, autocast=torch.float32)


def test_no_warning_in_ordinary_use():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        accumulate(objective, Encoder(), ragged([7, 3], [2, 1]), micro_batch=1)


def test_weights_outside_the_model_are_refused():
    """Their gradient would be the sum over the batch, N times the mean's, and survive a retry."""
    batch, model = ragged([7, 2, 3, 1], [7, 2, 3, 1]), Encoder()
    outside = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def scaled(model, batch):
        return token_loss(model(batch["input_ids"], batch["attention_mask"]) * outside, batch["labels"])

    with pytest.raises(InputError, match="not the model's"):
        accumulate(scaled, model, batch, micro_batch=2)
    assert outside.grad is None and not gradients(model)
    model.register_parameter("scale", outside)
    whole = undivided(model, batch, scaled)
    model.zero_grad()
    accumulate(scaled, model, batch, micro_batch=2)
    assert gap(gradients(model), whole) <= 1e-12


@pytest.mark.parametrize("earlier", ["dense", "sparse"])
def test_sparse_gradients_join_earlier_ones(earlier):
    model = nn.Sequential(nn.Embedding(5, 3, sparse=True)).double()
    weight, batch = model[0].weight, {"x": torch.tensor([1, 2, 3])}
    before = torch.arange(15.0, dtype=torch.float64).view(5, 3)
    weight.grad = before.clone() if earlier == "dense" else before.to_sparse(1)
    accumulate(lambda m, b: Tally(m(b["x"]).sum(), len(b["x"])), model, batch, micro_batch=2)
    expected = before.clone()
    expected[1:4] += 1 / 3
    assert torch.equal(weight.grad.to_dense(), expected)


@pytest.mark.parametrize("kind", ["parametrization", "hook"])
def test_spectral_norm_is_refused_where_passes_matter(kind):
    norm = nn.utils.parametrizations.spectral_norm if kind == "parametrization" else nn.utils.spectral_norm
    model = nn.Sequential(norm(nn.Linear(3, 4)), nn.Linear(4, 2))
    batch = {"x": torch.randn(6, 3), "y": torch.randint(0, 2, (6,))}

    def run(model, batch):
        return token_loss(model(batch["x"]), batch["y"])

    with pytest.raises(InputError, match="spectral_norm"):
        accumulate(run, model, batch, micro_batch=2)
    accumulate(run, model, batch, micro_batch=6)
    accumulate(run, model, batch, micro_batch=2, allow=("spectral_norm",))
    accumulate(run, model.eval(), batch, micro_batch=2)
    twice = nn.Sequential(nn.ModuleList([norm(nn.Linear(3, 3))]))
    with pytest.raises(InputError, match="spectral_norm"):
        accumulate(run, twice, batch, micro_batch=Plan(effective_batch=6, micro_batch=6, checkpointing=True))


def test_features_as_wide_as_the_mask_are_not_cut():
    mask = torch.tensor([[1, 1, 0, 0]] * 4)
    batch = {"input_ids": mask, "attention_mask": mask, "features": torch.randn(4, 4), "labels": torch.zeros(4)}
    with pytest.raises(InputError, match=r"features.*columns"):
        list(MicroBatch(2, mask="attention_mask").pieces(batch))
    piece = next(MicroBatch(2, mask="attention_mask", columns=("input_ids",)).pieces(batch))
    assert piece["features"].shape == (2, 4) and piece["input_ids"].shape == piece["attention_mask"].shape == (2, 2)
    several = {"attention_mask": mask, "labels": torch.rand(4, 4)}  # of four classes each
    with pytest.raises(InputError, match=r"labels.*columns"):
        list(MicroBatch(2, mask="attention_mask").pieces(several))
    target = {"input_ids": mask, "attention_mask": mask, "decoder_input_ids": mask}
    assert next(MicroBatch(2, mask="attention_mask").pieces(target))["decoder_input_ids"].shape == (2, 4)
    for wrong in ({"columns": "input_ids", "mask": "attention_mask"}, {"columns": ("input_ids",)}):
        with pytest.raises(InputError, match="columns"):
            MicroBatch(2, **wrong)


def test_a_batch_without_counted_labels_is_left_out_where_asked():
    batch, model = ragged([3, 2], [3, 2]), Encoder()
    batch["labels"][:] = -100
    model.head.bias.grad = torch.ones_like(model.head.bias)
    with pytest.raises(InputError, match=r"weight 0.*skip"):
        accumulate(objective, model, batch, micro_batch=1)
    micro = MicroBatch(1)
    with pytest.warns(UserWarning, match="left out"):
        tally = accumulate(objective, model, batch, micro_batch=micro, non_finite="skip")
    assert tally.weight == 0 and micro.skipped == 1
    assert torch.equal(model.head.bias.grad, torch.ones_like(model.head.bias)) and model.head.weight.grad is None


def test_compiled_and_checkpointed_compiles_once():
    """What torch.compile sees of a checkpointed layer is the same at every update."""
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph

    model = Layered()
    run = torch.compile(model, backend=backend)
    batch = {"x": torch.randint(0, 9, (4, 5)), "y": torch.randint(0, 9, (4, 5))}
    plan = Plan(effective_batch=4, micro_batch=2, checkpointing=True)
    for _ in range(3):
        accumulate(lambda m, b: token_loss(m(b["x"]), b["y"]), run, batch, micro_batch=plan)
    assert len(compiled) == 1


class Layered(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.layers = nn.Embedding(9, 4), nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.head = nn.Linear(4, 9)

    def forward(self, ids):
        hidden = self.words(ids)
        for layer in self.layers:
            hidden = hidden + torch.tanh(layer(hidden))
        return self.head(hidden)
