"""``jieyue sparsify MODEL``: sparse attention in a model that is there, its price measured, its full layers chosen, then trained."""

from __future__ import annotations

import inspect
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from jieyue.budget import Budget
from jieyue.run.config import TrainingConfig
from jieyue.run.folder import check_free
from jieyue.run.layer_options import Choosing
from jieyue.tasks.config import RunConfig
from jieyue.tasks.sparsify.settings import SparseSettings

from .console import Console, show
from .flags import Given, chosen, flag_of, flags_of, verb_of
from .options import AsJson, BudgetText, ConfigFile, Device, Overwrite, Resume, Show

__all__ = ["add_to"]

_RUN = ("data", "held_out", "attention", "limit", "skip_bad")
_WORDS = {
    "data": "Plain text, a paragraph a line (or JSON, Parquet). Default: the passages that ship.",
    "held_out": "Files to tell the price on. Default: a tenth of --data, in whole stretches.",
    "attention": "What sparse layers read: a pattern such as first(4)+local(512), or local(128)+linear(elu).",
    "limit": "At most this many lines, in whole stretches (and as many held-out ones).",
}
_TRAINING = (
    "effective_batch",
    "learning_rate",
    "warmup_steps",
    "schedule",
    "weight_decay",
    "max_grad_norm",
    "evaluate_every",
    "seed",
    "checkpointing",
    "optimizer",
    "dtype",
    "save_steps",
)
Model = Annotated[str, typer.Argument(help="A trained model: its folder or hub name. Causal, masked, or an encoder.")]
OutFolder = Annotated[Path, typer.Option(help="Folder for the model, its card, checkpoints and the report.")]


def add_to(app: typer.Typer) -> None:
    """Registers the verb."""
    text = (
        "Give a trained model sparse attention: measure the price, choose the layers that stay full, train a little (--tokens), and "
        "tell the price beside the full model."
    )
    app.command("sparsify")(verb_of(_run, _flags(), text))


def _flags() -> list[inspect.Parameter]:
    run = [one for one in flags_of(RunConfig, words=_WORDS) if one.name in _RUN]
    training = [one for one in flags_of(TrainingConfig, defaults={"effective_batch": 8}) if one.name in _TRAINING]
    return [
        flag_of("model", Model, inspect.Parameter.empty),
        *run,
        *flags_of(Choosing),
        *flags_of(SparseSettings, leave=("delimiter",)),
        *training,
        flag_of("out", OutFolder, Path("runs/sparse")),
        flag_of("budget", BudgetText, "4GiB"),
        flag_of("device", Device, "cpu"),
        flag_of("resume", Resume, False),
        flag_of("overwrite", Overwrite, False),
        flag_of("as_json", AsJson, False),
        flag_of("config", ConfigFile, None),
        flag_of("show", Show, False),
    ]


def _run(given: Given) -> None:
    budget, out, console = Budget.parse(given["budget"], given["device"]), given["out"], Console(given["as_json"])
    if not given["show"]:
        check_free(out, given["model"], resume=given["resume"], overwrite=given["overwrite"])
    settings = SparseSettings(**chosen(SparseSettings, given), seed=given["seed"])
    config = RunConfig(**chosen(RunConfig, given) | {"model": given["model"], "settings": settings})
    choosing = Choosing(**chosen(Choosing, given))
    training = TrainingConfig(**chosen(TrainingConfig, given))
    if given["show"]:
        console.settings("sparsify", _flags(), given)
        return
    from jieyue.hf.interrupts import Interrupted
    from jieyue.run.folder import Out
    from jieyue.run.sparsify import sparsify

    try:
        report = sparsify(
            config,
            choosing,
            Out(out, given["overwrite"]),
            budget=budget,
            training=training,
            resume=given["resume"],
            command=shlex.join(["jieyue", *sys.argv[1:]]),
            listener=console,
        )
    except KeyboardInterrupt as stopped:  # wherever it came: what was measured, chosen and trained is kept
        left = str(stopped) if isinstance(stopped, Interrupted) else "stopped"
        console.say(f"{left}; the same command with --resume goes on from there")
        raise typer.Exit(130) from None
    titles = tuple(one.title for one in report.sections if one.title.startswith(("Price", "Layers", "Heads")))
    show(console, report, titles)
    console.fact("saved", model=str(out), report=str(out / "report.html"))
