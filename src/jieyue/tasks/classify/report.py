"""What the report says of a classifier: scores, baselines, each label, the most frequent mistakes."""

from __future__ import annotations

from jieyue.report import Estimate, Picture, Report
from jieyue.tasks import Facts

__all__ = ["QUALITY", "report_other_kinds", "report_quality"]

QUALITY = "Quality on held-out examples"


def report_quality(report: Report, scores: Facts, beside: Facts, rate: float) -> None:
    """``scores``: of the classifier; ``beside``: of the baselines, empty where the training examples are not known."""
    section = report.section(QUALITY)
    how = f"{scores['examples']} examples, {len(scores['by_label'])} labels; 95 % bootstrap interval"
    section.fact("accuracy", scores["accuracy"], "share", how, interval=scores.get("accuracy_interval"), key=True)
    section.fact("macro-F1", scores["macro_f1"], "share", how, interval=scores.get("macro_f1_interval"), key=True)
    section.fact("expected calibration error", scores["calibration_error"], "share", "ten bins")
    if scores["labels_unseen"]:
        section.fact("labels that training never showed", scores["labels_unseen"], how="examples; always wrong")
    systems = {"this classifier": scores, **beside.get("systems", {})}
    if beside:
        how = f"accuracy over “{beside['best']}”; 95 % paired bootstrap interval"
        section.fact("gain over the best baseline", beside["gain"], "share", how, interval=beside["gain_interval"])
    rows = [[name, own["accuracy"], own["macro_f1"]] for name, own in systems.items()]
    section.table(["system", ("accuracy", "share"), ("macro-F1", "share")], rows, title="Beside the baselines")
    bars: dict[str, float | Estimate] = {name: own["accuracy"] for name, own in systems.items()}
    if "accuracy_interval" in scores:
        bars["this classifier"] = Estimate(scores["accuracy"], *scores["accuracy_interval"])
    section.picture(Picture.bars("Accuracy", bars, value=("accuracy", "share")))
    section.fact("speed", rate, "per second", "examples, tokenization included")
    section = report.section("Each label")
    section.table(
        ["label", "examples", ("precision", "share"), ("recall", "share"), ("F1", "share")],
        [[name, *own.values()] for name, own in scores["by_label"].items()],
        title="Each label",
    )
    if scores["mistakes"]:
        section.table(["label", "taken for", "times"], scores["mistakes"], title="Most frequent mistakes")


def report_other_kinds(report: Report, scores: Facts, systems: Facts, rate: float) -> None:
    """Of several labels a text, or of numbers; ``systems``: the baselines' scores."""
    section = report.section(QUALITY)
    named = _NUMBERS if "mse" in scores else _SETS
    for at, (key, (name, unit)) in enumerate(named.items()):
        how = f"{scores['examples']} examples" + ("; 95 % bootstrap interval" if f"{key}_interval" in scores else "")
        section.fact(name, scores[key], unit, how, interval=scores.get(f"{key}_interval"), key=at == 0)
    rows = [[name, *(own[key] for key in named)] for name, own in {"this model": scores, **systems}.items()]
    section.table(["system", *named.values()], rows, title="Beside the baseline")
    section.fact("speed", rate, "per second", "examples, tokenization included")
    if "by_label" in scores:
        report.section("Each label").table(
            ["label", "examples", ("precision", "share"), ("recall", "share"), ("F1", "share")],
            [[name, *own.values()] for name, own in scores["by_label"].items()],
            title="Each label",
        )


_SETS = {"micro_f1": ("micro-F1", "share"), "macro_f1": ("macro-F1", "share"), "exact_match": ("exact match", "share")}
_NUMBERS = {"spearman": ("Spearman's ρ", ""), "pearson": ("Pearson's r", ""), "mse": ("MSE", ""), "mae": ("MAE", "")}
