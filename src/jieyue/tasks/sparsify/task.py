"""A model that is there, trained on under a sparse attention: rows of plain text, all of one length.

data      plain text, a paragraph a line: data/plain.py; by default the passages that ship
command   jieyue sparsify, jieyue evaluate
cost      one forward and backward pass over each token, and a forward pass of the full model where it is learned from
score     nats a token on held-out rows, by position; of an encoder 1 − cos of its mean state and the full model's
source    Xiao et al. 2023 (arXiv 2309.17453) for first keys beside a window; the choice of layers is run/sparsify.py
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy
import torch
from torch import Tensor, nn

from jieyue.data.batch import collate, pad_of, token_batch
from jieyue.data.findings import Findings
from jieyue.data.plain import read_lines, shared_lines
from jieyue.errors import InputError
from jieyue.hf.loading import load_model
from jieyue.hf.trained_part import train_part, without_dropout
from jieyue.listener import SILENT, ProgressListener
from jieyue.metrics.intervals import bootstrap
from jieyue.report import Report
from jieyue.tasks import Card, Deciding, Facts, Judged, Prediction, Row, RunConfig, Task
from jieyue.tasks.fields import text_of
from jieyue.tasks.models import ModelSource, open_model
from jieyue.tasks.shipped import topics
from jieyue.tasks.sources import stretches
from jieyue.training.objective import Objective

from .costs import Costs, costs_of, encoded
from .objectives import Distilled, text_loss
from .rows import Line, blocks_of, encode_rows, row_of, spread
from .settings import SparseSettings

if TYPE_CHECKING:
    from jieyue.hf.types import Tokenizer

__all__ = ["TASK", "RowCost", "SparseTask", "batches_of", "position_edges"]

QUALITY = "Quality on held-out text"
TOGETHER = 4096  # tokens of a forward pass


@dataclass(frozen=True, slots=True)
class RowCost:
    """Summed cost of one row, and over how many tokens (an encoder's: 1)."""

    cost: float
    count: float


class SparseTask(Task[Line, SparseSettings, RowCost]):
    """Lines of text; an answer is the cost of a row that they fill."""

    name = "sparsify"
    title = "Sparse attention"
    noun = "lines"
    doing = "reading rows"
    head = "causal-lm"
    quality = QUALITY
    settings_class = SparseSettings
    deciding = Deciding(
        score="loss",
        title="Cost while training, on text set aside",
        quantity="cost",
        unit="nats",
        higher_is_better=False,
    )
    card = Card(
        usage=lambda folder: (
            "import jieyue.hf  # teaches transformers the name of the attention\n"
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f'model = AutoModelForCausalLM.from_pretrained("{folder}")\n'
            f'tokenizer = AutoTokenizer.from_pretrained("{folder}")\n\n'
            "# jieyue chat FOLDER       in the terminal, where the model writes"
        ),
        limits="What the model it was made from can do, at the price that is told here; that price was measured on this text alone.",
        tags=("sparse-attention",),
    )

    def deciding_of(self, settings: SparseSettings) -> Deciding:
        """Of a model that learns the text the cost is the loss itself, and is not measured a second time."""
        is_loss = settings.kind != "encoder" and settings.distill == "none"
        return replace(self.deciding, quantity="loss") if is_loss else self.deciding

    # -- data

    def read(
        self, files: Sequence[str | Path], settings: SparseSettings, *, skip_bad: bool = False
    ) -> tuple[list[Line], Findings]:
        lines, findings = read_lines(files, skip_bad=skip_bad, encoding=settings.encoding)
        return blocks_of(lines, settings.row_tokens), findings

    def shipped(self, limit: int | None, seed: int) -> tuple[list[Line], Findings]:
        return _counted([one.text for one in topics(None if limit is None else 5 * limit, 60_000)])

    def shipped_held_out(self) -> tuple[list[Line], Findings]:
        return _counted([one.text for one in topics()])

    def groups(self, examples: Sequence[Line]) -> list[str]:
        return [str(line.block) for line in examples]

    def limited(
        self, examples: Sequence[Line], limit: int | None, settings: SparseSettings, salt: str
    ) -> Sequence[Line]:
        """Whole blocks, the last one cut, and then in blocks anew, since few of them could not be parted."""
        some = stretches(examples, self.groups(examples), limit, salt)
        return blocks_of([one.text for one in some], settings.row_tokens, [one.place for one in some])

    def shared(self, train: Sequence[Line], held_out: Sequence[Line]) -> Mapping[str, int]:
        return shared_lines([one.text for one in train], [one.text for one in held_out])

    def texts(self, examples: Sequence[Line]) -> list[str]:
        return [one.text for one in examples]

    # -- model and training

    def open_model(
        self,
        config: RunConfig,
        settings: SparseSettings,
        texts: Callable[[], Sequence[str]],
        *,
        start: str | None = None,
        seed: int = 0,
    ) -> ModelSource:
        if not Path(config.model).is_dir() and "/" not in config.model:
            found = f"{config.model!r}, no folder"
            raise InputError("sparsify(model)", found, "a model that is trained already: its folder or hub name")
        head = None if settings.kind == "encoder" else settings.head(self.head)
        source = open_model(config, head, texts, seed=seed)  # type: ignore[arg-type]

        def prepared(make: Callable[[], nn.Module]) -> nn.Module:
            model = train_part(make(), settings.train, settings.rank)
            return model if settings.distill == "none" else without_dropout(model)

        def part(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
            return lambda: prepared(make)

        return replace(source, build=part(source.build), blueprint=part(source.blueprint))

    def encode(
        self,
        examples: Sequence[Line],
        tokenizer: Tokenizer,
        settings: SparseSettings,
        *,
        folder: Path | None = None,
    ) -> tuple[list[Row], Counter[str]]:
        return encode_rows(examples, tokenizer, settings)

    def collate(self, rows: Sequence[Row], tokenizer: Tokenizer, settings: SparseSettings) -> dict[str, Tensor]:
        return collate(rows, 0 if tokenizer.pad_token_id is None else pad_of(tokenizer))

    def objective(self, settings: SparseSettings) -> Objective:
        if settings.distill != "none":
            return Distilled(_teacher(settings), settings.distill)
        if settings.kind == "encoder":
            raise InputError("distill='none'", "an encoder, which has no loss of its own", "distill='means'")
        return text_loss

    def example_batch(self, settings: SparseSettings, rows: int, positions: int) -> dict[str, Tensor]:
        return token_batch(rows, positions)

    # -- judging

    def answer(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        examples: Sequence[Line],
        settings: SparseSettings,
        *,
        batch_size: int = 32,
        done: Callable[[int, int], None] | None = None,
    ) -> list[RowCost]:
        """The cost of each line alone, cut to a row."""
        special = 0 if settings.kind == "causal" else 2
        teacher = _teacher(settings) if settings.kind == "encoder" and examples else None
        found = []
        for number, line in enumerate(examples):
            ids = numpy.array(
                tokenizer(line.text, add_special_tokens=False, verbose=False)["input_ids"], dtype=numpy.int32
            )
            if len(ids) < 2:
                found.append(RowCost(0.0, 0.0))
                continue
            row = row_of(ids[: settings.row_tokens - special], tokenizer, settings, number)
            (cost,) = _costs(model, [self.collate([row], tokenizer, settings)], teacher)[1]
            found.append(cost)
            if done is not None:
                done(number + 1, len(examples))
        return found

    def from_row(self, row: Facts, settings: SparseSettings) -> Line:
        return Line(0, 0, text_of(row, ("text", "sentence", "content", "文本", "内容"), "a text"))

    def told(self, answer: RowCost) -> Prediction:
        """The mean cost of the text: nats a token."""
        return Prediction(round(answer.cost / answer.count, 6) if answer.count else None)

    def score(self, answers: Sequence[RowCost], examples: Sequence[Line], memory: Facts | None = None) -> Facts:
        """``loss``: the mean cost; ``perplexity`` = exp of it, which means something for a language model; ``rows``, ``tokens``."""
        costs, counts = [one.cost for one in answers], [one.count for one in answers]
        facts: Facts = {"rows": len(answers), "tokens": int(sum(counts)), "loss": sum(costs) / max(sum(counts), 1e-9)}
        facts["perplexity"] = math.exp(min(facts["loss"], 700.0))
        if len(answers) > 1:
            found = bootstrap(costs, counts, statistic=lambda own, per: own.sum() / per.sum())
            facts["loss_interval"] = (float(found.low), float(found.high))
        return facts

    def measure(
        self, model: nn.Module, tokenizer: Tokenizer, examples: Sequence[Line], settings: SparseSettings
    ) -> float:
        rows, _ = self.encode(examples, tokenizer, settings)
        if not rows:
            return float("nan")
        teacher = _teacher(settings) if settings.kind == "encoder" else None
        return _costs(model, batches_of(self, rows[:8], tokenizer, settings), teacher)[0].mean

    def judge(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        held_out: Sequence[Line],
        settings: SparseSettings,
        memory: Facts | None = None,
        *,
        batch_size: int = 32,
        listener: ProgressListener = SILENT,
    ) -> Judged[Line, RowCost]:
        """The cost of the rows that the held-out lines fill, by position too; of ``settings.judged_tokens``, evenly spaced."""
        rows, _ = self.encode(held_out, tokenizer, settings)
        if not rows:
            found = f"{len(held_out)} held-out lines that fill no row of {settings.row_tokens} tokens"
            raise InputError("held out", found, "more running text", "add text, or take shorter rows (--row-tokens)")
        started = time.perf_counter()
        some = spread(rows, settings.judged_tokens, settings.row_tokens)
        teacher = _teacher(settings) if settings.kind == "encoder" else None
        costs, answers = _costs(model, batches_of(self, some, tokenizer, settings), teacher)
        beside: Facts = {
            "by_position": [(stop, costs.between(first, stop)) for first, stop in position_edges(settings.row_tokens)],
            "rows_there": len(rows),
        }
        seconds = time.perf_counter() - started
        return Judged(held_out, answers, self.score(answers, held_out), seconds, batch_size, beside)

    # -- reporting

    def report(self, report: Report, judged: Judged[Line, RowCost], settings: SparseSettings, fitted: Facts) -> None:
        scores, section = judged.scores, report.section(QUALITY)
        how = f"{scores['rows']} rows of {settings.row_tokens} tokens; 95 % bootstrap interval over rows"
        if settings.kind == "encoder":
            section.fact("distance from the full model", scores["loss"], "", f"1 − cos of mean states, {how}", key=True)
        else:
            section.fact("loss", scores["loss"], "nats", how, interval=scores.get("loss_interval"), key=True)
            section.fact("perplexity", scores["perplexity"], how="exp of the loss")
        read, there = (count * settings.row_tokens for count in (scores["rows"], judged.beside["rows_there"]))
        how = "of the held-out rows, evenly spaced; as many as --price-tokens said"
        section.fact("judged on", f"{read:,} of {there:,} tokens", how=how)
        cells = [[f"up to {stop}", cost] for stop, cost in judged.beside["by_position"] if cost is not None]
        section.table(["position", "cost a token"], cells, title="By position")

    def numbers(self, judged: Judged[Line, RowCost]) -> dict[str, float]:
        return {"loss": judged.scores["loss"]}


def batches_of(
    job: SparseTask, rows: Sequence[Row], tokenizer: Tokenizer, settings: SparseSettings
) -> list[dict[str, Tensor]]:
    """Rows as batches of some thousand tokens, in order, without the mask of padding that they have not."""
    step = max(1, TOGETHER // settings.row_tokens)
    found = [job.collate(rows[at : at + step], tokenizer, settings) for at in range(0, len(rows), step)]
    return [{name: value for name, value in batch.items() if name != "attention_mask"} for batch in found]


def position_edges(row_tokens: int) -> list[tuple[int, int]]:
    """(first, stop) of the stretches of a row that costs are told for, each as long as all before it.

    >>> position_edges(300)
    [(0, 64), (64, 128), (128, 256), (256, 300)]
    """
    stops = [64 * 2**k for k in range(32) if 64 * 2**k < row_tokens] + [row_tokens]
    return list(zip([0, *stops[:-1]], stops, strict=True))


def _costs(
    model: nn.Module, batches: Sequence[dict[str, Tensor]], teacher: nn.Module | None
) -> tuple[Costs, list[RowCost]]:
    """``teacher``: what an encoder is held against, None of a language model."""
    reference = None if teacher is None else encoded(teacher, batches)
    costs = costs_of(model, batches, reference=reference)
    return costs, [RowCost(float(cost), float(count)) for cost, count in zip(costs.rows, costs.weights, strict=True)]


def _teacher(settings: SparseSettings) -> nn.Module:
    """The full model, as it was before it was made sparse."""
    if settings.teacher is None:
        raise InputError("teacher", "none", "the folder or name of the full model", "jieyue sparsify sets it")
    if Path(settings.teacher).is_absolute() and not Path(settings.teacher).is_dir():
        do = "put the full model back there, or make the sparse one anew"
        raise InputError(
            "teacher", f"no folder {settings.teacher}", "the full model, which this one is held against", do
        )
    with torch.random.fork_rng(devices=[]):
        return load_model(settings.teacher, None if settings.kind == "encoder" else settings.head("causal-lm"))


def _counted(lines: list[str]) -> tuple[list[Line], Findings]:
    findings = Findings()
    findings.counts.update(lines=len(lines), characters=sum(map(len, lines)))
    return blocks_of(lines, SparseSettings().row_tokens), findings


TASK = SparseTask()
