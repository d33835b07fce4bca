"""Is the update the same? Measured on a model and rows of your own, for each way of saving memory, in plain words.

The update of the undivided batch is computed once, then that of every setting, from the same weights without dropout:

    ratio = ‖g‖ / ‖g₀‖,   cosine = g·g₀ / (‖g‖ ‖g₀‖),   max |Δ| = max |g − g₀| / max |g₀|

for the gradient g and for the weights' change after one step of AdamW. Exact settings differ by rounding alone. The last
row is transformers' own Trainer under ``gradient_accumulation_steps``, on the same rows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jieyue.budget import Plan
from jieyue.errors import InputError
from jieyue.hf.albert import sharing_of, unshare
from jieyue.hf.plain_trainer import trainer_gradients
from jieyue.hf.use import use
from jieyue.report import Report
from jieyue.report.amounts import Given
from jieyue.tally import Tally
from jieyue.training.accumulation import accumulate
from jieyue.training.microbatch import MicroBatch
from jieyue.training.objective import Batch, Objective, num_rows

from .ranks import gradients_of_processes

__all__ = ["SETTINGS", "Equality", "UpdateCheck", "verify_update", "without_dropout"]

Gradients = dict[str, Tensor]
RATE = 1e-3  # of the one AdamW step
_SAME_LOSS = 1e-5  # what rounding may do to a loss, of its size; untrained models differ by little more where they attend otherwise
ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-3}  # what rounding may do to a ratio, and (squared) to a cosine


@dataclass(frozen=True, kw_only=True)
class Equality:
    """One setting against the undivided batch; ``refused``: why it was not measured (the numbers are then nan)."""

    setting: str
    ratio: float = float("nan")
    cosine: float = float("nan")
    largest: float = float("nan")
    update_cosine: float = float("nan")
    update_largest: float = float("nan")
    refused: str = ""
    rounding: float = ROUNDING[torch.float32]

    @property
    def equal(self) -> bool:
        return abs(self.ratio - 1) <= self.rounding and self.cosine >= 1 - self.rounding**2 - 1e-9

    @property
    def verdict(self) -> str:
        if self.refused:
            return self.refused
        if self.equal:
            return "the same update, up to rounding"
        scaled = f"{self.ratio:.3g} times as long" if abs(self.ratio - 1) > self.rounding else "of the same length"
        if self.cosine >= 1 - self.rounding**2 - 1e-9:
            return f"another update: {scaled}, in the same direction"
        degrees = float(torch.rad2deg(torch.arccos(torch.tensor(min(1.0, self.cosine)))))
        return f"another update: {scaled}, turned by {degrees:.2g} degrees"


@dataclass(frozen=True, kw_only=True)
class UpdateCheck:
    """All settings of one model. ``rows``: of the batch; ``labels``: counted in it; ``micro_batch``: rows a piece."""

    model: str
    rows: int
    labels: int
    micro_batch: int
    dtype: str
    settings: tuple[Equality, ...]

    def report(self) -> Report:
        report = Report(f"Is the update the same? · {self.model}")
        section = report.section("Updates")
        section.fact("rows", self.rows, how=f"{self.labels} labels; pieces of {self.micro_batch} rows; no dropout")
        section.fact("arithmetic", self.dtype)
        rows: list[list[Given]] = [
            [one.setting, *(_shown(getattr(one, name)) for name in _NUMBERS), one.verdict] for one in self.settings
        ]
        columns: list[str | tuple[str, str]] = ["setting", *_NUMBERS.values(), "verdict"]
        section.table(columns, rows, title="Each setting against the undivided batch", note=_NOTE)
        return report


_NUMBERS = {
    "ratio": "ratio",
    "cosine": "cosine",
    "largest": "max |Δ|",
    "update_cosine": "cosine of the step",
    "update_largest": "max |Δ| of the step",
}
_NOTE = (
    "Ratio, cosine and max |Δ| (relative to the largest entry) of the gradient; then of the weights' change by one step of "
    "AdamW, whose division by its own gradient's size hides a wrong ratio and magnifies rounding where gradients are near zero."
)


@dataclass(frozen=True)
class _Case:
    """What every setting is computed from."""

    model: nn.Module
    objective: Objective
    batch: Mapping[str, Tensor]
    micro_batch: int

    def accumulated(self, model: nn.Module | None = None, checkpointing: bool = False) -> Gradients:
        """The gradient in pieces, ``.grad`` left clean."""
        model = self.model if model is None else model
        plan = Plan(effective_batch=num_rows(self.batch), micro_batch=self.micro_batch, checkpointing=checkpointing)
        return _gradients(model, self.objective, self.batch, plan)

    def undivided(self, model: nn.Module | None = None) -> Gradients:
        rows = num_rows(self.batch)
        return _gradients(
            self.model if model is None else model,
            self.objective,
            self.batch,
            Plan(effective_batch=rows, micro_batch=rows),
        )

    def unshared(self) -> Gradients:
        """The shared block's gradient as the sum of those of its copies, the law of unsharing."""
        twin = unshare(copy.deepcopy(self.model))
        found = self.accumulated(twin)
        summed: Gradients = {}
        for name, gradient in found.items():
            own = _shared_name(name)
            summed[own] = summed[own] + gradient if own in summed else gradient
        return summed

    def attended(self) -> Gradients:
        """Through our attention operator, whose pattern here is everything."""
        twin = copy.deepcopy(self.model)
        use(twin, attention="full()")
        return self.accumulated(twin)

    def processes(self) -> Gradients:
        return gradients_of_processes(self.model, self.objective, self.batch, self.micro_batch)

    def transformers(self) -> Gradients:
        return trainer_gradients(self.model, self.for_the_models_own_loss(), self.micro_batch)

    @torch.no_grad()
    def for_the_models_own_loss(self) -> dict[str, Tensor]:
        """The batch with labels as the model's own forward takes them: laid out so that its loss is the recipe's.

        ``InputError`` where no layout gives that loss: the Trainer would learn something else, which says nothing about it.
        """
        recipes, found = float(self.objective(self.model, self.batch).mean()), []
        for layout in _layouts(self.model, self.batch):
            found.append(float(self.model(**layout).loss))
            if abs(found[-1] - recipes) <= _SAME_LOSS * max(1.0, abs(recipes)):
                return layout
        shown = f"a loss of {', '.join(f'{one:.4g}' for one in found)}" if found else "no labels that it takes"
        raise InputError(f"found {shown} from the model's own forward, expected the recipe's {recipes:.4g}")


