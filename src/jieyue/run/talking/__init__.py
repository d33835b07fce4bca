"""Dialogue as a run sees it: where dialogues come from, how replies are judged and told."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jieyue.data.corpora.everyday import Opening, compose_talks, heldout_openings, heldout_talks
from jieyue.data.dialogues import Dialogue, DialogueFiles, contamination
from jieyue.data.findings import Findings
from jieyue.data.history import Message
from jieyue.data.streams import part_of
from jieyue.errors import InputError
from jieyue.hf.causal_presets import CAUSAL_PRESETS
from jieyue.recipes import chat
from jieyue.report import Example, Report
from jieyue.run.tasks import Card, Curve, Task
from jieyue.run.values import Materials, Prepared, Sources
from jieyue.run.watch import SILENT, Watch

from .models import open_talker

__all__ = ["TASK", "Judged", "default_settings", "open_dialogues"]

HELD_OUT = 0.02  # of files that come without a held-out part
MOST_JUDGED = 2000  # held-out dialogues; all are read, the first ones judge
MOST_REPLIES = 200  # replies that are written to be judged
JUDGING = ("valid", "validation", "dev", "test")  # parts of a file that may be held out
SHIPPED = "the corpus that ships"


@dataclass(frozen=True)
class Judged:
    """What the held-out dialogues say about a model. ``hits``: held-out openings whose reply has its key phrase;
    ``too_long``: newest turns that could not be read."""

    scores: Mapping[str, float]
    contexts: list[Dialogue]
    replies: list[str]
    golds: list[str]
    openings: list[Opening]
    hits: list[bool]
    seconds: float
    num_dialogues: int
    too_long: int = 0


def default_settings(materials: Materials, seed: int = 0) -> chat.ChatSettings:
    """The article's 512 tokens; a preset's dialogues share rows, which a pattern of attention cannot keep apart."""
    most = 512 if materials.data else 256
    packed = materials.model in CAUSAL_PRESETS and materials.attention is None
    return chat.ChatSettings(max_tokens=most, row_tokens=most if packed else None)


def open_dialogues(materials: Materials, seed: int = 0) -> Sources:
    """Dialogues to train on and to judge by: files, read anew whenever they are gone through, or the corpus that ships."""
    if not materials.data:
        talks = compose_talks(seed)[: materials.limit]
        findings = Findings()
        findings.counts.update(dialogues=len(talks), turns=sum(map(len, talks)))
        held = _held_out(materials)[0] if materials.held_out else heldout_talks()
        return Sources(SHIPPED, talks, held[:40], held, findings, shared=contamination(talks, held))
    name = ", ".join(Path(path).name for path in materials.data)
    share = 0.0 if materials.held_out else HELD_OUT
    train = DialogueFiles(
        list(materials.data),
        part=_part(materials.data, ("train",)),
        skip_bad=materials.skip_bad,
        held_out=share,
        limit=materials.limit,
    )
    held, own = _held_out(materials) if materials.held_out else (train.held, None)
    if not held or not len(train):
        raise InputError(
            f"{name}: {len(train)} dialogues are too few to hold some out; name a held-out file (--held-out)"
        )
    held = held[:MOST_JUDGED]
    return Sources(name, train, held[:40], held, train.findings, own, contamination(train, held))


def _part(paths: Sequence[str | Path], wanted: Sequence[str]) -> str | None:
    """What to take of files that are objects of lists by split: the first list of a wanted name, None = everything."""
    return next((found for path in paths if (found := part_of(Path(path), wanted))), None)


def _held_out(materials: Materials) -> tuple[list[Dialogue], Findings]:
    part = _part(materials.held_out, JUDGING)
    files = DialogueFiles(list(materials.held_out), part=part, skip_bad=materials.skip_bad, limit=MOST_JUDGED)
    return list(files), files.findings


def _check(materials: Materials) -> tuple[Sequence[Dialogue], dict[str, Any], Mapping[str, int]]:
    sources = open_dialogues(materials)
    findings = {"training files": sources.findings}
    if sources.held_out_findings is not None:
        findings["held-out files"] = sources.held_out_findings
    return sources.train, findings, sources.shared or {}


def _read_judged(files: Sequence[str | Path], skip_bad: bool, _settings: Any) -> Sources:
    if not files:
        return open_dialogues(Materials())
    held, findings = _held_out(Materials(held_out=files, skip_bad=skip_bad))
    return Sources(", ".join(Path(path).name for path in files), [], [], held, findings, findings)


def _texts(dialogues: Sequence[Dialogue]) -> list[str]:
    """What a preset's vocabulary is learned from: the texts of the first hundred thousand dialogues."""
    from itertools import islice

    return [one.text for dialogue in islice(dialogues, 100_000) for one in dialogue]


