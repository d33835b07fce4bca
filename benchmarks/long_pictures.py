"""The pictures of the reports about sparse attention in pretrained models, each drawn from the tables that the report holds.

    python benchmarks/long_pictures.py

What measures calls ``with_pictures`` before it saves. The command gives the kept results in benchmarks/results their pictures, from
their numbers alone: nothing is run again. Where a picture sets results beside one another, they are read from the same folder.
"""

import re
from pathlib import Path

from jieyue.report import Estimate, Picture, Report, Table, write_whole

RESULTS = Path(__file__).parent / "results"
FULL, CHOSEN, SPACED, NONE = "every layer full", "chosen layers full", "evenly spaced layers full", "no layer full"
LAYERS, HELD_OUT = ": layers that stay full", ": price without training, held out"
TOLD = re.compile(r"([+-][\d.]+) %(?: \[([+-][\d.]+), ([+-][\d.]+)\])?")
NEEDLES, AT = re.compile(r"Needles in ([\d,]+) tokens"), re.compile(r"At ([\d,]+) tokens")


def table(section, title):
    """The section's table of that title, its rows alone; none where it has no such table."""
    return next((one.rows for one in section.items if isinstance(one, Table) and one.title == title), ())


def found(report, title, name=None):
    """The rows of a table wherever it stands in a report, ``name``: in the section of that title."""
    sections = [one for one in report.sections if name is None or one.title == name]
    return next((rows for rows in (table(one, title) for one in sections) if rows), ())


def kept(folder, name):
    """A result that lies beside this one, None where there is none."""
    path = Path(folder) / f"{name}.json"
    return Report.load(path) if path.is_file() else None


def share(text):
    """``+1.01 % [+0.71, +1.32]`` as a share with its interval, ``+0.50 %`` as a share."""
    value, low, high = (None if one is None else float(one) / 100 for one in TOLD.fullmatch(text).groups())
    return value if low is None else Estimate(value, low, high)


def by_full_layers(section, report, folder):
    """The joint price as layer after layer became sparse; on text that chose nothing the last choice and as many evenly spaced."""
    rounds = table(section, "Round by round")
    if len(rounds) < 3:
        return None
    model, last = section.title.removesuffix(LAYERS), rounds[-1][0]
    curves = {"layers chosen, on the text that chose": {full: share(price) for full, _, price in rounds}}
    told = {name: share(price) for name, _, price in found(report, "On held out", model + HELD_OUT)}
    places = {CHOSEN: last, SPACED: last}
    curves |= {f"{name}, held out": {places[name]: told[name]} for name in places if name in told}
    return Picture.lines(f"{model}: price by full layers", curves, x="full layers", y=("price", "share"))


def by_position(section, report, folder):
    """What each mix costs more than full attention, by the position in the row."""
    rows = table(section, "By position, on held out")
    if not rows or HELD_OUT not in section.title:
        return None
    names = next(one.columns for one in section.items if isinstance(one, Table) and one.rows == rows)
    unit = next(one.columns[1].unit for one in section.items if isinstance(one, Table) and one.title == "On held out")
    if unit != "nats":
        return None
    curves = {
        column.name: {float(place.split(" to ")[1]) + 1: round(costs[number] - costs[0], 6) for place, *costs in rows}
        for number, column in enumerate(names[1:])
        if number
    }
    title = f"{section.title.removesuffix(HELD_OUT)}: loss above full attention's, by position"
    return Picture.lines(title, curves, x="position, up to", y=("loss", unit), log="x")


def by_length(section, report, folder):
    """The price by the length of the rows, and the goal."""
    rows = table(section, "Price by length")
    prices = {CHOSEN: {row[0]: row[4] for row in rows}}
    rules = {"the goal: at most 2 %": 0.02}
    return rows and Picture.lines(
        "Price by length, untrained", prices, x="tokens", y=("price", "share"), log="x", rules=rules
    )


def against_sdpa(section, report, folder):
    """Whatever was timed, and the cache, beside full attention's; with the forward pass."""
    rows = table(section, "Forward pass")
    what = {"forward pass, {:,} tokens": rows, "training step, {:,} tokens": found(report, "Training step")}
    what |= {
        "one more token behind {:,}": found(report, "One more token"),
        "cache, {:,} tokens": found(report, "Cache"),
    }
    bars = {form.format(own[0]): own[2] / own[1] for form, own_rows in what.items() for own in own_rows}
    title, rules = "Time and cache beside full attention's", {"full attention (SDPA)": 1}
    return rows and Picture.bars(title, bars, value=(CHOSEN, "share"), rules=rules)


def per_token(section, report, folder):
    rows = table(section, "One more token")
    curves = {"SDPA": {row[0]: row[1] for row in rows}, CHOSEN: {row[0]: row[2] for row in rows}}
    return rows and Picture.lines(
        "One more token, by length", curves, x="tokens before", y=("time", "seconds"), log="x"
    )


