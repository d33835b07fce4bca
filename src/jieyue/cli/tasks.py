"""``jieyue train|plan|doctor TASK``: one verb a task, its flags those of ``RunConfig``, ``TrainingConfig`` and its settings."""

from __future__ import annotations

import inspect
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jieyue.budget import Budget
from jieyue.errors import InputError
from jieyue.run.config import TrainingConfig
from jieyue.run.folder import check_free
from jieyue.tasks.config import RunConfig
from jieyue.tasks.settings import Settings

from .console import Console, in_own_language, show
from .flags import Given, chosen, flag_of, flags_of, verb_of
from .options import Allocator, AsJson, BudgetText, ConfigFile, Device, Overwrite, Resume, Show, Strict

if TYPE_CHECKING:
    from jieyue.training.remedies.remedy import Remedy

__all__ = ["TITLE", "VERBS", "TaskVerb", "add_to", "remedies_of", "run_config"]

_SIZES = "tiny (2 layers of width 128), small (6 of 256), base (12 of 768)"
_CLASSIC = "albert-tiny, bert-tiny (4 of 128), albert-small, bert-small (6 of 256)"
_PRESETS = f"A preset: {_SIZES}; {_CLASSIC}. Or a folder, or a hub name."
_LEFT = "Files to judge by. Default: the shipped held-out part, or a tenth of --data."
PLANNED = (
    "effective_batch",
    "seed",
    "checkpointing",
    "optimizer",
    "dtype",
    "in_backward",
)  # of TrainingConfig, what a plan depends on

Files = Annotated[list[Path] | None, typer.Argument(help="Training files. Default: the corpus that ships.")]
Remedies = Annotated[
    list[str] | None,
    typer.Option("--remedy", help="Such as 'replace_tokens(0.3)', 'fgm(0.5)'; several nest, the first innermost."),
]


@dataclass(frozen=True, kw_only=True)
class TaskVerb:
    """What the command line says of a task. ``settings``: module and class; ``then``: the command to try after training.

    ``without``: fields of the configurations that it has no flags for; ``words``, ``flags``, ``defaults``: in place of theirs.
    """

    name: str
    settings: str
    help: str
    out: str
    then: str
    without: tuple[str, ...] = ("curriculum",)
    words: Mapping[str, str] = field(default_factory=dict)
    flags: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, int] = field(default_factory=dict)
    has_remedies: bool = False

    @property
    def settings_class(self) -> type[Settings]:
        """Imported when flags are made; light."""
        module, name = self.settings.split(":")
        found: type[Settings] = getattr(import_module(module), name)
        return found


_DATA = "Training files (SQuAD, CMRC 2018, DRCD, multi-passage JSON, CSV). Default: the corpus that ships."

TITLE = TaskVerb(
    name="title",
    settings="jieyue.tasks.title.settings:TitleSettings",
    help="a writer of titles",
    out="runs/title",
    then="jieyue title {} --file text.txt",
    without=("curriculum", "attention", "unshare", "unshare_after"),
    words={
        "model": f"A preset: {_SIZES}. Or a folder, or a hub name: masked LM, causal LM or BART/T5.",
        "data": "TSV, CSV or JSON lines with sources and titles. Default: the corpus that ships.",
        "held_out": "Files to judge by. Default: what ships, or a tenth of --data.",
    },
    defaults={"effective_batch": 16},
    has_remedies=True,
)

