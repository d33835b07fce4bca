"""Law of the window: what the wrapped optimizer does in several micro-steps is its one step on the undivided batch."""

import copy
import warnings

import pytest
import torch
from torch import nn, optim

from jieyue.errors import InputError
from jieyue.training.optimizer import AccumulatedOptimizer

OPTIMIZERS = {
    "SGD": (optim.SGD, {"lr": 0.1}),
    "SGD momentum": (optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    "SGD Nesterov": (optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "Adam": (optim.Adam, {"lr": 0.01}),
    "Adam amsgrad": (optim.Adam, {"lr": 0.01, "amsgrad": True, "weight_decay": 0.1}),
    "AdamW": (optim.AdamW, {"lr": 0.01}),
    "AdamW fused": (optim.AdamW, {"lr": 0.01, "fused": True}),
    "AdamW foreach": (optim.AdamW, {"lr": 0.01, "foreach": True}),
    "Adamax": (optim.Adamax, {"lr": 0.01}),
    "NAdam": (optim.NAdam, {"lr": 0.01}),
    "RAdam": (optim.RAdam, {"lr": 0.01}),
    "Adadelta": (optim.Adadelta, {"lr": 1.0}),
    "Adagrad": (optim.Adagrad, {"lr": 0.1}),
    "Adafactor": (optim.Adafactor, {"lr": 0.1}),
    "ASGD": (optim.ASGD, {"lr": 0.1}),
    "RMSprop": (optim.RMSprop, {"lr": 0.01, "momentum": 0.5, "centered": True}),
    "Rprop": (optim.Rprop, {"lr": 0.01}),
    "Muon": (optim.Muon, {"lr": 0.1}),
    "SparseAdam": (optim.SparseAdam, {"lr": 0.1}),
}


class Net(nn.Module):
    """Sums of an embedding through matrices alone (Muon takes nothing else); the table's gradient may be sparse."""

    def __init__(self, sparse=False):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(9, 4, sparse=sparse)
        self.inner, self.out = nn.Linear(4, 5, bias=False), nn.Linear(5, 3, bias=False)
        self.double()

    def forward(self, x):
        return self.out(torch.tanh(self.inner(self.table(x).sum(1))))


def trained(model):
    return [model.table.weight] if model.table.sparse else list(model.parameters())


def loss(model, x, y, reduction="mean"):
    return nn.functional.cross_entropy(model(x), y, reduction=reduction, ignore_index=-100)


def data(rows=12, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 9, (rows, 4), generator=generator), torch.randint(0, 3, (rows,), generator=generator)


def pair(name):
    kind, options = OPTIMIZERS[name]
    model, reference = Net(name == "SparseAdam"), Net(name == "SparseAdam")
    return model, kind(trained(model), **options), reference, kind(trained(reference), **options)


def gap(model, reference):
    pairs = zip(model.parameters(), reference.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


def whole_step(model, optimizer, x, y):
    model.zero_grad()
    loss(model, x, y).backward()
    optimizer.step()


def test_every_optimizer_of_torch_is_tried():
    classes = {
        value for value in vars(optim).values() if isinstance(value, type) and issubclass(value, optim.Optimizer)
    }
    assert classes - {kind for kind, _ in OPTIMIZERS.values()} == {optim.Optimizer, optim.LBFGS}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_means_of_equal_parts_and_a_partial_window(name):
    model, inner, reference, plain = pair(name)
    optimizer = AccumulatedOptimizer(inner, steps=4)
    for update in range(4):
        x, y = data(seed=update)
        if update == 3:  # the data end inside a window
            x, y = x[:6], y[:6]
        for start in range(0, len(x), 3):
            optimizer.zero_grad()
            loss(model, x[start : start + 3], y[start : start + 3]).backward()
            optimizer.step()
        if update == 3:
            assert not optimizer.updated and optimizer.pending == 2
            assert optimizer.flush() and optimizer.updated and not optimizer.flush()
        whole_step(reference, plain, x, y)
        assert gap(model, reference) < 1e-12 and optimizer.updates == update + 1
    assert gap(reference, Net()) > 1e-3  # something was learned


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_sums_over_ragged_counts(name):
    """Micro-batches of other sizes, with ignored labels, one without any: the update divides by the window's labels."""
    model, inner, reference, plain = pair(name)
    optimizer = AccumulatedOptimizer(inner, steps=3)
    for update in range(3):
        x, y = data(rows=9, seed=update)
        y[1], y[8] = -100, -100
        for part in (slice(0, 3), slice(3, 8), slice(8, 9)):
            loss(model, x[part], y[part], "sum").backward()
            optimizer.step(weight=(y[part] != -100).sum())
            optimizer.zero_grad()
        whole_step(reference, plain, x, y)
        assert gap(model, reference) < 1e-12


def test_the_mean_of_means_is_not_the_mean():
    """The broken twin: without weights, ragged micro-batches give another update."""
    model, inner, reference, plain = pair("SGD")
    optimizer = AccumulatedOptimizer(inner, steps=2)
    x, y = data(rows=9)
    for part in (slice(0, 1), slice(1, 9)):
        loss(model, x[part], y[part]).backward()
        optimizer.step()
    whole_step(reference, plain, x, y)
    assert gap(model, reference) > 1e-3


@pytest.mark.parametrize("name", ["SGD momentum", "AdamW", "Muon", "SparseAdam"])
@pytest.mark.parametrize("cut", [0, 1, 2, 5])
def test_resumes_inside_a_window(name, cut, tmp_path):
    x, y = data(rows=16)

    def run(model, optimizer, first, last):
        for start in range(first, last):
            optimizer.zero_grad()
            loss(model, x[2 * start : 2 * start + 2], y[2 * start : 2 * start + 2]).backward()
            optimizer.step()

    model, inner, reference, plain = pair(name)
    whole = AccumulatedOptimizer(plain, steps=3)
    run(reference, whole, 0, 8)
    first = AccumulatedOptimizer(inner, steps=3)
    run(model, first, 0, cut)
    torch.save({"model": model.state_dict(), "optimizer": first.state_dict()}, tmp_path / "saved.pt")
    run(model, first, cut, 8)  # what was saved must not change with the run that goes on
    saved = torch.load(tmp_path / "saved.pt", weights_only=True)
    resumed_model, resumed_inner, *_ = pair(name)
    resumed_model.load_state_dict(saved["model"])
    resumed = AccumulatedOptimizer(resumed_inner, steps=3)
    resumed.load_state_dict(saved["optimizer"])
    run(resumed_model, resumed, cut, 8)
    assert resumed.flush() and whole.flush() and resumed.updates == whole.updates == 3
    assert gap(resumed_model, reference) == 0


def test_a_copy_goes_on_alone():
    x, y = data()
    model = Net()
    both = nn.ModuleDict({"model": model})
    both.optimizer = AccumulatedOptimizer(optim.AdamW(model.parameters(), lr=0.01), steps=2)
    loss(model, x[:6], y[:6]).backward()
    both.optimizer.step()
    twin = copy.deepcopy(both)
    before = copy.deepcopy(model.state_dict())
    loss(twin["model"], x[6:], y[6:]).backward()
    twin.optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    loss(model, x[6:], y[6:]).backward()
    both.optimizer.step()
    assert gap(model, twin["model"]) == 0


def test_an_ordinary_state_dict_is_accepted():
    model, inner, reference, plain = pair("AdamW")
    x, y = data()
    whole_step(reference, plain, x, y)
    optimizer = AccumulatedOptimizer(inner, steps=1)
    optimizer.load_state_dict(copy.deepcopy(plain.state_dict()))  # torch shares what it loads
    model.load_state_dict(reference.state_dict())
    optimizer.zero_grad()
    loss(model, x, y).backward()
    optimizer.step()
    whole_step(reference, plain, x, y)
    assert gap(model, reference) == 0


@pytest.mark.parametrize("clear", ["optimizer", "model", "never", "in place"])
def test_clearing_between_micro_steps_is_safe(clear):
    model, inner, reference, plain = pair("AdamW")
    optimizer = AccumulatedOptimizer(inner, steps=3)
    x, y = data()
    for update in range(2):
        for start in range(0, 12, 4):
            loss(model, x[start : start + 4], y[start : start + 4]).backward()
            optimizer.step()
            if clear == "optimizer" or start == 8:
                optimizer.zero_grad()
            elif clear == "in place":
                optimizer.zero_grad(set_to_none=False)
            elif clear == "model":
                model.zero_grad()
        whole_step(reference, plain, x, y)
        assert gap(model, reference) < 1e-12 and optimizer.updates == update + 1
        assert all(p.grad is None for p in model.parameters())


def test_no_second_gradient():
    """The sum lives in ``.grad``: the same tensors from the first micro-step to the update."""
    model, inner, *_ = pair("SGD")
    optimizer = AccumulatedOptimizer(inner, steps=3)
    x, y = data()
    places = set()
    for start in range(0, 12, 4):
        loss(model, x[start : start + 4], y[start : start + 4]).backward()
        optimizer.step()
        places.add(tuple(p.grad.data_ptr() for p in model.parameters()))
        optimizer.zero_grad()
    assert len(places) == 1


def test_gradients_with_a_graph():
    """``create_graph=True`` makes autograd sum out of place; nothing is counted twice."""
    model, inner, reference, plain = pair("SGD")
    optimizer = AccumulatedOptimizer(inner, steps=2)
    x, y = data()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about the cycle it makes
        for start in (0, 6):
            loss(model, x[start : start + 6], y[start : start + 6]).backward(create_graph=True)
            optimizer.step()
    whole_step(reference, plain, x, y)
    assert gap(model, reference) < 1e-12


@pytest.mark.parametrize("steps", [{0: 1, 2: 3}, lambda update: 1 if update < 2 else 3])
def test_steps_may_be_a_schedule(steps):
    model, inner, *_ = pair("SGD")
    optimizer = AccumulatedOptimizer(inner, steps)
    x, y = data()
    found = []
    for _ in range(8):
        loss(model, x, y).backward()
        optimizer.step()
        found.append(optimizer.updated)
        optimizer.zero_grad()
    assert found == [True, True, False, False, True, False, False, True]


def test_it_is_an_optimizer():
    model, inner, *_ = pair("AdamW")
    optimizer = AccumulatedOptimizer(inner, steps=2)
    assert isinstance(optimizer, optim.Optimizer)
    assert optimizer.param_groups is inner.param_groups and optimizer.state is inner.state
    assert "steps=2" in repr(optimizer) and "AdamW" in repr(optimizer)
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    inner.register_step_post_hook(lambda *_: seen.append("update"))
    optimizer.register_state_dict_post_hook(lambda _, found: found | {"extra": 1})
    x, y = data()
    for _ in range(2):
        value = optimizer.step(lambda: backward(model, x, y))
        assert value == pytest.approx(loss(Net(), x, y).item())
    assert seen == ["before", "after", "before", "update", "after"]
    assert optimizer.state_dict()["extra"] == 1
    extra = nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer.add_param_group({"params": [extra], "lr": 0.5})
    assert inner.param_groups[1]["params"][0] is extra and inner.param_groups[1]["weight_decay"] == 0.01
    inner.load_state_dict(inner.state_dict())  # replaces the inner lists
    assert optimizer.param_groups is inner.param_groups and optimizer.state is inner.state


def backward(model, x, y):
    value = loss(model, x, y)
    value.backward()
    return value.detach()


def test_clipping_is_of_the_divided_gradient():
    model, inner, reference, plain = pair("SGD")
    optimizer = AccumulatedOptimizer(inner, steps=2, max_grad_norm=0.05)
    x, y = data()
    for start in (0, 6):
        loss(model, x[start : start + 6], y[start : start + 6]).backward()
        optimizer.step()
    loss(reference, x, y).backward()
    assert nn.utils.clip_grad_norm_(reference.parameters(), 0.05) > 0.05
    plain.step()
    assert gap(model, reference) < 1e-12


def micro_steps(optimizer, model, count, schedule=None, every=False):
    x, y = data()
    for _ in range(count):
        optimizer.zero_grad()
        loss(model, x, y).backward()
        optimizer.step()
        if schedule is not None and (every or optimizer.updated):
            schedule.step()


@pytest.mark.parametrize("on_inner", [True, False])
def test_schedules_follow_updates(on_inner):
    model, inner, *_ = pair("SGD")
    handed = optim.lr_scheduler.StepLR(inner, 1, gamma=0.5)
    optimizer = AccumulatedOptimizer(inner, steps=2, schedule=handed)
    micro_steps(optimizer, model, 5)
    assert handed.last_epoch == 2 and inner.param_groups[0]["lr"] == pytest.approx(0.025)
    saved = optimizer.state_dict()
    other = pair("SGD")[1]
    again = AccumulatedOptimizer(other, steps=2, schedule=optim.lr_scheduler.StepLR(other, 1, gamma=0.5))
    again.load_state_dict(saved)
    assert again.schedule.last_epoch == 2 and other.param_groups[0]["lr"] == pytest.approx(0.025)
    model, inner, *_ = pair("SGD")
    optimizer = AccumulatedOptimizer(inner, steps=2)
    own = optim.lr_scheduler.StepLR(inner if on_inner else optimizer, 1, gamma=0.5)
    micro_steps(optimizer, model, 6, own)
    assert own.last_epoch == 3 and optimizer.param_groups[0]["lr"] == pytest.approx(0.0125)


@pytest.mark.parametrize("on_inner", [True, False])
@pytest.mark.parametrize("first", [0, 3])
def test_a_schedule_stepped_too_often_warns_once(on_inner, first):
    """The rate changes at updates only (StepLR(30)), so nothing but the count of steps could tell."""
    model, inner, *_ = pair("SGD")
    optimizer = AccumulatedOptimizer(inner, steps=3)
    micro_steps(optimizer, model, first)
    schedule = optim.lr_scheduler.StepLR(inner if on_inner else optimizer, 30)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        micro_steps(optimizer, model, 7, schedule, every=True)
    ours = [str(one.message) for one in caught if "if optimizer.updated" in str(one.message)]
    assert len(ours) == 1 and "StepLR" in ours[0]
    bystander = optim.lr_scheduler.StepLR(pair("SGD")[1], 30)
    model, inner, *_ = pair("SGD")
    optimizer = AccumulatedOptimizer(inner, steps=3)
    schedule = optim.lr_scheduler.SequentialLR(
        optimizer, [optim.lr_scheduler.LinearLR(optimizer), optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)], [2]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", message="The epoch parameter")  # SequentialLR's own
        micro_steps(optimizer, model, 12, schedule)
    del bystander


def scaled_run(optimizer, model, scaler, overflow_at=None, steps=6):
    x, y = data()
    for step in range(steps):
        part = slice(2 * step, 2 * step + 2)
        optimizer.zero_grad()
        value = scaler.scale(loss(model, x[part], y[part]))
        if step == overflow_at:
            value = value * float("inf")
        value.backward()
        scaler.step(optimizer)
        scaler.update()


@pytest.mark.parametrize("name", ["AdamW", "SGD momentum", "AdamW fused", "SparseAdam"])
def test_scaled_gradients_equal_unscaled_ones(name):
    """The scale doubles on every micro-step here, inside the window too."""
    model, inner, reference, plain = pair(name)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1)
    scaled_run(AccumulatedOptimizer(inner, steps=3), model, scaler)
    assert scaler.get_scale() == 8.0 * 2**6
    x, y = data()
    for half in (slice(0, 6), slice(6, 12)):
        whole_step(reference, plain, x[half], y[half])
    assert gap(model, reference) < 1e-12


@pytest.mark.parametrize("overflow_at", [0, 1, 2])
def test_a_window_that_overflowed_is_left_out_whole(overflow_at):
    model, inner, reference, plain = pair("AdamW")
    optimizer = AccumulatedOptimizer(inner, steps=3)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaled_run(optimizer, model, scaler, overflow_at)
    x, y = data()
    whole_step(reference, plain, x[6:], y[6:])
    assert gap(model, reference) < 1e-12 and optimizer.skipped == 1 and optimizer.updates == 1
    assert scaler.get_scale() == 4.0


def test_unscaled_for_clipping_by_hand():
    model, inner, reference, plain = pair("SGD")
    optimizer = AccumulatedOptimizer(inner, steps=2)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    x, y = data()
    for start in (0, 6):
        optimizer.zero_grad()
        scaler.scale(loss(model, x[start : start + 6], y[start : start + 6])).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    whole_step(reference, plain, x, y)
    assert gap(model, reference) < 1e-12


def test_non_finite_windows_are_stopped_or_left_out():
    x, y = data()
    for option in ("stop", "skip"):
        model, inner, reference, plain = pair("AdamW")
        optimizer = AccumulatedOptimizer(inner, steps=2, non_finite=option)
        for factor in (float("nan"), 1.0):
            (loss(model, x[:6], y[:6]) * factor).backward()
            if factor == 1.0 and option == "stop":
                with pytest.raises(InputError, match="finite numbers"):
                    optimizer.step()
            elif factor == 1.0:
                with pytest.warns(UserWarning, match="left out"):
                    optimizer.step()
            else:
                optimizer.step()
            optimizer.zero_grad()
        assert gap(model, Net()) == 0 and not optimizer.updated and optimizer.pending == 0
        assert optimizer.skipped == (option == "skip")
        for start in (0, 6):
            loss(model, x[start : start + 6], y[start : start + 6]).backward()
            optimizer.step()
        whole_step(reference, plain, x, y)
        assert gap(model, reference) < 1e-12
    model, inner, reference, plain = pair("SGD")  # large, but finite: the square of an entry overflows in float32
    weight = nn.Parameter(torch.tensor([1e30]))
    optimizer = AccumulatedOptimizer(optim.SGD([weight], lr=1.0), steps=1, max_grad_norm=1.0)
    (weight * 1e25).sum().backward()
    optimizer.step()
    assert optimizer.updated


def test_refusals():
    model, inner, *_ = pair("SGD")
    x, y = data()
    parameters = list(model.parameters())
    with pytest.raises(InputError, match="LBFGS, which evaluates the loss of the whole batch several times"):
        AccumulatedOptimizer(optim.LBFGS(parameters), steps=2)
    with pytest.raises(InputError, match=r"a torch\.optim\.Optimizer"):
        AccumulatedOptimizer(parameters, steps=2)
    with pytest.raises(InputError, match="product of steps"):
        AccumulatedOptimizer(AccumulatedOptimizer(inner, steps=2), steps=2)
    for steps in (0, 2.5, {0: 0}, {5: 2}, lambda update: None):
        with pytest.raises(InputError, match="steps"):
            AccumulatedOptimizer(inner, steps)
    with pytest.raises(InputError, match="ReduceLROnPlateau"):
        AccumulatedOptimizer(inner, steps=2, schedule=optim.lr_scheduler.ReduceLROnPlateau(inner))
    with pytest.raises(InputError, match="'stop' or 'skip'"):
        AccumulatedOptimizer(inner, steps=2, non_finite="allow")
    with pytest.raises(InputError, match="max_grad_norm"):
        AccumulatedOptimizer(inner, steps=2, max_grad_norm=0)
    optimizer = AccumulatedOptimizer(inner, steps=2)
    for weight in (-1, float("nan"), float("inf")):
        with pytest.raises(InputError, match="number of labels"):
            optimizer.step(weight=weight)
    for _ in range(2):
        loss(model, x, torch.full_like(y, -100), "sum").backward()
        if optimizer.pending:
            with pytest.raises(InputError, match="at least one counted label"):
                optimizer.step(weight=0)
        else:
            optimizer.step(weight=0)
    assert gap(model, Net()) == 0 and optimizer.pending == 0
    optimizer.step()
    with pytest.raises(InputError, match="all of one kind"):
        optimizer.step(weight=3)


class Modal(torch.optim.SGD):
    """Like the schedule-free optimizers: other weights in evaluation than in training."""

    mode = "train"

    def train(self):
        self.mode = "train"

    def eval(self):
        self.mode = "eval"


def test_modes_reach_the_inner_optimizer():
    weight = nn.Parameter(torch.zeros(2))
    inner = Modal([weight], lr=0.1)
    optimizer = AccumulatedOptimizer(inner, steps=2)
    optimizer.eval()
    assert inner.mode == "eval"
    optimizer.train()
    assert inner.mode == "train"
    AccumulatedOptimizer(torch.optim.SGD([weight], lr=0.1), steps=2).eval()  # has no modes: nothing to do


def test_accelerate_must_not_count_as_well():
    """It would call ``step`` on every fourth micro-batch, and the window would be of 4·2."""
    accelerate = pytest.importorskip("accelerate")
    state = accelerate.state.GradientState()
    before = state.plugin_kwargs
    weight = nn.Parameter(torch.zeros(2))
    try:
        accelerator = accelerate.Accelerator(gradient_accumulation_steps=4, cpu=True)
        alone = AccumulatedOptimizer(torch.optim.SGD([weight], lr=0.1), steps=2)
        weight.sum().backward()
        alone.step()  # another one in the process, not under accelerate
        wrapped = accelerator.prepare(AccumulatedOptimizer(torch.optim.SGD([weight], lr=0.1), steps=2))

        def micro_step():
            with accelerator.accumulate(nn.Linear(1, 1)):
                accelerator.backward(weight.sum())
                wrapped.step()

        for _ in range(3):
            micro_step()
        with pytest.raises(InputError, match="gradient_accumulation_steps=4"):
            micro_step()
    finally:
        state.plugin_kwargs = before
