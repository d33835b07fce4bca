"""Laws of the remedies in float64: parts add up, derivatives are real ones, nothing but targets is touched."""

import types
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from jieyue.attention import attend
from jieyue.errors import InputError
from jieyue.tally import Tally
from jieyue.training.accumulation import accumulate
from jieyue.training.checkpointing import checkpointed
from jieyue.training.microbatch import MicroBatch
from jieyue.training.objective import IGNORED, token_loss
from jieyue.training.remedies.adversarial import fgm, penalize_gradient
from jieyue.training.remedies.consistency import rdrop, unlikelihood
from jieyue.training.remedies.remedy import apply, uniforms
from jieyue.training.remedies.replacement import replace_tokens
from jieyue.training.remedies.sampling import sample_scheduled

VOCABULARY, WIDTH, PAD, BEGIN, END = 13, 6, 0, 1, 2


class Layer(nn.Module):
    def __init__(self, dropout):
        super().__init__()
        self.mix, self.out, self.dropout = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH), nn.Dropout(dropout)

    def forward(self, x, kept):
        q, k, v = self.mix(x).unflatten(-1, (3, 2, WIDTH // 2)).permute(2, 0, 3, 1, 4)
        seen = attend(q, k, v, "causal(full())", key_mask=kept)
        return x + self.dropout(torch.tanh(self.out(seen.transpose(1, 2).flatten(2))))


class Writer(nn.Module):
    """A causal language model with a tied head; attention is ours."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.config = types.SimpleNamespace(pad_token_id=PAD, bos_token_id=BEGIN, eos_token_id=END)
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(Layer(dropout) for _ in range(2))
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.double()
        self.head.weight = self.tokens.weight

    def get_input_embeddings(self):
        return self.tokens

    def can_generate(self):
        return True

    def forward(self, input_ids, attention_mask):
        x = self.tokens(input_ids)
        for layer in self.layers:
            x = layer(x, attention_mask.bool())
        return self.head(x)


def objective(model, batch):
    logits = model(batch["input_ids"], batch["attention_mask"])
    return token_loss(logits[:, :-1], batch["labels"][:, 1:])


def ragged(num_rows=6, seed=0, width=9):
    """Source, target, padding on the right; the target ends with END; rows differ in length."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (num_rows, width), generator=generator)
    labels, mask = torch.full_like(ids, IGNORED), torch.zeros_like(ids)
    for row in range(num_rows):
        source = int(torch.randint(1, 4, (), generator=generator))
        stop = source + int(torch.randint(1, width - source + 1, (), generator=generator))
        ids[row, 0], ids[row, stop - 1], ids[row, stop:] = BEGIN, END, PAD
        labels[row, source:stop] = ids[row, source:stop]
        mask[row, :stop] = 1
    seeds = torch.randint(2**62, (num_rows,), generator=generator)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "seeds": seeds}


def gradients(model, run, batch, cuts=None, cut_padding=False):
    """Gradients of the pieces' totals, divided once by the summed weight."""
    model.zero_grad()
    weight = 0
    for piece in cuts or [slice(None)]:
        part = {name: value[piece] for name, value in batch.items()}
        if cut_padding:
            longest = int(part["attention_mask"].sum(1).max())
            part = {name: value[:, :longest] if value.ndim > 1 else value for name, value in part.items()}
        tally = run(model, part)
        tally.total.backward()
        weight = weight + tally.weight
    return torch.cat([(p.grad / weight).flatten() for p in model.parameters()])


REMEDIES = {
    "target": replace_tokens(0.6, 0.9),
    "sequence": replace_tokens(0.6, 0.9, "sequence"),
    "vocabulary": replace_tokens(0.6, 0.9, "vocabulary"),
    "argmax": sample_scheduled(0.5),
    "sample": sample_scheduled(0.5, "sample"),
    "gumbel": sample_scheduled(0.5, "gumbel"),
    "fgm": fgm(0.5),
    "fgm and clean": fgm(0.5, add_clean=True),
    "penalty": penalize_gradient(0.4),
    "rdrop": rdrop(0.6),
    "unlikelihood": unlikelihood(0.8),
}
CUTS = [slice(0, 1), slice(1, 4), slice(4, 6)]


def far(one, other):
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("outer", REMEDIES)
@pytest.mark.parametrize("inner", [None, "target", "fgm", "penalty", "rdrop", "unlikelihood", "gumbel"])
def test_pieces_are_the_whole_in_any_order(outer, inner):
    """Every remedy and every nesting, with padding cut off the pieces as training does."""
    model, batch = Writer(), ragged(seed=4)
    chosen = [REMEDIES[name] for name in (inner, outer) if name is not None]
    run = apply(chosen, objective)
    whole = gradients(model, run, batch)
    assert far(gradients(model, run, batch, CUTS, cut_padding=True), whole) < 1e-12
    assert (
        inner is not None or outer in ("rdrop",) or far(whole, gradients(model, objective, without_seeds(batch))) > 1e-4
    )


def without_seeds(batch):
    return {name: value for name, value in batch.items() if name != "seeds"}


def fgm_by_the_batch(model, batch):
    """Broken twin: one norm for the whole batch, as FGM is usually written."""
    out = model.tokens(batch["input_ids"])
    leaf = out.detach().requires_grad_()

    def at(e):
        handle = model.tokens.register_forward_hook(lambda *_: e)
        try:
            return objective(model, batch)
        finally:
            handle.remove()

    (grad,) = torch.autograd.grad(at(leaf).total, leaf)
    return at(out + 0.5 * grad / grad.norm())


def penalty_of_the_mean(model, batch):
    """Broken twin: the penalty of the batch's mean loss."""
    found = []
    handle = model.tokens.register_forward_hook(lambda module, inputs, out: found.append(out))
    tally = objective(model, batch)
    handle.remove()
    (grad,) = torch.autograd.grad(tally.mean(), found[0], create_graph=True)
    return Tally(tally.total + 0.2 * grad.square().sum() * tally.weight, tally.weight)


def replacement_by_the_batch(model, batch):
    """Broken twin: chance is drawn for the batch as it is padded."""
    generator = torch.Generator().manual_seed(int(batch["seeds"][0] % 2**31))
    chance = torch.rand(batch["input_ids"].shape, generator=generator)
    changed = torch.where((chance < 0.5) & (batch["labels"] != IGNORED), 5, batch["input_ids"])
    return objective(model, {**batch, "input_ids": changed})


@pytest.mark.parametrize("twin", [fgm_by_the_batch, penalty_of_the_mean, replacement_by_the_batch])
def test_the_alarm_rings(twin):
    model, batch = Writer(), ragged()
    assert far(gradients(model, twin, batch, CUTS), gradients(model, twin, batch)) > 1e-3


def test_accumulate_and_checkpointing_change_nothing():
    """Through ``accumulate``, with seeds drawn there: torch's generator decides, not the cut."""
    model, batch = Writer().train(), without_seeds(ragged())
    run = apply([replace_tokens(0.5, 0.7), fgm(0.3), penalize_gradient(0.4), unlikelihood()], objective)
    found = []
    for rows, layers in ((6, False), (1, False), (4, False), (6, True), (2, True)):
        torch.manual_seed(5)
        model.zero_grad()
        with checkpointed(model, layers):
            accumulate(run, model, batch, micro_batch=MicroBatch(rows, mask="attention_mask"))
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    for other in found[1:]:
        assert far(other, found[0]) < 1e-12


def test_penalty_is_the_formula_and_has_real_second_derivatives():
    model, batch = Writer(), without_seeds(ragged(4))
    epsilon = 0.7

    def by_hand(row):
        one = {name: value[row : row + 1] for name, value in batch.items()}
        found = []
        handle = model.tokens.register_forward_hook(lambda module, inputs, out: found.append(out))
        tally = objective(model, one)
        handle.remove()
        (grad,) = torch.autograd.grad(tally.mean(), found[0], create_graph=True)
        return tally.mean() + 0.5 * epsilon * grad.square().sum(), tally.weight  # the article's loss at a batch of one

    run = penalize_gradient(epsilon)(objective)
    rows = [by_hand(row) for row in range(4)]
    expected = sum(value * weight for value, weight in rows)
    assert float((run(model, batch).total - expected).detach()) == pytest.approx(0, abs=1e-12)
    one = {name: value[2:3] for name, value in batch.items()}
    assert float((run(model, one).mean() - rows[2][0]).detach()) == pytest.approx(0, abs=1e-12)

    names = [name for name, _ in model.named_parameters()]

    def total(*values):
        for name, value in zip(names, values, strict=True):
            parent, _, leaf = name.rpartition(".")
            module = model.get_submodule(parent)
            module._parameters.pop(leaf, None)
            setattr(module, leaf, value)
        model.head.weight = model.tokens.weight
        return run(model, batch).total

    model.head._parameters.pop("weight")
    values = [p.detach().clone().requires_grad_() for p in model.parameters()]
    names = [name for name, _ in model.named_parameters()]
    assert torch.autograd.gradcheck(total, values, fast_mode=True)


def test_a_penalty_without_second_derivative_is_no_penalty():
    """Broken twin: bert4torch squares ``.grad``, which has no graph, so it only doubles the plain gradient."""
    model, batch = Writer(), without_seeds(ragged())
    plain = gradients(model, objective, batch)

    def no_graph(model, batch):
        found = []
        handle = model.tokens.register_forward_hook(lambda module, inputs, out: found.append(out))
        tally = objective(model, batch)
        handle.remove()
        (grad,) = torch.autograd.grad(tally.total, found[0], retain_graph=True)
        return Tally(2 * tally.total + 0.5 * grad.square().sum(), tally.weight)

    assert far(gradients(model, no_graph, batch), 2 * plain) < 1e-12
    assert far(gradients(model, penalize_gradient(1.0)(objective), batch), plain) > 1e-2


def test_fgm_moves_each_example_by_epsilon_against_the_model():
    model, batch = Writer(), without_seeds(ragged())
    seen = []
    handle = model.layers[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    tally = fgm(0.25)(objective)(model, batch)
    handle.remove()
    clean, moved = seen
    assert torch.allclose((moved - clean).flatten(1).norm(dim=1), torch.full((6,), 0.25, dtype=torch.float64))
    assert float(tally.total.detach()) > float(objective(model, batch).total.detach())
    both = fgm(0.25, add_clean=True)(objective)(model, batch)
    assert float(both.total.detach()) == pytest.approx(
        float((tally.total + objective(model, batch).total).detach()), abs=1e-12
    )
    assert both.weight == tally.weight
    # first order: the loss grows by ε times the gradient's norm
    small = fgm(1e-6)(objective)(model, batch)
    grads = []
    handle = model.tokens.register_forward_hook(lambda module, inputs, out: grads.append(out))
    loss = objective(model, batch).total
    handle.remove()
    (grad,) = torch.autograd.grad(loss, grads[0])
    growth = float((small.total - loss).detach()) / 1e-6
    assert growth == pytest.approx(float(grad.flatten(1).norm(dim=1).sum()), rel=1e-4)


def test_an_example_without_labels_is_not_moved():
    model, batch = Writer(), ragged()
    batch["labels"][2] = IGNORED
    for name, remedy in REMEDIES.items():
        tally = remedy(objective)(model, batch)
        assert torch.isfinite(tally.total), name
        tally.total.backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), pool=st.sampled_from(["target", "sequence", "vocabulary"]))
