"""Tiger, Adam-mini, Muon with AdamW, and weights that move in the backward pass: each against its own definition, in float64."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from jieyue.errors import InputError
from jieyue.tally import Tally
from jieyue.training.accumulation import accumulate
from jieyue.training.adam_mini import AdamMini
from jieyue.training.in_backward import update_in_backward
from jieyue.training.microbatch import MicroBatch
from jieyue.training.muon import MuonAdamW, hidden_matrices
from jieyue.training.objective import token_loss
from jieyue.training.tiger import Tiger
from jieyue.training.weightwise import PreviousNorm, step_in_backward


class Net(nn.Module):
    """An embedding that is the head as well, a layer used twice, a norm."""

    def __init__(self):
        super().__init__()
        self.words, self.layer, self.norm = nn.Embedding(9, 6), nn.Linear(6, 6), nn.LayerNorm(6)
        self.head = nn.Linear(6, 9)
        self.head.weight = self.words.weight
        self.double()

    def forward(self, ids):
        hidden = self.words(ids)
        for _ in range(2):
            hidden = self.norm(hidden + torch.tanh(self.layer(hidden)))
        return self.head(hidden)


def objective(model, batch):
    return token_loss(model(batch["x"]), batch["y"])


def data(seed=0, rows=6):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 9, (rows, 5), generator=generator)
    y = torch.randint(0, 9, (rows, 5), generator=generator)
    for row in range(rows):
        y[row, row % 5 :] = -100
    y[0, 0] = 3
    return {"x": x, "y": y}


def fresh():
    torch.manual_seed(3)
    return Net()


def whole_gradients(model, batch):
    other = copy.deepcopy(model)
    other.zero_grad()
    objective(other, batch).mean().backward()
    return {name: p.grad for name, p in other.named_parameters()}


def far(one, other):
    return max(float((a - b).abs().max()) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def tiger_by_hand(model, states, batch, lr, beta, decay):
    """The article's formulas, a number at a time."""
    gradients = whole_gradients(model, batch)
    with torch.no_grad():
        for name, p in model.named_parameters():
            m, g = states.setdefault(name, [0.0] * p.numel()), gradients[name].flatten().tolist()
            w = p.flatten().tolist()
            scale = math.sqrt(sum(v * v for v in w) / len(w))
            for i in range(len(w)):
                m[i] = beta * m[i] + (1 - beta) * g[i]
                sign = (m[i] > 0) - (m[i] < 0)
                w[i] -= lr * scale * (sign + decay * w[i]) if p.ndim >= 2 else 0.5 * lr * sign
            p.copy_(torch.tensor(w, dtype=p.dtype).view_as(p))


@pytest.mark.parametrize("size", [1, 2, 6])
@pytest.mark.parametrize("way", ["accumulated", "folded"])
def test_tiger_is_its_definition(size, way):
    model, hand, states = fresh(), fresh(), {}
    optimizer = Tiger(model.parameters(), lr=0.03, beta=0.9, weight_decay=0.1)
    for step in range(4):
        batch = data(step)
        if way == "folded":
            weight = int((batch["y"] != -100).sum())
            update_in_backward(objective, model, batch, optimizer, weight=weight, micro_batch=size)
        else:
            accumulate(objective, model, batch, micro_batch=size)
            optimizer.step()
            optimizer.zero_grad()
        tiger_by_hand(hand, states, batch, 0.03, 0.9, 0.1)
        assert far(model, hand) < 1e-13
    assert all(p.grad is None for p in model.parameters())
    assert sum(v.numel() for s in optimizer.state.values() for v in s.values()) == sum(
        p.numel() for p in model.parameters()
    )


def test_the_broken_tiger_is_noticed():
    """Its momentum decayed at every piece, as an optimizer that is called for each would have it."""
    model, hand, states = fresh(), fresh(), {}
    optimizer = Tiger(model.parameters(), lr=0.03, beta=0.5)
    for step in range(3):
        batch = data(step)
        for row in range(6):
            model.zero_grad()
            objective(model, {name: value[row : row + 1] for name, value in batch.items()}).total.backward()
            for group in optimizer.param_groups:
                group["lr"] = 0.03 if row == 5 else 0.0
            optimizer.step()
        tiger_by_hand(hand, states, batch, 0.03, 0.5, 0.01)
    assert far(model, hand) > 1e-4


def test_tiger_refuses():
    empty = nn.Parameter(torch.zeros(2, 3))
    empty.grad = torch.ones(2, 3)
    with pytest.raises(InputError, match="matrix of zeros"):
        Tiger([empty]).step()
    for wrong in ({"lr": -1}, {"beta": 1.0}, {"weight_decay": -1}):
        with pytest.raises(InputError, match="Tiger"):
            Tiger([nn.Parameter(torch.ones(2))], **wrong)
    sparse = nn.Embedding(3, 2, sparse=True)
    F.embedding(torch.tensor([1]), sparse.weight, sparse=True).sum().backward()
    with pytest.raises(InputError, match="sparse"):
        Tiger(sparse.parameters()).step()


