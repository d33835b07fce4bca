"""What each way to train with less memory costs in loss: 100 updates of 8 x 128 tokens of real text, three seeds.

    python benchmarks/method_price.py                  # all methods, into benchmarks/results; goes on where it was stopped
    python benchmarks/method_price.py --preset small   # six layers, 256 wide: about nine times the time

The passages that ship, composed anew and parted into four: a masked language model is first trained on one part by AdamW (so
that adapters have something to stand on), then every method goes on from those weights on a second part. Each method's learning
rate is chosen on a third part, with a seed of its own, of three that stand around its usual multiple of AdamW's; the loss that is
told is that of held-out lines, which nothing else saw. A seed draws the order of the rows and what is hidden; within a seed all
methods see the same. Pieces of two rows, clipping at 1 where the method can, ten updates of warming up, then a constant rate.
The tiny preset: about ten minutes of one core.
"""

import argparse
import copy
import json
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import mean, median

import torch
from write_docs import RESULTS, fill_page

from jieyue import machine
from jieyue.budget import Plan
from jieyue.hf.low_rank import Adapter
from jieyue.hf.optimizers import OPTIMIZERS, make_optimizer
from jieyue.hf.presets import build
from jieyue.hf.tokenizers import learn_vocabulary, make_tokenizer
from jieyue.hf.trainer import training_arguments
from jieyue.metrics.intervals import student
from jieyue.planning.prediction import _state_tensors
from jieyue.report import Report, write_whole
from jieyue.tasks.mlm.masking import encode_lines
from jieyue.tasks.mlm.settings import MaskSettings
from jieyue.tasks.table import task
from jieyue.training.accumulation import accumulate
from jieyue.training.in_backward import update_in_backward
from jieyue.training.techniques import APPROXIMATE, EXACT, OTHER
from jieyue.training.weightwise import PreviousNorm, step_in_backward

ROWS, TOKENS, UPDATES, WARMUP, PIECE = 8, 128, 100, 10, 2
SEEDS, CHOOSING_SEED, BASE_UPDATES, RATE, LINES = (0, 1, 2), 100, 400, 1e-3, 4000
AROUND = (1 / 3, 1.0, 3.0)
PLAIN = "AdamW"


@dataclass(frozen=True)
class Method:
    """``like``: whose learning rate it takes, its own where None; ``rate``: multiple of AdamW's around which it is chosen."""

    optimizer: str
    update: str
    rate: float | None = None
    like: str | None = None
    way: str = ""


METHODS = {
    PLAIN: Method("adamw", EXACT),
    "AdamW in the backward pass": Method("adamw", EXACT, like=PLAIN, way="moving"),
    "Adam-mini": Method("adam-mini", OTHER),
    "Muon": Method("muon", OTHER),
    "Adafactor": Method("adafactor", OTHER),
    "Tiger, no gradient buffer": Method("tiger", OTHER, way="folded"),
    "SGD with momentum": Method("momentum", OTHER),
    "SGD, accumulated in the momentum": Method("momentum", OTHER, like="SGD with momentum", way="folded"),
    "bfloat16 autocast": Method("adamw", APPROXIMATE, like=PLAIN, way="bfloat16"),
    "8-bit AdamW": Method("adamw-8bit", APPROXIMATE, like=PLAIN),
    "adapters of rank 16": Method("adamw", APPROXIMATE, rate=3.0, way="adapters"),
}