def test_replacement_touches_targets_alone(seed, pool):
    batch, read = ragged(seed=seed), []

    def look(model, given):
        read.append(given)
        return Tally(torch.zeros(()), 1)

    replace_tokens(1.0, 1.0, pool)(look)(Writer(), batch)
    (given,) = read
    assert "seeds" not in given and torch.equal(given["labels"], batch["labels"])
    before, after = batch["input_ids"], given["input_ids"]
    special = torch.isin(before, torch.tensor([PAD, BEGIN, END]))
    untouched = (batch["labels"] == IGNORED) | special
    assert torch.equal(before[untouched], after[untouched])
    for row in range(len(before)):
        new = set(after[row][~untouched[row]].tolist())
        targets = set(before[row][~untouched[row]].tolist())
        everything = set(before[row][batch["attention_mask"][row].bool()].tolist())
        allowed = {"target": targets, "sequence": everything, "vocabulary": set(range(3, VOCABULARY))}[pool]
        assert new <= allowed


def test_replacement_probabilities():
    """p_example · p_token of the targets are drawn anew, each pool member as often as the others."""
    rows = 4000
    ids = torch.tensor([[BEGIN, 3, 4, 5, 6, 7, END]]).repeat(rows, 1)
    labels = ids.masked_fill(torch.arange(7) < 2, IGNORED)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    read = []

    def look(model, given):
        read.append(given["input_ids"])
        return Tally(torch.zeros(()), 1)

    replace_tokens(0.3, 0.5, "target")(look)(Writer(), batch)
    changed = (read[0] != ids)[:, 2:6]
    assert float(changed.double().mean()) == pytest.approx(0.15 * 3 / 4, abs=0.01)
    assert float(changed.any(1).double().mean()) == pytest.approx(0.5 * (1 - (1 - 0.3 * 3 / 4) ** 4), abs=0.03)
    counts = Counter(read[0][:, 2:6][changed].tolist())
    assert set(counts) == {4, 5, 6, 7} and max(counts.values()) < 1.3 * min(counts.values())
    replace_tokens(1.0, 1.0, "vocabulary")(look)(Writer(), batch)
    counts = Counter(read[1][:, 2:6].flatten().tolist())
    assert set(counts) == set(range(3, VOCABULARY)) and max(counts.values()) < 1.15 * min(counts.values())
    assert not torch.equal(read[0], read[1])
    replace_tokens(0.3, 0.5, "target")(look)(Writer(), batch)
    assert not torch.equal(read[0], read[2]), "another visit, another draw"


