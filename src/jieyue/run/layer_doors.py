"""What a run of ``jieyue sparsify`` refuses before anything is measured, which takes minutes: flags, rows, and a training that would
not fit its budget afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from jieyue.budget import Budget
from jieyue.errors import BudgetError, InputError
from jieyue.hf.loading import check_own_attention, head_of, load_config
from jieyue.hf.positions import check_stretch
from jieyue.hf.switched_layers import check_drops, check_sparse
from jieyue.hf.types import Tokenizer
from jieyue.listener import ProgressListener
from jieyue.tasks import RunConfig, Sources
from jieyue.tasks.models import ModelSource
from jieyue.tasks.sparsify.objectives import text_loss
from jieyue.tasks.sparsify.rows import Line
from jieyue.tasks.sparsify.settings import LEAST_TOKENS, SparseSettings
from jieyue.tasks.sparsify.task import TASK

from .batches import Stage
from .config import TrainingConfig
from .devices import check_device
from .layer_options import Choosing
from .layer_prices import Text, TooLittleText, texts_of
from .prepare import Prepared, at_dtype
from .ways import decide

__all__ = [
    "check_set_aside",
    "check_tokenizer",
    "check_training",
    "checked_settings",
    "control_of",
    "num_updates",
    "read_texts",
]

_KINDS = {"causal-lm": "causal", "masked-lm": "masked", None: "encoder"}


def checked_settings(config: RunConfig, choosing: Choosing, training: TrainingConfig, device: str) -> SparseSettings:
    """The task's settings for this kind of model; refuses what cannot be, before anything is read."""
    check_device(device, must_exist=True)
    if config.attention is None:
        raise InputError("sparsify(attention)", "none", "a pattern such as first(4)+local(512)")
    check_sparse(config.attention, choosing.by_heads)
    for name in ("steps", "epochs", "seconds", "start", "curriculum", "plan"):
        if getattr(training, name) is not None:
            found = f"{name}={getattr(training, name)}"
            raise InputError("sparsify(training)", found, "none: tokens says how long it trains", "leave it away")
    if not Path(config.model).is_dir() and "/" not in config.model:
        do = "a preset starts from scratch: train it, then name its folder"
        raise InputError("sparsify(model)", f"{config.model!r}, no folder", "a trained model's folder or hub name", do)
    kind = _KINDS.get(head := head_of(config.model))
    if kind is None:
        raise InputError(
            f"sparsify({config.model!r})",
            f"a model with the head {head}",
            "a causal or masked language model, or an encoder without a head",
        )
    check_own_attention(config.model, "sparsify(model)")
    if choosing.positions != "none":
        check_stretch(load_config(config.model), choosing.positions, choosing.position_factor)
    settings = config.settings if isinstance(config.settings, SparseSettings) else SparseSettings(seed=training.seed)
    teacher = str(Path(config.model).absolute()) if Path(config.model).is_dir() else config.model
    settings = replace(settings, kind=kind, teacher=teacher, judged_tokens=choosing.price_tokens)
    _check_used(settings, choosing)
    if kind == "encoder" and choosing.tokens and settings.distill == "none":
        raise InputError("distill='none'", "an encoder, which has no loss of its own", "distill='means'")
    if kind != "causal" and choosing.needles:
        raise InputError(f"needles={choosing.needles}", f"a model of the kind {kind}", "one that writes, to be asked")
    if kind == "encoder" and choosing.control:
        raise InputError("control", "an encoder: the full model has nothing to learn from itself", "no control")
    return settings


def _check_used(settings: SparseSettings, choosing: Choosing) -> None:
    """Refuses what was asked of a training or of adapters where there are none."""
    usual = SparseSettings()
    for name in ("train", "distill"):
        if not choosing.tokens and (own := getattr(settings, name)) != getattr(usual, name):
            raise InputError(f"{name}={own!r}", "tokens=0, so that nothing is trained", "tokens to train on")
    if settings.train != "adapters" and settings.rank != usual.rank:
        raise InputError(f"rank={settings.rank}", f"train={settings.train!r}", "train='adapters', whose rank it is")


def check_tokenizer(settings: SparseSettings, tokenizer: Tokenizer) -> None:
    """Refuses a tokenizer without the tokens that begin and end a row, or hide one; what writes needs none."""
    needed = {"causal": (), "encoder": ("cls", "sep"), "masked": ("cls", "sep", "mask")}[settings.kind]
    if missing := [f"{name}_token" for name in needed if getattr(tokenizer, f"{name}_token_id") is None]:
        found = f"a model of the kind {settings.kind}, whose tokenizer has no {', '.join(missing)}"
        raise InputError("sparsify(model)", found, "an encoder's tokenizer, or a model that writes, with its head")


