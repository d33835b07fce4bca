"""``jieyue predict`` on a long file: rate and peak memory by the number of rows; killed in the middle and resumed.

    python benchmarks/predict.py [--rows 100000] [--threads 1]

A classifier of the preset ``tiny``, a few updates old, labels rows of a CSV with three columns, texts of 2 to 24 words. Each run is the
command in a process of its own; its peak is VmHWM. The killed run is ended by SIGKILL once half of the rows are answered; resumed, its
file is compared with that of the run without a stop, byte for byte. Writes ``predict.json``.
"""

import argparse
import csv
import filecmp
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from jieyue import machine
from jieyue.report import Report
from jieyue.run import RunConfig, TrainingConfig
from jieyue.run.jobs import train

WORDS = (
    "图书馆",
    "周末",
    "开放",
    "notice",
    "通知",
    "school",
    "火车",
    "晚点",
    "请",
    "早点",
    "来",
    "the",
    "river",
    "今天",
    "closed",
)


def write_rows(path, count):
    draw = random.Random(0)
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "text", "note"])
        for number in range(count):
            writer.writerow([number, " ".join(draw.choices(WORDS, k=draw.randint(2, 24))), 'a, "b"'])


def started(folder, source, out, threads, *flags):
    command = [sys.executable, "-m", "jieyue", "predict", folder, source, "--out", out, "--json", *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    return subprocess.Popen(list(map(str, command)), env=environment, stdout=subprocess.PIPE, text=True)


def finished(running):
    """What the run said last, and its peak: VmHWM, looked at until it ends."""
    peak, status = 0, Path(f"/proc/{running.pid}/status")
    while running.poll() is None:
        found = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        peak = max([peak, *(int(line.split()[1]) * 1024 for line in found)])
        time.sleep(0.05)
    told = running.stdout.read()
    if running.returncode:
        raise SystemExit(f"jieyue predict: status {running.returncode}\n{told[-2000:]}")
    return {**json.loads(told.splitlines()[-1]), "peak_bytes": peak}


def killed(running, part, half):
    """Ends the run once ``part`` has so many bytes."""
    while running.poll() is None and not (part.exists() and part.stat().st_size >= half):
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    running.stdout.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", default=Path(__file__).parent / "results", type=Path)
    given = parser.parse_args()
    report = Report("Predicting a long file")
    rows = []
    with tempfile.TemporaryDirectory(prefix="jieyue-predict-") as work:
        folder = Path(work) / "model"
        train("classify", RunConfig(limit=120), folder, training=TrainingConfig(steps=2, effective_batch=8))
        for count in (given.rows // 10, given.rows):
            source, out = Path(work) / f"{count}.csv", Path(work) / f"{count}.out.csv"
            write_rows(source, count)
            found = finished(started(folder, source, out, given.threads))
            size = source.stat().st_size
            rows.append([count, size, found["rows_per_second"], found["seconds"], found["peak_bytes"]])
            print(json.dumps(found), flush=True)
        again = Path(work) / "again.csv"
        part = again.with_name("again.csv.part")
        killed(started(folder, source, again, given.threads), part, out.stat().st_size // 2)
        left = part.stat().st_size
        resumed = finished(started(folder, source, again, given.threads, "--resume"))
        print(json.dumps(resumed), flush=True)
        same = filecmp.cmp(out, again, shallow=False)
    section = report.section("Rate and memory")
    section.table(
        ["rows", ("file", "bytes"), ("rate", "per second"), ("seconds", "seconds"), ("peak", "bytes")], rows,
        note="Rate and seconds: of reading, answering and writing; peak (VmHWM): of the whole process. "
        f"{given.threads} threads, 32 rows a forward pass. Other work ran on the machine.",
    )  # fmt: skip
    section.fact("peak, ten times the rows", rows[1][-1] / rows[0][-1], "×")
    section = report.section("Killed in the middle")
    section.fact("rows kept of those answered before SIGKILL", resumed["kept"], how=f"{left:,} bytes were written")
    section.fact("rows answered after --resume", resumed["rows"])
    section.fact("file as without a stop, byte for byte", "yes" if same else "no")
    section = report.section("Machine")
    for what, value in machine.describe().items():
        section.fact(what, value, "bytes" if what.endswith("_bytes") else "")
    report.save(given.out, "predict")


if __name__ == "__main__":
    main()
