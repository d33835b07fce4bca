"""The eight articles, one file each, and the choice among their claims."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

from jieyue.errors import InputError

from .claims import Claim

__all__ = ["ARTICLES", "Article", "choose", "claims_of"]


@dataclass(frozen=True)
class Article:
    """``number``: 1 … 8; ``idea``: the file here that declares its claims; ``address``: on kexue.fm."""

    number: int
    idea: str
    title: str
    address: str


ARTICLES = (
    Article(1, "sparse_attention", "Sparse attention: atrous, local, sparse", "https://kexue.fm/archives/6853"),
    Article(2, "masked_reading", "Reading with a masked language model", "https://kexue.fm/archives/7148"),
    Article(3, "accumulation", "Gradient accumulation in the optimizer", "https://kexue.fm/archives/6794"),
    Article(4, "unsharing", "Unsharing ALBERT's layers", "https://kexue.fm/archives/7187"),
    Article(5, "exposure_bias", "Exposure bias in writing titles", "https://kexue.fm/archives/7259"),
    Article(6, "gelu", "GELU's elementary approximations", "https://kexue.fm/archives/7309"),
    Article(7, "dialogue", "Dialogues of several turns", "https://kexue.fm/archives/7718"),
    Article(8, "linear_attention", "Linear attention", "https://kexue.fm/archives/7546"),
)


def claims_of(article: Article) -> tuple[Claim, ...]:
    """The claims that the article's file declares."""
    return tuple(import_module(f"{__package__}.{article.idea}").CLAIMS)


def choose(asked: Sequence[str] = ()) -> list[Claim]:
    """Claims by article number, article's idea or claim's key, in the articles' order; all without a choice.

    ``InputError`` lists what there is.
    """
    everything = [(article, claim) for article in ARTICLES for claim in claims_of(article)]
    names = {article.idea for article in ARTICLES} | {str(article.number) for article in ARTICLES}
    if unknown := [one for one in asked if one not in names and all(claim.key != one for _, claim in everything)]:
        known = ", ".join(f"{article.number} {article.idea}" for article in ARTICLES)
        keys = ", ".join(claim.key for _, claim in everything)
        raise InputError("reproduce", ", ".join(unknown), f"an article ({known}) or a claim ({keys})")
    return [
        claim
        for article, claim in everything
        if not asked or {str(article.number), article.idea, claim.key} & set(asked)
    ]
