"""What accumulation costs beyond its own micro-steps, and how the peak depends on the effective batch.

    python benchmarks/accumulation.py [--models tiny small] [--rows 64] [--micro-batch 8] [--length 128] [--threads 1] [--out DIR]

One JSON line a row. ``ratio``: median seconds of ``accumulate`` over those of the same pieces' bare forward and backward
passes, alternating (goal: at most 1.03); ``cpu_ratio``: the same of the processor's time, which other jobs disturb less.
``peak_bytes``: live bytes of torch's allocator in one warm update, for effective batches of 8 to 256 rows in pieces of
four (goal: flat within 5 %; a batch of a single piece needs one gradient less).
"""

import argparse
import json
import time
from pathlib import Path

import torch
from memory_prediction import subject

from jieyue import machine
from jieyue.planning.measurement import measure_step
from jieyue.planning.setting import Setting
from jieyue.report import Report
from jieyue.timer import median_seconds
from jieyue.training.accumulation import accumulate
from jieyue.training.microbatch import MicroBatch


def seconds_row(name, given):
    step = subject(name, given.length).step(Setting(micro_batch=given.micro_batch))
    objective, model = step.objective, step.build_model().train()
    batch = step.example_batch(given.rows, given.length)
    pieces = list(MicroBatch(given.micro_batch).pieces(batch))

    def bare():
        for piece in pieces:
            objective(model, piece).total.backward()
        model.zero_grad(set_to_none=True)

    def accumulated():
        accumulate(objective, model, batch, micro_batch=given.micro_batch)
        model.zero_grad(set_to_none=True)

    taken = median_seconds({"bare": bare, "accumulated": accumulated}, repeats=given.repeats)
    middle = {key: values[len(values) // 2] for key, values in taken.items()}
    processor = {"bare": [], "accumulated": []}
    for _ in range(given.repeats):
        for key, call in (("bare", bare), ("accumulated", accumulated)):
            start = time.process_time()
            call()
            processor[key].append(time.process_time() - start)
    own = {key: sorted(values)[len(values) // 2] for key, values in processor.items()}
    return {
        "model": name, "rows": given.rows, "micro_batch": given.micro_batch, "length": given.length,
        "bare_seconds": middle["bare"], "accumulated_seconds": middle["accumulated"],
        "ratio": middle["accumulated"] / middle["bare"], "cpu_ratio": own["accumulated"] / own["bare"],
    }  # fmt: skip


def peak_rows(name, length, micro_batch=4):
    step = subject(name, length).step(Setting(micro_batch=micro_batch))
    objective, model = step.objective, step.build_model().train()
    optimizer = step.make_optimizer(model)
    accumulate(objective, model, step.example_batch(micro_batch, length), micro_batch=micro_batch)
    optimizer.step()
    optimizer.zero_grad()
    for rows in (8, 16, 32, 64, 128, 256):
        batch = step.example_batch(rows, length)
        peak = measure_step(objective, model, batch, optimizer, micro_batch=micro_batch)
        yield {"model": name, "effective_batch": rows, "micro_batch": micro_batch, "length": length, "peak_bytes": peak}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=["tiny", "small"])
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    seconds, peaks = [], []
    for name in given.models:
        seconds.append(seconds_row(name, given))
        print(json.dumps(seconds[-1]), flush=True)
        for row in peak_rows(name, min(given.length, 64)):
            peaks.append(row)
            print(json.dumps(row), flush=True)
    report_of(given, seconds, peaks).save(given.out, "accumulation")


def report_of(given, seconds, peaks):
    report = Report(
        "Accumulation: what it costs, and its peak against the effective batch", about=f"{given.threads} threads"
    )
    section = report.section("Overhead")
    columns = ["model", "rows", "micro-batch", "tokens", ("bare passes", "seconds"), ("accumulated", "seconds"),
               ("ratio", "x"), ("of processor time", "x"), "goal 1.03"]  # fmt: skip
    names = ("model", "rows", "micro_batch", "length", "bare_seconds", "accumulated_seconds", "ratio", "cpu_ratio")
    rows = [[*(row[name] for name in names), "met" if row["ratio"] <= 1.03 else "missed"] for row in seconds]
    note = f"Medians of {given.repeats} alternating repeats; bare: the same pieces' forward and backward passes."
    section.table(columns, rows, note=note)
    section = report.section("Peak")
    kept = [
        {row["effective_batch"]: row["peak_bytes"] for row in peaks if row["model"] == name} for name in given.models
    ]
    batches = [f"{rows} rows" for rows in kept[0]]
    table = [
        [name, *own.values(), max(own.values()) / min(own.values()) - 1,
         "met" if max(own.values()) <= 1.05 * min(own.values()) else "missed"] for name, own in zip(given.models, kept, strict=True)
    ]  # fmt: skip
    section.table(
        ["model", *((one, "bytes") for one in batches), ("highest over lowest", "share"), "goal 5 %"],
        table,
        note="Live bytes of torch's allocator in one warm update, pieces of 4 rows of 64 tokens, by the effective batch.",
    )
    section = report.section("Machine")
    for what, value in machine.describe().items():
        section.fact(what, value, "bytes" if what.endswith("_bytes") else "")
    return report


if __name__ == "__main__":
    main()
