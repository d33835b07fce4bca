"""Measures cells: each is kept as a file under the digest of what decides it, found again, and never measured twice.

``OUT/cells/DIGEST.json``: the numbers, and by which command, on which machine, in how many seconds. It is written whole or
not at all, so Ctrl-C loses only the cell that was under way (and that one goes on where its own training can resume). A
lock per cell lets several processes share the work: start the same command twice and each takes what the other has not.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from jieyue.errors import InputError, MissingExtra
from jieyue.json_values import Facts
from jieyue.machine import describe
from jieyue.run.cells import cell_path, content_of, digest_of, locked, write_cell

from .claims import SCALES, Cell, Claim, Place, Result, Scale, Untestable, Verdict
from .judging import verdict_of

__all__ = ["Outcome", "digest", "encode", "measure", "parse"]

FORMAT = "jieyue cell 1"


@dataclass(frozen=True)
class Outcome:
    """A claim at one scale: its measured cells, and why others could not be measured."""

    claim: Claim
    scale: Scale
    results: Sequence[Result]
    missing: Sequence[str] = field(default=())

    @property
    def verdict(self) -> Verdict:
        return verdict_of(self.claim, self.results, self.missing)


def measure(
    claims: Sequence[Claim],
    scale: Scale,
    seeds: Sequence[int],
    out: Path,
    *,
    data: Path | None = None,
    command: str = "",
    say: Callable[[str], None] = lambda line: None,
) -> list[Outcome]:
    """Every claim's cells at this scale, from their files or measured now; in the order of the claims.

    ``command`` is written into new cells. ``say`` hears what is being measured. Refuses (``InputError``) an unknown scale,
    fewer than two seeds or the same one twice, and a data folder that is not there.
    """
    if scale not in SCALES:
        raise InputError("scale", repr(scale), f"one of {', '.join(SCALES)}")
    if len(seeds) < 2 or len(set(seeds)) < len(seeds):
        raise InputError("seeds", str(list(seeds)), "at least two, all different", "one run shows nothing")
    if data is not None and not data.is_dir():
        raise InputError("data", f"no folder {data}", "the folder of the larger data")
    cells = [(claim, cell) for claim in claims for cell in claim.cells(scale, seeds)]
    bench = _Bench(out, data, command, say)
    found: dict[int, Result | str] = {}
    waiting = list(enumerate(cells))
    for wait in (False, True):  # first what nobody else is measuring, then what another process has taken
        for place, (claim, cell) in waiting:
            if place not in found:
                bench.count = f"{place + 1} of {len(cells)}"
                result = bench.result(claim, cell, wait)
                if result is not None:
                    found[place] = result
    outcomes = []
    for claim in claims:
        own = [found[place] for place, (other, _) in enumerate(cells) if other is claim]
        reasons = tuple(one for one in own if isinstance(one, str))
        outcomes.append(Outcome(claim, scale, [one for one in own if isinstance(one, Result)], reasons))
    return outcomes


@dataclass
class _Bench:
    out: Path
    data: Path | None
    command: str
    say: Callable[[str], None]
    count: str = ""

    def result(self, claim: Claim, cell: Cell, wait: bool) -> Result | str | None:
        """The result; a text: why it cannot be measured; None: another process is measuring it."""
        try:
            name = digest(claim, cell, self.data)
        except Untestable as reason:
            return str(reason)
        path = cell_path(self.out, name)
        if path.is_file():
            return parse(path.read_text(encoding="utf-8"), str(path))
        with locked(self.out, name, wait) as mine:
            if not mine:
                return None
            if path.is_file():
                return parse(path.read_text(encoding="utf-8"), str(path))
            self.say(f"{self.count}: {claim.key}, {_shown(cell)}")
            return self._measured(claim, cell, name, path)

    def _measured(self, claim: Claim, cell: Cell, name: str, path: Path) -> Result | str:
        import torch

        work = self.out / "work" / name
        work.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        try:
            numbers = claim.measure(cell, Place(work, self.data, torch.get_num_threads()))
        except (Untestable, MissingExtra) as reason:
            shutil.rmtree(work, ignore_errors=True)
            return str(reason)
        seconds = time.perf_counter() - started
        now = datetime.now(UTC).isoformat(timespec="seconds")
        result = Result(cell, numbers, round(seconds, 3), self.command, describe(), now)
        write_cell(self.out, name, encode(claim, result))
        return parse(path.read_text(encoding="utf-8"), str(path))


def digest(claim: Claim, cell: Cell, data: Path | None) -> str:
    """What decides a cell, in 16 hexadecimal digits: claim, version, settings, seed, and the content of its data files."""
    key = {"claim": cell.claim, "version": claim.version, "settings": dict(cell.settings), "seed": cell.seed}
    if named := cell.settings.get("data"):
        key["content"] = [_content(data, one) for one in ([named] if isinstance(named, str) else named)]
    return digest_of(key)


def encode(claim: Claim, result: Result) -> str:
    """The result as one line of JSON."""
    cell = result.cell
    content = {
        "format": FORMAT,
        "claim": cell.claim,
        "version": claim.version,
        "settings": dict(cell.settings),
        "seed": cell.seed,
        "numbers": dict(result.numbers),
        "seconds": result.seconds,
        "command": result.command,
        "machine": dict(result.machine),
        "finished": result.finished,
    }
    return json.dumps(content, ensure_ascii=False)


def parse(line: str, name: str) -> Result:
    """The result that ``encode`` wrote; ``InputError`` names a file that holds something else."""
    try:
        found: Facts = json.loads(line)
        cell = Cell(found["claim"], found["settings"], found["seed"])
        facts = (found["seconds"], found["command"], found["machine"], found["finished"])
        if found["format"] != FORMAT:
            raise KeyError("format")
        return Result(cell, found["numbers"], *facts)
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(name, f"no measured cell ({error})", FORMAT, "remove the file") from None


def _content(data: Path | None, name: str) -> str:
    if data is None:
        raise Untestable(f"needs {name} from a folder of larger data (--data DIR)")
    path = data / name
    if not path.exists():
        raise Untestable(f"needs {name}, which the data folder lacks")
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    return content_of(files)


def _shown(cell: Cell) -> str:
    plain = (f"{name} {value['name'] if isinstance(value, dict) else value}" for name, value in cell.settings.items())
    return ", ".join([*plain, f"seed {cell.seed}"])
