"""A model that is there under a sparse attention: measured, its full layers chosen, then trained a little, and the price told.

measure      cost of every token with all and no layer full, and of each layer sparse alone; nothing is trained
choose       which layers or key-value heads stay full: greedily by the joint price on calibration text (layer_choice)
train        as every training: task ``sparsify`` under the chosen list, exact accumulation under the budget
tell         the price on held-out text, and on a second kind, beside the full model and the full model trained alike
"""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from jieyue import __version__
from jieyue.budget import Budget
from jieyue.hf.loading import load_model, save
from jieyue.hf.positions import stretch
from jieyue.hf.switched_layers import switch_off_linear
from jieyue.hf.types import Model, Tokenizer
from jieyue.hf.use import use
from jieyue.json_values import Facts
from jieyue.listener import SILENT, ProgressListener
from jieyue.machine import describe
from jieyue.report import Report, write_whole
from jieyue.tasks import RunConfig
from jieyue.tasks.models import ModelSource
from jieyue.tasks.sparsify.costs import Costs, costs_of, encoded
from jieyue.tasks.sparsify.settings import SparseSettings
from jieyue.tasks.sparsify.task import TASK

from .cards import write_card
from .config import TrainingConfig
from .folder import MEMORY, Out, check_apart, check_folder, check_unfinished, lasting, locked
from .jobs import DEFAULT_BUDGET, say_findings, train
from .layer_doors import (
    check_set_aside,
    check_tokenizer,
    check_training,
    checked_settings,
    control_of,
    num_updates,
    read_texts,
)
from .layer_notes import Notes, check_same
from .layer_options import Choosing
from .layer_prices import ALL_FULL, Measured, Text, measure_layers, price_as_it_was, rows_digest
from .needles import DEPTHS, Prompt, find_needles, needle_prompts, needles_section
from .plan import check_budget
from .resume import RESOLVED
from .sections import leakage_facts, settings_section
from .sparse_savings import measure_savings, savings_section
from .sparse_sections import (
    ALIKE,
    NO_LINEAR_TRAINED,
    TRAINED,
    choice_section,
    positions_section,
    prices_section,
    unlearned_note,
)

__all__ = ["CHOICE", "EFFECTIVE_BATCH", "sparsify"]

EFFECTIVE_BATCH = 8
CHOICE = "choice.json"  # what was measured and chosen, for --resume
NOTES = "measured.jsonl"  # what was measured before there is a choice
_LATER = ("tokens", "control")  # what is not told with the choice
CONTROL, FULL = "control", "full"  # folders inside: the full model trained alike, and an encoder in hand as it was


