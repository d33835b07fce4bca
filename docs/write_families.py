"""Writes docs/families.md: every model type that the installed transformers knows, and whether ``use`` leaves it unchanged.

    python docs/write_families.py [TYPE ...] [--rows FILE]

Builds each type tiny, with fresh weights, in float64 (``jieyue.hf.families``); the whole takes about an hour on two cores. Rows
are kept in FILE, one JSON line each, and those it has are not tried again unless named.
"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import sys
import warnings
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from types import FrameType

import torch
import transformers

from jieyue.hf.families import COLUMNS, FamilyRow, check_family
from jieyue.hf.tiny import model_types
from jieyue.report import write_whole

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "families.md"
SECONDS = 30  # of processor time; a type that takes longer is not built
MEMORY = 8 << 30  # bytes of address space: a type that cannot be made small is not built, and other processes live on
ORDER = ("wrong", "crash", "equal", "refused", "not built")
OPENING = """# Model families

Written by `python docs/write_families.py` under transformers {version} and torch {torch}: {count} of {known} model types tried.

The law: `use(model, attention="full()")` leaves every output unchanged, padded and not, cached and not, or refuses in one line. Each
type is built tiny, with fresh weights, in float64. Unchanged means within 1e-12, or 10 times what the model's own SDPA and eager
attention differ by, of max(1, largest output); 1e-6 where a model has eager attention only, which may round its weights to float32,
and 1e-7 for cached steps, of models that route experts in float32.

- **forward**: `full()` equals the model, and `local(3)+atrous(5)` the model under its own mask and the pattern's, softmax written out.
- **cached**: nine tokens, one, and the rest over our cache equal the whole in one call, under both.
- **generate**: the same greedy tokens as the plain model under `full()`, and with a cache as without under the pattern.
- **trained**: the gradients under `full()` are the model's.

"–": the plain model has no such thing, or does not run so on made-up inputs. "not built": no small model or no input of the type
could be made up here, which says nothing about it: `use` tries the law on the model that it is given.

{summary}
"""


class TooLongError(TimeoutError):
    """A type took too long."""


def checked(model_type: str) -> FamilyRow:
    def stop(number: int, frame: FrameType | None) -> None:
        raise TooLongError

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS, 1)  # again and again: what stops a call may be caught inside it
    try:
        return check_family(model_type)
    except TooLongError:
        return FamilyRow(model_type, why=f"takes longer than {SECONDS} s")
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def page(rows: list[FamilyRow]) -> str:
    counts = Counter(row.outcome for row in rows)
    summary = "| outcome | types |\n| --- | --- |\n" + "\n".join(f"| {name} | {counts[name]} |" for name in ORDER)
    version = {"version": transformers.__version__, "torch": torch.__version__.split("+")[0]}
    text = OPENING.format(count=len(rows), known=len(model_types()), summary=summary, **version)
    for name in ORDER:
        chosen = [row for row in rows if row.outcome == name]
        if chosen:
            text += f"\n## {name.capitalize()}\n\n" + (table(chosen) if name in ORDER[:3] else reasons(chosen))
    return text


def table(rows: list[FamilyRow]) -> str:
    lines = [f"| type | class | {' | '.join(COLUMNS)} |", "| --- " * (2 + len(COLUMNS)) + "|"]
    lines += [
        f"| {row.model_type} | {row.tried} | " + " | ".join(plain(row.found.get(key, "–")) for key in COLUMNS) + " |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def reasons(rows: list[FamilyRow]) -> str:
    lines = ["| type | class | why |", "| --- | --- | --- |"]
    lines += [f"| {row.model_type} | {row.tried or '–'} | {plain(row.why)} |" for row in rows]
    return "\n".join(lines) + "\n"


def plain(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*")
    parser.add_argument("--rows", type=Path, default=ROOT / "build" / "families.jsonl")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    kept: dict[str, FamilyRow] = {}
    if asked.rows.is_file():
        for line in asked.rows.read_text(encoding="utf-8").splitlines():
            row = FamilyRow(**json.loads(line))
            kept[row.model_type] = row
    asked.rows.parent.mkdir(parents=True, exist_ok=True)
    for model_type in asked.types or [one for one in model_types() if one not in kept]:
        kept[model_type] = checked(model_type)
        with asked.rows.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(kept[model_type]), ensure_ascii=False) + "\n")
        sys.stderr.write(f"{model_type}: {kept[model_type].outcome}\n")
    write_whole(PAGE, page([kept[name] for name in model_types() if name in kept]))


if __name__ == "__main__":
    main()
