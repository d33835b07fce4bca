"""Reading a large file of dialogues: its time against the tokenizer's own on the same text, and the memory it takes.

    python benchmarks/dialogue_files.py [--megabytes 300] [--forms list messages template] [--out FOLDER]

One JSON line a form: ``list`` (LCCC's lines), ``messages`` (OpenAI's), ``template`` (the same under a chat template of the
tokenizer's own). ``ratio``: processor's seconds to count, check, split, tokenise and write all of it over those of the
tokenizer for the same turns, 256 texts a call (goal: at most 1.5). ``peak_bytes``: of the process that
reads, beyond what it had before (goal: the same at 30 MB and 300 MB but for some 200 bytes a dialogue). ``silent_seconds``: the
longest that nothing was told. Each is measured in a process of its own; the file is made of everyday talks, each changed by a number.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from itertools import count, pairwise
from pathlib import Path

from jieyue import machine
from jieyue.data.corpora.everyday import compose_talks
from jieyue.data.dialogues import DialogueFiles
from jieyue.hf.lossless_pieces import learn_lossless_vocabulary, make_lossless_tokenizer
from jieyue.report import Report
from jieyue.tasks.chat.rows import encode_dialogues
from jieyue.tasks.chat.settings import ChatSettings

FORMS = ("list", "messages", "template")
CHATML = (
    "{% for one in messages %}{{ '<|' + one['role'] + '|>' + one['content'] + '[SEP]' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def write_file(path, megabytes, form):
    """Everyday talks over and over, the number of the round in each turn, until there is so much of them."""
    talks, size = compose_talks(), 0
    with path.open("w", encoding="utf-8") as file:
        for turn in count():
            for talk in talks:
                said = [f"{one.text} {turn}" for one in talk]
                if form != "list":
                    said = {
                        "messages": [{"role": one.role, "content": text} for one, text in zip(talk, said, strict=True)]
                    }
                size += file.write(line := json.dumps(said, ensure_ascii=False) + "\n") + 2 * sum(
                    character > "\x7f" for character in line
                )
                if size >= megabytes * 1e6:
                    return


def tokenizer_of(form):
    tokenizer = make_lossless_tokenizer(learn_lossless_vocabulary(one.text for talk in compose_talks() for one in talk))
    if form == "template":
        tokenizer.chat_template = CHATML
    return tokenizer


def measured(path, form, whole):
    """In a process of its own: the whole way, or the tokenizer alone on the texts as they come."""
    tokenizer, told = tokenizer_of(form), []
    resting = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    if whole:
        before = time.process_time()
        files = DialogueFiles(path, held_out=0.02, progress=lambda *_: told.append(time.perf_counter()))
        with tempfile.TemporaryDirectory() as folder:
            _, counts = encode_dialogues(files, tokenizer, ChatSettings(max_tokens=512), Path(folder) / "tokens")
        spent, tokens, dialogues = time.process_time() - before, counts["tokens"], len(files) + len(files.held)
    else:
        spent, tokens, dialogues, batch = 0.0, 0, 0, []
        with path.open(encoding="utf-8") as lines:
            for line in [*lines, None]:
                if line is not None:
                    said = json.loads(line)
                    turns = said if form == "list" else [one["content"] for one in said["messages"]]
                    batch.append("[SEP]".join(turns))
                if len(batch) == 256 or (line is None and batch):
                    before = time.process_time()
                    found = tokenizer(batch, add_special_tokens=False, return_attention_mask=False)["input_ids"]
                    spent += time.process_time() - before
                    tokens += sum(map(len, found))
                    dialogues += len(batch)
                    batch = []
    told = [started, *told, time.perf_counter()]
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resting) * 1024
    silent = max(later - earlier for earlier, later in pairwise(told))
    return {"seconds": spent, "tokens": tokens, "dialogues": dialogues, "peak_bytes": peak, "silent_seconds": silent}


def row(path, megabytes, form):
    write_file(path, megabytes, form)
    found = {}
    for part in ("alone", "whole"):
        command = [sys.executable, __file__, "--measure", part, str(path), form]
        done = subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8")
        found[part] = json.loads(done.stdout)
    whole, alone = found["whole"], found["alone"]
    return {
        "form": form, "megabytes": path.stat().st_size / 1e6, "dialogues": whole["dialogues"],
        "seconds": whole["seconds"], "tokenizer_seconds": alone["seconds"], "ratio": whole["seconds"] / alone["seconds"],
        "peak_bytes": whole["peak_bytes"], "silent_seconds": whole["silent_seconds"],
    }  # fmt: skip


def report_of(rows):
    report = Report(
        "Reading large files of dialogues", about="One thread; processor's seconds; a process for each number."
    )
    columns = ["form", ("file", "MB"), "dialogues", ("whole way", "seconds"), ("tokenizer alone", "seconds"),
               "ratio (goal: 1.5)", ("peak", "bytes"), ("longest silence", "seconds")]  # fmt: skip
    report.section("Rows").table(columns, [list(one.values()) for one in rows])
    for what, value in machine.describe().items():
        report.section("Machine").fact(what.replace("_bytes", " memory"), value, "bytes" if "_bytes" in what else "")
    return report


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=300)
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=FORMS)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        part, path, form = given.measure
        print(json.dumps(measured(Path(path), form, part == "whole")))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for form in given.forms:
            rows.append(row(Path(folder) / "talks.jsonl", given.megabytes, form))
            print(json.dumps(rows[-1]), flush=True)
    if given.out:
        report_of(rows).save(given.out, "dialogue-files")


if __name__ == "__main__":
    main()
