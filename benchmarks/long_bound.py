"""How far a pattern moves the heads of a pretrained model, on a text: the bound beside the deviation, and how often it was violated.

    python benchmarks/long_bound.py MODEL --text FILE --attention "first(4)+local(512)" --rows 4 --queries 4000 --out FOLDER

What ``jieyue verify attention`` says of each head, told by layer. --queries: drawn for every layer and head; times their number
these are the rows of the result. --rows of --tokens tokens each, spread over the text. Writes ``long-bound.json``.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from long import batches_for

from jieyue import machine
from jieyue.bench.deviation import statements
from jieyue.hf.attention_deviation import measure_deviation
from jieyue.hf.loading import load
from jieyue.report import Report

SHARE, CONFIDENCE = 0.99, 0.99
NAMES = {"tight": "m·max‖v_i − v_j‖", "by_norms": "m·(max_kept‖v‖ + max_dropped‖v‖)", "by_largest": "2·m·max‖v‖"}


def by_layer(found, made):
    """One row a layer: the heads' means and what is said of the worst of them."""
    rows = []
    for number, layer in enumerate(found):
        own, of = [one for one in made if one.layer == layer.layer], layer.found
        measured = float(of.distance.mean())
        ratios = [float(getattr(of, name).mean()) / measured for name in NAMES]
        said = [max(getattr(one, name) for one in own) for name in ("m", "bound", "deviation")]
        rows.append([number, float(of.mass.mean()), *said, *ratios, sum(one.violations for one in own)])
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--text", type=Path, nargs="+", required=True)
    parser.add_argument("--attention", default="first(4)+local(512)")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--queries", type=int, default=4000)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    model, tokenizer = load(given.model, "causal-lm")
    batches = [
        {"input_ids": row[None], "attention_mask": torch.ones_like(row[None])}
        for batch in batches_for(tokenizer, given.text, given.tokens, given.rows)
        for row in batch["input_ids"]
    ]
    began = time.perf_counter()
    found = measure_deviation(model, batches, given.attention, num_queries=given.queries)
    made = statements(found, share=SHARE, confidence=CONFIDENCE)
    report = Report(
        "How far a pattern moves a pretrained model's heads", about="untrained; by benchmarks/long_bound.py"
    )
    section = report.section("Bound over deviation")
    violations, queries = sum(one.violations for one in made), sum(one.queries for one in made)
    how = f"of {queries:,} rows: {given.queries:,} queries of {len(made)} heads, in float64"
    section.fact("violations of the bound", violations, how=how, key=True)
    measured = sum(float(one.found.distance.sum()) for one in found)
    cells = [
        [told, sum(float(getattr(one.found, name).sum()) for one in found) / measured] for name, told in NAMES.items()
    ]
    section.table(["bound", "times the deviation"], cells, note="Of sums over all rows.")
    columns = [
        "layer",
        "mean m",
        "m",
        "bound",
        "deviation",
        *(f"{told} / deviation" for told in NAMES.values()),
        "violations",
    ]
    note = (
        f"m, bound and deviation: of the layer's worst head, at most so much for {SHARE:.0%} of the queries of {len(batches)} rows of "
        f"{given.tokens:,} tokens, at confidence {CONFIDENCE} for all layers and heads together (Clopper-Pearson, Bonferroni)."
    )
    report.section("By layer").table(columns, by_layer(found, made), note=note)
    report.section("Settings").facts(
        {"model": Path(given.model).name, "attention": given.attention, "processor": machine.cpu_name(),
         "threads": torch.get_num_threads(), "torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}
    )  # fmt: skip
    told = {"what": "bound", "rows": queries, "violations": violations, "seconds": round(time.perf_counter() - began)}
    print(json.dumps(told), flush=True)
    if given.out is not None:
        print(report.save(given.out, "long-bound").json)


if __name__ == "__main__":
    main()