SETTINGS: dict[str, tuple[str, Callable[[_Case], Gradients]]] = {
    "accumulation": ("pieces of a micro-batch", lambda case: case.accumulated()),
    "checkpointing": ("pieces, layers checkpointed", lambda case: case.accumulated(checkpointing=True)),
    "unsharing": ("pieces, ALBERT unshared (copies summed)", lambda case: case.unshared()),
    "attention": ("pieces, jieyue's attention", lambda case: case.attended()),
    "processes": ("pieces, two processes (DDP, gloo)", lambda case: case.processes()),
    "transformers": ("transformers' Trainer, gradient_accumulation_steps", lambda case: case.transformers()),
}


def verify_update(
    model: nn.Module,
    objective: Objective,
    batch: Mapping[str, Tensor],
    *,
    micro_batch: int,
    settings: tuple[str, ...] = tuple(SETTINGS),
    dtype: torch.dtype = torch.float32,
    name: str = "a model",
) -> UpdateCheck:
    """The update of ``batch`` undivided and in each of ``settings`` (of ``SETTINGS``), compared; the model stays as it is.

    ``batch``: collated rows with ``labels``. ``dtype``: float64 shows exactness to 1e-12, float32 what training will see.
    Cost: two or three passes over the batch a setting, two copies of the model. A setting that does not apply (a model that
    is not an ALBERT, a head whose layers cannot be checkpointed) is listed with its reason.

    Refuses (``InputError``) unknown settings and a micro-batch that does not divide anything.
    """
    rows = num_rows(batch)
    if unknown := [one for one in settings if one not in SETTINGS]:
        raise InputError("verify update", ", ".join(unknown), f"settings of {', '.join(SETTINGS)}")
    if not 1 <= micro_batch < rows:
        raise InputError(f"micro_batch={micro_batch}", f"{rows} rows", "at least 1 row and fewer than all")
    twin = without_dropout(copy.deepcopy(model).to(dtype)).train()
    case = _Case(twin, objective, batch, micro_batch)
    counted: list[Tally] = []

    def counting(model: nn.Module, piece: Batch) -> Tally:
        counted.append(objective(model, piece).detach())
        return objective(model, piece)

    with torch.no_grad():
        counting(twin, batch)
    reference = case.undivided()
    step = _step(reference)
    found = []
    for key in settings:
        shown, measure = SETTINGS[key]
        if key == "unsharing" and not _is_shared(twin):
            found.append(Equality(setting=shown, refused="not an ALBERT with shared layers"))
            continue
        try:
            gradients = measure(case)
        except InputError as error:
            found.append(Equality(setting=shown, refused=f"not possible: {error}"))
            continue
        finally:
            twin.zero_grad(set_to_none=True)
        found.append(_compare(shown, reference, gradients, step, dtype))
    return UpdateCheck(
        model=name,
        rows=rows,
        labels=round(float(counted[0].weight)),
        micro_batch=micro_batch,
        dtype=str(dtype).removeprefix("torch."),
        settings=tuple(found),
    )


