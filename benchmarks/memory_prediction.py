"""Predicted against measured memory, by both yardsticks, each setting in a process of its own.

    python benchmarks/memory_prediction.py [--models tiny small] [--threads 1] [--largest 12GiB]
    python benchmarks/memory_prediction.py --models bert-base albert-base gpt2 --lengths 128 512 2048 --micro 1 4 16

One JSON line a setting. ``allocator_error``: predicted over measured peak of torch's allocator, minus one (goal: within
1 %). ``process_error_bytes``: highest resident set (VmHWM, glibc's mmap threshold at 64 KiB) minus fixed cost and
predicted peak (goal: within max(5 %, 8 MiB)). Settings predicted above ``--largest`` are predicted only.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict

from jieyue import machine
from jieyue.budget import Plan, parse_bytes

PRESETS = {"tiny": [(16, 8, 64, False), (32, 8, 256, False), (32, 8, 256, True)],
           "small": [(16, 8, 64, False), (16, 4, 256, False), (16, 4, 512, True)]}  # fmt: skip
VOCABULARY = 8000


def build(name):
    """A model from its configuration, weights random."""
    import transformers

    from jieyue.hf.loading import model_from_config
    from jieyue.hf.presets import PRESETS

    if name in PRESETS:
        sizes = {"vocab_size": VOCABULARY, "max_position_embeddings": 8192, "tie_word_embeddings": True}
        return model_from_config(transformers.EuroBertConfig(**sizes, pad_token_id=0, **PRESETS[name]))
    if name == "gpt2":
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(n_positions=2048, use_cache=False))
    if name == "albert-base":
        sizes = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072, "embedding_size": 128}
        return transformers.AlbertForMaskedLM(transformers.AlbertConfig(max_position_embeddings=2048, **sizes))
    return transformers.BertForMaskedLM(transformers.BertConfig(max_position_embeddings=2048))


def example(rows, length):
    import torch

    ids = torch.randint(10, VOCABULARY, (rows, length))
    mask = torch.ones_like(ids)
    mask[:, length * 3 // 4 :] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.where(mask == 1, ids, -100)}


def objective(model, batch):
    from jieyue.training.objective import token_loss

    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return token_loss(logits, batch["labels"])


def measure(name, effective, micro, length, checkpointing, threads, largest, steps=2):
    """One setting, in this process: predicts, trains two updates, then one under the profiler."""
    machine.fix_malloc_threshold()
    import torch

    from jieyue.hf import trainer  # noqa: F401  what a real run has loaded
    from jieyue.planning.choice import fixed_cost
    from jieyue.planning.measurement import measure_step
    from jieyue.planning.prediction import TrainingStep, predict
    from jieyue.training.accumulation import accumulate

    torch.set_num_threads(threads)
    step = TrainingStep(
        build_model=lambda: build(name),
        objective=objective,
        example_batch=example,
        make_optimizer=lambda model: torch.optim.AdamW(model.parameters(), fused=True),
        length=length,
    )
    started = time.perf_counter()
    cost = predict(step, effective_batch=effective, micro_batch=micro, checkpointing=checkpointing)
    row = {"model": name, "effective_batch": effective, "micro_batch": micro, "length": length,
           "checkpointing": checkpointing, "trace_seconds": time.perf_counter() - started,
           "predicted": {key: value for key, value in asdict(cost).items() if value}}  # fmt: skip
    if cost.peak_bytes > largest:
        return row
    fixed = fixed_cost()
    model = step.build_model().train()
    optimizer = step.make_optimizer(model)
    batch = example(effective, length)
    plan = Plan(effective_batch=effective, micro_batch=micro, checkpointing=checkpointing)
    for _ in range(steps):
        started = time.perf_counter()
        accumulate(objective, model, batch, micro_batch=plan)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        row["step_seconds"] = time.perf_counter() - started
    highest = machine.peak_resident_bytes()
    measured = measure_step(objective, model, batch, optimizer, micro_batch=plan)
    gap = highest - fixed - cost.peak_bytes
    return row | {
        "fixed_bytes": fixed, "allocator_bytes": measured, "process_bytes": highest,
        "allocator_error": cost.peak_bytes / measured - 1, "process_error_bytes": gap,
        "process_error": gap / highest, "within": abs(cost.peak_bytes / measured - 1) <= 0.01
        and abs(gap) <= max(0.05 * highest, 8 * 2**20),
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=["tiny", "small"])
    parser.add_argument("--lengths", nargs="+", type=int)
    parser.add_argument("--micro", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--largest", default="12GiB")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    largest = parse_bytes(given.largest)
    if given.one:
        print(json.dumps(measure(*json.loads(given.one), given.threads, largest)))
        return
    print(json.dumps({"machine": machine.describe()}), flush=True)
    for name in given.models:
        own = PRESETS.get(name, []) if given.lengths is None else []
        grid = [(2 * micro, micro, length, False) for length in given.lengths or [] for micro in given.micro]
        for setting in own or grid:
            one = json.dumps([name, *setting])
            command = [sys.executable, __file__, "--threads", str(given.threads), "--largest", given.largest]
            done = subprocess.run([*command, "--one", one], capture_output=True, text=True, check=False)
            print(done.stdout.strip() or json.dumps({"model": name, "failed": done.stderr[-500:]}), flush=True)


if __name__ == "__main__":
    main()
