"""A pretrained encoder under sparse attention: distilled from itself, its speed on long rows, and which book a long passage is from.

    python benchmarks/long_encoder.py MODEL --train FILE --choose FILE --test FILE --books FILE FILE --speed 2048 4096 --out FOLDER

Files of books: plain text, books apart by form feeds, chapters by two empty lines or more. --train: text on which it learns from the
full model, after the rate was chosen on --choose; the cosine of a row's mean state and the full model's is told on --test, for each of
--seeds. --speed: a forward pass against torch's SDPA after ``extend_positions`` (alternating, the median); it needs a quiet machine.
--books: the head is a centroid a book, of passages from other chapters than those that are asked. What lies finished in --runs is
taken as it is. Writes ``long-encoder.json``, or --name-of-result; with --add the parts that are measured now take the place of those
in the file.
"""

import argparse
import json
import lzma
import random
import re
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from long import in_turn
from long_pictures import with_pictures

import jieyue
from jieyue import machine
from jieyue.hf.loading import load
from jieyue.hf.positions import extend_positions
from jieyue.hf.use import use
from jieyue.metrics.intervals import bootstrap, student
from jieyue.report import Estimate, Picture, Report
from jieyue.tasks.sparsify.task import TASK

DISTILLED, SPEED, BOOKS = "Distillation", "Forward pass of an encoder", "Which book a passage is from"
FULL, SPARSE, WINDOWS, BEGINNING = (
    "every layer full",
    "sparse, untrained",
    "full, in windows",
    "full, the beginning alone",
)
ROW = 512
CHARACTERS = 5  # of English prose a token, more than enough


def books_of(files):
    """The books of these files, in order."""
    found = []
    for file in files:
        read = file.read_bytes()
        text = (lzma.decompress(read) if file.suffix == ".xz" else read).decode("utf-8")
        found += [one.strip() for one in text.split("\f") if one.strip()]
    return found