VERBS = (
    TaskVerb(
        name="read",
        settings="jieyue.tasks.read.settings:ReadSettings",
        help="a reader",
        out="runs/reader",
        then="jieyue read {} --question '…' --file passage.txt",
        without=(),
        words={
            "model": _PRESETS,
            "data": _DATA,
            "held_out": "Files to judge by. Default: the shipped held-out part, or a tenth of the passages of --data.",
            "limit": "At most this many training questions, sampled (and as many held-out ones).",
        },
        flags={"limit": "--questions"},
    ),
    TaskVerb(
        name="classify",
        settings="jieyue.tasks.classify.settings:ClassifySettings",
        help="a text classifier",
        out="runs/classifier",
        then="jieyue predict {} FILE.csv --out labelled.csv",
        words={
            "model": _PRESETS,
            "data": "Training files: TSV, CSV, JSON or JSON lines. Default: the corpus that ships, by topic.",
            "held_out": _LEFT,
        },
    ),
    TaskVerb(
        name="tag",
        settings="jieyue.tasks.tag.settings:TagSettings",
        help="a tagger of entities",
        out="runs/tagger",
        then="jieyue predict {} FILE.jsonl --out tagged.jsonl",
        words={
            "model": _PRESETS,
            "data": "Training files: CoNLL columns, or JSON with spans. None ships.",
            "held_out": "Files to judge by. Default: a tenth of --data.",
        },
    ),
    TaskVerb(
        name="mlm",
        settings="jieyue.tasks.mlm.settings:MaskSettings",
        help="a masked language model on plain text",
        out="runs/mlm",
        then="jieyue train classify --model {}",
        words={
            "model": _PRESETS,
            "data": "Training files of plain text, a paragraph a line. Default: the corpus that ships.",
            "held_out": _LEFT,
        },
    ),
    TITLE,
    TaskVerb(
        name="chat",
        settings="jieyue.tasks.chat.settings:ChatSettings",
        help="a model to talk",
        out="runs/chat",
        then="jieyue chat {}",
        without=("curriculum", "start", "new_head", "unshare", "unshare_after"),
        words={
            "model": "A preset: tiny (3 layers of width 192), small (8 of 512). Or a folder, or a hub name.",
            "data": "Dialogues (LCCC, OpenAI messages, ShareGPT, Alpaca, CSV …). Default: the corpus that ships.",
            "held_out": "Dialogues to judge by. Default: a fiftieth of --data.",
        },
        defaults={"effective_batch": 8},
    ),
)

_FILE_FLAGS = (flag_of("config", ConfigFile, None), flag_of("show", Show, False))


def add_to(app: typer.Typer, plan: typer.Typer) -> None:
    """Registers every task's verbs; ``plan``: the group that has ``plan model`` already."""
    train = typer.Typer(help="Train a model by task, under a budget.", no_args_is_help=True)
    text = "Check data before training; without a task: what is installed and found on this machine."
    doctor = typer.Typer(help=text, invoke_without_command=True)
    doctor.callback()(_machine)
    for verb in VERBS:
        train.command(verb.name)(verb_of(partial(_run_train, verb), _train_flags(verb), _train_help(verb)))
        plan.command(verb.name)(verb_of(partial(_run_plan, verb), _plan_flags(verb), _PLAN_HELP))
        doctor.command(verb.name)(verb_of(partial(_run_doctor, verb), _doctor_flags(verb), _DOCTOR_HELP))
    app.add_typer(train, name="train")
    app.add_typer(doctor, name="doctor")


def _machine(context: typer.Context, as_json: AsJson = False) -> None:
    """Check data before training; without a task: what is installed and found on this machine, to paste into an issue."""
    if context.invoked_subcommand is None:
        from jieyue.run.environment import environment

        show(Console(as_json), environment())


_PLAN_HELP = "Predict the peak of a training step before any weight is allocated, and choose the micro-batch."
_DOCTOR_HELP = "Count everything that is wrong with the data, or will be cut, before training."


def _train_help(verb: TaskVerb) -> str:
    return f"Train {verb.help}: plan, train, evaluate, report."


def _own(verb: TaskVerb, settings: type[Any], leave: tuple[str, ...] = ()) -> list[inspect.Parameter]:
    leave = (*verb.without, *leave)
    return flags_of(settings, leave=leave, words=verb.words, flags=verb.flags, defaults=verb.defaults)


def _train_flags(verb: TaskVerb) -> list[inspect.Parameter]:
    out = Annotated[Path, typer.Option(help="Folder for the model, its card, checkpoints and the report.")]
    return [
        *_own(verb, RunConfig),
        flag_of("out", out, Path(verb.out)),
        *_own(verb, TrainingConfig),
        *flags_of(verb.settings_class, is_open=True),
        *([flag_of("remedy", Remedies, None)] if verb.has_remedies else []),
        flag_of("budget", BudgetText, "4GiB"),
        flag_of("device", Device, "cpu"),
        flag_of("allocator", Allocator, "auto"),
        flag_of("resume", Resume, False),
        flag_of("overwrite", Overwrite, False),
        *_FILE_FLAGS,
        flag_of("as_json", AsJson, False),
    ]


def _plan_flags(verb: TaskVerb) -> list[inspect.Parameter]:
    planned = [one for one in _own(verb, TrainingConfig) if one.name in PLANNED]
    return [
        *_own(verb, RunConfig),
        *planned,
        *flags_of(verb.settings_class, is_open=True),
        *([flag_of("remedy", Remedies, None)] if verb.has_remedies else []),
        flag_of("budget", BudgetText, "4GiB"),
        flag_of("device", Device, "cpu"),
        *_FILE_FLAGS,
        flag_of("as_json", AsJson, False),
    ]


