"""Key-value heads that stay full beside whole layers, in a pretrained model: as many heads, so the same cache, and the price of each.

    python benchmarks/long_heads.py MODEL --choice CHOICE --calibrate OTHER --text VALID --tell 1024 2048 --rows 4 --out FOLDER

--choice is the folder that ``jieyue sparsify --full-layers N`` left; as many heads as those layers have stay full. They are ranked on
rows of --calibrate: by the derivative of the loss to a gate between a head's full and sparse output (one forward and backward
pass), and at queries drawn from the text (``jieyue verify attention``) by how far the pattern moves the head's output and by the
softmax mass that it drops (one pass). ``jieyue sparsify --full-heads`` begins with the first of these and goes on by joint prices,
which are not asked for here. The price is told on rows of --text, without training. Writes ``long-heads.json``, anew after each choice.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from long import batches_for, caches

from jieyue import machine
from jieyue.hf.attention_deviation import measure_deviation
from jieyue.hf.entries import split_layers
from jieyue.hf.gates import gate_derivatives
from jieyue.hf.loading import load
from jieyue.hf.switched_layers import switched_layers
from jieyue.hf.use import use
from jieyue.report import Report
from jieyue.run.sparsify import CHOICE
from jieyue.tasks.sparsify.costs import costs_of, price
from jieyue.tasks.sparsify.objectives import text_loss

TITLE = "Heads that stay full, beside layers"


def ranks(model, batches, sparse, queries, heads):
    """(mass, distance) of each key-value head, numbered through all layers: means over the drawn queries and its query heads."""
    given = [{**batch, "attention_mask": torch.ones_like(batch["input_ids"])} for batch in batches]
    found = measure_deviation(model, given, sparse, num_queries=queries)
    return [
        torch.cat([getattr(one.found, what).mean(1).view(heads, -1).mean(1) for one in found]).tolist()
        for what in ("mass", "distance")
    ]


def listed(chosen, heads, sparse, num_layers):
    """The list that ``use`` takes for these full heads."""
    entries = []
    for layer in range(num_layers):
        own = [head for head in range(heads) if layer * heads + head in chosen]
        named = f"heads({','.join(map(str, own))}: full(), else: {sparse})" if own else sparse
        entries.append("full()" if len(own) == heads else named)
    return ",".join(entries)


def ways(given, model, tokenizer):
    """Name -> attention of everything that is priced."""
    attention = json.loads((given.choice / CHOICE).read_text(encoding="utf-8"))["attention"]
    layers, heads = split_layers(attention), model.config.num_key_value_heads
    (sparse,) = {one for one in layers if one != "full()"}
    count, total = layers.count("full()") * heads, len(layers) * heads
    calibration = batches_for(tokenizer, given.calibrate, given.length, given.calibration_rows)
    mass, distance = ranks(model, calibration, sparse, given.queries, heads)
    with switched_layers(model, sparse, by_heads=True) as switched:
        rises = gate_derivatives(model, switched, calibration, text_loss)
    found = {"chosen layers": attention}
    for name, own in (
        ("heads by the loss's derivative", [rises[head] for head in range(total)]),
        ("heads by moved output", distance),
        ("heads by dropped mass", mass),
    ):
        best = sorted(range(total), key=lambda head: -own[head])[:count]
        found[name] = listed(best, heads, sparse, len(layers))
        print(json.dumps({"what": "ranked", "by": name, "full": sorted(best)}), flush=True)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--choice", type=Path, required=True)
    parser.add_argument("--calibrate", type=Path, nargs="+", required=True, help="text by which heads are ranked")
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="text on which the price is told")
    parser.add_argument("--length", type=int, default=1024, help="of the rows by which heads are ranked")
    parser.add_argument("--tell", type=int, nargs="+", default=[1024], help="lengths at which prices are told")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--calibration-rows", type=int, default=2)
    parser.add_argument("--queries", type=int, default=128)
    parser.add_argument("--cache", type=int, default=16384)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    model, tokenizer = load(given.model, "causal-lm")
    asked, rows = ways(given, model, tokenizer), []
    share = {name: caches(model.config, attention, [given.cache])[0][3] for name, attention in asked.items()}
    for place, length in enumerate(given.tell):
        batches = batches_for(tokenizer, given.text, length, given.rows)
        base, layers = costs_of(model, batches), None
        for name, attention in list(asked.items())[: 2 if place else None]:
            use(model, attention=attention)
            own = costs_of(model, batches)
            use(model, attention=None)
            layers = own if layers is None else layers
            late = own.between(length // 2, length) - base.between(length // 2, length)
            beside = None if own is layers else price(own, layers)
            rows.append([length, name, base.mean, own.mean, price(own, base), beside, late, share[name]])
            print(json.dumps({"what": "price", "full": name, "tokens": length, "price": rows[-1][4].value}), flush=True)
            if given.out is not None:
                print(told(given, rows, asked).save(given.out, "long-heads").json, flush=True)


def told(given, rows, asked):
    """The report of what was priced until now."""
    report = Report("Key-value heads that stay full", about="untrained; by benchmarks/long_heads.py")
    columns = ["tokens", "full", ("every layer full", "nats"), ("loss", "nats"), ("price", "share")]
    columns += [("beside the layers", "share"), ("in the later half", "nats"), (f"cache at {given.cache:,}", "share")]
    note = (
        f"{given.rows} rows of each length. Heads ranked on {given.calibration_rows} rows of {given.length:,} tokens of other text, "
        f"{given.queries} queries; layers chosen by joint prices. Past the first length the first two are priced."
    )
    report.section(TITLE).table(columns, rows, title=TITLE, note=note)
    report.section("Settings").facts(
        {"processor": machine.cpu_name(), "threads": torch.get_num_threads(), "torch": torch.__version__,
         "date": time.strftime("%Y-%m-%d"), **asked}
    )  # fmt: skip
    return report


if __name__ == "__main__":
    main()