def excerpts(books, characters, file):
    """As much text from the middle of each book as makes so many characters in all, as a file."""
    each = characters // len(books)
    middles = [book[max(0, (len(book) - each) // 2) :][:each] for book in books]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(middles) + "\n", encoding="utf-8")
    return file


def distilled(given, out, held_out, tokens, rate, seed):
    """The report of one distillation, all layers sparse; what is finished in ``out`` is read."""
    if (out / "report.json").is_file() and (out / "training.json").is_file():
        return Report.load(out)
    text = excerpts(books_of(given.train), tokens * CHARACTERS, given.runs / f"train-{tokens}.txt")
    return jieyue.sparsify(
        given.model, attention=given.attention, data=text, held_out=held_out, full_layers=0, tokens=tokens, distill=given.distill,
        learning_rate=rate, effective_batch=given.effective_batch, row_tokens=ROW, calibration_tokens=1024, candidates=1,
        price_tokens=given.price_tokens, evaluate_every=given.every, save_steps=50, seed=seed, out=out, overwrite=True,
        resume=any((out / kept).is_file() for kept in ("choice.json", "measured.jsonl")),
    ).report  # fmt: skip


def cosine(report, setting):
    """Mean cosine with the full model's mean state, of a setting on held-out rows."""
    cost = {fact.what: fact.value for _, fact in report.facts()}[f"{setting}, on held out"]
    return Estimate(1 - cost.value, 1 - cost.high, 1 - cost.low, cost.how)


def distillations(given, section):
    """Chooses the rate on one text, then tells each seed on another."""
    held = excerpts(books_of(given.choose), given.price_tokens * CHARACTERS * 2, given.runs / "choose.txt")
    tried = {}
    for rate in given.rates if len(given.rates) > 1 else []:
        report = distilled(given, given.runs / f"rate-{rate:g}", held, given.rate_tokens, rate, 0)
        tried[rate] = cosine(report, "sparse, trained")
        print(json.dumps({"what": "rate", "rate": rate, "cosine": tried[rate].value}), flush=True)
    best = max(tried, key=lambda rate: tried[rate].value) if tried else given.rates[0]
    if tried:
        rows = [[f"{rate:g}", own] for rate, own in tried.items()]
        title = f"Rates, {given.rate_tokens:,} tokens"
        section.table(["rate", "mean cosine"], rows, title=title, note="On text of which nothing else is told.")
    held = excerpts(books_of(given.test), given.price_tokens * CHARACTERS * 2, given.runs / "test.txt")
    rows, folders = [], []
    for seed in given.seeds:
        out = given.runs / f"seed-{seed}"
        report = distilled(given, out, held, given.tokens, best, seed)
        rows.append([seed, cosine(report, "chosen layers full"), cosine(report, "sparse, trained")])
        folders.append(out)
        print(json.dumps({"what": "distilled", "seed": seed, "cosine": rows[-1][2].value}), flush=True)
    learned = (
        f"{given.tokens:,} tokens in updates of {given.effective_batch} rows, distill {given.distill}, rate {best:g}"
    )
    note = f"No layer full; {learned}; rows of {ROW} tokens of books that were not learned from."
    section.table(["seed", "mean cosine before", "mean cosine after"], rows, title="Distilled", note=note)
    if len(rows) > 1:
        section.fact("mean cosine over seeds", student([row[2].value for row in rows]), key=True)
    learning(section, {out.name: Report.load(out) for out in folders}, given.effective_batch * ROW)
    return folders


def learning(section, reports, tokens):
    """By the tokens of each run: the loss, as a mean over some updates; and the cosine of text set aside, where it was looked at.

    ``reports``: name -> what a distillation reported of its own course; ``tokens``: of an update.
    """
    losses, looked = {}, []
    for name, report in reports.items():
        for series in (own for picture in report.pictures() for own in picture.series if picture.title == "Loss"):
            if series.name.startswith("training"):  # the mean stands behind the raw values
                points = [*zip(series.x, series.y, strict=True)]
                losses[name] = {step * tokens: y for step, y in [*points[:: max(1, len(points) // 80)], points[-1]]}
        for picture in (one for one in report.pictures() if one.title == TASK.deciding.title):
            (series,) = picture.series
            looked += [[name, step * tokens, 1 - y] for step, y in zip(series.x, series.y, strict=True)]
    if losses:
        note = "Of text that is learned from; a mean over some updates."
        section.picture(Picture.lines("Loss while distilling", losses, x="tokens", y="loss", note=note))
    if looked:
        note = "On text set aside from what is learned from."
        section.table(["run", "tokens", "mean cosine"], looked, title="While distilling", note=note)


def forward(model, ids):
    with torch.inference_mode():
        model(input_ids=ids)


def speeds(given, section):
    rows = []
    for length in given.speed:
        model, _ = load(given.model, None)
        if length > model.config.max_position_embeddings:
            extend_positions(model, length)
        ids = torch.arange(length)[None] % model.config.vocab_size
        middle = in_turn(model, given.attention, partial(forward, model, ids), given.repeats)
        rows.append([length, middle["sdpa"], middle["sparse"], middle["sdpa"] / middle["sparse"]])
        print(json.dumps({"what": "speed", "tokens": length, **middle}), flush=True)
    columns = ["tokens", ("SDPA", "seconds"), ("no layer full", "seconds"), "times faster"]
    section.table(columns, rows, title=SPEED, note=f"One row; median of {given.repeats} alternating repeats.")


def passages(tokenizer, books, length, most, seed=0):
    """(known, asked): for each book the ids [length] of the beginnings of so many chapters each, no chapter in both; books without
    three of each are left out."""
    known, asked = {}, {}
    for book in books:
        title, chapters = book.split("\n", 1)[0], []
        for text in re.split(r"\n\s*\n\s*\n+", book):
            if len(text) >= 3 * length:
                ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"][: length - 2]
                if len(ids) == length - 2:
                    chapters.append([tokenizer.cls_token_id, *ids, tokenizer.sep_token_id])
        random.Random(f"{seed} {title}").shuffle(chapters)
        if len(chapters) >= 6:
            half = min(most, len(chapters) // 2)
            known[title], asked[title] = chapters[:half], chapters[half : 2 * half]
    return known, asked


def embedded(model, passages_of, window=None):
    """Title -> unit means [P, H] of the states of each passage; ``window``: read in windows of so many tokens."""
    found = {}
    for title, rows in passages_of.items():
        means = []
        for row in rows:
            ids = torch.tensor([row]) if window is None else torch.tensor(row).view(-1, window)
            with torch.inference_mode():
                means.append(model(input_ids=ids).last_hidden_state.mean((0, 1)))
        found[title] = torch.nn.functional.normalize(torch.stack(means).double(), dim=-1)
    return found


def told_right(known, asked):
    """Whether the nearest centroid of the known passages is the right book's, for each passage that is asked."""
    titles = list(known)
    centroids = torch.nn.functional.normalize(torch.stack([known[title].mean(0) for title in titles]), dim=-1)
    return [
        place == int(best)
        for place, title in enumerate(titles)
        for best in (asked[title] @ centroids.T).argmax(-1)
    ]  # fmt: skip


def which_book(given, section, folders):
    """The task under full attention, sparse attention as it is and distilled, all with the same new positions, and in windows."""
    length = given.passage
    model, tokenizer = load(given.model, None)
    known, asked = passages(tokenizer, books_of(given.books), length, given.chapters)
    right = {}

    def measure(name, model, cut=None, window=None):
        both = ({title: [row[:cut] for row in rows] for title, rows in part.items()} for part in (known, asked))
        right[name] = told_right(*(embedded(model, part, window) for part in both))
        print(
            json.dumps({"what": "books", "setting": name, "right": sum(right[name]), "of": len(right[name])}),
            flush=True,
        )

    positions = model.config.max_position_embeddings
    measure(BEGINNING, model, cut=positions)
    measure(WINDOWS, model, window=positions)
    extend_positions(model, length, given.positions)
    measure(FULL, model)
    use(model, attention=given.attention)
    measure(SPARSE, model)
    for folder in folders:
        learned, _ = load(folder, None)
        measure(f"sparse, distilled, {folder.name}", extend_positions(learned, length, given.positions))
    full = torch.tensor(right[FULL]).double()
    rows = []
    for name, own in right.items():
        own = torch.tensor(own).double()
        rows.append([name, float(own.mean()), None if name == FULL else bootstrap((100 * (own - full)).tolist())])
    count = (
        f"{len(known)} books, {sum(map(len, known.values()))} passages known, {len(full)} asked, of {length:,} tokens"
    )
    note = f"{count}; chapters held apart; nearest centroid of mean states. Positions: {given.positions}."
    columns = ["setting", ("right", "share"), ("beside full attention", "points")]
    section.table(columns, rows, title=BOOKS, note=note)


def keep(given, report, settings):
    """What was measured so far, as a file; a later part that fails takes nothing with it."""
    if given.out is None:
        return
    whole, before = replace(report, sections=[*report.sections]), given.out / f"{given.name_of_result}.json"
    whole.section("Settings").facts(settings)
    if given.add and before.is_file():
        own = {section.title for section in whole.sections}
        whole.sections[:0] = [one for one in Report.load(before).sections if one.title not in own]
    print(with_pictures(whole, given.out).save(given.out, given.name_of_result).json)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--attention", default="global(1)+local(64)")
    for name in ("train", "choose", "test", "books"):
        parser.add_argument(f"--{name}", type=Path, nargs="+", default=[])
    parser.add_argument("--runs", type=Path, default=Path("runs/long-encoder"))
    parser.add_argument("--distill", default="means")
    parser.add_argument("--effective-batch", type=int, default=2)
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-5])
    parser.add_argument("--rate-tokens", type=int, default=60_000)
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--every", type=int, default=10**6, help="updates between looks at text set aside")
    parser.add_argument("--price-tokens", type=int, default=16_384)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--passage", type=int, default=2048)
    parser.add_argument("--chapters", type=int, default=6, help="known and asked, at most, a book")
    parser.add_argument("--positions", default="hierarchical")
    parser.add_argument("--speed", type=int, nargs="*", default=[])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--name-of-result", default="long-encoder")
    parser.add_argument("--add", action="store_true")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.train and not (given.choose and given.test):
        parser.error(
            "--train: found no --choose or no --test, expected text for the rate and other text to tell the cosine on"
        )
    if given.threads:
        torch.set_num_threads(given.threads)
    report, folders = Report("A pretrained encoder under sparse attention", about="by benchmarks/long_encoder.py"), []
    settings = {"model": Path(given.model).name, "attention": given.attention, "processor": machine.cpu_name()}
    settings |= {"threads": torch.get_num_threads(), "torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}
    if given.train:
        folders = distillations(given, report.section(DISTILLED))
        keep(given, report, settings)
    if given.books:
        which_book(given, report.section(BOOKS), folders)
        keep(given, report, settings)
    if given.speed:
        speeds(given, report.section(SPEED))
        keep(given, report, settings)


if __name__ == "__main__":
    main()