def _judge(
    model: Any,
    tokenizer: Any,
    sources: Sources,
    settings: chat.ChatSettings,
    *,
    batch_size: int = 32,
    watch: Watch = SILENT,
) -> Judged:
    watch.say(f"Judging by {len(sources.held_out)} held-out dialogues")
    held = [dialogue for dialogue in sources.held_out if len(dialogue) > 1]
    loss, characters = chat.log_probability(model, tokenizer, held or sources.held_out, settings, batch_size=batch_size)
    chosen = held[:: max(1, len(held) // MOST_REPLIES)][:MOST_REPLIES]
    contexts = [dialogue[:-1] if dialogue[-1].role == "assistant" else dialogue[:-2] for dialogue in chosen]
    pairs = [
        (context, dialogue[len(context)].text)
        for context, dialogue in zip(contexts, chosen, strict=True)
        if context and context[-1].role == "user"
    ]
    started = time.perf_counter()
    replies, too_long = _replies(model, tokenizer, [context for context, _ in pairs], settings, batch_size)
    seconds = time.perf_counter() - started
    golds = [gold for _, gold in pairs]
    openings = heldout_openings() if sources.name == SHIPPED else []
    first, _ = _replies(model, tokenizer, [(Message("user", one.text),) for one in openings], settings, batch_size)
    hits = [one.key.casefold() in said.casefold() for one, said in zip(openings, first, strict=True)]
    scores = chat.score(replies, golds, loss, characters)
    if openings:
        pairs, replies, golds = (
            [((Message("user", one.text),), one.key) for one in openings],
            first,
            [o.key for o in openings],
        )
    return Judged(
        scores,
        [context for context, _ in pairs],
        replies,
        golds,
        openings,
        hits,
        seconds,
        len(sources.held_out),
        too_long,
    )


def _replies(
    model: Any, tokenizer: Any, talks: Sequence[Dialogue], settings: chat.ChatSettings, batch_size: int
) -> tuple[list[str], int]:
    """A reply to each talk, "" where its newest turn alone is too long to be read; how many those are."""
    read = [number for number, talk in enumerate(talks) if chat.fits(tokenizer, talk, settings)]
    said = chat.answer(model, tokenizer, [talks[number] for number in read], settings, batch_size=batch_size)
    replies = [""] * len(talks)
    for number, one in zip(read, said, strict=True):
        replies[number] = one
    return replies, len(talks) - len(read)


_TOLD = {
    "perplexity_token": ("perplexity, token", "", "held-out dialogues"),
    "perplexity_character": ("perplexity, character", "", "the same, shared by the characters they write"),
    "bleu_2": ("BLEU-2", "share", "greedy replies against the held-out ones, words and Chinese characters"),
    "bleu_4": ("BLEU-4", "share", "as BLEU-2"),
    "nist": ("NIST-4", "", "as BLEU-2"),
    "dist_1": ("Dist-1", "share", "different words among all"),
    "dist_2": ("Dist-2", "share", "different pairs among all"),
    "entropy_4": ("entropy", "nats", "of four words in a row"),
    "repetition": ("repetition", "share", "four words in a row said again in the same reply"),
    "mean_words": ("length of a reply", "words", "mean"),
}


def _tell(report: Report, judged: Judged, fitted: Mapping[str, Any]) -> None:
    section = report.section("Quality on held-out dialogues")
    for name, (what, unit, how) in _TOLD.items():
        section.fact(what, judged.scores[name], unit, how, key=name in ("perplexity_token", "dist_2"))
    if judged.openings:
        share = sum(judged.hits) / len(judged.hits)
        how = f"of {len(judged.hits)} paraphrased openings, the greedy reply has the phrase that was listed before training"
        section.fact("key phrase said", share, "share", how, key=True)
    rate = len(judged.replies) / max(judged.seconds, 1e-9)
    section.fact("replies", rate, "per second", "greedy, many at once")
    if judged.too_long:
        section.fact(
            "too long to read", judged.too_long, how="newest turns beyond the model's tokens; silence is their reply"
        )
    hits: list[bool | None] = [*judged.hits] or [None] * len(judged.replies)
    section.examples(
        [
            Example(
                question=context[-1].text,
                passage="\n".join(one.text for one in context[:-1]),
                answer=said,
                gold=(gold,),
                right=hit,
            )
            for context, said, gold, hit in list(zip(judged.contexts, judged.replies, judged.golds, hits, strict=True))[
                :24:2
            ]
        ]
    )


def _perplexity(model: Any, prepared: Prepared) -> float:
    settings = replace(prepared.settings, row_tokens=None)
    loss, _ = chat.log_probability(model, prepared.model.tokenizer, prepared.sources.set_aside, settings)
    model.train()
    return float(loss.mean())


def _usage(folder: str) -> str:
    return (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{folder}")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{folder}")\n\n'
        "# jieyue chat FOLDER       in the terminal\n"
        "# jieyue serve FOLDER      OpenAI's protocol and a web page\n"
        "# transformers serve       works with the folder too"
    )


TASK = Task(
    recipe=chat.RECIPE,
    title="Dialogue",
    noun="dialogues",
    open_sources=open_dialogues,
    check=_check,
    texts=_texts,
    settings=default_settings,
    judge=_judge,
    tell=_tell,
    read_judged=_read_judged,
    card=Card(
        usage=_usage,
        limits="A small model that repeats what it read in its dialogues, knows nothing else, and is wrong with confidence.",
        tags=("conversational", "text-generation"),
    ),
    curve=Curve(title="Loss on held-out dialogues", quantity="loss", unit="nats a token", measure=_perplexity),
    shown=("Quality on held-out dialogues",),
    open_model=open_talker,
)