def sparsify(
    config: RunConfig,
    choosing: Choosing | None = None,
    out: str | Path | Out = "runs/sparse",
    *,
    budget: str | int | Budget = DEFAULT_BUDGET,
    training: TrainingConfig | None = None,
    resume: bool = False,
    command: str = "",
    listener: ProgressListener = SILENT,
) -> Report:
    """Measures, chooses, trains where ``choosing.tokens`` says so, and leaves model, card and report in ``out``.

    ``config``: the model's folder or hub name, its ``attention`` (a pattern, or local(w)+linear(map); a list is tiled over the
    layers), files, settings of the task ``sparsify``. ``training``: how; its length comes from ``choosing.tokens``. ``resume``: what
    was chosen is kept, and training goes on from its checkpoint. ``budget`` bounds the training, not the measuring, which holds
    the model and some thousand tokens. Raises ``InputError`` for what does not fit together, before anything runs.
    """
    place, allowed = Out.of(out), Budget.parse(budget)
    choosing, training = choosing or Choosing(), training or TrainingConfig(effective_batch=EFFECTIVE_BATCH)
    folder = place.path
    settings = checked_settings(config, choosing, training, allowed.device)
    check_budget(allowed)
    check_apart(folder, config.model)
    check_folder(folder)
    check_unfinished(folder, place.overwrite or resume)
    asked, own = _asked(config, choosing, settings), config.model
    with locked(folder):
        if settings.kind == "encoder" and lasting(config.model) != config.model:
            settings = replace(settings, teacher=_kept_beside(config.model, folder / FULL))
        if choosing.positions != "none":
            config, settings = _stretched(folder, config, settings, choosing, listener)
        report, attention, settings, texts = _first(
            folder, config, settings, (choosing, own, training), asked, resume, (allowed, listener)
        )
        if not choosing.tokens:
            return _kept(report, config, settings, attention, folder, command)
    gc.collect()
    chosen = replace(config, attention=attention, settings=settings)
    how = replace(training, steps=num_updates(choosing, settings, training))
    trained = train(
        "sparsify",
        chosen,
        Out(folder, True),
        budget=allowed,
        training=how,
        resume=resume and (folder / RESOLVED).is_file(),  # else it was stopped before the first update
        command=command,
        listener=listener,
    )
    models = {TRAINED: folder}
    if choosing.control:
        listener.say("Training the full model on the same tokens")
        again = resume and (folder / CONTROL / RESOLVED).is_file()
        train(
            "sparsify",
            control_of(chosen, settings),
            Out(folder / CONTROL, True),
            budget=allowed,
            training=replace(how, measure=False),
            resume=again,
            listener=listener,
        )
        models["full, trained alike"] = folder / CONTROL
    listener.say("Pricing what was trained")
    _tell_trained(report, config, settings, texts, models, allowed.device)
    report.sections += trained.sections
    report.save(folder)
    write_card(report, TASK, folder, command or "jieyue.sparsify(...)", config.model)
    return report


def _kept_beside(model: str, place: Path) -> str:
    """A copy of an encoder in hand, which the sparse one is judged against as long as that is there."""
    part = place.with_name(place.name + ".part")
    for old in (part, place):
        shutil.rmtree(old, ignore_errors=True)
    shutil.copytree(model, part)
    return str(part.rename(place).absolute())


def _stretched(
    folder: Path, config: RunConfig, settings: SparseSettings, choosing: Choosing, listener: ProgressListener
) -> tuple[RunConfig, SparseSettings]:
    """The run of the model with more positions, which lies in a folder of its own and is the full model from now on."""
    how, factor = choosing.positions, choosing.position_factor
    listener.say(f"Stretching the positions: {how}, {factor:g} times as many")
    record = {"recipe": TASK.name, "version": __version__, "settings": settings.to_dict()}
    wide = str(stretch(config.model, how, factor, folder / f"{how}-{factor:g}", record).absolute())
    return replace(config, model=wide), replace(settings, teacher=wide)


def _asked(config: RunConfig, choosing: Choosing, settings: SparseSettings) -> Facts:
    """What a choice depends on: it is kept for --resume only where all of this is the same."""
    usual = asdict(Choosing())
    own = {name: str(value) for name, value in asdict(choosing).items() if name not in _LATER}
    for name in ("savings_at", "needles"):  # of which older choices know nothing
        if own[name] == str(usual[name]):
            del own[name]
    own["second_data"] = str(tuple(Path(path).name for path in choosing.second_data))
    rows = {"row_tokens": settings.row_tokens, "seed": settings.seed, "limit": config.limit}
    files = [Path(path).name for path in (*config.data, *config.held_out)]
    return {
        "model": lasting(config.model),
        "attention": config.attention,
        "files": files,
        **own,
        **rows,
        "version": __version__,
    }


