"""A pretrained model under sparse attention: the chosen layers, the price by length, the cache's bytes, a forward pass's seconds.

    jieyue sparsify MODEL --attention "first(4)+local(512)" --data TRAIN --held-out VALID --full-layers 15 --out CHOICE
    python benchmarks/long.py MODEL --choice CHOICE --text VALID --lengths 1024 2048 4096 --cache 1024 4096 16384 --out FOLDER
    python benchmarks/long.py MODEL --choice CHOICE --text VALID --second OTHER --lengths 2048 --trained alike=FOLDER sparse=CHOICE
    python benchmarks/long.py MODEL --choice CHOICE --text VALID --positions 16384 --rows 2 --name-of-result long-positions

No model is shipped; --choice is the folder that ``jieyue sparsify`` left. ``--trained``: folders that were trained, each held
against the model as it is and against the first of them. ``--positions``: the model beyond its trained length, under its own, YaRN
and dynamic positions, all layers full and the chosen ones; the same tokens are also read as rows of half that length. ``--forward
16384``, ``--step 8192`` and ``--token 16384`` time a forward pass, a training step and one more token against torch's SDPA
(alternating, the median of --repeats); they need a quiet machine and, as long verbs do, run under tcmalloc
where it is found (--malloc system: as it is). Writes ``long.json``, or what --name-of-result says; with --add a
part that is measured now takes the place of that part in the file, and the others stay.
"""

import argparse
import json
import os
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import torch
from long_pictures import with_pictures

from jieyue import __version__, machine
from jieyue.attention import State
from jieyue.cli.allocator import find, preloaded
from jieyue.data.batch import IGNORED
from jieyue.hf.entries import HeadsEntry, parse_entry, split_layers
from jieyue.hf.loading import load
from jieyue.hf.positions import ROTARY, stretch
from jieyue.hf.use import use
from jieyue.malloc import malloc_name
from jieyue.report import Picture, Report, Section
from jieyue.run.sparsify import CHOICE
from jieyue.tasks.sparsify.costs import costs_of, price
from jieyue.tasks.sparsify.objectives import text_loss
from jieyue.tasks.sparsify.rows import encode_rows
from jieyue.tasks.sparsify.settings import SparseSettings
from jieyue.tasks.sparsify.task import TASK, batches_of
from jieyue.timer import take_turns

CHOSEN, PRICE, CACHE, FORWARD = "Layers that stay full", "Price by length", "Cache", "Forward pass"
CHOSEN_HEADS, STEP, TOKEN = "Heads that stay full", "Training step", "One more token"
SECOND, TRAINED, POSITIONS = "Price by length, second text", "Trained", "Beyond the trained length"