def _doctor_flags(verb: TaskVerb) -> list[inspect.Parameter]:
    kept = ("model", "held_out", "limit", "skip_bad")
    return [
        flag_of("files", Files, None),
        *(one for one in _own(verb, RunConfig) if one.name in kept),
        *flags_of(verb.settings_class, is_open=True),
        flag_of("strict", Strict, False),
        *_FILE_FLAGS,
        flag_of("as_json", AsJson, False),
    ]


def run_config(verb: TaskVerb, given: Given, seed: int) -> RunConfig:
    """Files are looked for before anything slow is imported; then the task's settings with what was given of them."""
    try:
        config = RunConfig(**chosen(RunConfig, given))
    except InputError as error:
        for name, flag in verb.flags.items():
            if str(error).startswith(f"{name}="):  # what was typed has another name
                raise InputError(f"{flag}{str(error).removeprefix(name)}") from None
        raise
    changes = chosen(verb.settings_class, given, is_open=True)
    if not changes:
        return config
    from jieyue.tasks.table import task

    return replace(config, settings=task(verb.name).default_settings(config, seed).changed(**changes))


def remedies_of(texts: list[str] | None) -> tuple[Remedy, ...]:
    """``--remedy`` as remedies, in order."""
    if not texts:
        return ()
    from jieyue.training.remedies.texts import parse_remedy

    return tuple(parse_remedy(text) for text in texts)


def _training(given: Given) -> TrainingConfig:
    return TrainingConfig(**chosen(TrainingConfig, given), remedies=remedies_of(given.get("remedy")))


def _run_train(verb: TaskVerb, given: Given) -> None:
    budget, out = Budget.parse(given["budget"], given["device"]), given["out"]
    if not given["show"]:
        check_free(out, given["model"], resume=given["resume"], overwrite=given["overwrite"])
    config = run_config(verb, given, given["seed"])
    training, console = _training(given), Console(given["as_json"])
    if given["show"]:
        console.settings(f"train {verb.name}", _train_flags(verb), given)
        return
    config = replace(config, progress=console.reading)
    from jieyue.hf.interrupts import Interrupted
    from jieyue.run.folder import Out
    from jieyue.run.jobs import Stopped, train
    from jieyue.tasks.table import task

    try:
        report = train(
            verb.name,
            config,
            Out(out, given["overwrite"]),
            budget=budget,
            training=training,
            resume=given["resume"],
            command=shlex.join(["jieyue", *sys.argv[1:]]),
            listener=console,
        )
    except Interrupted as stopped:
        console.say(f"{stopped}; the same command with --resume goes on from there")
        raise typer.Exit(130) from None
    except Stopped as stopped:
        console.say(str(stopped))
        raise typer.Exit(130) from None
    if not console.speaks:  # another process of the same torchrun reports
        return
    in_own_language(report, out / "report.html")
    show(console, report, (task(verb.name).quality, "Memory", "Sharing"), page=out / "report.html")
    console.fact("saved", model=str(out), report=str(out / "report.html"))
    if not given["as_json"]:
        place, file = shlex.quote(str(out)), " FILE" if config.data else ""  # what ships is another thing than own data
        console.say(f"\nNext:\n  jieyue evaluate {place}{file}\n  {verb.then.format(place)}")


def _run_plan(verb: TaskVerb, given: Given) -> None:
    budget = Budget.parse(given["budget"], given["device"])
    config, training = run_config(verb, given, given["seed"]), _training(given)
    console = Console(given["as_json"])
    if given["show"]:
        console.settings(f"plan {verb.name}", _plan_flags(verb), given)
        return
    from jieyue.run.jobs import plan

    show(console, plan(verb.name, config, budget=budget, training=training))


def _run_doctor(verb: TaskVerb, given: Given) -> None:
    console = Console(given["as_json"])
    config = replace(run_config(verb, {**given, "data": given["files"]}, 0), progress=console.reading)
    if given["show"]:
        console.settings(f"doctor {verb.name}", _doctor_flags(verb), given)
        return
    from jieyue.run.jobs import examined

    report, found = examined(verb.name, config)
    show(console, report)
    errors = sum(one.severity == "error" for one in found)
    if errors and given["strict"]:
        raise typer.Exit(1)
