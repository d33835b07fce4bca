"""Malloc under training: seconds and the highest resident set of one model's updates, each way in processes of its own.

    python benchmarks/allocator.py                        # all ways that are there, into benchmarks/results
    python benchmarks/allocator.py --repeats 1 --width 256 --layers 4 --rows 8      # small, to see that it works

Ways: glibc as it is; glibc with its mmap threshold at 64 KiB (what a tight budget falls back to); tcmalloc as the command line
starts it; tcmalloc giving back at once; tcmalloc below a wall at the prediction and 3 % of the tensors' peak (a tight budget's way).
A way's processes take turns with the others'; seconds are of the fastest update after the first, the fastest of the turns.
``over``: the resident set against what was held before the model plus the predicted peak. Two loads: layers alone (a short
vocabulary), and a long vocabulary's logits.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from jieyue import machine, malloc
from jieyue.cli.allocator import find, preloaded
from jieyue.report import Report

WAYS = ("glibc", "glibc, threshold 64 KiB", "tcmalloc", "tcmalloc, giving back at once", "tcmalloc, below a wall")


def work(way, given):
    """One process: trains, prints what it took."""
    if way == WAYS[1]:
        malloc.fix_malloc_threshold()
    elif way in WAYS[3:]:
        malloc.give_back_freed_memory()
    import time

    import torch
    import transformers

    from jieyue.planning.measurement import update_of
    from jieyue.planning.prediction import predict
    from jieyue.planning.search import fixed_cost
    from jieyue.planning.setting import Setting
    from jieyue.planning.subject import Subject
    from jieyue.run.little_room import HEADROOM

    if given.threads:
        torch.set_num_threads(given.threads)
    config = transformers.BertConfig(
        vocab_size=given.vocabulary, hidden_size=given.width, num_hidden_layers=given.layers,
        num_attention_heads=given.width // 32, intermediate_size=4 * given.width,
    )  # fmt: skip
    subject = Subject(config=config, head="masked-lm", positions=given.tokens)
    setting = Setting(micro_batch=given.rows)
    step = subject.step(setting)
    cost = predict(step, effective_batch=given.rows, micro_batch=given.rows)
    fixed = fixed_cost()
    *_, update = update_of(step, setting, given.rows)
    wall = fixed + int((1 + HEADROOM) * cost.peak_bytes) if way == WAYS[4] else None
    seconds = []
    for _ in range(given.updates):
        started = time.perf_counter()
        with malloc.walled(wall):
            update()
        seconds.append(time.perf_counter() - started)
    found = {
        "seconds": min(seconds[1:]),
        "predicted": fixed + cost.peak_bytes,
        "highest": machine.peak_resident_bytes(),
    }
    print(json.dumps(found))


def run(way, vocabulary, arguments):
    """The same in a process of its own under that malloc."""
    environment = dict(os.environ)
    if way.startswith("tcmalloc"):
        environment |= preloaded(find(), environment)
    command = [sys.executable, __file__, *arguments, "--work", way, "--vocabulary", str(vocabulary)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def tell(found, given):
    """The report of all loads."""
    report = Report("Malloc under training")
    section = report.section("Ways")
    columns = ["load", "malloc", ("an update", "seconds"), "against glibc", ("highest resident", "bytes"),
               ("predicted", "bytes"), "over"]  # fmt: skip
    rows = []
    for load, ways in found.items():
        for way, own in ways.items():
            over = own["highest"] / own["predicted"] - 1
            ratio = own["seconds"] / ways["glibc"]["seconds"]
            rows.append([load, way, own["seconds"], f"{ratio:.2f}", own["highest"], own["predicted"], f"{over:+.1%}"])
    note = f"{given.layers} layers, {given.width} wide, {given.rows} x {given.tokens} tokens, AdamW; {given.repeats} turns."
    section.table(columns, rows, title="Each way in processes of its own, in turn", note=note)
    section = report.section("Machine")
    for what, value in machine.describe().items():
        section.fact(what, value, "bytes" if what.endswith("_bytes") else "")
    return report


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, value in (
        ("layers", 6),
        ("width", 384),
        ("rows", 16),
        ("tokens", 256),
        ("updates", 4),
        ("repeats", 3),
        ("threads", 0),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--vocabulary", type=int)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(given.work, given)
        return
    ways = [way for way in WAYS if not way.startswith("tcmalloc") or find()]
    found = {}
    for load, vocabulary in (("layers alone", 1000), ("30,522 words", 30522)):
        own = found.setdefault(load, {})
        for _ in range(given.repeats):
            for way in ways:
                new = run(way, vocabulary, sys.argv[1:])
                old = own.get(way, new)
                own[way] = new | {
                    "seconds": min(old["seconds"], new["seconds"]),
                    "highest": max(old["highest"], new["highest"]),
                }
                print(load, way, json.dumps(own[way]), flush=True)
    tell(found, given).save(given.out, "allocator")


if __name__ == "__main__":
    main()
