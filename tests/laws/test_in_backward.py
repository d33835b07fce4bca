"""Law of the batch for updates folded into the backward pass: SGD with momentum is exact; AdamA is not, and says so."""

import inspect

import pytest
import torch
from torch import nn, optim

from jieyue.budget import Plan
from jieyue.errors import BudgetError, InputError
from jieyue.timer import peak_bytes
from jieyue.training import in_backward
from jieyue.training.accumulation import accumulate
from jieyue.training.in_backward import update_in_backward, update_in_backward_approx
from jieyue.training.objective import token_loss


class Net(nn.Module):
    def __init__(self, width=6):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(9, width)
        self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(3)])
        self.layers[2] = self.layers[0]  # a shared layer: its gradient comes from two places
        self.rare, self.unused = nn.Linear(width, width), nn.Linear(2, 2)
        self.double()

    def forward(self, x):
        hidden = self.table(x).sum(1)
        for layer in self.layers:
            hidden = torch.tanh(layer(hidden))
        rare = (x[:, 0] == 0)[:, None]
        if rare.any():
            hidden = hidden + rare * self.rare(hidden)
        return hidden @ self.table.weight.T


def objective(model, batch):
    return token_loss(model(batch["x"]), batch["y"])


def data(seed, rows=8):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randint(0, 9, (rows, 4), generator=generator), torch.randint(0, 9, (rows,), generator=generator)
    y[1::3] = -100
    x[:, 0] = seed % 2 if seed else 1  # the rare layer is used in some updates only
    return {"x": x, "y": y}


def count(batch):
    return int((batch["y"] != -100).sum())