def cache(section, report, folder):
    rows = table(section, "Cache")
    curves = {FULL: {row[0]: row[1] for row in rows}, CHOSEN: {row[0]: row[2] for row in rows}}
    return rows and Picture.lines("Cache, by length", curves, x="tokens", y=("cache", "bytes"), log="x")


def needles(section, report, folder):
    """Needles found, by depth and mix."""
    length = NEEDLES.fullmatch(section.title)
    if not length:
        return None
    (own,) = (one for one in section.items if isinstance(one, Table) and one.title.startswith("Found, by depth"))
    shares = [[parts(cell) for cell in row[1:]] for row in own.rows]
    bars = {
        column.name: {f"depth {row[0]}": each[number] for row, each in zip(own.rows, shares, strict=True)}
        for number, column in enumerate(own.columns[1:])
    }
    return Picture.bars(f"Found by depth, {length[1]} tokens", bars, value=("needles found", "share"))


def parts(cell):
    """``4 of 5`` as a share."""
    some, every = cell.split(" of ")
    return int(some) / int(every)


def facts(report):
    return {fact.what: fact.value for _, fact in report.facts()}


def mean(rows, column):
    return sum(row[column] for row in rows) / len(rows)


def trained(section, report, folder):
    """Loss by the tokens that were trained, of the sparse model and of the full one: each trained length is a run of its own."""
    length = AT.fullmatch(section.title)
    if not length or not table(section, "Seed by seed"):
        return None
    untrained = kept(folder, "long")
    full, sparse = {}, {}
    for own in (report, *(kept(folder, path.stem) for path in sorted(Path(folder).glob("long-seeds*.json")))):
        rows, tokens = found(own, "Seed by seed", section.title), facts(own)["tokens"]
        if rows and tokens <= facts(report)["tokens"]:
            full[0] = rows[0][2]
            full[tokens], sparse[tokens] = mean(rows, 3), mean(rows, 4)
    if untrained is not None:
        at = int(length[1].replace(",", ""))
        for row in found(untrained, "Price by length"):
            if row[0] == at and close(row[2], full[0]):
                sparse[0] = row[3]
    curves = {name: dict(sorted(points.items())) for name, points in ((FULL, full), (CHOSEN, sparse))}
    if len(full) < 3:
        return None
    note = "Text that neither trained nor chose; means over seeds, each point the end of runs of so many tokens."
    title = f"Loss by tokens trained, rows of {length[1]} tokens"
    return Picture.lines(title, curves, x="tokens trained", y=("loss", "nats"), note=note)


def close(one, other):
    """Whether two losses are of the same rows."""
    return abs(one - other) < 1e-6


def distilled(section, report, folder):
    """Mean cosine by the tokens of a distillation, and the goal."""
    most = next((tokens_of(one.note) for one in section.items if getattr(one, "title", "") == "Distilled"), 0)
    if not most:
        return None
    reached, curves = {}, {}
    beside = (kept(folder, name) for name in ("long-encoder", "long-encoder-more"))
    for own in (*(one for one in beside if one is not None), report):
        (made,) = (one for part in own.sections for one in part.items if getattr(one, "title", "") == "Distilled")
        if tokens_of(made.note) <= most:
            reached[0], reached[tokens_of(made.note)] = mean_value(made.rows, 1), mean_value(made.rows, 2)
    if len(reached) < 3:
        return None
    curves["books that nothing was learned from"] = dict(sorted(reached.items()))
    for one in section.items:
        if isinstance(one, Table) and one.title.startswith("Rates, "):
            best = max(one.rows, key=lambda row: row[1].value)
            curves["the book by which the rate was chosen"] = {tokens_of(one.title): best[1].value}
    for run, tokens, value in table(section, "While distilling"):
        curves.setdefault(f"{run}, while learning, text set aside", {})[tokens] = value
    note = "Means over seeds. Each point is the end of runs of so many tokens, 0: before any."
    rules = {"the goal: .99": 0.99}
    return Picture.lines("Mean cosine by tokens distilled", curves, x="tokens", y="mean cosine", rules=rules, note=note)


def tokens_of(text):
    return int(re.search(r"([\d,]+) tokens", text)[1].replace(",", ""))


def mean_value(rows, column):
    return sum(row[column].value for row in rows) / len(rows)


DRAWN = (by_full_layers, by_position, by_length, against_sdpa, per_token, cache, needles, trained, distilled)


def with_pictures(report, folder=RESULTS):
    """The report, and in each section the pictures that its tables give, in place of those of the same titles."""
    for section in report.sections:
        for draw in DRAWN:
            if picture := draw(section, report, folder):
                others = (one for one in section.items if getattr(one, "title", None) != picture.title)
                section.items = [*others, picture]
    return report


def main():
    for path in (*sorted(RESULTS.glob("long*.json")), RESULTS / "needle.json"):
        before = Report.load(path)
        after = with_pictures(Report.load(path))
        if after != before:
            write_whole(path, after.json())
            print(f"{path.name}: {len(after.pictures())} pictures")


if __name__ == "__main__":
    main()