def spread(rows, most):
    return [rows[place * len(rows) // most] for place in range(most)] if len(rows) > most else rows


def prices(model, tokenizer, attention, files, lengths, rows):
    """Loss of full and sparse attention on the same rows of each length, spread over the text; nothing is trained."""
    found = []
    for length in lengths:
        batches = batches_for(tokenizer, files, length, rows)
        count = sum(len(batch["input_ids"]) for batch in batches)
        base = costs_of(model, batches)
        use(model, attention=attention)
        sparse = costs_of(model, batches)
        use(model, attention=None)
        own = price(sparse, base)
        late = [costs.between(length // 2, length) for costs in (base, sparse)]
        found.append([length, count, base.mean, sparse.mean, own, late[1] - late[0]])
        print(json.dumps({"what": "price", "tokens": length, "rows": count, "full": base.mean, "sparse": sparse.mean,
                          "price": own.value}), flush=True)  # fmt: skip
    return found


def batches_for(tokenizer, files, length, rows):
    """Some rows of a length, spread over the text, as batches."""
    settings = SparseSettings(row_tokens=length)
    lines, _ = TASK.read(files, settings)
    return batches_of(TASK, spread(encode_rows(lines, tokenizer, settings)[0], rows), tokenizer, settings)


def trained(given, model, tokenizer):
    """Loss of each trained folder on each text: against the model as it is, and against the first of them."""
    found = []
    folders = [one.partition("=")[::2] for one in given.trained]
    for kind, files in (("held out", given.text), ("second text", given.second)):
        if not files:
            continue
        batches = batches_for(tokenizer, files, given.lengths[0], given.rows)
        base, first = costs_of(model, batches), None
        found.append([kind, "as it is, every layer full", base.mean, None, None])
        for name, folder in folders:
            own = costs_of(load(folder, "causal-lm")[0], batches)
            found.append([kind, name, own.mean, price(own, base), None if first is None else price(own, first)])
            first = own if first is None else first
            print(json.dumps({"what": "trained", "text": kind, "name": name, "loss": own.mean}), flush=True)
    return found


def halves(batches):
    """The same tokens as rows of half the length."""
    return [
        {name: one.view(2 * len(one), -1) if name == "input_ids" else halved_labels(one) for name, one in batch.items()}
        for batch in batches
    ]


def halved_labels(labels):
    """The last token of the first half has no next one in its row."""
    cut = labels.view(2 * len(labels), -1).clone()
    cut[:, -1] = IGNORED
    return cut


def costs_under(model, attention, batches):
    use(model, attention=attention)
    costs = costs_of(model, batches)
    use(model, attention=None)
    return costs


def beyond(given, model, tokenizer, attention, length):
    """Each kind of positions with all layers full and with the chosen ones: rows of ``length`` and the same tokens in rows of half."""
    long = batches_for(tokenizer, given.text, length, given.rows)
    short, found = halves(long), []
    factor = length / model.config.max_position_embeddings
    for how in ("own", *ROTARY):
        if how != "own":
            record = {"recipe": TASK.name, "version": __version__, "settings": SparseSettings().to_dict()}
            model, _ = load(stretch(given.model, how, factor, given.runs / f"{how}-{factor:g}", record), "causal-lm")
        ways = {"every layer full": None, "chosen layers full": attention}
        shorter = {layers: costs_under(model, pattern, short) for layers, pattern in ways.items()}
        for layers, pattern in ways.items():  # after all shorter rows: dynamic positions remember the longest
            half, whole = shorter[layers], costs_under(model, pattern, long)
            parts = [whole.between(0, length // 2), whole.between(length // 2, length)]
            found.append([how, layers, half.mean, whole.mean, *parts])
            told = {"positions": how, "layers": layers, "half": half.mean, "whole": whole.mean, "late": parts[1]}
            print(json.dumps({"what": "positions", "tokens": length, **told}), flush=True)
    return found


def kept_bytes(config, entry, length):
    """What one layer's states hold after so many tokens."""
    heads = config.num_key_value_heads
    groups = entry.groups(heads) if isinstance(entry, HeadsEntry) else [(entry, range(heads))]
    return sum(state_bytes(config, one.pattern, len(own), length) for one, own in groups)


def state_bytes(config, pattern, heads, length):
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    state = State(pattern.causal())
    for first in range(0, length, 1024):
        keys = torch.zeros(1, heads, min(1024, length - first), size)
        state.append(keys, keys)
        state.crop(first + keys.shape[2])
    return state.nbytes


def caches(config, attention, lengths):
    entries = [parse_entry(text) for text in split_layers(attention)]
    layers = [entries[number % len(entries)] for number in range(config.num_hidden_layers)]
    found = []
    for length in lengths:
        each = {str(one): kept_bytes(config, one, length) for one in {*layers, parse_entry("full()")}}
        whole, sparse = each["full()"] * len(layers), sum(each[str(one)] for one in layers)
        found.append([length, whole, sparse, sparse / whole])
        print(json.dumps({"what": "cache", "tokens": length, "full": whole, "sparse": sparse}), flush=True)
    return found


def in_turn(model, attention, call, repeats):
    """Median seconds of a call under torch's SDPA and under the pattern, alternating; putting it on is not timed."""
    ready = {"sdpa": lambda: use(model, attention=None), "sparse": lambda: use(model, attention=attention)}
    taken = take_turns(dict.fromkeys(ready, call), repeats, before=ready)
    use(model, attention=None)
    return {name: statistics.median(own) for name, own in taken.items()}


def forward(model, ids):
    with torch.inference_mode():
        model.base_model(input_ids=ids, use_cache=False)


def forwards(model, attention, lengths, repeats):
    found = []
    for length in lengths:
        ids = torch.arange(length)[None] % min(1000, model.config.vocab_size)
        middle = in_turn(model, attention, partial(forward, model, ids), repeats)
        found.append([length, middle["sdpa"], middle["sparse"], middle["sdpa"] / middle["sparse"]])
        print(json.dumps({"what": "forward", "tokens": length, **middle}), flush=True)
    return found


def training_step(model, ids):
    """Forward and backward pass, each layer computed again in the backward pass; the gradients are let go."""
    labels = torch.cat([ids[:, 1:], torch.full((1, 1), IGNORED)], 1)
    text_loss(model, {"input_ids": ids, "labels": labels}).total.backward()
    model.zero_grad()


def training_steps(model, attention, lengths, repeats):
    model.train().gradient_checkpointing_enable({"use_reentrant": False})
    found = []
    for length in lengths:
        ids = torch.arange(length)[None] % min(1000, model.config.vocab_size)
        middle = in_turn(model, attention, partial(training_step, model, ids), repeats)
        found.append([length, middle["sdpa"], middle["sparse"], middle["sdpa"] / middle["sparse"]])
        print(json.dumps({"what": "step", "tokens": length, **middle}), flush=True)
    model.gradient_checkpointing_disable()
    model.eval()
    return found


def token_seconds(model, length, count=16):
    """Seconds of one more token behind so many: the median; the cache is the model's own, filled in one pass."""
    ids, taken = torch.arange(length)[None] % min(1000, model.config.vocab_size), []
    with torch.inference_mode():
        cache = model.base_model(input_ids=ids, use_cache=True).past_key_values
        for _ in range(count):
            started = time.perf_counter()
            cache = model(input_ids=ids[:, :1], past_key_values=cache, use_cache=True).past_key_values
            taken.append(time.perf_counter() - started)
    return statistics.median(taken[1:])


def tokens(model, attention, lengths):
    found = []
    for length in lengths:
        full = token_seconds(model, length)
        use(model, attention=attention)
        sparse = token_seconds(model, length)
        use(model, attention=None)
        found.append([length, full, sparse, full / sparse])
        print(json.dumps({"what": "token", "tokens": length, "sdpa": full, "sparse": sparse}), flush=True)
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
        if one.title in (CHOSEN, CHOSEN_HEADS) or one.title.startswith("Price without")
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
        if given.second:
            rows = prices(model, tokenizer, attention, given.second, given.lengths, given.rows)
            report.section(SECOND).table(columns, rows, title=SECOND, note="Layers chosen on the first kind of text.")
    if given.trained:
        columns = ["text", "model", ("loss", "nats"), ("price", "share"), ("beside the first trained", "share")]
        note = f"Perplexity on {given.rows} rows of {given.lengths[0]:,} tokens; 95 % bootstrap over rows."
        report.section(TRAINED).table(columns, trained(given, model, tokenizer), title=TRAINED, note=note)
    for length in given.positions:
        columns = [
            "positions",
            "layers",
            *((name, "nats") for name in (f"{length // 2:,} tokens", f"{length:,} tokens")),
        ]
        columns += [(f"its {half} half", "nats") for half in ("first", "second")]
        rows = beyond(given, model, tokenizer, attention, length)
        note = f"{given.rows} rows of {length:,} tokens, and the same tokens in rows of half that; trained on {{}}."
        trained_on = f"{model.config.max_position_embeddings:,}"
        report.section(POSITIONS).table(columns, rows, title=POSITIONS, note=note.format(trained_on))
    if given.cache:
        columns = ["tokens", ("every layer full", "bytes"), ("chosen layers full", "bytes"), ("share", "share")]
        report.section(CACHE).table(columns, caches(model.config, attention, given.cache), title=CACHE)
    if given.forward:
        columns = ["tokens", ("SDPA", "seconds"), ("chosen layers full", "seconds"), "times faster"]
        rows = forwards(model, attention, given.forward, given.repeats)
        note = f"Without the output layer; under {malloc_name()}, {given.repeats} repeats."
        report.section(FORWARD).table(columns, rows, title=FORWARD, note=note)
    if given.step:
        columns = ["tokens", ("SDPA", "seconds"), ("chosen layers full", "seconds"), "times faster"]
        rows = training_steps(model, attention, given.step, given.repeats)
        note = "Forward and backward pass of one row, activation checkpointing in both, without the update."
        report.section(STEP).table(columns, rows, title=STEP, note=note)
    if given.token:
        columns = ["tokens before", ("SDPA", "seconds"), ("chosen layers full", "seconds"), "times faster"]
        report.section(TOKEN).table(columns, tokens(model, attention, given.token), title=TOKEN, note="Median of 15.")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?")
    parser.add_argument("--choice", type=Path)
    parser.add_argument("--text", type=Path, nargs="+", default=[])
    parser.add_argument("--second", type=Path, nargs="+", default=[], help="files of another kind of text")
    parser.add_argument(
        "--trained", nargs="*", default=[], help="NAME=FOLDER, the first is what the others stand beside"
    )
    parser.add_argument("--positions", type=int, nargs="*", default=[], help="lengths beyond the trained one")
    parser.add_argument("--runs", type=Path, default=Path("runs/long"), help="for the stretched models")
    parser.add_argument("--lengths", type=int, nargs="*", default=[])
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--cache", type=int, nargs="*", default=[])
    parser.add_argument("--forward", type=int, nargs="*", default=[])
    parser.add_argument("--step", type=int, nargs="*", default=[], help="lengths of a training step that is timed")
    parser.add_argument("--token", type=int, nargs="*", default=[], help="tokens behind which one more is timed")
    parser.add_argument("--name", default="", help="the model's in the tables; its folder's otherwise")
    parser.add_argument(
        "--also", nargs="*", default=[], help="NAME=FOLDER of other models that jieyue sparsify measured"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--malloc", choices=("tcmalloc", "system"), default="tcmalloc" if find() else "system")
    parser.add_argument("--add", action="store_true")
    parser.add_argument("--name-of-result", default="long")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.repeats < 1:
        parser.error(f"--repeats: found {given.repeats}, expected at least 1")
    if given.lengths and not given.text:
        parser.error("--lengths: found no --text, expected files to tell the price on")
    if (given.trained and not given.lengths) or (given.positions and not given.text):
        parser.error(
            "--trained, --positions: found no --lengths or no --text, expected both for the first, text for the second"
        )
    if given.malloc == "tcmalloc" and malloc_name() != "tcmalloc":
        os.execve(sys.executable, [sys.executable, *sys.argv], dict(os.environ) | preloaded(find(), os.environ))
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
        if given.name_of_result == "long":
            folders = [(given.name or Path(given.model).name, given.choice), *folders]
    for name, folder in folders:
        report.sections += chosen_of(name, Path(folder))
    report.section("Settings").facts(
        {"processor": machine.cpu_name(), "threads": torch.get_num_threads(), "torch": torch.__version__,
         "date": time.strftime("%Y-%m-%d")}
    )  # fmt: skip
    if given.out is not None:
        before = given.out / f"{given.name_of_result}.json"
        if given.add and before.is_file():
            own = {section.title for section in report.sections}
            report.sections[:0] = [one for one in Report.load(before).sections if one.title not in own]
        print(with_pictures(report, given.out).save(given.out, given.name_of_result).json)


if __name__ == "__main__":
    main()
