"""The exposure gap of a writer: how much worse it writes after its own words than after the true ones.

    by position   share of right tokens at each place of the title, after the true beginning and after the model's own (greedy)
    corruption    the same share, all places together, when each token of the true beginning is wrong with some probability
    beam width    ROUGE-L and BLEU of what searches of growing width find: a wider one can be worse (7259)
    repetition    share of bigrams that a title has twice, greedy against the golds

Measured on one set of pairs with one model; ``report_exposure`` lays several models and seeds side by side, with t intervals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from jieyue.data.batch import IGNORED
from jieyue.data.titles import Pair
from jieyue.metrics import generation
from jieyue.metrics.intervals import student
from jieyue.report import Estimate, Picture, Report
from jieyue.report.amounts import Given
from jieyue.tasks import Facts
from jieyue.tasks.batches import device_of
from jieyue.training.remedies.remedy import Rows
from jieyue.training.remedies.replacement import replace_tokens
from jieyue.training.remedies.targets import labels_of_rows, logits_of

from .settings import TitleSettings
from .writing import collate_titles, decoder_loss, encode_pairs, marks, title_loss, write_titles

if TYPE_CHECKING:
    from jieyue.hf.types import Tokenizer

__all__ = ["RATES", "WIDTHS", "measure_exposure", "report_exposure"]

WIDTHS = (1, 2, 3, 5, 10)
RATES = (0.0, 0.1, 0.2, 0.3, 0.5)
LEAST = 20  # places that fewer titles reach are left out of the picture


def measure_exposure(
    model: nn.Module,
    tokenizer: Tokenizer,
    pairs: Sequence[Pair],
    settings: TitleSettings,
    *,
    batch_size: int = 32,
    widths: Sequence[int] = WIDTHS,
    rates: Sequence[float] = RATES,
) -> Facts:
    """The four facts, as JSON values. Cost: one search for each width, one forward pass for each rate. Same pairs, same draws."""
    rows, _ = encode_pairs(pairs, tokenizer, replace(settings, over_long="cut"))
    batches = [
        collate_titles(rows[at : at + batch_size], tokenizer, settings) for at in range(0, len(rows), batch_size)
    ]
    true = [[int(one) for one in row["labels"] if one >= 0] for row in rows]
    _, end = marks(tokenizer)
    facts: Facts = {"pairs": len(pairs), "corruption": {}, "beams": {}}
    was_training = model.training
    model.eval()
    try:
        for rate in rates:
            right, count = _after_true_words(model, batches, settings, rate)
            facts["corruption"][str(rate)] = sum(right) / max(1, sum(count))
            if rate == 0:
                facts["gold"] = [a / max(1, b) for a, b in zip(right, count, strict=True)]
                facts["count"] = count
        for width in widths:
            written = write_titles(
                model, tokenizer, [pair.source for pair in pairs], replace(settings, beams=width), batch_size=batch_size
            )
            own = [generation.characters(one.text) for one in written]
            wanted = [generation.characters(pair.title) for pair in pairs]
            both = list(zip(own, wanted, strict=True))
            facts["beams"][str(width)] = {
                "rouge_l": sum(generation.rouge_l(a, b).f1 for a, b in both) / len(both),
                "bleu": sum(generation.sentence_bleu(a, [b]) for a, b in both) / len(both),
            }
            if width == 1:
                facts["own"] = _after_own_words([(*one.tokens, end) for one in written], true, settings.title_tokens)
                facts["repetition"] = generation.repetition(own, 2)
                facts["gold_repetition"] = generation.repetition(wanted, 2)
    finally:
        model.train(was_training)
    return facts


@torch.inference_mode()
def _after_true_words(
    model: nn.Module, batches: Sequence[Mapping[str, Tensor]], settings: TitleSettings, rate: float
) -> tuple[list[int], list[int]]:
    """Right tokens and tokens at each place, after true beginnings of which a share ``rate`` was replaced by any tokens."""
    right, count = (torch.zeros(settings.title_tokens, dtype=torch.long) for _ in range(2))
    objective = decoder_loss if settings.kind == "encoder-decoder" else title_loss
    replaced, device, before = replace_tokens(rate, 1.0, "vocabulary"), device_of(model), 0
    for batch in batches:
        own = {name: value.to(device) for name, value in batch.items()}
        labels = labels_of_rows(model, own)
        own["seeds"] = torch.arange(before, before + len(labels))  # the same pairs are corrupted in the same way
        before += len(labels)
        with logits_of(model) as found:
            replaced.run(objective, model, Rows.of(own), 0)
        asked = labels != IGNORED
        hits = (found[-1][:, : labels.shape[1]].argmax(-1) == labels)[asked].cpu()
        places = (asked.cumsum(1) - 1)[asked].cpu()
        right.index_add_(0, places, hits.long())
        count.index_add_(0, places, torch.ones_like(places))
    return right.tolist(), count.tolist()


def _after_own_words(written: Sequence[tuple[int, ...]], true: Sequence[list[int]], longest: int) -> list[float]:
    """Share of titles whose token at each place is the true one; a title that ended before is wrong there."""
    right, count = [0] * longest, [0] * longest
    for own, wanted in zip(written, true, strict=False):
        for place, token in enumerate(wanted):
            count[place] += 1
            right[place] += place < len(own) and own[place] == token
    return [a / max(1, b) for a, b in zip(right, count, strict=True)]


def report_exposure(report: Report, found: Mapping[str, Sequence[Facts]]) -> None:
    """Pictures of the gap: one curve a variant; a band where there are several seeds."""
    section = report.section("Exposure gap")
    first = next(iter(found.values()))[0]
    places = [place for place, count in enumerate(first["count"]) if count >= min(LEAST, first["pairs"])]
    rows: list[list[Given]] = []
    for name, seeds in found.items():
        gold, own = (
            [sum(one[key][p] for p in places) / max(1, len(places)) for one in seeds] for key in ("gold", "own")
        )
        gap = [a - b for a, b in zip(gold, own, strict=True)]
        rows.append([name, _over(gold), _over(own), _over(gap), _over([one["repetition"] for one in seeds])])
    columns: list[str | tuple[str, str]] = [
        "model",
        ("after true words", "share"),
        ("after its own", "share"),
        ("gap", "share"),
        ("repetition", "share"),
    ]
    how = f"{first['pairs']} held-out pairs; right tokens, mean over the first {len(places)} places; the golds repeat "
    section.table(columns, rows, note=f"{how}{100 * first['gold_repetition']:.1f} % of their bigrams.")
    curves = {}
    for name, seeds in found.items():
        for key, words in (("gold", "after true words"), ("own", "after its own")):
            curves[f"{name}, {words}"] = {p + 1: _over([one[key][p] for one in seeds]) for p in places}
    section.picture(Picture.lines("Right tokens by place in the title", curves, x="place", y=("right tokens", "share")))
    corrupted = {
        name: {float(rate): _over([one["corruption"][rate] for one in seeds]) for rate in seeds[0]["corruption"]}
        for name, seeds in found.items()
    }
    title = "Right tokens when words before are wrong"
    section.picture(
        Picture.lines(title, corrupted, x="probability that a word before is wrong", y=("right tokens", "share"))
    )
    for key, words in (("rouge_l", "ROUGE-L"), ("bleu", "BLEU")):
        widths = {
            name: {int(width): _over([one["beams"][width][key] for one in seeds]) for width in seeds[0]["beams"]}
            for name, seeds in found.items()
        }
        section.picture(Picture.lines(f"{words} by beam width", widths, x="hypotheses", y=(words, "share")))


def _over(values: Sequence[float]) -> float | Estimate:
    """The mean with its t interval over seeds; the number itself for a single seed."""
    return student(values) if len(values) > 1 else values[0]
