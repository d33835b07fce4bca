"""All claims that take pretrained weights, and the choice among them for the models that are given."""

from __future__ import annotations

from collections.abc import Sequence

from jieyue.errors import InputError
from jieyue.evidence.articles import ARTICLES
from jieyue.evidence.claims import Claim

from . import accumulation, beams, dialogue, embeddings, entropies, patterns, reading
from .template import Template, bind
from .weights import Weights

__all__ = ["NOT_SERVED", "TEMPLATES", "choose_on", "left_out", "template_of"]

NOT_SERVED = (
    "Article 4 is not measured on pretrained weights: it takes a pretrained ALBERT.",
    "Article 5's remedies are not measured on pretrained weights: twelve trainings of a writer of titles; jieyue compare title --model "
    "does them where there is a GPU (The full scale).",
)
"""What a reader may miss among them, and why it is not there."""

TEMPLATES: tuple[Template, ...] = (
    *embeddings.TEMPLATES[:1],
    *patterns.TEMPLATES,
    *reading.TEMPLATES,
    *accumulation.TEMPLATES,
    *beams.TEMPLATES,
    *embeddings.TEMPLATES[1:],
    *dialogue.TEMPLATES,
    *entropies.TEMPLATES,
)


def template_of(key: str) -> Template | None:
    """The one with this key, a bound claim's without the model's name; None for a claim that takes no weights."""
    return next((one for one in TEMPLATES if one.claim.key == key.partition(".")[0]), None)


def choose_on(weights: Sequence[Weights], asked: Sequence[str] = ()) -> list[Claim]:
    """For each model the claims that it can serve, bound to it; ``asked``: article numbers, ideas or keys, all without a choice.

    ``InputError``: an unknown name lists what there is; models that can serve none of what was asked.
    """
    ideas = {str(article.number): article.idea for article in ARTICLES}
    articles = {one.claim.article for one in TEMPLATES}
    names = {name for number, idea in ideas.items() if int(number) in articles for name in (number, idea)}
    keys = [one.claim.key for one in TEMPLATES]
    if unknown := [one for one in asked if one not in {*names, *keys}]:
        known = ", ".join(f"{number} {ideas[str(number)]}" for number in sorted(articles))
        expected = f"an article ({known}) or a claim ({', '.join(keys)})"
        raise InputError("reproduce --weights", ", ".join(unknown), expected)
    wanted = [one for one in TEMPLATES if not asked or _names_of(one, ideas) & set(asked)]
    chosen = [bind(one, model) for model in weights for one in wanted if one.refuses(model.facts) is None]
    if not chosen:
        why = "; ".join(left_out(weights, asked))
        raise InputError("reproduce --weights", f"no claim that these models can serve: {why}", "one at least")
    return chosen


def left_out(weights: Sequence[Weights], asked: Sequence[str] = ()) -> list[str]:
    """A line for each claim that a model cannot serve, with the reason."""
    ideas = {str(article.number): article.idea for article in ARTICLES}
    return [
        f"{one.claim.key} is left out for {model.name}: {why}"
        for model in weights
        for one in TEMPLATES
        if (not asked or _names_of(one, ideas) & set(asked)) and (why := one.refuses(model.facts)) is not None
    ]


def _names_of(template: Template, ideas: dict[str, str]) -> set[str]:
    number = str(template.claim.article)
    return {number, ideas[number], template.claim.key}
