"""Decoding: tokens a second against transformers' generate, and time a token against the length of the history.

    python benchmarks/decoding.py [--model small] [--tokens 64] [--threads 2] [--lengths 1024 4096 16384 32768]

One JSON line a row. ``ratio``: our tokens a second over generate's, same model, same greedy tokens, alternating (goal: at
least 1.0 at 1 and 8 rows). ``seconds_per_token``: with each attention after a history of each length (goal: flat with local
and linear attention).
"""

import argparse
import json
import time

import torch

from jieyue.hf.causal_presets import build_causal
from jieyue.hf.lossless_pieces import learn_lossless_vocabulary, make_lossless_tokenizer
from jieyue.hf.stepping import Stepper
from jieyue.hf.use import use


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


def seconds(call, *arguments):
    started = time.perf_counter()
    found = call(*arguments)
    return time.perf_counter() - started, found


def against_generate(model, rows, tokens, repeats):
    prompts = [[5 + (7 * row + place) % 90 for place in range(32)] for row in range(rows)]
    assert torch.equal(ours(model, prompts, tokens), theirs(model, prompts, tokens))
    taken = {"ours": [], "generate": []}
    for _ in range(repeats):
        taken["ours"].append(seconds(ours, model, prompts, tokens)[0])
        taken["generate"].append(seconds(theirs, model, prompts, tokens)[0])
    middle = {name: sorted(values)[len(values) // 2] for name, values in taken.items()}
    return {
        "what": "against generate", "rows": rows, "tokens": tokens,
        "tokens_per_second": rows * tokens / middle["ours"],
        "generate_tokens_per_second": rows * tokens / middle["generate"],
        "ratio": middle["generate"] / middle["ours"],
    }  # fmt: skip


def against_length(model, attention, length, tokens, chunk=2048):
    stepper = Stepper(model)
    ids = [5 + place % 90 for place in range(length)]
    rows, logits = stepper.begin([ids[:chunk]])
    for first in range(chunk, length, chunk):
        logits = stepper.extend(rows, ids[first : first + chunk])
    times = []
    for _ in range(tokens):
        started = time.perf_counter()
        logits = stepper.step(rows, logits.argmax(-1).tolist())
        times.append(time.perf_counter() - started)
    return {
        "what": "against length", "attention": attention, "history": length,
        "seconds_per_token": sorted(times)[len(times) // 2], "state_bytes": rows.nbytes,
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="small")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--lengths", type=int, nargs="*", default=[1024, 4096, 16384, 32768])
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    tokenizer = make_lossless_tokenizer(learn_lossless_vocabulary(["hello there"], 50))
    model = build_causal(given.model, tokenizer, max_position_embeddings=2**16).eval()
    for rows in (1, 8):
        print(json.dumps(against_generate(model, rows, given.tokens, given.repeats)), flush=True)
    for attention in ("full()", "local(128)", "linear(elu)"):
        own = build_causal(given.model, tokenizer, max_position_embeddings=2**16).eval()
        if attention != "full()":
            use(own, attention=attention)
        for length in given.lengths:
            print(json.dumps(against_length(own, attention, length, 16)), flush=True)


if __name__ == "__main__":
    main()