def test_uniform_numbers():
    numbers = uniforms(torch.arange(2000)[:, None], torch.arange(50)[None], 7).double()
    assert float(numbers.min()) >= 0 and float(numbers.max()) < 1
    assert float(numbers.mean()) == pytest.approx(0.5, abs=0.005)
    assert float(numbers.var()) == pytest.approx(1 / 12, abs=0.001)
    for other in (
        numbers.roll(1, 0),
        numbers.roll(1, 1),
        uniforms(torch.arange(2000)[:, None], torch.arange(50)[None], 8),
    ):
        together = torch.stack([numbers.flatten(), other.double().flatten()])
        assert abs(float(torch.corrcoef(together)[0, 1])) < 0.01


def test_scheduled_sampling_reads_what_the_model_says():
    model, batch = Writer(), ragged()
    said = model(batch["input_ids"], batch["attention_mask"])
    said[:, :, [PAD, BEGIN, END]] = -torch.inf
    read = []

    def look(model, given):
        if torch.is_grad_enabled():
            read.append(given["input_ids"])
        return objective(model, given)

    sample_scheduled(1.0)(look)(model, batch)
    own = (batch["labels"] != IGNORED) & ~torch.isin(batch["input_ids"], torch.tensor([PAD, BEGIN, END]))
    expected = batch["input_ids"].clone()
    expected[:, 1:] = torch.where(own[:, 1:], said[:, :-1].argmax(-1), expected[:, 1:])
    assert torch.equal(read[0], expected) and not torch.equal(expected, batch["input_ids"])
    sample_scheduled(0.0)(look)(model, batch)
    assert torch.equal(read[1], batch["input_ids"])


