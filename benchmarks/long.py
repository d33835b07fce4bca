"""A pretrained model under sparse attention: the chosen layers, the price by length, the cache's bytes, a forward pass's seconds.

    jieyue sparsify MODEL --attention "first(4)+local(512)" --data TRAIN --held-out VALID --full-layers 15 --out CHOICE
    python benchmarks/long.py MODEL --choice CHOICE --text VALID --lengths 1024 2048 4096 --cache 1024 4096 16384 --out FOLDER

No model is shipped; --choice is the folder that ``jieyue sparsify`` left. ``--forward 16384`` times a forward pass against torch's SDPA
(alternating, the median of --repeats); it needs a quiet machine. Writes ``long.json``; with --add a part that is measured now
takes the place of that part in the file, and the others stay.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from jieyue import machine
from jieyue.attention import State, full, parse
from jieyue.hf.entries import split_layers
from jieyue.hf.loading import load
from jieyue.hf.use import use
from jieyue.report import Picture, Report, Section
from jieyue.run.sparsify import CHOICE
from jieyue.tasks.sparsify.costs import costs_of, price
from jieyue.tasks.sparsify.rows import encode_rows
from jieyue.tasks.sparsify.settings import SparseSettings
from jieyue.tasks.sparsify.task import TASK, batches_of

CHOSEN, PRICE, CACHE, FORWARD = "Layers that stay full", "Price by length", "Cache", "Forward pass"


def spread(rows, most):
    return [rows[place * len(rows) // most] for place in range(most)] if len(rows) > most else rows


def prices(model, tokenizer, attention, files, lengths, rows):
    """Loss of full and sparse attention on the same rows of each length, spread over the text; nothing is trained."""
    found = []
    for length in lengths:
        settings = SparseSettings(row_tokens=length)
        lines, _ = TASK.read(files, settings)
        chosen = spread(encode_rows(lines, tokenizer, settings)[0], rows)
        batches = batches_of(TASK, chosen, tokenizer, settings)
        base = costs_of(model, batches)
        use(model, attention=attention)
        sparse = costs_of(model, batches)
        use(model, attention=None)
        own = price(sparse, base)
        late = [costs.between(length // 2, length) for costs in (base, sparse)]
        found.append([length, len(chosen), base.mean, sparse.mean, own, late[1] - late[0]])
        print(json.dumps({"what": "price", "tokens": length, "rows": len(chosen), "full": base.mean, "sparse": sparse.mean,
                          "price": own.value}), flush=True)  # fmt: skip
    return found


def kept_bytes(config, pattern, length):
    """What one layer's state holds after so many tokens."""
    heads, size = (
        config.num_key_value_heads,
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
    )
    state = State(pattern.causal())
    for first in range(0, length, 1024):
        keys = torch.zeros(1, heads, min(1024, length - first), size)
        state.append(keys, keys)
        state.crop(first + keys.shape[2])
    return state.nbytes


def caches(config, attention, lengths):
    entries = [parse(text) for text in split_layers(attention)]
    layers = [entries[number % len(entries)] for number in range(config.num_hidden_layers)]
    found = []
    for length in lengths:
        each = {str(one): kept_bytes(config, one, length) for one in {*layers, full()}}
        whole, sparse = each[str(full())] * len(layers), sum(each[str(one)] for one in layers)
        found.append([length, whole, sparse, sparse / whole])
        print(json.dumps({"what": "cache", "tokens": length, "full": whole, "sparse": sparse}), flush=True)
    return found


def seconds(model, ids):
    started = time.perf_counter()
    with torch.inference_mode():
        model.base_model(input_ids=ids, use_cache=False)
    return time.perf_counter() - started