@pytest.mark.parametrize("kind", [Tiger, AdamMini])
def test_a_refusal_comes_before_any_weight_moves(kind):
    dense, wrong = nn.Parameter(torch.ones(2, 3)), nn.Embedding(3, 2, sparse=True)
    dense.grad = torch.ones(2, 3)
    F.embedding(torch.tensor([1]), wrong.weight, sparse=True).sum().backward()
    with pytest.raises(InputError, match="sparse"):
        kind([dense, wrong.weight]).step()
    assert torch.equal(dense, torch.ones(2, 3))


def test_tiger_refuses_a_matrix_of_zeros_before_any_weight_moves():
    dense, empty = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.zeros(2, 3))
    dense.grad = empty.grad = torch.ones(2, 3)
    with pytest.raises(InputError, match="matrix of zeros"):
        Tiger([dense, empty]).step()
    assert torch.equal(dense, torch.ones(2, 3))


def mini_groups(model, rows=3):
    """The inner layer as queries of two heads of three rows, the rest by output rows."""
    rest = [p for p in model.parameters() if p is not model.layer.weight]
    return [{"params": [model.layer.weight], "rows": rows}, {"params": rest}]


def mini_by_hand(model, states, batch, step, *, rows=3, columns=()):
    """The paper's formulas, a number at a time: lr .03, betas .8 and .9, eps 1e-6, weight decay .1."""
    gradients = whole_gradients(model, batch)
    with torch.no_grad():
        for name, p in model.named_parameters():
            numbers = torch.arange(p.numel()).view_as(p)
            if p.ndim < 2:
                blocks = [numbers.tolist()]
            else:
                outputs = numbers.t() if name in columns else numbers
                size = rows if name == "layer.weight" else 1
                blocks = [outputs[at : at + size].flatten().tolist() for at in range(0, len(outputs), size)]
            m, v = states.setdefault(name, ([0.0] * p.numel(), [0.0] * len(blocks)))
            g, w = gradients[name].flatten().tolist(), p.flatten().tolist()
            for number, block in enumerate(blocks):
                v[number] = 0.9 * v[number] + 0.1 * sum(g[i] ** 2 for i in block) / len(block)
                divisor = math.sqrt(v[number] / (1 - 0.9**step)) + 1e-6
                for i in block:
                    m[i] = 0.8 * m[i] + 0.2 * g[i]
                    w[i] -= 0.03 * (0.1 * w[i] if p.ndim >= 2 else 0.0) + 0.03 * m[i] / (1 - 0.8**step) / divisor
            p.copy_(torch.tensor(w, dtype=p.dtype).view_as(p))


MINI = {"lr": 0.03, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.1}


@pytest.mark.parametrize("columns", [False, True])
def test_adam_mini_is_its_definition(columns):
    model, hand, states = fresh(), fresh(), {}
    groups = mini_groups(model)
    groups[0]["columns"] = columns
    optimizer = AdamMini(groups, **MINI)
    for step in range(1, 5):
        batch = data(step)
        accumulate(objective, model, batch, micro_batch=2)
        optimizer.step()
        optimizer.zero_grad()
        mini_by_hand(hand, states, batch, step, columns=("layer.weight",) if columns else ())
        assert far(model, hand) < 1e-13
    first = sum(s["exp_avg"].numel() for s in optimizer.state.values())
    assert first == sum(p.numel() for p in model.parameters())
    assert sum(s["exp_avg_sq"].numel() for s in optimizer.state.values()) == 2 + 9 + 4  # heads, words, vectors


def test_the_broken_adam_mini_is_noticed():
    """The queries' second moments by rows in place of heads; then Adam's, one a weight."""
    for optimizer in (
        lambda model: AdamMini(mini_groups(model, rows=1), **MINI),
        lambda model: torch.optim.AdamW(model.parameters(), **MINI),
    ):
        model, hand, states = fresh(), fresh(), {}
        wrong = optimizer(model)
        for step in range(1, 3):
            accumulate(objective, model, data(step), micro_batch=2)
            wrong.step()
            wrong.zero_grad()
            mini_by_hand(hand, states, data(step), step)
        assert far(model, hand) > 1e-4


def test_adam_mini_refuses():
    for wrong in ({"lr": -1}, {"betas": (0.9, 1.0)}, {"eps": -1}, {"weight_decay": -1}):
        with pytest.raises(InputError, match="AdamMini"):
            AdamMini([nn.Parameter(torch.ones(2))], **wrong)
    with pytest.raises(InputError, match="blocks of 2 rows for a matrix of 3"):
        AdamMini([{"params": [nn.Parameter(torch.ones(3, 4))], "rows": 2}])
    sparse = nn.Embedding(3, 2, sparse=True)
    F.embedding(torch.tensor([1]), sparse.weight, sparse=True).sum().backward()
    with pytest.raises(InputError, match="sparse"):
        AdamMini(sparse.parameters()).step()