def test_sampled_choices_follow_the_distribution():
    """'sample' draws each token as often as the model would; a cold 'gumbel' mixture is such a draw as well."""
    model, rows = Writer(), 3000
    ids = torch.tensor([[BEGIN, 3, 4, END]]).repeat(rows, 1)
    batch = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": ids.masked_fill(torch.arange(4) < 2, -100),
    }
    chances = model(ids[:1], torch.ones_like(ids[:1]))[0, 1]
    chances[[PAD, BEGIN, END]] = -torch.inf
    chances = chances.softmax(-1)
    embedded, read = [], []

    def look(model, given):
        read.append(given["input_ids"])
        return objective(model, given)

    sample_scheduled(1.0, "sample")(look)(model, batch)
    model.layers[0].register_forward_pre_hook(lambda module, inputs: embedded.append(inputs[0]))
    sample_scheduled(1.0, "gumbel", temperature=1e-4)(objective)(model, batch)
    table = model.tokens.weight
    drawn = torch.cdist(embedded[-1][:, 2], table).argmin(1)
    for tokens in (read[-1][:, 2], drawn):
        shares = torch.bincount(tokens, minlength=VOCABULARY).double() / rows
        assert float((shares - chances).abs().max()) < 0.035


def test_schedules():
    model, batch = Writer(), ragged()
    seen = []

    def look(model, given):
        seen.append(torch.is_grad_enabled())
        return objective(model, given)

    run = fgm(0.1)(sample_scheduled({10: 0.0, 20: 1.0})(look))
    counts = []
    for step in (0, 10, 15, 30):
        run.step = step
        seen.clear()
        run(model, batch)
        counts.append(seen.count(False))
    assert counts == [0, 0, 2, 2], "the step reaches the remedy inside; at probability 0 there is no first pass"
    with pytest.raises(InputError, match="probability"):
        sample_scheduled({0: 1.5})


def test_rdrop_formula():
    model, batch = Writer(dropout=0.3).train(), ragged()
    said = []
    handle = model.register_forward_hook(lambda module, inputs, out: said.append(out))
    tally = rdrop(0.9)(objective)(model, batch)
    handle.remove()
    labels = batch["labels"][:, 1:]
    p, q = (one[:, :-1][labels != IGNORED].log_softmax(-1) for one in said)
    kl = F.kl_div(q, p, log_target=True, reduction="sum") + F.kl_div(p, q, log_target=True, reduction="sum")
    truth = labels[labels != IGNORED]
    loss = (F.nll_loss(p, truth, reduction="sum") + F.nll_loss(q, truth, reduction="sum")) / 2
    assert float(tally.total) == pytest.approx(float(loss + 0.9 / 4 * kl), abs=1e-12)
    assert float(kl) > 1e-3
    still = Writer()
    assert float(rdrop(5.0)(objective)(still, batch).total) == pytest.approx(
        float(objective(still, batch).total), abs=1e-12
    )


