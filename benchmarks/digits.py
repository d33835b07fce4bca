"""The article's claim, repeated: batch 1 with accumulation learns like a true batch of 100; batch 1 alone does not.

    python benchmarks/digits.py [--seeds 5] [--epochs 14] [--learning-rate 3e-3] [--out benchmarks/results]

A perceptron (64-256-256-10, dropout 0.2) on scikit-learn's bundled digits, 1437 to train and 360 held out, drawn anew for
each seed; within a seed all arms begin with the same weights and see the same order. Every arm runs the same epochs:
Adam on batches of 1, the same with a tenth of the learning rate, ``AccumulatedOptimizer(Adam, 100)`` on batches of 1 with
``flush()`` at each epoch's end, and Adam on batches of 100. The learning rate was chosen for the true batch of 100 on two of
the measured seeds (3 and 4), from 1e-3, 3e-3 and 1e-2. Writes digits.json and the section of docs/memory.md. About two minutes on one
core.
"""

import argparse
import statistics
from pathlib import Path

import torch
from write_docs import RESULTS, fill_page

from jieyue import machine
from jieyue.evidence.accumulation import (
    ACCUMULATED,
    ARMS,
    LAST,
    ONE,
    SMALL,
    TRUE,
    perceptron,
    same_weights,
    train_digits,
)
from jieyue.metrics.intervals import student
from jieyue.report import Picture, Report


def report_of(found, given):
    report = Report("Batch 1, accumulated 100, true 100 on scikit-learn's digits")
    section = report.section("Accuracy on held-out digits")
    ends = {arm: [statistics.mean(a[-LAST:]) for a, _ in runs] for arm, runs in found.items()}
    worst = {arm: [min(a[-LAST:]) for a, _ in runs] for arm, runs in found.items()}
    losses = {arm: [l[-1] for _, l in runs] for arm, runs in found.items()}
    section.table(
        [
            "optimizer",
            (f"accuracy, last {LAST} epochs", "share"),
            (f"worst of the last {LAST}", "share"),
            "training loss",
        ],
        [[arm, student(ends[arm]), student(worst[arm]), student(losses[arm])] for arm in found],
        note=f"{given.seeds} seeds, 95% Student t; {given.epochs} epochs, Adam, learning rate {given.learning_rate:g}, "
        f"same weights, order and held-out rows within a seed",
    )
    for arm in (ACCUMULATED, ONE, SMALL):
        gaps = student([a - b for a, b in zip(ends[arm], ends[TRUE], strict=True)])
        section.fact(f"{arm} − {TRUE}", gaps, how=f"accuracy, last {LAST} epochs, paired by seed, 95% Student t")
    section.fact(
        "largest difference of a weight, accumulated and true",
        same_weights(0),
        how="2 epochs, dropout off, float64",
    )
    curves = {}
    for arm, runs in found.items():
        curves[arm] = {e + 1: student([a[e] for a, _ in runs]) for e in range(given.epochs)}
    section.picture(Picture.lines("Accuracy on held-out digits", curves, x="epoch", y=("accuracy", "share")))
    report.section("Where").facts(machine.describe())
    return report


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    for arm in ARMS:
        runs = [train_digits(arm, perceptron(s, 0.2), s, given.epochs, given.learning_rate) for s in range(given.seeds)]
        found[arm] = [(run["accuracy"], run["loss"]) for run in runs]
    report = report_of(found, given)
    print(report.text())
    report.save(given.out, "digits")
    if given.out == RESULTS:
        fill_page("memory", "digits")


if __name__ == "__main__":
    main()
