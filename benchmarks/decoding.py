"""Decoding: tokens a second against transformers' generate, and time a token against the length of the history.

    python benchmarks/decoding.py [--model small] [--tokens 64] [--threads 2] [--lengths 1024 4096 16384 32768] [--out FOLDER]

One JSON line a row; with ``--out`` also a report, ``decoding.json``. ``ratio``: our tokens a second over generate's, same
model, same greedy tokens, alternating (goal: at least 1.0 at 1 and 8 rows). ``seconds_per_token``: with each attention after
a history of each length (goal: flat with local and linear attention).
"""

import argparse
import json
import statistics
import time
from functools import partial
from pathlib import Path

import torch

from jieyue import machine
from jieyue.hf.batched_decoding import Stepper
from jieyue.hf.causal_presets import build_causal
from jieyue.hf.lossless_pieces import learn_lossless_vocabulary, make_lossless_tokenizer
from jieyue.hf.use import use
from jieyue.report import Report
from jieyue.timer import take_turns


def ours(model, prompts, tokens):
    stepper = Stepper(model)
    rows, logits = stepper.begin(prompts)
    for _ in range(tokens - 1):
        logits = stepper.step(rows, logits.argmax(-1).tolist())
    return logits.argmax(-1)


def theirs(model, prompts, tokens):
    ids = torch.tensor(prompts)
    mask = torch.ones_like(ids)
    return model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens)[
        :, -1
    ]


def against_generate(model, rows, tokens, repeats):
    prompts = [[5 + (7 * row + place) % 90 for place in range(32)] for row in range(rows)]
    assert torch.equal(ours(model, prompts, tokens), theirs(model, prompts, tokens))
    calls = {"ours": partial(ours, model, prompts, tokens), "generate": partial(theirs, model, prompts, tokens)}
    taken = take_turns(calls, repeats, warmup=0)
    middle = {name: statistics.median(values) for name, values in taken.items()}
    return {
        "what": "against generate", "rows": rows, "tokens": tokens,
        "tokens_per_second": rows * tokens / middle["ours"],
        "generate_tokens_per_second": rows * tokens / middle["generate"],
        "ratio": middle["generate"] / middle["ours"],
    }  # fmt: skip


def against_length(name, tokenizer, attention, lengths, tokens, chunk=2048):
    """One model, a talk of each length; each step of each talk in turn, so that a disturbance meets all lengths."""
    model = build_causal(name, tokenizer, max_position_embeddings=2**16).eval()
    if attention != "full()":
        use(model, attention=attention)
    stepper, talks = Stepper(model), []
    for length in lengths:
        ids = [5 + place % 90 for place in range(length)]
        rows, logits = stepper.begin([ids[:chunk]])
        for first in range(chunk, length, chunk):
            logits = stepper.extend(rows, ids[first : first + chunk])
        talks.append([rows, logits, []])
    for _ in range(tokens):
        for talk in talks:
            chosen = talk[1].argmax(-1).tolist()
            started = time.perf_counter()
            talk[1] = stepper.step(talk[0], chosen)
            talk[2].append(time.perf_counter() - started)
    return [
        {"what": "against length", "attention": attention, "history": length,
         "seconds_per_token": sorted(times)[len(times) // 2], "state_bytes": rows.nbytes}
        for length, (rows, _, times) in zip(lengths, talks, strict=True)
    ]  # fmt: skip


def tell(rows, given):
    report = Report("Decoding", f"model {given.model}, random weights, {given.threads} threads, greedy")
    section = report.section("Against transformers' generate")
    columns = ["rows", "tokens a second", "generate, tokens a second", "times"]
    names = ("rows", "tokens_per_second", "generate_tokens_per_second", "ratio")
    own = [row for row in rows if row["what"] == "against generate"]
    section.table(
        columns, [[row[name] for name in names] for row in own], note="Alternating repeats, medians. Goal: 1.0."
    )
    section = report.section("Time a token against the history")
    columns = ["attention", "tokens of history", ("a token", "seconds"), ("state", "bytes")]
    names = ("attention", "history", "seconds_per_token", "state_bytes")
    own = [row for row in rows if row["what"] == "against length"]
    section.table(columns, [[row[name] for name in names] for row in own], note="Medians; all lengths in turn.")
    section = report.section("Machine")
    for what, value in machine.describe().items():
        section.fact(what, value, "bytes" if what.endswith("_bytes") else "")
    report.save(given.out, "decoding")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="small")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--lengths", type=int, nargs="*", default=[1024, 4096, 16384, 32768])
    parser.add_argument("--out", type=Path, help="a folder for decoding.json")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    tokenizer = make_lossless_tokenizer(learn_lossless_vocabulary(["hello there"], 50))
    model = build_causal(given.model, tokenizer, max_position_embeddings=2**16).eval()
    found = []
    for number in (1, 8):
        found.append(against_generate(model, number, given.tokens, given.repeats))
        print(json.dumps(found[-1]), flush=True)
    for attention in ("full()", "local(128)", "linear(elu)"):
        for row in against_length(given.model, tokenizer, attention, given.lengths, 16):
            found.append(row)
            print(json.dumps(row), flush=True)
    if given.out:
        tell(found, given)


if __name__ == "__main__":
    main()