class Course:
    """Data, the weights that all begin with, and a method's course over them."""

    def __init__(self, preset):
        self.task, self.settings = task("mlm"), MaskSettings(max_tokens=TOKENS)
        lines, _ = self.task.shipped(LINES, 0)
        held, _ = self.task.shipped_held_out()
        self.tokenizer = make_tokenizer(learn_vocabulary(lines))
        parts = {"base": lines[: len(lines) // 2], "train": lines[len(lines) // 2 : -500], "choosing": lines[-500:]}
        self.rows = {name: self._whole(part) for name, part in parts.items()}
        self.rows["held out"] = self._whole(held)
        self.model = build(preset, self.tokenizer, head="masked-lm", seed=0)
        self.run(self.model, "base", METHODS[PLAIN], RATE, seed=0, updates=BASE_UPDATES)

    def _whole(self, lines):
        """The rows of exactly ``TOKENS`` tokens, lines cut where a row ends."""
        text = [" ".join(lines[at : at + 50]) for at in range(0, len(lines), 50)]
        return [row for row in encode_lines(text, self.tokenizer, self.settings)[0] if len(row["input_ids"]) == TOKENS]

    def batch(self, part, numbers, visit):
        rows = [{**self.rows[part][number], "visit": visit} for number in numbers]
        return self.task.collate(rows, self.tokenizer, self.settings)

    def run(self, model, part, method, rate, *, seed, updates=UPDATES):
        """Trains ``model``; the seconds of an update, and the bytes of the optimizer's state and of the gradients."""
        options = OPTIMIZERS[method.optimizer].options
        arguments = training_arguments("unused", steps=updates, device="cpu", learning_rate=rate, **options)
        optimizer = make_optimizer(model.train(), arguments)
        objective, clip, seconds = self.task.objective(self.settings), PreviousNorm(1.0), []
        autocast = torch.bfloat16 if method.way == "bfloat16" else None
        order = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        for number in range(updates):
            numbers = torch.randint(len(self.rows[part]), (ROWS,), generator=order).tolist()
            batch = self.batch(part, numbers, 1 + number + 1000 * seed)
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, (number + 1) / WARMUP)
            started = time.perf_counter()
            if method.way == "folded":
                weight = float((batch["labels"] != -100).sum())
                update_in_backward(objective, model, batch, optimizer, weight=weight, micro_batch=PIECE)
            elif method.way == "moving":
                step_in_backward(objective, model, batch, optimizer, micro_batch=ROWS, clip=clip)
            else:
                plan = Plan(effective_batch=ROWS, micro_batch=PIECE)
                accumulate(objective, model, batch, micro_batch=plan, autocast=autocast)
                torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            seconds.append(time.perf_counter() - started)
        trained = sum(p.numel() * 4 for p in model.parameters() if p.requires_grad)
        state = sum(one.numel() * one.element_size() for one in _state_tensors(optimizer))
        kept = 0 if method.way in ("folded", "moving") else trained
        return {"seconds": median(seconds), "state_bytes": state, "gradient_bytes": kept}

    @torch.no_grad()
    def loss(self, model, part):
        """Nats a hidden token, over the rows of a part, each hidden as its first visit would be."""
        objective, total = self.task.objective(self.settings), None
        for start in range(0, len(self.rows[part]), 32):
            numbers = range(start, min(start + 32, len(self.rows[part])))
            tally = objective(model.eval(), self.batch(part, numbers, 0))
            total = tally if total is None else total + tally
        return float(total.total) / float(total.weight)

    def after(self, method, rate, seed, part):
        """The loss on a part after a method's course from the common weights."""
        model = copy.deepcopy(self.model)
        if method.way == "adapters":
            model = Adapter(rank=16).put_into(model, head="masked-lm", seed=seed)
        cost = self.run(model, "train", method, rate, seed=seed)
        return {"loss": self.loss(model, part), "rate": rate, **cost}


def tell(found, start, preset):
    report = Report("What each saving costs in loss")
    section = report.section("After 100 updates")
    columns = ["method", "exactness", "learning rate", "held-out loss", "less AdamW's, paired",
               ("optimizer state", "bytes"), ("gradient kept", "bytes"), ("an update", "seconds")]  # fmt: skip
    rows, plain = [], [one["loss"] for one in found[PLAIN]]
    for name, runs in found.items():
        losses = [one["loss"] for one in runs]
        gap = None if name == PLAIN else student([a - b for a, b in zip(losses, plain, strict=True)])
        rows.append([name, METHODS[name].update, f"{runs[0]['rate']:.2g}", student(losses), gap,
                     runs[0]["state_bytes"], runs[0]["gradient_bytes"], mean(one["seconds"] for one in runs)])  # fmt: skip
    section.fact("before", start, "nats a hidden token", how=f"held-out loss after {BASE_UPDATES} updates of AdamW")
    note = (
        f"The {preset} preset, masked language model; {UPDATES} updates of {ROWS} x {TOKENS} tokens; nats a hidden token; "
        f"{len(SEEDS)} seeds, 95% Student t. Learning rates chosen on another part. Seconds on a shared machine."
    )
    section.table(columns, rows, note=note)
    section = report.section("Machine")
    for what, value in machine.describe().items():
        section.fact(what, value, "bytes" if what.endswith("_bytes") else "")
    return report


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="tiny", choices=("tiny", "small"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    kept = given.out / "method-price.jsonl"
    lines = [json.loads(line) for line in kept.read_text().splitlines()] if kept.is_file() else []
    known = {tuple(line["key"]): line["found"] for line in lines}
    course = Course(given.preset)

    def once(*key):
        """What a course gives, from the file where it is there."""
        if (given.preset, *key) not in known:
            name, rate, seed, part = key
            known[given.preset, *key] = found = course.after(METHODS[name], rate, seed, part)
            print(*key, json.dumps(found), flush=True)
            text = [json.dumps({"key": one, "found": value}) for one, value in known.items()]
            write_whole(kept, "".join(line + "\n" for line in text))
        return known[given.preset, *key]

    found, rates, start = {}, {}, course.loss(course.model, "held out")
    for name, method in METHODS.items():
        if method.optimizer == "adamw-8bit" and find_spec("bitsandbytes") is None:
            print(f"{name}: left out, bitsandbytes is not installed")
            continue
        if method.like is None:
            usual = RATE * (method.rate or OPTIMIZERS[method.optimizer].rate)
            tried = {usual * part: once(name, usual * part, CHOOSING_SEED, "choosing")["loss"] for part in AROUND}
            rates[name] = min(tried, key=tried.__getitem__)
        rate = rates[method.like or name]
        found[name] = [once(name, rate, seed, "held out") for seed in SEEDS]
        tell(found, start, given.preset).save(given.out, "method-price")
    if given.out == RESULTS:
        fill_page("memory", "method-price", "After 100 updates")


if __name__ == "__main__":
    main()
