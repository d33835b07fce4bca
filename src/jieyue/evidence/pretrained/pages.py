"""The part "On pretrained weights" of the page of all claims: its models, its verdicts, what is left out and why, then each claim."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from jieyue.evidence.claims import FAILS, HOLDS, SCALES, UNDECIDED, UNTESTED, Verdict
from jieyue.evidence.running import Outcome
from jieyue.json_values import Facts
from jieyue.report import Report, Section

from .table import NOT_SERVED, TEMPLATES, left_out, template_of
from .weights import Weights

__all__ = ["BESIDE", "PART", "tell_beside", "tell_pretrained"]

PART = "On pretrained weights"
BESIDE = "on pretrained weights"
Judged = Sequence[tuple[Outcome, Verdict]]
_COLUMNS = ("type", "kind", "layers", "hidden", "heads", "positions", "vocabulary", "activation", "content")


def _model_of(outcome: Outcome) -> Facts | None:
    """The model whose claim it is, as its cells say; None for a claim that takes no weights, or without a cell."""
    if template_of(outcome.claim.key) is None or not outcome.results:
        return None
    return dict(outcome.results[0].cell.settings["model"])


def tell_beside(section: Section, key: str, pretrained: Judged) -> None:
    """In the section of a claim without weights: what the claims on pretrained weights that speak to it found."""
    for outcome, verdict in pretrained:
        template = template_of(outcome.claim.key)
        if template is not None and key in template.beside:
            name = outcome.claim.key.partition(".")[2]
            how = f"{name}, scale {outcome.scale}: {outcome.claim.sentence}"
            section.fact(BESIDE, verdict.word, how=how)


def tell_pretrained(
    report: Report, judged: Judged, tell_claim: Callable[[Section, Iterable[tuple[Outcome, Verdict]]], None]
) -> None:
    """The whole part; nothing where no claim on pretrained weights was measured. ``tell_claim``: of the page's other claims."""
    if not judged:
        return
    section = report.section(PART)
    scales = [scale for scale in SCALES if any(outcome.scale == scale for outcome, _ in judged)]
    for scale in scales:
        words = [verdict.word for outcome, verdict in judged if outcome.scale == scale]
        section.fact(
            f"claims that hold on pretrained weights, {scale}", words.count(HOLDS),
            how=f"of {len(words)}; {words.count(FAILS)} fail, {words.count(UNDECIDED)} are not decided, "
            f"{words.count(UNTESTED)} cannot be tested here",
        )  # fmt: skip
    models = {str(model["name"]): model for outcome, _ in judged if (model := _model_of(outcome)) is not None}
    section.note(
        "What a pretrained model can serve of the articles' claims: jieyue reproduce --weights FOLDER. The folder's own weights are "
        "measured; none are shipped. The verdicts are made as above; a seed draws other texts, other rows and another head."
    )
    rows = [
        [name, *(str(model[one]) for one in _COLUMNS), f"{model['parameters'] / 1e6:.1f} million"]
        for name, model in models.items()
    ]
    section.table(["model", *_COLUMNS, "parameters"], rows, title="The models")
    words_of = {(outcome.claim.key, outcome.scale): verdict.word for outcome, verdict in judged}
    claims = dict.fromkeys(outcome.claim for outcome, _ in judged)
    table = [
        [
            str(claim.article),
            claim.sentence,
            claim.key.partition(".")[2],
            *(words_of.get((claim.key, scale), "not run") for scale in scales),
        ]
        for claim in claims
    ]
    section.table(["article", "claim", "model", *scales], table, title="Verdicts on pretrained weights")
    for line in (*left_out([Weights(model) for model in models.values()]), *NOT_SERVED):
        section.note(line)
    for template in TEMPLATES:
        own = [(o, v) for o, v in judged if o.claim.key.partition(".")[0] == template.claim.key]
        for name in dict.fromkeys(o.claim.key.partition(".")[2] for o, _ in own):
            of_model = [(o, v) for o, v in own if o.claim.key.partition(".")[2] == name]
            title = f"{PART}, article {template.claim.article}, {name}: {template.claim.sentence}"
            tell_claim(report.section(title), of_model)