def without_dropout(model: nn.Module) -> nn.Module:
    """Every dropout of the model at probability 0, in place, so that two passes can be compared."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name, value in vars(module).items():
            if isinstance(value, float) and "drop" in name:
                setattr(module, name, 0.0)
    return model


def _gradients(model: nn.Module, objective: Objective, batch: Mapping[str, Tensor], plan: Plan) -> Gradients:
    model.train().zero_grad(set_to_none=True)
    accumulate(objective, model, batch, micro_batch=MicroBatch(plan))
    found = {name: p.grad.detach().clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def _compare(setting: str, reference: Gradients, found: Gradients, step: Gradients, dtype: torch.dtype) -> Equality:
    if missing := sorted(set(reference) ^ set(found)):
        return Equality(setting=setting, refused=f"other weights have gradients: {', '.join(missing[:3])}")
    ratio, cosine, largest = _measure(reference, found)
    _, update_cosine, update_largest = _measure(step, _step(found))
    return Equality(
        setting=setting,
        ratio=ratio,
        cosine=cosine,
        largest=largest,
        update_cosine=update_cosine,
        update_largest=update_largest,
        rounding=ROUNDING.get(dtype, ROUNDING[torch.float32]),
    )


def _measure(reference: Gradients, found: Gradients) -> tuple[float, float, float]:
    """Ratio of the norms, cosine, and the largest difference relative to the largest entry; sums in float64."""
    dot = own = base = largest = scale = 0.0
    for name, expected in reference.items():
        a, b = expected.double().flatten(), found[name].double().flatten()
        dot, own, base = dot + float(a @ b), own + float(b @ b), base + float(a @ a)
        largest, scale = max(largest, float((a - b).abs().max())), max(scale, float(a.abs().max()))
    return (own / base) ** 0.5, dot / (own * base) ** 0.5, largest / scale


def _step(gradients: Gradients) -> Gradients:
    """The change of weights that start at zero, by one step of AdamW with this gradient."""
    weights = {name: nn.Parameter(torch.zeros_like(gradient)) for name, gradient in gradients.items()}
    optimizer = torch.optim.AdamW(weights.values(), lr=RATE, weight_decay=0.0)
    for name, gradient in gradients.items():
        weights[name].grad = gradient
    optimizer.step()
    return {name: weight.detach() for name, weight in weights.items()}


def _shared_name(name: str) -> str:
    """The name that a copy's weight has in the shared model: group 0 of ALBERT's groups."""
    head, mark, tail = name.partition("albert_layer_groups.")
    return f"{head}{mark}0.{tail.partition('.')[2]}" if mark else name


def _is_shared(model: nn.Module) -> bool:
    try:
        return sharing_of(model).num_groups == 1 and sharing_of(model).num_layers > 1
    except InputError:
        return False


def _layouts(model: nn.Module, batch: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The layouts in which a model's own forward may take these labels, one value for each token or each row."""
    labels, ids = batch["labels"], batch["input_ids"]
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "places")}
    every = torch.full_like(ids, -100)
    if labels.shape == ids.shape:
        yield {**inputs, "labels": labels}
        every[:, 1:] = labels[:, :-1]  # ours name the next token, a causal model's own loss looks there itself
    elif "places" in batch and batch["places"].shape == labels.shape:
        row, column = (labels != -100).nonzero(as_tuple=True)
        every[row, batch["places"][row, column]] = labels[row, column]
    elif labels.shape[1] == 1 and model(**inputs).logits.ndim == 2:  # one label a row
        every = labels[:, 0]
    elif "places" not in batch:  # answer slots at the positions 1 … A
        every[:, 1 : 1 + labels.shape[1]] = labels
    else:
        return
    yield {**inputs, "labels": every}


def _shown(value: float) -> float | None:
    return None if value != value else float(f"{value:.6g}")
