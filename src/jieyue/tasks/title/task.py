"""From a text to its title: a prefix language model over a masked LM (section "exposure bias" of 7259), or other writers.

data      TSV, CSV, JSON lines with a source and a title (CSL, LCSTS): data/titles.py
command   jieyue train title, jieyue evaluate, jieyue title
cost      training one pass a row; writing one step a token for all hypotheses of a batch
score     ROUGE-1/2/L by characters and words, sentence BLEU as in the article, corpus BLEU, Dist-n, repetition
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from jieyue.data.batch import token_batch
from jieyue.data.corpora import compose, heldout_path
from jieyue.data.findings import Findings
from jieyue.data.titles import NAMES, Pair, read_titles, shared_pairs
from jieyue.errors import InputError
from jieyue.hf.classic_presets import refuse_misspelt
from jieyue.hf.loading import load, load_config
from jieyue.hf.presets import PRESETS
from jieyue.metrics import generation
from jieyue.metrics.intervals import bootstrap
from jieyue.record import read_record
from jieyue.report import Report
from jieyue.tasks import POSITIONS, Card, Deciding, Facts, Judged, Prediction, Row, RunConfig, Task
from jieyue.tasks.fields import text_of
from jieyue.training.objective import Objective

from .exposure import measure_exposure, report_exposure
from .settings import Kind, TitleSettings
from .writing import Title, collate_titles, decoder_loss, encode_pairs, prompts, title_loss, write_titles

if TYPE_CHECKING:
    from jieyue.hf.types import Tokenizer

__all__ = ["TASK", "TitleTask", "kind_of", "score_titles", "write"]

EXPOSURE_PAIRS = 100
SHIPPED_PAIRS = 6000
QUALITY = "Quality on held-out titles"


class TitleTask(Task[Pair, TitleSettings, Title]):
    """A title for each source."""

    name = "title"
    title = "Titles"
    noun = "pairs"
    doing = "writing"
    head = "prefix"
    quality = QUALITY
    settings_class = TitleSettings
    curve_examples = 60
    deciding = Deciding(
        score="rouge_l_characters",
        title="ROUGE-L while training, greedy, on pairs set aside",
        quantity="ROUGE-L",
        unit="share",
    )
    card = Card(
        usage=lambda folder: (
            "import jieyue.tasks.title.task as title\n\n"
            f'print(title.write("{folder}", ["a text ..."])[0]["title"])\n\n'
            "# from the command line\n"
            "# jieyue title FOLDER --file text.txt"
        ),
        limits="Titles are written freely and can be wrong. The numbers below hold for texts like those it was judged on.",
        tags=("summarization",),
    )

    def default_settings(self, config: RunConfig, seed: int) -> TitleSettings:
        """The article's lengths, for the kind of writer that the model is."""
        return TitleSettings(kind=kind_of(config.model))

    # -- data

    def read(
        self, files: Sequence[str | Path], settings: TitleSettings, *, skip_bad: bool = False
    ) -> tuple[list[Pair], Findings]:
        columns = {"source_column": settings.source_column, "title_column": settings.title_column}
        own = {"delimiter": settings.delimiter, "encoding": settings.encoding}
        return read_titles(files, **columns, **own, skip_bad=skip_bad)

    def shipped(self, limit: int | None, seed: int) -> tuple[list[Pair], Findings]:
        count = limit or SHIPPED_PAIRS
        return _counted(_pairs(compose("train", seed, 4 * count))[:count])

    def shipped_held_out(self) -> tuple[list[Pair], Findings]:
        return _counted(_pairs(json.loads(heldout_path().read_text(encoding="utf-8"))))

    def groups(self, examples: Sequence[Pair]) -> list[str]:
        return [pair.source for pair in examples]

    def shared(self, train: Sequence[Pair], held_out: Sequence[Pair]) -> Mapping[str, int]:
        return shared_pairs(train, held_out)

    def texts(self, examples: Sequence[Pair]) -> list[str]:
        return list(dict.fromkeys(text for pair in examples for text in (pair.source, pair.title)))

    # -- training

    def encode(
        self, examples: Sequence[Pair], tokenizer: Tokenizer, settings: TitleSettings, *, folder: Path | None = None
    ) -> tuple[list[Row], Counter[str]]:
        return encode_pairs(examples, tokenizer, settings)

    def collate(self, rows: Sequence[Row], tokenizer: Tokenizer, settings: TitleSettings) -> dict[str, Tensor]:
        return collate_titles(rows, tokenizer, settings)

    def columns(self, settings: TitleSettings) -> tuple[str, ...]:
        return POSITIONS if settings.kind == "encoder-decoder" else super().columns(settings)

    def objective(self, settings: TitleSettings) -> Objective:
        return decoder_loss if settings.kind == "encoder-decoder" else title_loss

    def example_batch(self, settings: TitleSettings, rows: int, positions: int) -> dict[str, Tensor]:
        batch = token_batch(rows, positions)
        if settings.kind == "encoder-decoder":
            width = settings.title_tokens + (settings.title_tokens == positions)
            batch["labels"] = torch.zeros(rows, width, dtype=torch.long)
        elif settings.kind == "prefix":
            batch["token_type_ids"] = torch.zeros_like(batch["input_ids"])
        return batch

    # -- writing and judging

    def answer(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        examples: Sequence[Pair],
        settings: TitleSettings,
        *,
        batch_size: int = 32,
        done: Callable[[int, int], None] | None = None,
    ) -> list[Title]:
        sources = [pair.source for pair in examples]
        return write_titles(model, tokenizer, sources, settings, batch_size=batch_size, done=done)

    def from_row(self, row: Facts, settings: TitleSettings) -> Pair:
        return Pair(text_of(row, NAMES["source"], "a text to write a title for"), "")

    def told(self, answer: Title) -> Prediction:
        """The title; its confidence is the geometric mean of its tokens' probabilities."""
        return Prediction(answer.text, math.exp(min(0.0, answer.log_probability) / (len(answer.tokens) + 1)))

    def score(self, answers: Sequence[Title], examples: Sequence[Pair], memory: Facts | None = None) -> Facts:
        return score_titles(answers, examples)

    def measure(
        self, model: nn.Module, tokenizer: Tokenizer, examples: Sequence[Pair], settings: TitleSettings
    ) -> float:
        """Greedy: a curve has many points."""
        return super().measure(model, tokenizer, examples, replace(settings, beams=1))

    def compared(
        self,
        judged: Judged[Pair, Title],
        model: nn.Module,
        tokenizer: Tokenizer,
        settings: TitleSettings,
        memory: Facts | None,
    ) -> Judged[Pair, Title]:
        some = judged.examples[:EXPOSURE_PAIRS]
        return replace(judged, beside=measure_exposure(model, tokenizer, some, settings, batch_size=judged.batch_size))

    def numbers(self, judged: Judged[Pair, Title]) -> dict[str, float]:
        names = ("rouge_l", "rouge_1", "rouge_2", "bleu")
        return {name: float(judged.scores[f"{name}_characters"]) for name in names} | {
            "distinct_2": float(judged.scores["distinct_2"]),
            "repetition": float(judged.scores["repetition"]),
        }

    def report(self, report: Report, judged: Judged[Pair, Title], settings: TitleSettings, fitted: Facts) -> None:
        """Scores by characters and by words, variety, length, speed, and a dozen titles in the order of the file."""
        section, scores = report.section(QUALITY), judged.scores
        how = f"{scores['titles']} titles, beam of {settings.beams}, by characters"
        names = {"rouge_l": "ROUGE-L", "rouge_1": "ROUGE-1", "rouge_2": "ROUGE-2", "bleu": "BLEU"}
        for name, words in names.items():
            own = how + ("; sentence BLEU, floor 0.1, averaged" if name == "bleu" else "; mean F1")
            value = scores.get(f"{name}_characters_interval", scores[f"{name}_characters"])
            section.fact(words, value, "share", own, key=name in ("rouge_l", "bleu"))
        rows = [
            [words, *(scores[f"{name}_{way}"] for way in ("characters", "words"))]
            for name, words in {**names, "corpus_bleu": "corpus BLEU (sacrebleu's smoothing)"}.items()
        ]
        section.table(
            ["measure", ("by characters", "share"), ("by words", "share")], rows, title="Characters and words"
        )
        for name in ("exact_match", "distinct_1", "distinct_2", "repetition"):
            twice = "bigrams said twice in a title" if name == "repetition" else ""
            section.fact(name.replace("_", " "), scores[name], "share", twice)
        length = f"characters; the golds have {scores['mean_gold_length']:.1f}"
        section.fact("mean length", scores["mean_length"], how=length)
        section.fact("unfinished titles", scores["unfinished"], how="longer than title_tokens allows")
        rate = len(judged.answers) / max(judged.seconds, 1e-9)
        section.fact("writing speed", rate, "per second", "titles, tokenization included")
        step = max(1, len(judged.examples) // 12)
        shown = list(zip(judged.examples, judged.answers, strict=True))[::step][:12]
        section.table(
            ["source", "its title", "written"],
            [[_beginning(pair.source), pair.title, one.text] for pair, one in shown],
            title="Titles in the order of the file, chosen before any was written",
        )
        report_exposure(report, {"this model": [judged.beside]})

    def report_beside(self, report: Report, variants: Mapping[str, Sequence[Facts]]) -> None:
        report_exposure(report, variants)


def write(folder: str | Path, texts: Sequence[str], **changes: Any) -> list[Facts]:
    """Titles for some texts by a trained model; ``changes``: settings for this time, such as ``beams=5``."""
    if not all(text.strip() for text in texts):
        raise InputError("title: found an empty text, expected one to write a title for")
    settings = TitleSettings.from_dict(read_record(folder, "title")["settings"] | changes)
    model, tokenizer = load(folder, settings.head("prefix"))
    return [
        {
            "title": one.text,
            "log_probability": round(one.log_probability, 4),
            "finished": one.finished,
            "source_truncated": bool(prompts([text], tokenizer, settings)[1]),
        }
        for text, one in zip(texts, write_titles(model, tokenizer, texts, settings), strict=True)
    ]


def kind_of(model: str) -> Kind:
    """The kind of writer that a model is: encoder-decoder and causal LMs by their configuration, else a prefix LM."""
    if model in PRESETS and not Path(model).is_dir():
        return "prefix"
    refuse_misspelt(model)
    config = load_config(model)
    if config.is_encoder_decoder:
        return "encoder-decoder"
    name = (getattr(config, "architectures", None) or [""])[0]
    return "causal" if name.endswith(("CausalLM", "LMHeadModel")) else "prefix"


def score_titles(titles: Sequence[Title | str], pairs: Sequence[Pair]) -> Facts:
    """Shares from 0 to 1: means over the titles; ``corpus_bleu``, ``distinct_*`` of all together; intervals by bootstrap."""
    written = [one if isinstance(one, str) else one.text for one in titles]
    facts: Facts = {"titles": len(written)}
    for way, split in (("characters", generation.characters), ("words", generation.words)):
        own, wanted = [split(text) for text in written], [split(pair.title) for pair in pairs]
        both = list(zip(own, wanted, strict=True))
        for name, values in {
            "rouge_1": [generation.rouge_n(a, b, 1).f1 for a, b in both],
            "rouge_2": [generation.rouge_n(a, b, 2).f1 for a, b in both],
            "rouge_l": [generation.rouge_l(a, b).f1 for a, b in both],
            "bleu": [generation.sentence_bleu(a, [b]) for a, b in both],
        }.items():
            facts[f"{name}_{way}"] = sum(values) / max(1, len(values))
            if len(values) > 1:
                facts[f"{name}_{way}_interval"] = bootstrap(values)
        facts[f"corpus_bleu_{way}"] = generation.corpus_bleu(own, [[one] for one in wanted]) if both else 0.0
        if way == "characters":
            facts |= {f"distinct_{n}": generation.distinct(own, n) for n in (1, 2)}
            facts["repetition"] = generation.repetition(own, 2)
            facts["mean_length"] = sum(map(len, own)) / max(1, len(own))
            facts["mean_gold_length"] = sum(map(len, wanted)) / max(1, len(wanted))
            facts["exact_match"] = sum(a == b for a, b in both) / max(1, len(both))
    facts["unfinished"] = sum(not one.finished for one in titles if isinstance(one, Title))
    facts["empty"] = sum(not text.strip() for text in written)
    return facts


def _beginning(text: str, count: int = 120) -> str:
    return text if len(text) <= count else text[:count] + "…"


def _pairs(corpus: Facts) -> list[Pair]:
    return [Pair(one["paragraphs"][0]["context"], one["title"]) for one in corpus["data"]]


def _counted(pairs: list[Pair]) -> tuple[list[Pair], Findings]:
    findings = Findings()
    findings.counts["pairs"] = len(pairs)
    return pairs, findings


TASK = TitleTask()
