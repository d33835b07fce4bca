"""Titles as a run sees them: where pairs come from, which kind of model writes, how titles are judged and told."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jieyue.data.titles import Pair, shared_pairs
from jieyue.errors import InputError
from jieyue.hf.loading import load, load_config, read_record
from jieyue.hf.presets import PRESETS
from jieyue.recipes import title as titles
from jieyue.recipes.title import Title, TitleSettings
from jieyue.report import Report
from jieyue.run.tasks import Card, Curve, Task
from jieyue.run.values import Materials, Prepared, Sources
from jieyue.run.watch import SILENT, Watch

from .exposure import measure_exposure, tell_exposure
from .sources import open_sources, read_held_out, read_training, texts_of

__all__ = ["TASK", "default_settings", "kind_of", "write"]

CURVE_PAIRS = 60
EXPOSURE_PAIRS = 100
SECTION = "Quality on held-out titles"


@dataclass(frozen=True)
class Judged:
    """Titles in the order of the pairs, their scores, and seconds of writing."""

    pairs: Sequence[Pair]
    titles: list[Title]
    scores: dict[str, Any]
    seconds: float
    settings: TitleSettings
    exposure: dict[str, Any]


def write(folder: str | Path, texts: Sequence[str], **changes: Any) -> list[dict[str, Any]]:
    """Titles for some texts by a trained model; ``changes``: settings for this time, such as ``beams=5``."""
    if not all(text.strip() for text in texts):
        raise InputError("title: found an empty text, expected one to write a title for")
    values = read_record(folder, "title")["settings"] | changes
    settings = TitleSettings.from_dict(values)
    model, tokenizer = load(folder, settings.head("prefix"))
    return [
        {
            "title": one.text,
            "log_probability": round(one.log_probability, 4),
            "finished": one.finished,
            "source_truncated": bool(titles.prompts([text], tokenizer, settings)[1]),
        }
        for text, one in zip(texts, titles.answer(model, tokenizer, list(texts), settings), strict=True)
    ]


def kind_of(model: str) -> titles.Kind:
    """The kind of writer that a model is: encoder-decoder and causal LMs by their configuration, else a prefix LM."""
    if model in PRESETS and not Path(model).is_dir():
        return "prefix"
    config = load_config(model)
    if config.is_encoder_decoder:
        return "encoder-decoder"
    name = (getattr(config, "architectures", None) or [""])[0]
    return "causal" if name.endswith(("CausalLM", "LMHeadModel")) else "prefix"


def default_settings(materials: Materials, seed: int = 0) -> TitleSettings:
    """The article's lengths, for the kind of writer that the model is."""
    return TitleSettings(kind=kind_of(materials.model))


def judge(
    model: Any,
    tokenizer: Any,
    sources: Sources,
    settings: TitleSettings,
    *,
    batch_size: int = 32,
    watch: Watch = SILENT,
) -> Judged:
    """Writes a title for every held-out source and compares."""
    started = time.perf_counter()
    with watch.progress("writing") as update:
        written = titles.answer(
            model,
            tokenizer,
            sources.held_out,
            settings,
            batch_size=batch_size,
            progress=lambda done, total: update(done, total, {}),
        )
    seconds = time.perf_counter() - started
    exposure = measure_exposure(model, tokenizer, sources.held_out[:EXPOSURE_PAIRS], settings, batch_size=batch_size)
    return Judged(sources.held_out, written, titles.score(written, sources.held_out), seconds, settings, exposure)


def numbers(judged: Judged) -> dict[str, float]:
    """The scores that a comparison lays side by side."""
    names = ("rouge_l", "rouge_1", "rouge_2", "bleu")
    return {name: float(judged.scores[f"{name}_characters"]) for name in names} | {
        "distinct_2": float(judged.scores["distinct_2"]),
        "repetition": float(judged.scores["repetition"]),
    }


