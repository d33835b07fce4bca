"""A pretrained model trained a little under sparse attention, beside the full model trained on the same tokens with the same loss.

    python benchmarks/long_seeds.py MODEL --choice CHOICE --data TRAIN --text VALID --tokens 100k --runs RUNS --out FOLDER

--choice is the folder that ``jieyue sparsify`` left. Each arm of each seed is one training of the task ``sparsify``, the very one that
``jieyue sparsify --tokens N --control`` runs; an arm that RUNS already holds is not trained again, and one that was stopped goes on
from its last checkpoint (``--arms sparse``: only those). The price is told on --text, of which nothing was trained on or chosen by:
perplexity of the sparse model against the control of the same seed, a bootstrap over rows for each seed and Student's interval over
seeds. --every N: the loss of text set aside is looked at every N updates, and drawn by tokens, as far as training has come; --curve:
only that. Writes ``long-seeds.json``, or --name-of-result. Cost: two trainings a seed; SmolLM2-135M at 200k tokens takes 25 minutes
each on one core.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from long_pictures import with_pictures

from jieyue import machine
from jieyue.hf.checkpoints import intact_checkpoint
from jieyue.hf.loading import load_model, load_tokenizer
from jieyue.hf.use import use
from jieyue.metrics.intervals import student
from jieyue.report import Picture, Report
from jieyue.run.config import TrainingConfig
from jieyue.run.course import Course
from jieyue.run.folder import Out
from jieyue.run.jobs import train
from jieyue.run.layer_options import parse_count
from jieyue.run.sparsify import CHOICE
from jieyue.tasks import RunConfig
from jieyue.tasks.sparsify.costs import costs_of, price
from jieyue.tasks.sparsify.rows import encode_rows
from jieyue.tasks.sparsify.settings import SparseSettings
from jieyue.tasks.sparsify.task import TASK, batches_of

SPARSE, CONTROL, JUDGED = "sparse", "control", "judged.txt"
JUDGED_CHARACTERS = (
    60_000  # the training's own report judges by so much of the text; the price is told on rows of all of it
)


def first_characters(paths, folder):
    """The beginning of the text in a file of its own: whole lines, at least two rows of it."""
    lines, _ = TASK.read(paths, SparseSettings())
    kept, count = [], 0
    for line in lines:
        kept.append(line.text)
        count += len(line.text)
        if count > JUDGED_CHARACTERS:
            break
    path = folder / JUDGED
    path.write_text("\n".join(kept) + "\n", encoding="utf-8")
    return path


def config_of(given, arm, seed, attention, judged):
    settings = SparseSettings(row_tokens=given.row_tokens, train=given.train, seed=seed, teacher=given.model)
    return RunConfig(
        model=given.model,
        data=given.data,
        held_out=[judged],
        settings=settings,
        attention=attention if arm == SPARSE else "full()",
    )


def train_arm(given, arm, seed, attention, judged):
    folder = given.runs / f"{arm}-{seed}"
    if (folder / "model.safetensors").is_file():
        return folder
    config = config_of(given, arm, seed, attention, judged)
    updates = max(1, round(given.tokens / (given.effective_batch * given.row_tokens)))
    every = given.every or updates
    how = TrainingConfig(
        effective_batch=given.effective_batch,
        steps=updates,
        seed=seed,
        evaluate_every=every,
        save_steps=every,
        measure=False,
    )
    begun = intact_checkpoint(folder / "checkpoints") is not None
    train("sparsify", config, Out(folder, True), budget=given.budget, training=how, resume=begun)
    print(json.dumps({"what": "trained", "arm": arm, "seed": seed, "updates": updates}), flush=True)
    return folder


def untrained(given, seed, attention, judged):
    """What a seed's course says at 0 tokens, by the measure of its scores on the text it sets aside: of both arms."""
    config = config_of(given, CONTROL, seed, attention, judged)
    settings = TASK.settings(config, seed)
    aside = TASK.sources(config, settings, seed).set_aside
    tokenizer, model = load_tokenizer(given.model), load_model(given.model, "causal-lm")
    losses = {}
    for arm, own in ((CONTROL, None), (SPARSE, attention)):
        use(model, attention=own)
        losses[arm] = TASK.measure(model, tokenizer, aside, settings)
        print(json.dumps({"what": "untrained", "arm": arm, "seed": seed, "loss": losses[arm]}), flush=True)
    return losses