def test_muon_is_torchs_own_and_adamw_has_the_rest():
    model, twin = fresh(), fresh()
    assert [p is model.layer.weight for p in hidden_matrices(model)] == [True]
    inside = {id(p) for p in hidden_matrices(model)}
    optimizer = MuonAdamW(hidden_matrices(model), [p for p in model.parameters() if id(p) not in inside], lr=0.02)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    muon = torch.optim.Muon([twin.layer.weight], lr=0.02, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    groups = [
        {"params": [twin.words.weight], "weight_decay": 0.01},
        {"params": [p for p in twin.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=0.02, betas=(0.9, 0.95))
    for step in range(4):
        batch = data(step)
        accumulate(objective, model, batch, micro_batch=2)
        for p, other in zip(model.parameters(), twin.parameters(), strict=True):
            other.grad = p.grad.clone()
        for part in (muon, adamw):
            for group in part.param_groups:
                group["lr"] = 0.02 / (1 + step)
            part.step()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        assert far(model, twin) == 0
        if step == 1:  # saved and loaded as one
            kept = copy.deepcopy(optimizer.state_dict())
            optimizer = MuonAdamW(
                hidden_matrices(model), [p for p in model.parameters() if id(p) not in inside], lr=0.5
            )
            optimizer.load_state_dict(kept)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step), last_epoch=2 - 1)
            for group in optimizer.param_groups:
                group["lr"] = 0.02 / 3
    with pytest.raises(InputError, match="2-D"):
        MuonAdamW([model.norm.weight], [])


KINDS = {
    "AdamW": lambda model: torch.optim.AdamW(model.parameters(), lr=0.03, weight_decay=0.1),
    "Adafactor": lambda model: torch.optim.Adafactor(model.parameters(), lr=0.03),
    "SGD": lambda model: torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9, nesterov=True),
    "Tiger": lambda model: Tiger(model.parameters(), lr=0.03),
    "Adam-mini": lambda model: AdamMini(mini_groups(model), lr=0.03),
    "Muon": lambda model: MuonAdamW(
        hidden_matrices(model), [p for p in model.parameters() if p is not model.layer.weight], lr=0.03
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_weights_that_move_in_the_backward_pass(name):
    model, plain = fresh(), fresh()
    moving, ordinary = KINDS[name](model), KINDS[name](plain)
    for step in range(4):
        batch = data(step)
        tally = step_in_backward(objective, model, batch, moving, micro_batch=6)
        found = accumulate(objective, plain, batch, micro_batch=6)
        ordinary.step()
        ordinary.zero_grad()
        assert (tally.total, tally.weight) == (found.total, found.weight)
        assert far(model, plain) < 1e-12 and all(p.grad is None for p in model.parameters())
    assert len(moving.param_groups) == len(ordinary.param_groups) and len(moving.state) == len(ordinary.state)


def test_never_more_than_a_few_gradients_exist():
    model = nn.Sequential(*[nn.Linear(8, 8) for _ in range(6)]).double()
    alive = []

    class Counting(torch.optim.SGD):
        def step(self, closure=None):
            alive.append(sum(p.grad is not None for p in model.parameters()))
            return super().step(closure)

    Counting.__name__ = "SGD"
    batch = {"x": torch.randn(4, 8).double()}
    step_in_backward(
        lambda m, b: Tally(m(b["x"]).square().sum(), 4),
        model,
        batch,
        Counting(model.parameters(), lr=0.1),
        micro_batch=4,
    )
    assert len(alive) == 12 and max(alive) <= 2


def test_clipping_is_by_the_norm_of_the_step_before():
    model, plain = fresh(), fresh()
    clip, optimizer = PreviousNorm(0.1), torch.optim.SGD(model.parameters(), lr=1.0)
    previous = None
    for step in range(3):
        batch = data(step)
        gradients = whole_gradients(plain, batch)
        factor = 1.0 if previous is None else min(1.0, 0.1 / (previous + 1e-6))
        with torch.no_grad():
            for name, p in plain.named_parameters():
                p.sub_(factor * gradients[name])
        previous = math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))
        step_in_backward(objective, model, batch, optimizer, micro_batch=6, clip=clip)
        assert clip.norm == pytest.approx(previous, rel=1e-12) and far(model, plain) < 1e-13
    assert factor < 1


def test_stepping_refuses_before_anything_moves():
    model, batch = fresh(), data()
    before = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters())
    silent = {**batch, "y": torch.full_like(batch["y"], -100)}
    hooked = torch.optim.AdamW(model.parameters())
    hooked.register_step_pre_hook(lambda *_: None)
    cases = [
        ({"micro_batch": 2}, "one piece"),
        ({"optimizer": torch.optim.LBFGS(model.parameters())}, "LBFGS"),
        ({"optimizer": hooked}, "hooks"),
        ({"batch": silent}, "weight 0"),
        ({"objective": lambda m, b: Tally(objective(m, b).total * math.inf, 1)}, "a loss of"),
    ]
    for change, found in cases:
        given = {
            "objective": objective,
            "model": model,
            "batch": batch,
            "optimizer": optimizer,
            "micro_batch": 6,
        } | change
        with pytest.raises(InputError, match=found):
            step_in_backward(**given)
        assert far(model, before) == 0
    model.head.bias.grad = torch.ones(9).double()
    with pytest.raises(InputError, match="before"):
        step_in_backward(objective, model, batch, optimizer, micro_batch=MicroBatch(6))
