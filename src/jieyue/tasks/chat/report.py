"""What the report says of a dialogue model: perplexities, replies against the true ones, examples."""

from __future__ import annotations

from collections.abc import Sequence

from jieyue.data.dialogues import Dialogue
from jieyue.report import Example, Report
from jieyue.tasks import Facts

__all__ = ["QUALITY", "report_examples", "report_quality"]

QUALITY = "Quality on held-out dialogues"

_WORDS = {
    "perplexity_token": ("perplexity, token", "", "of all turns of held-out dialogues"),
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


def report_quality(report: Report, scores: Facts, beside: Facts, rate: float) -> None:
    """``rate``: replies a second; ``beside["hits"]``: of the openings that ship."""
    section = report.section(QUALITY)
    for name, (what, unit, how) in _WORDS.items():
        section.fact(what, scores[name], unit, how, key=name in ("perplexity_token", "dist_2"))
    if "hits" in beside:
        hits = beside["hits"]
        how = f"of {len(hits)} paraphrased openings, new to it; training has replies with these phrases"
        section.fact("key phrase said", sum(hits) / len(hits), "share", how, key=True)
    section.fact("replies", rate, "per second", "greedy, many at once")
    if scores["too_long"]:
        how = "newest turns beyond the model's tokens; silence is their reply"
        section.fact("too long to read", scores["too_long"], how=how)


def report_examples(report: Report, dialogues: Sequence[Dialogue], replies: Sequence[str], beside: Facts) -> None:
    """A dozen replies with what was said before."""
    hits: list[bool | None] = [*beside.get("hits", ())] or [None] * len(replies)
    report.section(QUALITY).examples(
        [
            Example(
                question=dialogue[-2].text,
                passage="\n".join(one.text for one in dialogue[:-2]),
                answer=said,
                gold=(dialogue[-1].text,),
                right=hit,
            )
            for dialogue, said, hit in list(zip(dialogues, replies, hits, strict=True))[:24:2]
        ]
    )