def _first(
    folder: Path,
    config: RunConfig,
    settings: SparseSettings,
    wanted: tuple[Choosing, str, TrainingConfig],
    asked: Facts,
    resume: bool,
    how: tuple[Budget, ProgressListener],
) -> tuple[Report, str, SparseSettings, list[Text]]:
    """What is measured and chosen, or what an interrupted run had chosen; ``wanted``: how, of which model before its positions
    were stretched, and the training that is to come; ``how``: its budget with the device, and who is told."""
    (choosing, own, training), (allowed, listener) = wanted, how
    listener.say(f"Reading {', '.join(map(str, config.data)) or 'the corpus that ships'}")
    source = TASK.open_model(replace(config, attention=None), replace(settings, train="all"), list, seed=settings.seed)
    check_tokenizer(settings, source.tokenizer)
    settings, sources, texts = read_texts(config, choosing, settings, source, listener)
    if choosing.tokens:
        check_set_aside(sources, source.tokenizer, settings, training, listener)
    else:  # with training told before that
        say_findings(listener, sources, {})
    asked = {**asked, "rows": rows_digest(texts)}
    listener.fact(
        "text", **{text.name.replace(" ", "_"): text.num_rows for text in texts}, row_tokens=settings.row_tokens
    )
    path = folder / CHOICE
    if resume and path.is_file():
        kept = dict(json.loads(path.read_text(encoding="utf-8")))
        before = {"rows": asked["rows"], **dict(kept.get("asked") or {})}  # older choices did not say which rows
        before["files"] = [Path(one).name for one in before.get("files", ())]
        check_same(before, asked)
        return Report.parse(json.dumps(kept["report"])), str(kept["attention"]), settings, texts
    if choosing.tokens:
        check_training(config, choosing, settings, training, allowed, (sources, texts[0]), listener)
    prompts = _prompts(choosing, source.tokenizer, texts[1], settings)
    notes = _notes(folder, asked, resume, listener)
    model = source.build().to(allowed.device)
    assert config.attention is not None
    measured = measure_layers(model, texts, config.attention, choosing, listener, notes)
    beside = _beside(model, source, measured, choosing, settings, prompts, listener)  # type: ignore[arg-type]
    del model
    if choosing.positions != "none" and settings.kind != "encoder":
        before = load_model(own, settings.head("")).to(allowed.device)  # type: ignore[arg-type]
        measured = price_as_it_was(measured, texts, before, settings.row_tokens, listener)
    report = _told(config, own, measured, texts, settings)
    leakage_facts(report, f"Price without training, {texts[1].name}", sources)
    positions_section(report, choosing, source.positions)
    report.sections += beside.sections
    chosen = {"asked": asked, "attention": measured.attention, "report": json.loads(report.json())}
    write_whole(path, json.dumps(chosen, ensure_ascii=False) + "\n")
    (folder / NOTES).unlink(missing_ok=True)  # several processes of one run may share the folder
    listener.fact("chosen", attention=measured.attention, **{f"full_{choosing.noun}s": len(measured.choice.full)})
    return report, measured.attention, settings, texts


def _prompts(choosing: Choosing, tokenizer: Tokenizer, text: Text, settings: SparseSettings) -> list[Prompt]:
    """Prompts of the held-out rows, each of a row's length."""
    if not choosing.needles:
        return []
    ids = [token for batch in text.batches for token in batch["input_ids"].flatten().tolist()]
    return needle_prompts(tokenizer, ids, settings.row_tokens, DEPTHS, choosing.needles, settings.seed)[0]


def _beside(
    model: Model,
    source: ModelSource,
    measured: Measured,
    choosing: Choosing,
    settings: SparseSettings,
    prompts: Sequence[Prompt],
    listener: ProgressListener,
) -> Report:
    """What the chosen attention saves by length, and what each mix of layers still finds; nothing where every layer stays full."""
    told = Report("")
    if measured.attention == "full()":
        return told
    lengths = [one for one in choosing.lengths if one <= source.positions]
    writes = settings.kind == "causal"
    found = measure_savings(model, measured.attention, lengths, writes=writes, listener=listener) if lengths else []
    savings_section(told, found, choosing.lengths, source.positions)
    if prompts:
        listener.say(f"Asking for {len(prompts)} needles in rows of {settings.row_tokens:,} tokens")

        def heard(mix: str, found: Sequence[bool]) -> None:
            listener.fact("needles", layers=mix, found=sum(found), of=len(found))

        mixes = {ALL_FULL: None, **measured.mixes}
        needles_section(
            told, settings.row_tokens, prompts, find_needles(model, source.tokenizer, mixes, prompts, heard)
        )
    return told


