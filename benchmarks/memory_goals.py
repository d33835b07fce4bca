"""What fits in 1, 2 and 4 GiB: models trained whole and by adapters, predicted, and run for ten updates; goes on where it was stopped.

    python benchmarks/memory_goals.py                          # what fits by traces alone: no weight is allocated
    python benchmarks/memory_goals.py --run --models bert-base # ten updates of what fits, each cell in a process of its own
    python benchmarks/memory_goals.py --run --again            # all of them anew: on an idle machine, for the seconds

BERT-base, GPT-2 and a configuration of 0.5 billion weights (Qwen2.5's sizes), random weights, 8 rows of 128 tokens an update.
Methods: all weights under AdamW or Adafactor, pieces and checkpointing as they are needed; both moving each weight in the
backward pass; adapters of rank 16 on the frozen weights, in float32 and (with bitsandbytes) in four bits, which are read from a
folder written first. Seconds are planned from two shallow copies, then measured: the median of ten updates after a first one, of
three where one takes longer than half a minute. Malloc is what the command line takes, told as it does it: tcmalloc where it is
found; freed memory goes back at once where the budget is tight. Every cell is kept in ``memory-goals.jsonl`` as it is known, the
report in ``memory-goals.json``. Bytes do not mind other jobs; the seconds want an idle machine.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from statistics import median

from jieyue import machine, malloc
from jieyue.budget import Plan, format_bytes, parse_bytes
from jieyue.cli.allocator import find, preloaded
from jieyue.planning.subject import Subject
from jieyue.report import Report, write_whole

MODELS = ("bert-base", "gpt2", "qwen-0.5b")
METHODS = {"all weights, AdamW": ("adamw", None, None), "all weights, AdamW in backward": ("adamw", None, None),
           "all weights, Adafactor": ("adafactor", None, None),
           "all weights, Adafactor in backward": ("adafactor", None, None), "adapters": ("adamw", 16, None),
           "adapters on four bits": ("adamw", 16, "nf4")}  # fmt: skip
BUDGETS = ("1GiB", "2GiB", "4GiB")
ROWS, TOKENS, UPDATES, FEWER, SLOW_SECONDS = 8, 128, 10, 3, 30
QUIET = "Each run in a process of its own; seconds: the median, planned from two shallow copies of the model."
SHARED = "Each run in a process of its own; seconds on a shared machine: the median, planned from two shallow copies of the model."


@dataclass(frozen=True, kw_only=True)
class Way(Subject):
    """A model as one method trains it; ``rank``, ``base``: of its adapters."""

    rank: int | None = None
    base: str | None = None

    def step(self, setting, layers=None):
        step = super().step(setting, layers)
        if self.rank is None:
            return step
        build, adapter = step.build_model, self.adapter
        return replace(step, build_model=lambda: adapter.put_into(build(), head=self.head))

    @property
    def adapter(self):
        from jieyue.hf.low_rank import Adapter

        return Adapter(rank=self.rank, base=self.base)

    def read(self, folder):
        """The model from its folder, as a run reads it: in four bits, a tensor at a time."""
        import torch

        from jieyue.hf.loading import load_model, model_from_config

        with torch.device("meta"):
            rounding = self.adapter.loading(model_from_config(self.config, self.head))
        return self.adapter.put_into(load_model(folder, self.head, quantization=rounding), head=self.head)


def way_of(name, method):
    """(the model, its setting with the rows of a piece open)."""
    import transformers

    from jieyue.planning.setting import Setting

    optimizer, rank, base = METHODS[method]
    if name == "bert-base":
        config, head = transformers.BertConfig(), "masked-lm"
    elif name == "gpt2":
        config, head = transformers.GPT2Config(), "causal-lm"
    else:
        sizes = {"vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
                 "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True}  # fmt: skip
        config, head = transformers.Qwen2Config(**sizes), "causal-lm"
    moving = method.endswith("in backward")
    setting = Setting(micro_batch=1, optimizer=optimizer, chunked=True, moving=moving)
    return Way(config=config, head=head, positions=TOKENS, rank=rank, base=base), setting


def traced(name, method):
    """Peak bytes of every (checkpointing, rows) in the order in which they are tried; each traced when it is asked for."""
    from jieyue.planning.prediction import predict

    subject, setting = way_of(name, method)
    step = subject.step(setting)
    for checkpointing in (False, True):
        rows = ROWS
        while rows >= (ROWS if setting.moving else 1):
            cost = predict(step, effective_batch=ROWS, micro_batch=rows, checkpointing=checkpointing)
            yield {"micro_batch": rows, "checkpointing": checkpointing, "peak_bytes": cost.peak_bytes}
            rows //= 2


def planned_seconds(name, method, found):
    """Seconds of one update by two shallow copies of the model."""
    from jieyue.planning.calibration import Calibration

    subject, setting = way_of(name, method)
    setting = replace(setting, micro_batch=found["micro_batch"], checkpointing=found["checkpointing"])
    return {"planned_seconds": Calibration(subject).seconds(setting, ROWS)}


def run(name, method, found, folder):
    """Updates as a run makes them: seconds of one, and the highest resident set from the first update on."""
    import torch

    from jieyue.planning.search import fixed_cost
    from jieyue.training.accumulation import accumulate
    from jieyue.training.weightwise import PreviousNorm, step_in_backward

    if found["tight"]:
        malloc.give_back_freed_memory()
    fixed = fixed_cost()
    subject, setting = way_of(name, method)
    step = subject.step(setting)
    model = (subject.read(folder) if folder else step.build_model()).train()
    read = machine.peak_resident_bytes()
    malloc.release_free_memory()
    Path("/proc/self/clear_refs").write_text("5")  # the highest resident set starts anew
    optimizer, batch = step.make_optimizer(model), step.example_batch(ROWS, TOKENS)
    plan = Plan(effective_batch=ROWS, micro_batch=found["micro_batch"], checkpointing=found["checkpointing"])
    clip, seconds = PreviousNorm(1.0), []
    while len(seconds) < 1 + (FEWER if seconds and seconds[-1] > SLOW_SECONDS else UPDATES):
        started = time.perf_counter()
        if setting.moving:
            step_in_backward(step.objective, model, batch, optimizer, micro_batch=plan, clip=clip)
        else:
            accumulate(step.objective, model, batch, micro_batch=plan)
            torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - started)
    return {"own_fixed_bytes": fixed, "process_bytes": machine.peak_resident_bytes(), "read_bytes": read,
            "seconds": median(seconds[1:]), "fastest": min(seconds[1:]), "updates": len(seconds) - 1}  # fmt: skip


def write_folder(name, method, folder):
    """Random weights as a folder to read from."""
    subject, _ = way_of(name, method)
    subject.build().save_pretrained(folder)
    return {}


def alone(work, *given):
    """The same in a process of its own, under the malloc that the command line takes."""
    environment = {**os.environ, **preloaded(find(), os.environ)}
    command = [sys.executable, __file__, "--work", json.dumps([work, *given])]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measured(cell):
    """What ``--run`` adds to a cell that fits."""
    name, method, found = cell["model"], cell["method"], cell["found"]
    way = {key: found[key] for key in ("micro_batch", "checkpointing")}
    way["tight"] = cell["fixed"] + 2 * found["peak_bytes"] > parse_bytes(cell["budget"])  # as run.plan has it
    with tempfile.TemporaryDirectory() as folder:
        own = None
        if METHODS[method][2]:
            alone("write_folder", name, method, folder)
            own = folder
        return alone("planned_seconds", name, method, way) | alone("run", name, method, way, own)


def tell(cells, fixed):
    report = Report("What fits in 1, 2 and 4 GiB")
    section = report.section("Goals")
    section.fact("an update", f"{ROWS} rows, each of {TOKENS} tokens", how="random weights of the models' sizes")
    section.fact("fixed", fixed, "bytes", how="interpreter and libraries, counted in what fits")
    ran = [(cell, cell["ran"]) for cell in cells if "ran" in cell]
    if ran:
        errors = [cell["found"]["peak_bytes"] + own["own_fixed_bytes"] - own["process_bytes"] for cell, own in ran]
        shares = [abs(error) / own["process_bytes"] for error, (_, own) in zip(errors, ran, strict=True)]
        kept = sum(own["process_bytes"] <= parse_bytes(cell["budget"]) for cell, own in ran)
        section.fact("process within 5 %", f"{sum(share <= 0.05 for share in shares)} of {len(ran)}",
                     how=f"largest error {max(shares):.1%}")  # fmt: skip
        section.fact("budget kept", f"{kept} of {len(ran)}", how="highest resident set from the first update on")
    columns = ["model", "trained", "budget", "micro-batch", "checkpointing", ("process, predicted", "bytes"),
               ("process, measured", "bytes"), ("planned", "seconds"), ("an update", "seconds"), ("fastest", "seconds"),
               "updates"]  # fmt: skip
    rows = []
    order = {name: number for number, name in enumerate((*MODELS, *METHODS, *BUDGETS))}
    for cell in sorted(cells, key=lambda cell: [order[cell[part]] for part in ("model", "method", "budget")]):
        start = [cell["model"], cell["method"], cell["budget"]]
        if cell["found"] is None:
            why = f"does not fit: {format_bytes(cell['least'] + fixed)} at least"
            rows.append([*start, None, why, *[None] * 6])
            continue
        found, own = cell["found"], cell.get("ran") or {}
        checkpointed = "yes" if found["checkpointing"] else "no"
        parts = [own.get(part) for part in ("process_bytes", "planned_seconds", "seconds", "fastest", "updates")]
        rows.append([*start, found["micro_batch"], checkpointed, fixed + found["peak_bytes"], *parts])
    missing = sum("ran" not in cell and cell["found"] is not None for cell in cells)
    if missing:
        section.fact("not run", missing, how="of the cells that fit")
    note = QUIET if all(not own["how"] for _, own in ran) else SHARED
    section.table(columns, rows, title="The largest pieces that fit", note=note)
    section = report.section("Machine")
    for what, value in machine.describe().items():
        section.fact(what, value, "bytes" if what.endswith("_bytes") else "")
    return report


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--run", action="store_true", help="ten updates of the cells that fit")
    parser.add_argument("--again", action="store_true", help="run cells anew that were run before")
    parser.add_argument("--alone", action="store_true", help="nothing else runs on this machine: the report says so")
    parser.add_argument("--largest", default="4GiB", help="budgets above it are not run")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work, *rest = json.loads(given.work)
        print(json.dumps({"run": run, "planned_seconds": planned_seconds, "write_folder": write_folder}[work](*rest)))
        return
    from jieyue.planning.search import fixed_cost

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
            ways, known = traced(name, method), []
            for budget in reversed(BUDGETS):
                if (name, method, budget) in cells:
                    continue
                room = parse_bytes(budget) - fixed
                while not any(one["peak_bytes"] <= room for one in known) and (way := next(ways, None)):
                    known.append(way)
                found = next((one for one in known if one["peak_bytes"] <= room), None)
                cell = {"model": name, "method": method, "budget": budget, "fixed": fixed, "found": found}
                note(cell | {"least": min(one["peak_bytes"] for one in known)})
    for name in given.models if given.run else ():
        for method in given.methods:
            for budget in BUDGETS:
                cell = cells.get((name, method, budget))
                if cell is None or cell["found"] is None or parse_bytes(budget) > parse_bytes(given.largest):
                    continue
                if "ran" not in cell or given.again:
                    ran = measured(cell)
                    note(cell | {"ran": ran | {"how": "" if given.alone else "shared"}})
    tell(list(cells.values()), fixed).save(given.out, "memory-goals")


if __name__ == "__main__":
    main()