def tell(report: Report, judged: Judged, fitted: Mapping[str, Any]) -> None:
    """Scores by characters and by words, variety, length, speed, and a dozen titles in the order of the file."""
    section, scores = report.section(SECTION), judged.scores
    how = f"{scores['titles']} titles, beam of {judged.settings.beams}, by characters"
    names = {"rouge_l": "ROUGE-L", "rouge_1": "ROUGE-1", "rouge_2": "ROUGE-2", "bleu": "BLEU"}
    for name, words in names.items():
        own = how + ("; sentence BLEU, floor 0.1, averaged" if name == "bleu" else "; mean F1")
        value = scores.get(f"{name}_characters_interval", scores[f"{name}_characters"])
        section.fact(words, value, "share", own, key=name in ("rouge_l", "bleu"))
    rows = [
        [words, *(scores[f"{name}_{way}"] for way in ("characters", "words"))]
        for name, words in {**names, "corpus_bleu": "corpus BLEU (sacrebleu's smoothing)"}.items()
    ]
    section.table(["measure", ("by characters", "share"), ("by words", "share")], rows, title="Characters and words")
    for name, unit in (
        ("exact_match", "share"),
        ("distinct_1", "share"),
        ("distinct_2", "share"),
        ("repetition", "share"),
    ):
        section.fact(
            name.replace("_", " "), scores[name], unit, "bigrams said twice in a title" * (name == "repetition")
        )
    section.fact(
        "mean length", scores["mean_length"], how=f"characters; the golds have {scores['mean_gold_length']:.1f}"
    )
    section.fact("unfinished titles", scores["unfinished"], how="longer than title_tokens allows")
    rate = len(judged.titles) / max(judged.seconds, 1e-9)
    section.fact("writing speed", rate, "per second", "titles, tokenization included")
    step = max(1, len(judged.pairs) // 12)
    shown = list(zip(judged.pairs, judged.titles, strict=True))[::step][:12]
    section.table(
        ["source", "its title", "written"],
        [[_beginning(pair.source), pair.title, one.text] for pair, one in shown],
        title="Titles in the order of the file, chosen before any was written",
    )
    tell_exposure(report, {"this model": [judged.exposure]})


def _beginning(text: str, count: int = 120) -> str:
    return text if len(text) <= count else text[:count] + "…"


def _open(materials: Materials, seed: int) -> Sources:
    return open_sources(materials, materials.settings or default_settings(materials), seed)


def _check(materials: Materials) -> tuple[Sequence[Pair], dict[str, Any], Mapping[str, int]]:
    settings = materials.settings or default_settings(materials)
    pairs, own = read_training(materials, settings)
    findings, shared = {"training files": own}, {}
    if materials.held_out or not materials.data:
        judged, findings["held-out files"] = read_held_out(materials.held_out, settings, materials.skip_bad)
        shared = shared_pairs(pairs, judged)
    return pairs, findings, shared


def _read_judged(files: Sequence[str | Path], skip_bad: bool, settings: Any) -> Sources:
    pairs, findings = read_held_out(files, TitleSettings(), skip_bad)
    return Sources(", ".join(Path(path).name for path in files), [], [], pairs, findings, findings)


def _rouge_l(model: Any, prepared: Prepared) -> float:
    pairs, quick = prepared.sources.set_aside[:CURVE_PAIRS], replace(prepared.settings, beams=1)
    written = titles.answer(model, prepared.model.tokenizer, pairs, quick)
    return float(titles.score(written, pairs)["rouge_l_characters"])


def _usage(folder: str) -> str:
    return (
        "import jieyue.run.title as title\n\n"
        f'print(title.write("{folder}", ["a text ..."])[0]["title"])\n\n'
        "# from the command line\n"
        "# jieyue title FOLDER --file text.txt"
    )


TASK = Task(
    recipe=titles.RECIPE,
    title="Titles",
    noun="pairs",
    open_sources=_open,
    check=_check,
    texts=texts_of,
    settings=default_settings,
    judge=judge,
    tell=tell,
    read_judged=_read_judged,
    card=Card(
        usage=_usage,
        limits="Titles are written freely and can be wrong. The numbers below hold for texts like those it was judged on.",
        tags=("summarization",),
    ),
    curve=Curve(
        title="ROUGE-L while training, greedy, on pairs set aside", quantity="ROUGE-L", unit="share", measure=_rouge_l
    ),
    numbers=numbers,
    curves=lambda judged: judged.exposure,
    tell_curves=tell_exposure,
    shown=(SECTION,),
)
