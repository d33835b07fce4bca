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
import copy
import statistics
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from write_docs import RESULTS, fill_page

from jieyue import machine
from jieyue.metrics.intervals import student
from jieyue.report import Picture, Report
from jieyue.training.optimizer import AccumulatedOptimizer

TRUE, ACCUMULATED, ONE, SMALL = "true batch 100", "batch 1 accumulated ×100", "batch 1", "batch 1, learning rate ÷ 10"
LAST = 5  # epochs whose mean is "the end", and among which accuracy should not jump


def data(seed):
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(seed))
    x, y = torch.tensor(digits.data, dtype=torch.float32)[order] / 16, torch.tensor(digits.target)[order]
    return (x[360:], y[360:]), (x[:360], y[:360])


def perceptron(seed, dropout):
    torch.manual_seed(seed)
    parts = [nn.Linear(64, 256), nn.ReLU(), nn.Dropout(dropout), nn.Linear(256, 256), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*parts, nn.Linear(256, 10))


def optimizer_of(arm, model, rate):
    adam = torch.optim.Adam(model.parameters(), lr=rate / 10 if arm == SMALL else rate, fused=True)
    return AccumulatedOptimizer(adam, steps=100) if arm == ACCUMULATED else adam


def train(arm, model, given, seed, epochs):
    """Held-out accuracy and training loss after each epoch."""
    (x, y), (held_x, held_y) = data(seed)
    x, held_x = (t.to(next(model.parameters()).dtype) for t in (x, held_x))
    optimizer = optimizer_of(arm, model, given.learning_rate)
    orders = torch.Generator().manual_seed(seed)
    accuracies, losses = [], []
    for _ in range(epochs):
        model.train()
        total = 0.0
        for rows in torch.randperm(len(x), generator=orders).split(100 if arm == TRUE else 1):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(rows)
        if arm == ACCUMULATED:
            optimizer.flush()
        model.eval()
        with torch.no_grad():
            accuracies.append((model(held_x).argmax(1) == held_y).double().mean().item())
        losses.append(float(total) / len(x))
    return accuracies, losses


def same_weights(given, epochs=2):
    """Largest difference of any weight, dropout off, float64: what "the same" means when nothing is drawn at random."""
    one = perceptron(0, dropout=0.0).double()
    other = copy.deepcopy(one)
    train(ACCUMULATED, one, given, 0, epochs)
    train(TRUE, other, given, 0, epochs)
    return max(float((a - b).detach().abs().max()) for a, b in zip(one.parameters(), other.parameters(), strict=True))


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
        same_weights(given),
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
    for arm in (TRUE, ACCUMULATED, ONE, SMALL):
        found[arm] = [train(arm, perceptron(s, 0.2), given, s, given.epochs) for s in range(given.seeds)]
    report = report_of(found, given)
    print(report.text())
    report.save(given.out, "digits")
    if given.out == RESULTS:
        fill_page("memory.md", "digits")


if __name__ == "__main__":
    main()