def read_texts(
    config: RunConfig, choosing: Choosing, settings: SparseSettings, source: ModelSource, listener: ProgressListener
) -> tuple[SparseSettings, Sources[Line], list[Text]]:
    """The text, parted, and rows of each part; with settings whose rows the model can read, every part fills, and the attention
    drops keys of.

    The rows' length comes first: the text is parted in blocks that go by it, and the training parts it anew. Rows that were asked for
    and do not fit are refused; the usual ones become shorter, and that is said.
    """
    usual, plain = settings.row_tokens == SparseSettings().row_tokens, replace(config, attention=None)
    if settings.row_tokens > source.positions:
        if not usual:
            more = "--positions" if choosing.positions == "none" else "--position-factor"
            allowed = f"at most {source.positions}, the model's positions"
            do = f"--row-tokens {source.positions}, or {more}"
            raise InputError("row_tokens", str(settings.row_tokens), allowed, do)
        listener.say(f"Rows of {source.positions} tokens: the model has no more positions")
    settings = settings.fitted(source.positions)
    check_drops(str(config.attention), settings.row_tokens, is_causal=settings.kind == "causal")
    longest = settings.row_tokens
    while True:
        sources = TASK.sources(plain, settings, settings.seed)
        try:
            texts = texts_of(sources, source.tokenizer, settings, choosing, config)
        except TooLittleText:
            shorter = settings.row_tokens // 2
            if not usual or shorter < LEAST_TOKENS or not _drops(config, shorter, settings):
                raise
            settings = replace(settings, row_tokens=shorter)
            continue
        if settings.row_tokens < longest:
            listener.say(f"Rows of {settings.row_tokens} tokens: the text fills none that is longer")
        return settings, sources, texts


def _drops(config: RunConfig, row_tokens: int, settings: SparseSettings) -> bool:
    """Whether the attention drops keys of rows so short."""
    try:
        check_drops(str(config.attention), row_tokens, is_causal=settings.kind == "causal")
    except InputError:
        return False
    return True


def check_set_aside(
    sources: Sources[Line],
    tokenizer: Tokenizer,
    settings: SparseSettings,
    training: TrainingConfig,
    listener: ProgressListener,
) -> None:
    """Says that no curve will be drawn where the text set aside fills no row; refuses a training that it is to decide."""
    if TASK.encode(sources.set_aside, tokenizer, settings)[0]:
        return
    if training.chooses:
        asked = f"patience={training.patience}" if training.keep != "best" else "keep='best'"
        found = f"text set aside that fills no row of {settings.row_tokens} tokens"
        raise InputError(asked, found, "more running text", "add text, or take shorter rows (--row-tokens)")
    listener.say(
        f"No curve is drawn while it trains: the text set aside fills no row of {settings.row_tokens} tokens; "
        "more text, or shorter rows (--row-tokens), would"
    )


def num_updates(choosing: Choosing, settings: SparseSettings, training: TrainingConfig) -> int:
    """Updates of whole effective batches, as near to the tokens that were asked for as they come."""
    return max(1, round(choosing.tokens / (training.effective_batch * settings.row_tokens)))


def control_of(config: RunConfig, settings: SparseSettings) -> RunConfig:
    """The run of the full model on the same text."""
    return replace(config, attention="full()", settings=replace(settings, distill="none"))


def check_training(
    config: RunConfig,
    choosing: Choosing,
    settings: SparseSettings,
    training: TrainingConfig,
    budget: Budget,
    text: tuple[Sources[Line], Text],
    listener: ProgressListener,
) -> None:
    """Says how much is trained, and refuses a training that would not fit; ``text``: its source, and rows of it.

    Which layers stay full is not known yet. What an update holds is a sum over layers, so it lies between that with no layer full and
    that with every layer full: the run is refused where neither fits, and of a control, which is every layer full, where that does
    not. Between the two the choice decides, and the training refuses; so it does where the some ten MiB are missing by which the
    process grows while it measures.
    """
    sources, rows = text
    per_update = training.effective_batch * settings.row_tokens
    updates = num_updates(choosing, settings, training)
    trained, there = updates * per_update, rows.num_there * settings.row_tokens
    listener.fact("training", updates=updates, tokens=trained, tokens_there=there)
    if per_update > choosing.tokens:
        listener.say(
            f"An update reads {per_update:,} tokens, more than the {choosing.tokens:,} asked for: there is one"
        )
    if trained > there:
        listener.say(
            f"The training text fills rows of {there:,} tokens: training reads each of them {trained / there:.1f} times"
        )
    listener.say("Planning: whether the training fits its budget is found out before anything is measured")
    sparse, whole = (replace(config, attention=own, settings=settings) for own in (config.attention, "full()"))
    row = rows.batches[0]
    if not any(_fits(run, training, budget, sources, row) for run in (sparse, whole)):
        decide(_prepared(sparse, training, budget, sources, row), budget, training)
    if choosing.control:
        try:
            decide(_prepared(control_of(config, settings), training, budget, sources, row), budget, training)
        except BudgetError as error:
            raise BudgetError(f"control: {error}") from None


def _fits(
    config: RunConfig, training: TrainingConfig, budget: Budget, sources: Sources[Line], batch: Mapping[str, Tensor]
) -> bool:
    try:
        decide(_prepared(config, training, budget, sources, batch), budget, training, advise=False)
    except BudgetError:
        return False
    return True


def _prepared(
    config: RunConfig,
    training: TrainingConfig,
    budget: Budget,
    sources: Sources[Line],
    batch: Mapping[str, Tensor],
) -> Prepared:
    """The training of this run as far as a plan must know it: one row, as all are equally long."""
    settings = config.settings
    assert isinstance(settings, SparseSettings)
    source = TASK.open_model(config, settings, list, seed=training.seed)
    row = {name: values[0].numpy() for name, values in batch.items()}
    prepared = Prepared(
        TASK, sources, source, settings, text_loss, text_loss, [row], [settings.row_tokens], [Stage(1.0, 0, 1)], {}
    )
    return at_dtype(prepared, training, budget.device)