def _notes(folder: Path, asked: Facts, resume: bool, listener: ProgressListener) -> Notes:
    """Where what is measured is kept; with what an interrupted run has found, or anew, and then nothing else of that run is left."""
    notes = Notes.begun(folder / NOTES, asked, resume)
    if notes.known:
        listener.say(f"Going on with {len(notes.known)} results of measuring that were kept")
    if not resume:
        for stale in (folder / CHOICE, folder / RESOLVED, folder / CONTROL / RESOLVED):
            stale.unlink(missing_ok=True)
    return notes


def _told(config: RunConfig, own: str, measured: Measured, texts: Sequence[Text], settings: SparseSettings) -> Report:
    report = Report(f"{TASK.title} · {Path(own).name} · {config.attention}")
    for text in texts[1:]:
        title = f"Price without training, {text.name}"
        prices_section(report, title, text.name, measured.settings(text.name), settings.row_tokens)
    choice_section(report, measured, texts[0].num_rows, settings.row_tokens)
    unlearned_note(report, measured)
    prices_section(
        report, "Price on the calibration text", "calibration", measured.settings("calibration"), settings.row_tokens
    )
    return report


def _tell_trained(
    report: Report,
    config: RunConfig,
    settings: SparseSettings,
    texts: Sequence[Text],
    models: dict[str, Path],
    device: str,
) -> None:
    """The full model as it is, then each trained one, on the held-out and the second text; with its linear maps switched off too."""
    off = dict[str, tuple[str, Costs]]()
    head = None if settings.kind == "encoder" else settings.head("")
    full = load_model(config.model, head).to(device)  # type: ignore[arg-type]
    known = {text.name: encoded(full, text.batches) if head is None else None for text in texts[1:]}
    found: dict[str, list[tuple[str, Costs]]] = {
        text.name: [(ALL_FULL, costs_of(full, text.batches, reference=known[text.name]))] for text in texts[1:]
    }
    del full
    for name, place in models.items():
        model = load_model(place, head).to(device)  # type: ignore[arg-type]
        for text in texts[1:]:
            found[text.name].append((name, costs_of(model, text.batches, reference=known[text.name])))
        if name == TRAINED and switch_off_linear(model):
            for text in texts[1:]:
                off[text.name] = (NO_LINEAR_TRAINED, costs_of(model, text.batches, reference=known[text.name]))
    told = Report("")
    for name, settings_of in found.items():
        alike = len(settings_of) > 2
        if alike:  # beside the full model trained alike: what training on the text did for both is not counted
            (_, _), sparse, control = settings_of
            section = f"Price against the full model trained alike, {name}"
            prices_section(told, section, f"{name}, {ALIKE}", [control, sparse], settings.row_tokens)
        rows = [*settings_of, off[name]] if name in off else settings_of
        prices_section(told, f"Price after training, {name}", name, rows, settings.row_tokens, key=not alike)
    report.sections[:0] = told.sections


def _kept(
    report: Report, config: RunConfig, settings: SparseSettings, attention: str, folder: Path, command: str
) -> Report:
    """The model as it is, under the chosen attention, as a folder; nothing was trained."""
    plain = replace(config, attention=None)
    source = TASK.open_model(plain, replace(settings, train="all"), list, seed=settings.seed)
    model = source.build()
    use(model, attention=attention)
    record = {"recipe": TASK.name, "version": __version__, "settings": settings.to_dict(), "model": config.model}
    save(model, source.tokenizer, folder, record)
    write_whole(folder / MEMORY, "{}\n")  # nothing was trained, so there is nothing that judging must know of it
    told = {"model": config.model, "attention": config.attention, **settings.to_dict()}
    settings_section(report, {**told, "command": command or "jieyue.sparsify(...)"}, describe())
    report.save(folder)
    write_card(report, TASK, folder, command or "jieyue.sparsify(...)", config.model)
    return report
