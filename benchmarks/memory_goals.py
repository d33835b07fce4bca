"""What fits in 1, 2 and 4 GiB: models trained whole and by adapters, predicted, and run for ten updates; goes on where it was stopped.

    python benchmarks/memory_goals.py                          # what fits by traces alone: no weight is allocated
    python benchmarks/memory_goals.py --run --models bert-base # ten updates of what fits, each cell in a process of its own
    python benchmarks/memory_goals.py --run --largest 2GiB

BERT-base, GPT-2 and a configuration of 0.5 billion weights (Qwen2.5's sizes), random weights, 8 rows of 128 tokens an update.
Methods: all weights under AdamW or Adafactor; adapters of rank 16 on the frozen weights, in float32 and (with bitsandbytes) in four
bits. Pieces and checkpointing as they are needed. Every cell is kept in ``memory-goals.jsonl`` as it is known, the report in
``memory-goals.json``. Bytes do not mind other jobs; the seconds want an idle machine.
"""

import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

import torch

from jieyue import machine
from jieyue.budget import format_bytes, parse_bytes
from jieyue.report import Report, write_whole

MODELS = ("bert-base", "gpt2", "qwen-0.5b")
METHODS = {"all weights, AdamW": ("adamw", None, None), "all weights, Adafactor": ("adafactor", None, None),
           "adapters": ("adamw", 16, None), "adapters on four bits": ("adamw", 16, "nf4")}  # fmt: skip
BUDGETS = ("1GiB", "2GiB", "4GiB")
ROWS, TOKENS, UPDATES = 8, 128, 10


def step_of(name, method):
    """The update to trace and to run."""
    import transformers

    from jieyue.hf.low_rank import Adapter
    from jieyue.planning.setting import Setting
    from jieyue.planning.subject import Subject

    if name == "bert-base":
        subject = Subject(config=transformers.BertConfig(), head="masked-lm", positions=TOKENS)
    elif name == "gpt2":
        subject = Subject(config=transformers.GPT2Config(), head="causal-lm", positions=TOKENS)
    else:
        sizes = {"vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
                 "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True}  # fmt: skip
        subject = Subject(config=transformers.Qwen2Config(**sizes), head="causal-lm", positions=TOKENS)
    optimizer, rank, base = METHODS[method]
    step = subject.step(Setting(micro_batch=1, optimizer=optimizer, chunked=True))
    if rank is None:
        return step
    adapter, build = Adapter(rank=rank, base=base), step.build_model
    return replace(step, build_model=lambda: adapter.put_into(build(), head=subject.head))


def ways(name, method):
    """Peak bytes of every (checkpointing, rows) in the order in which they are tried; each traced when it is asked for."""
    from jieyue.planning.prediction import predict

    step = step_of(name, method)
    for checkpointing in (False, True):
        rows = ROWS
        while rows:
            cost = predict(step, effective_batch=ROWS, micro_batch=rows, checkpointing=checkpointing)
            yield {"micro_batch": rows, "checkpointing": checkpointing, "peak_bytes": cost.peak_bytes}
            rows //= 2


def run(name, method, micro_batch, checkpointing, threads):
    """Ten updates: seconds of an update (the median), and the highest resident set."""
    from jieyue.budget import Plan
    from jieyue.planning.search import fixed_cost
    from jieyue.training.accumulation import accumulate

    machine.give_back_freed_memory()
    torch.set_num_threads(threads)
    fixed, step = fixed_cost(), step_of(name, method)
    model = step.build_model().train()
    optimizer, batch = step.make_optimizer(model), step.example_batch(ROWS, TOKENS)
    plan, seconds = Plan(effective_batch=ROWS, micro_batch=micro_batch, checkpointing=checkpointing), []
    for _ in range(UPDATES):
        started = time.perf_counter()
        accumulate(step.objective, model, batch, micro_batch=plan)
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - started)
    return {
        "fixed_bytes": fixed,
        "process_bytes": machine.peak_resident_bytes(),
        "seconds": sorted(seconds)[UPDATES // 2],
    }


def tell(cells, fixed):
    report = Report("What fits in 1, 2 and 4 GiB")
    section = report.section("Goals")
    section.fact("an update", f"{ROWS} rows of {TOKENS} tokens", how="random weights of the models' sizes")
    section.fact("fixed", fixed, "bytes", how="interpreter and libraries, counted in what fits")
    columns = ["model", "trained", "budget", "micro-batch", "checkpointing", ("process, predicted", "bytes"),
               ("process, measured", "bytes"), ("seconds an update", "seconds")]  # fmt: skip
    rows = []
    for cell in cells:
        start = [cell["model"], cell["method"], cell["budget"]]
        if cell["found"] is None:
            rows.append(
                [*start, None, f"does not fit: {format_bytes(cell['least'] + fixed)} at least", None, None, None]
            )
            continue
        found, ran = cell["found"], cell.get("ran") or {}
        checkpointed = "yes" if found["checkpointing"] else "no"
        rows.append([*start, found["micro_batch"], checkpointed, fixed + found["peak_bytes"],
                     ran.get("process_bytes"), ran.get("seconds")])  # fmt: skip
    missing = sum("ran" not in cell and cell["found"] is not None for cell in cells)
    note = f"{missing} of the cells that fit were not run." if missing else "Each run in a process of its own."
    section.table(columns, rows, title="The largest pieces that fit", note=note)
    section = report.section("Machine")
    for what, value in machine.describe().items():
        section.fact(what, value, "bytes" if what.endswith("_bytes") else "")
    return report


def main():
    from jieyue.planning.search import fixed_cost

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--run", action="store_true", help="ten updates of the cells that fit")
    parser.add_argument("--largest", default="4GiB", help="budgets above it are not run")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    kept = given.out / "memory-goals.jsonl"
    lines = [json.loads(line) for line in kept.read_text().splitlines()] if kept.is_file() else []
    fixed = lines[0]["fixed"] if lines else fixed_cost()
    cells = {(cell["model"], cell["method"], cell["budget"]): cell for cell in lines}

    def note(cell):
        cells[cell["model"], cell["method"], cell["budget"]] = cell
        print(json.dumps(cell), flush=True)
        write_whole(kept, "".join(json.dumps(one) + "\n" for one in cells.values()))
        tell(list(cells.values()), fixed).save(given.out, "memory-goals")

    for name in given.models:
        for method in given.methods:
            if METHODS[method][2] and find_spec("bitsandbytes") is None:
                print(f"{method}: left out, bitsandbytes is not installed")
                continue
            traced, known = ways(name, method), []
            for budget in reversed(BUDGETS):
                cell = cells.get((name, method, budget))
                if cell is None:
                    room = parse_bytes(budget) - fixed
                    while not any(one["peak_bytes"] <= room for one in known) and (way := next(traced, None)):
                        known.append(way)
                    found = next((one for one in known if one["peak_bytes"] <= room), None)
                    cell = {"model": name, "method": method, "budget": budget, "fixed": fixed, "found": found}
                    note(cell | {"least": min(one["peak_bytes"] for one in known)})
            for budget in BUDGETS if given.run else ():
                cell = cells[name, method, budget]
                if cell["found"] is None or "ran" in cell or parse_bytes(budget) > parse_bytes(given.largest):
                    continue
                way = {key: cell["found"][key] for key in ("micro_batch", "checkpointing")}
                with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
                    ran = pool.submit(run, name, method, **way, threads=torch.get_num_threads()).result()
                note(cell | {"ran": ran})


if __name__ == "__main__":
    main()