def test_unlikelihood_formula():
    model, batch = Writer(), ragged(seed=3)
    chances = model(batch["input_ids"], batch["attention_mask"]).softmax(-1)
    extra = 0.0
    for row in range(6):
        earlier = []
        for t, label in enumerate(batch["labels"][row].tolist()):
            if label == IGNORED:
                continue
            for token in set(earlier) - {label}:
                extra -= float(torch.log(1 - chances[row, t - 1, token]))
            earlier.append(label)
    tally = unlikelihood(0.8)(objective)(model, batch)
    assert float(tally.total) == pytest.approx(float(objective(model, batch).total) + 0.8 * extra, abs=1e-11)
    assert extra > 1


def test_in_evaluation_nothing_happens():
    model, batch = Writer(), ragged()
    plain = objective(model, without_seeds(batch)).total
    run = apply(REMEDIES.values(), objective)
    with torch.no_grad():
        assert torch.equal(run(model, batch).total, plain)
    assert torch.equal(run(model.eval(), batch).total, plain)
    assert not model.tokens._forward_hooks and not model._forward_hooks and not model._forward_pre_hooks


def test_text_and_refusals():
    assert str(replace_tokens(0.3, pool="sequence")) == "replace_tokens(0.3, 0.5, 'sequence')"
    assert repr(fgm(0.5)(penalize_gradient()(objective))) == "fgm(0.5)(penalize_gradient(1)(objective))"
    model, batch = Writer(), ragged()
    for make in (
        lambda: replace_tokens(1.5), lambda: replace_tokens(pool="words"), lambda: fgm(-1), lambda: penalize_gradient(-1),
        lambda: rdrop(-1), lambda: unlikelihood(-1), lambda: sample_scheduled(choice="beam"), lambda: apply([fgm], objective),
    ):  # fmt: skip
        with pytest.raises(InputError, match="expected"):
            make()
    model.config.eos_token_id = None
    with pytest.raises(InputError, match="specials=tokenizer"):
        replace_tokens()(objective)(model, batch)
    replace_tokens(specials=[PAD, BEGIN, END])(objective)(model, batch)
    with pytest.raises(InputError, match="labels"):
        fgm()(objective)(model, {"input_ids": batch["input_ids"]})
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(InputError, match="no second derivative"):
        penalize_gradient()(objective)(model, batch)


class Classifier(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.drop, self.out = nn.Dropout(0.5), nn.Linear(4, classes)
        self.double()

    def forward(self, x):
        return self.out(self.drop(x))


def several_loss(model, batch):
    total = F.binary_cross_entropy_with_logits(model(batch["x"]), batch["labels"], reduction="sum")
    return Tally(total, batch["labels"].numel())


def test_rdrop_of_classes_that_do_not_exclude_one_another():
    """A Bernoulli each, and the KL of each both ways; as many rows as classes is no special case."""
    torch.manual_seed(0)
    model = Classifier().train()
    labels = torch.randint(0, 2, (3, 3)).double()
    batch = {"x": torch.randn(3, 4).double(), "labels": labels, "seeds": torch.arange(3)}
    torch.manual_seed(1)
    found = rdrop(0.9)(several_loss)(model, batch)
    torch.manual_seed(1)
    passes = [model(batch["x"]) for _ in range(2)]
    plain = sum(F.binary_cross_entropy_with_logits(one, labels, reduction="sum") for one in passes) / 2
    apart = torch.zeros((), dtype=torch.float64)
    for one, other in (passes, passes[::-1]):
        for p, q in zip(one.sigmoid().flatten(), other.sigmoid().flatten(), strict=True):
            apart = apart + p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    assert float(found.total) == pytest.approx(float(plain + 0.9 / 4 * apart), rel=1e-12)
    accumulate(rdrop(0.9)(several_loss), model, batch, micro_batch=2)  # and any cut runs


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 3)])
def test_rdrop_refuses_a_regression(shape):
    model = Classifier(shape[-1] if len(shape) == 2 else 1).train()
    batch = {"x": torch.randn(4, 4).double(), "labels": torch.randn(shape).double() * 5, "seeds": torch.arange(4)}

    def squares(model, batch):
        return Tally((model(batch["x"]).view(shape) - batch["labels"]).square().sum(), 4)

    with pytest.raises(InputError, match="regression"):
        rdrop(1.0)(squares)(model, batch)
