"""Runs that users make: the whole process as it was planned, and its highest resident set in training.

    python benchmarks/whole_process.py                       # every run in a process of its own; goes on where it was stopped
    python benchmarks/whole_process.py --runs demo chat --updates 300
    python benchmarks/whole_process.py --malloc system       # under the system's malloc, without tcmalloc

Each run reads, plans and trains as ``jieyue train`` does, some updates long, under the malloc that the command line takes.
``minilm``: random weights of MiniLM's sizes (6 layers, 384 wide, 30,522 words) on rows of 512 tokens. ``error``: measured over
predicted, less one; goal: 5 %. Bytes do not mind other jobs.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from jieyue import machine, malloc
from jieyue.cli.allocator import find, preloaded
from jieyue.report import Report, write_whole

RESULTS = Path(__file__).parent / "results"
UPDATES, GOAL = 60, 0.05
MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
RUNS = {
    "demo": ("read", "tiny", "1GiB", {}, {}, {}),
    "mlm small": ("mlm", "small", "2GiB", {}, {}, {}),
    "mlm small, little room": ("mlm", "small", "1GiB", {}, {}, {}),
    "mlm small, Adafactor in backward": (
        "mlm",
        "small",
        "1GiB",
        {},
        {"optimizer": "adafactor", "in_backward": True},
        {},
    ),
    "minilm at 512, 4 GiB": ("mlm", "minilm", "4GiB", {}, {}, {"max_tokens": 512}),
    "minilm at 512, 2 GiB": ("mlm", "minilm", "2GiB", {}, {}, {"max_tokens": 512}),
    "classify": ("classify", "tiny", "1GiB", {}, {}, {}),
    "tag": ("tag", "tiny", "1GiB", {}, {}, {}),
    "title": ("title", "tiny", "2GiB", {}, {}, {}),
    "chat": ("chat", "tiny", "1GiB", {}, {}, {}),
}  # name: task, model, budget, then what RunConfig, TrainingConfig and the task's settings are given


def write_minilm(folder):
    """A folder of MiniLM's sizes with random weights and a tokenizer of the shipped texts."""
    import transformers

    from jieyue.hf.tokenizers import learn_vocabulary, make_tokenizer
    from jieyue.tasks.table import task

    tokenizer = make_tokenizer(learn_vocabulary(task("mlm").shipped(1000, 0)[0]))
    transformers.BertForMaskedLM(transformers.BertConfig(**MINILM)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def data_of(kind, folder):
    """Files for the tasks that no corpus ships for: capital letters are names, a first sentence is a title."""
    from jieyue.tasks.table import task

    if kind not in ("tag", "title"):
        return ()
    lines, path = task("mlm").shipped(500, 0)[0], folder / f"{kind}.txt"
    if kind == "tag":
        words = [[(word, "B-NAME" if word[:1].isupper() else "O") for word in line.split()] for line in lines]
        path.write_text(
            "\n\n".join("\n".join("\t".join(pair) for pair in own) for own in words) + "\n", encoding="utf-8"
        )
    else:
        path = path.with_suffix(".jsonl")
        pairs = [{"text": line, "title": line.partition(". ")[0]} for line in lines]
        path.write_text("".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs), encoding="utf-8")
    return (path,)