def forwards(model, attention, lengths, repeats):
    found = []
    for length in lengths:
        ids, taken = torch.arange(length)[None] % 1000, {"sdpa": [], "sparse": []}
        for _ in range(repeats + 1):
            taken["sdpa"].append(seconds(model, ids))
            use(model, attention=attention)
            taken["sparse"].append(seconds(model, ids))
            use(model, attention=None)
        middle = {name: statistics.median(own[1:] or own) for name, own in taken.items()}
        found.append([length, middle["sdpa"], middle["sparse"], middle["sdpa"] / middle["sparse"]])
        print(json.dumps({"what": "forward", "tokens": length, **middle}), flush=True)
    return found


def chosen_of(name, folder):
    """What ``jieyue sparsify`` told of a model, by the model's name: the choice, and the price on each text but the calibration's."""
    found = Report.parse(json.dumps(json.loads((folder / CHOICE).read_text(encoding="utf-8"))["report"])).sections
    return [
        Section(
            f"{name}: {one.title[0].lower()}{one.title[1:]}",
            [item for item in one.items if not isinstance(item, Picture)],
        )
        for one in found
        if one.title == CHOSEN or one.title.startswith("Price without")
    ]


def told(report, given, model, tokenizer, attention):
    """The parts that were asked for, as sections."""
    if given.lengths:
        rows = prices(model, tokenizer, attention, given.text, given.lengths, given.rows)
        columns = [
            "tokens",
            "rows",
            ("full", "nats"),
            ("chosen", "nats"),
            ("price", "share"),
            ("in the later half", "nats"),
        ]
        report.section(PRICE).table(
            columns, rows, title=PRICE, note="Perplexity against full attention on the same rows, untrained."
        )
    if given.cache:
        columns = ["tokens", ("every layer full", "bytes"), ("chosen layers full", "bytes"), ("share", "share")]
        report.section(CACHE).table(columns, caches(model.config, attention, given.cache), title=CACHE)
    if given.forward:
        columns = ["tokens", ("SDPA", "seconds"), ("chosen layers full", "seconds"), "times faster"]
        rows = forwards(model, attention, given.forward, given.repeats)
        report.section(FORWARD).table(columns, rows, title=FORWARD, note="Without the output layer.")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?")
    parser.add_argument("--choice", type=Path)
    parser.add_argument("--text", type=Path, nargs="+", default=[])
    parser.add_argument("--lengths", type=int, nargs="*", default=[])
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--cache", type=int, nargs="*", default=[])
    parser.add_argument("--forward", type=int, nargs="*", default=[])
    parser.add_argument("--name", default="", help="the model's in the tables; its folder's otherwise")
    parser.add_argument(
        "--also", nargs="*", default=[], help="NAME=FOLDER of other models that jieyue sparsify measured"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--add", action="store_true")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.lengths and not given.text:
        parser.error("--lengths: found no --text, expected files to tell the price on")
    if given.threads:
        torch.set_num_threads(given.threads)
    if (given.model is None) != (given.choice is None):
        parser.error("MODEL and --choice: found one of them, expected both or neither (--also alone)")
    title = "Sparse attention in pretrained models"
    report = Report(title, about="untrained; by jieyue sparsify and benchmarks/long.py")
    folders = [one.partition("=")[::2] for one in given.also]
    if given.model is not None:
        model, tokenizer = load(given.model, "causal-lm")
        attention = json.loads((given.choice / CHOICE).read_text(encoding="utf-8"))["attention"]
        told(report, given, model, tokenizer, attention)
        folders = [(given.name or Path(given.model).name, given.choice), *folders]
    for name, folder in folders:
        report.sections += chosen_of(name, Path(folder))
    report.section("Settings").facts(
        {"processor": machine.cpu_name(), "threads": torch.get_num_threads(), "torch": torch.__version__,
         "date": time.strftime("%Y-%m-%d")}
    )  # fmt: skip
    if given.out is not None:
        before = given.out / "long.json"
        if given.add and before.is_file():
            own = {section.title for section in report.sections}
            report.sections[:0] = [one for one in Report.load(before).sections if one.title not in own]
        print(report.save(given.out, "long").json)


if __name__ == "__main__":
    main()