def drawn(report, given, before):
    """Loss of the text set aside by tokens, of every arm and seed, as far as it is trained, beside the full model as it is.

    ``before``: seed -> each arm's loss at 0 tokens.
    """
    lines, seconds = {}, {}
    tokens = given.effective_batch * given.row_tokens
    for seed in given.seeds:
        for arm in given.arms:
            course = Course.read(given.runs / f"{arm}-{seed}" / "checkpoints")
            scores = [(step * tokens, score) for step, score in course.scores]
            lines[f"{arm}, seed {seed}"] = [(0, before[seed][arm]), *scores]
            seconds[f"{arm}, seed {seed}"] = (len(course.losses) * tokens, course.seconds)
        if CONTROL not in given.arms:
            ends = (0, max(at for points in lines.values() for at, _ in points))
            lines[f"full, untrained, seed {seed}"] = [(at, before[seed][CONTROL]) for at in dict.fromkeys(ends)]
    section = report.section("By tokens")
    unzipped = {name: tuple(zip(*points, strict=True)) for name, points in lines.items()}
    section.picture(Picture.lines("Loss while training", unzipped, x="tokens", y=("loss", "nats")))
    rows = [[name, tokens, loss] for name, points in lines.items() for tokens, loss in points]
    section.table(["arm", "tokens", ("loss", "nats")], rows, title="Loss of text set aside")
    rows = [[name, tokens, took] for name, (tokens, took) in seconds.items()]
    section.table(["arm", "tokens", ("training", "seconds")], rows, title="What it took")


def rows_of(paths, tokenizer, length, most):
    settings = SparseSettings(row_tokens=length)
    lines, _ = TASK.read(paths, settings)
    rows = encode_rows(lines, tokenizer, settings)[0]
    spread = [rows[place * len(rows) // most] for place in range(most)] if len(rows) > most else rows
    return batches_of(TASK, spread, tokenizer, settings)


def told(report, given, folders):
    """One table a length: a line a seed, and the mean over seeds with its interval."""
    tokenizer = load_tokenizer(given.model)
    for length in given.lengths:
        batches = rows_of(given.text, tokenizer, length, given.rows)
        base = costs_of(load_model(given.model, "causal-lm"), batches)
        rows, prices = [], []
        for seed in given.seeds:
            own = {arm: costs_of(load_model(folders[arm, seed], "causal-lm"), batches) for arm in (SPARSE, CONTROL)}
            found = price(own[SPARSE], own[CONTROL])
            prices.append(found.value)
            rows.append([seed, len(base.rows), base.mean, own[CONTROL].mean, own[SPARSE].mean, found])
            print(json.dumps({"what": "price", "tokens": length, "seed": seed, "price": found.value}), flush=True)
        section = report.section(f"At {length:,} tokens")
        columns = ["seed", "rows", ("full", "nats"), ("full, trained alike", "nats"), ("sparse, trained", "nats")]
        section.table([*columns, ("price", "share")], rows, title="Seed by seed")
        if len(prices) > 1:
            section.fact(
                "price of the sparse model, over seeds",
                student(prices),
                "share",
                how="against the control of the same seed",
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--choice", type=Path, required=True)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--text", type=Path, nargs="+", required=True)
    parser.add_argument("--tokens", type=parse_count, default=100_000)
    parser.add_argument("--row-tokens", type=int, default=2048)
    parser.add_argument("--effective-batch", type=int, default=4)
    parser.add_argument("--train", default="qkvo")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=[SPARSE, CONTROL])
    parser.add_argument("--lengths", type=int, nargs="*", default=[2048, 4096])
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--every", type=int, default=0)
    parser.add_argument("--curve", action="store_true")
    parser.add_argument("--budget", default="5GiB")
    parser.add_argument("--name-of-result", default="long-seeds")
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    given.runs.mkdir(parents=True, exist_ok=True)
    attention = json.loads((given.choice / CHOICE).read_text(encoding="utf-8"))["attention"]
    judged = first_characters(given.text, given.runs)
    pairs = [] if given.curve else [(arm, seed) for seed in given.seeds for arm in given.arms]
    folders = {(arm, seed): train_arm(given, arm, seed, attention, judged) for arm, seed in pairs}
    report = Report("Sparse attention in pretrained models, trained")
    if folders and {SPARSE, CONTROL} <= set(given.arms):
        told(report, given, folders)
    if given.every or given.curve:
        drawn(report, given, {seed: untrained(given, seed, attention, judged) for seed in given.seeds})
    report.section("Settings").facts(
        {"model": Path(given.model).name, "attention": attention, "tokens": given.tokens, "row tokens": given.row_tokens,
         "effective batch": given.effective_batch, "trained": given.train, "processor": machine.cpu_name(),
         "threads": torch.get_num_threads(), "torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}
    )  # fmt: skip
    if given.out is not None:
        print(with_pictures(report, given.out).save(given.out, given.name_of_result).json)


if __name__ == "__main__":
    main()