def gap(model, reference):
    pairs = zip(model.parameters(), reference.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


def whole_step(model, optimizer, batch):
    optimizer.zero_grad()
    objective(model, batch).mean().backward()
    optimizer.step()


@pytest.mark.parametrize(
    "options",
    [
        {"momentum": 0.9},
        {"momentum": 0.5, "dampening": 0.3, "weight_decay": 0.1},
        {"momentum": 0.9, "maximize": True},
        {"momentum": 0.9, "foreach": True, "weight_decay": 0.1},
    ],
)
@pytest.mark.parametrize("size", [1, 3, 8])
def test_momentum_is_exact(options, size):
    model, reference = Net(), Net()
    optimizer = optim.SGD(model.parameters(), lr=0.1, **options)
    plain = optim.SGD(reference.parameters(), lr=0.1, **options)
    for update in range(6):
        batch = data(update)
        if update == 3:  # an ordinary step in between
            optimizer.zero_grad()
            accumulate(objective, model, batch, micro_batch=size)
            optimizer.step()
            optimizer.zero_grad()
        else:
            plan = Plan(effective_batch=8, micro_batch=size, checkpointing=True)
            tally = update_in_backward(objective, model, batch, optimizer, weight=count(batch), micro_batch=plan)
            assert tally.weight == count(batch) and all(p.grad is None for p in model.parameters())
        whole_step(reference, plain, batch)
        assert gap(model, reference) < 1e-13
    assert gap(reference, Net()) > 1e-2
    assert optimizer.state_dict()["state"].keys() == plain.state_dict()["state"].keys()


def test_no_gradient_of_the_model_exists():
    """Live bytes above weights and momentum: less than half of what accumulation needs, whose gradient is a copy of all."""
    model = nn.Sequential(*(layer for _ in range(12) for layer in (nn.Linear(128, 128), nn.Tanh())))
    batch = {"x": torch.randn(4, 128), "y": torch.randint(0, 128, (4,))}
    optimizer = optim.SGD(model.parameters(), lr=0.0, momentum=0.9)

    def folded():
        update_in_backward(objective_of_rows, model, batch, optimizer, weight=4, micro_batch=1)

    def accumulated():
        accumulate(objective_of_rows, model, batch, micro_batch=1)
        optimizer.step()
        optimizer.zero_grad()

    peaks = []
    for call in (folded, accumulated):
        call()
        peaks.append(peak_bytes(call))
    weights = sum(p.nbytes for p in model.parameters())
    assert peaks[1] > weights and peaks[0] < 0.4 * weights


def objective_of_rows(model, batch):
    return token_loss(model(batch["x"]), batch["y"])


@pytest.mark.parametrize("kind", [optim.Adam, optim.AdamW])
def test_adama_is_adam_with_one_piece_and_an_approximation_with_more(kind):
    options = {"lr": 0.01} | ({"weight_decay": 0.1} if kind is optim.AdamW else {})
    distances = {}
    for size in (8, 2):
        model, reference = Net(), Net()
        optimizer, plain = kind(model.parameters(), **options), kind(reference.parameters(), **options)
        for update in range(4):
            batch = data(update)
            update_in_backward_approx(objective, model, batch, optimizer, weight=count(batch), micro_batch=size)
            whole_step(reference, plain, batch)
            if update == 0:  # the first moment is exact, whatever the pieces
                for p, q in zip(model.parameters(), reference.parameters(), strict=True):
                    if q.grad is not None:
                        assert torch.allclose(optimizer.state[p]["exp_avg"], plain.state[q]["exp_avg"], atol=1e-14)
        distances[size] = gap(model, reference)
    assert distances[8] < 1e-12 < 1e-4 < distances[2]


def test_approximations_say_so():
    for name in in_backward.__all__:
        function = getattr(in_backward, name)
        assert ("approx" in name) == ("An approximation" in inspect.getdoc(function))


def step(optimizer=None, model=None, function=update_in_backward, objective=objective, **more):
    batch, model = data(0), model or Net()
    optimizer = (optimizer or (lambda p: optim.SGD(p, lr=0.1, momentum=0.9)))(model.parameters())
    function(objective, model, batch, optimizer, **({"weight": count(batch), "micro_batch": 2} | more))


def hooked(parameters):
    optimizer = optim.SGD(parameters, lr=0.1, momentum=0.9)
    optimizer.register_step_pre_hook(lambda *_: None)
    return optimizer


@pytest.mark.parametrize(
    ("found", "given"),
    [
        ("momentum=0", {"optimizer": lambda p: optim.SGD(p, lr=0.1)}),
        ("nesterov=True", {"optimizer": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True)}),
        ("hooks", {"optimizer": hooked}),
        ("counted first", {"weight": 0}),
        ("a batch of weight 5", {"weight": 7}),
        ("amsgrad", {"optimizer": lambda p: optim.Adam(p, amsgrad=True), "function": update_in_backward_approx}),
        ("weight_decay", {"optimizer": lambda p: optim.Adam(p, weight_decay=1), "function": update_in_backward_approx}),
        ("Adam or AdamW", {"optimizer": lambda p: optim.NAdam(p), "function": update_in_backward_approx}),
        ("SGD itself", {"optimizer": lambda p: optim.RMSprop(p)}),
        ("not finite", {"objective": lambda m, b: token_loss(m(b["x"]) * float("inf"), b["y"])}),
    ],
)
def test_refusals(found, given):
    model = Net()
    with pytest.raises(InputError, match=found):
        step(model=model, **given)
    assert gap(model, Net()) == 0 and not any(p._post_accumulate_grad_hooks for p in model.parameters())


def test_more_refusals():
    model = Net()
    objective(model, data(0)).mean().backward()
    with pytest.raises(InputError, match="gradients from before"):
        step(model=model)

    def tight(model, batch):
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(BudgetError, match="resume from a checkpoint"):
        step(objective=tight)
    sparse = nn.Embedding(9, 9, sparse=True)
    with pytest.raises(InputError, match="sparse gradient"):
        step(model=sparse, objective=lambda m, b: token_loss(m(b["x"][:, 0]), b["y"]))
    with pytest.raises(InputError, match="BatchNorm1d"):
        step(model=nn.Sequential(nn.Embedding(9, 9), nn.Flatten(), nn.Linear(36, 9), nn.BatchNorm1d(9)))
