"""How soon `jieyue read` answers, beside the least that any program with a BERT of transformers must wait for.

    python benchmarks/cold_start.py [--repeats 7] [--out FOLDER]

The two are run in turn, each in a process of its own: `python -c "from transformers import BertForMaskedLM"`, and `jieyue read` of
an untrained BERT reader of four layers, from the folder to the answer. Told are the medians of the time on the clock and of the
processor's time (user and system), which other programs on the machine disturb less, and the ratio of the two; the goal is 1.15.
"""

import argparse
import os
import string
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from jieyue import machine
from jieyue.report import Report

GOAL = 1.15
LEAST, READ = "from transformers import BertForMaskedLM", "jieyue read"
IMPORT = [sys.executable, "-c", LEAST]


def make_reader(folder: Path) -> None:
    """A masked reader that was never trained."""
    from jieyue.hf.classic_presets import build_classic
    from jieyue.hf.loading import save
    from jieyue.hf.tokenizers import make_tokenizer

    letters = [*string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase), "?", "."]
    tokenizer = make_tokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters])
    model = build_classic("bert-tiny", tokenizer, head="masked-lm")
    save(model, tokenizer, folder, {"recipe": "read", "settings": {}})


def measure(command: list[str]) -> tuple[float, float]:
    """Seconds on the clock and of the processor."""
    started, before = time.perf_counter(), os.times()
    subprocess.run(command, check=True, capture_output=True)
    after = os.times()
    spent = after.children_user - before.children_user + after.children_system - before.children_system
    return time.perf_counter() - started, spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", default=Path(__file__).parent / "results", type=Path)
    given = parser.parse_args()
    repeats = given.repeats
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "reader"
        subprocess.run(
            [sys.executable, "-c", f"import cold_start; cold_start.make_reader(cold_start.Path({str(folder)!r}))"],
            check=True,
            cwd=Path(__file__).parent,
        )
        asked = ["--question", "where is a?", "--text", "a is in b."]
        read = [sys.executable, "-m", "jieyue", "read", str(folder), *asked]
        for command in (IMPORT, read):  # the files are in the system's cache from here on
            measure(command)
        found: dict[str, list[tuple[float, float]]] = {LEAST: [], READ: []}
        for _ in range(repeats):
            found[LEAST].append(measure(IMPORT))
            found[READ].append(measure(read))
    report, medians = Report("Cold start"), {}
    for name, own in found.items():
        medians[name] = tuple(median(one[number] for one in own) for number in (0, 1))
    section = report.section("From the shell to an answer")
    rows = [[name, *medians[name]] for name in found]
    note = f"Medians of {repeats} runs in turn, each in a process of its own; processor: user and system time together."
    section.table(["program", ("clock", "seconds"), ("processor", "seconds")], rows, note=note)
    for number, what in enumerate(("clock", "processor")):
        ratio = medians[READ][number] / medians[LEAST][number]
        section.fact(f"times as long, by the {what}", ratio, "x", how=f"the goal is at most {GOAL}")
    section = report.section("Machine")
    for what, value in machine.describe().items():
        section.fact(what, value, "bytes" if what.endswith("_bytes") else "")
    section.fact("load", os.getloadavg()[2], how="programs that wanted a processor, mean of a quarter of an hour")
    report.save(given.out, "cold-start")
    print(report.text())


if __name__ == "__main__":
    main()