def run(name, updates, limit, folder):
    """What the process held at most, and what was predicted."""
    from jieyue.budget import Budget
    from jieyue.run.config import TrainingConfig
    from jieyue.run.fit import fit
    from jieyue.run.plan import check_budget
    from jieyue.run.prepare import prepare
    from jieyue.run.ways import decide
    from jieyue.tasks import RunConfig
    from jieyue.tasks.table import task

    kind, model, budget, config, how, settings = RUNS[name]
    allowed = Budget.parse(budget)
    check_budget(allowed)
    training = TrainingConfig(steps=updates, **how)
    wanted = {"settings": task(kind).settings_class(**settings)} if settings else {}
    config = RunConfig(
        model=str(folder / model) if model == "minilm" else model,
        limit=limit,
        data=data_of(kind, folder),
        **config,
        **wanted,
    )
    prepared = prepare(task(kind), config, training, folder=folder)
    decided = decide(prepared, allowed, training)
    planned = decided.planned
    if planned.tight:
        malloc.give_back_freed_memory()
    before = machine.peak_resident_bytes()
    trained = fit(decided.prepared, planned, decided.training, folder / "run")
    cost = planned.plan.predicted
    return {
        "budget_bytes": allowed.memory_bytes, "micro_batch": planned.plan.micro_batch, "checkpointing": planned.plan.checkpointing,
        "tight": planned.tight, "fixed_bytes": cost.fixed_bytes, "peak_bytes": cost.peak_bytes, "before_bytes": before,
        "predicted_bytes": cost.process_bytes, "measured_bytes": trained.facts["process_peak_bytes"], "updates": updates,
        "malloc": malloc.malloc_name(), "seconds": trained.facts["seconds"] / updates,
    }  # fmt: skip


def alone(name, given):
    """The same in a process of its own."""
    environment = dict(os.environ)
    if given.malloc == "tcmalloc":
        environment |= preloaded(find(), environment)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--updates", str(given.updates), "--limit", str(given.limit)]
        done = subprocess.run([*command, "--work", json.dumps([name, folder])], env=environment, stdout=subprocess.PIPE,
                              text=True, check=True)  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def tell(found):
    report = Report("The whole process: planned and measured")
    section = report.section("Runs")
    errors = {name: own["measured_bytes"] / own["predicted_bytes"] - 1 for name, own in found.items()}
    kept = sum(own["measured_bytes"] <= own["budget_bytes"] for own in found.values())
    section.fact("within 5 %", f"{sum(abs(error) <= GOAL for error in errors.values())} of {len(found)}",
                 how=f"from {min(errors.values()):+.1%} to {max(errors.values()):+.1%}")  # fmt: skip
    section.fact("budget kept", f"{kept} of {len(found)}")
    columns = ["run", ("budget", "bytes"), "micro-batch", "checkpointing", ("fixed", "bytes"), ("tensors", "bytes"),
               ("predicted", "bytes"), ("measured", "bytes"), "error", "freed memory"]  # fmt: skip
    rows = []
    for name, own in found.items():
        how = "goes back at once" if own["tight"] else "beyond the plan goes back"
        rows.append([name, own["budget_bytes"], own["micro_batch"], "yes" if own["checkpointing"] else "no",
                     own["fixed_bytes"], own["peak_bytes"], own["predicted_bytes"], own["measured_bytes"],
                     f"{errors[name]:+.1%}", how])  # fmt: skip
    mallocs = " and ".join(sorted({own["malloc"] for own in found.values()}))
    section.table(columns, rows, note=f"Under {mallocs}; highest resident set (VmHWM) up to the end of training.")
    section = report.section("Machine")
    for what, value in machine.describe().items():
        section.fact(what, value, "bytes" if what.endswith("_bytes") else "")
    return report


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--updates", type=int, default=UPDATES)
    parser.add_argument("--limit", type=int, default=400, help="examples")
    parser.add_argument("--malloc", choices=("tcmalloc", "system"), default="tcmalloc" if find() else "system")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        name, folder = json.loads(given.work)
        if name and RUNS[name][1] == "minilm":
            subprocess.run([sys.executable, __file__, "--work", json.dumps(["", folder])], check=True)
        if not name:
            write_minilm(Path(folder) / "minilm")
            return
        print(json.dumps(run(name, given.updates, given.limit, Path(folder))))
        return
    kept = given.out / "whole-process.jsonl"
    lines = [json.loads(line) for line in kept.read_text().splitlines()] if kept.is_file() else []
    known = {line["run"]: line for line in lines}
    for name in given.runs:
        if name not in known:
            known[name] = {"run": name, **alone(name, given)}
            print(json.dumps(known[name]), flush=True)
            write_whole(kept, "".join(json.dumps(one) + "\n" for one in known.values()))
            tell({one: known[one] for one in RUNS if one in known}).save(given.out, "whole-process")


if __name__ == "__main__":
    main()
