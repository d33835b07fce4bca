"""A trained model on the hub: what goes up is listed first, what trained it stays here, and the card says what is true of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from jieyue.budget import format_bytes
from jieyue.errors import InputError, message
from jieyue.hf.hub import base_entries, check_repository, check_token, upload
from jieyue.listener import SILENT, ProgressListener
from jieyue.record import RECORD, read_record
from jieyue.report import Report
from jieyue.report.card import Entry
from jieyue.tasks.table import AnyTask, task

from .cards import card_of

__all__ = ["Pushed", "push"]

CARD = "README.md"
_MODEL = (
    "*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt",
    "chat_template.jinja", "*.model", "preprocessor_config.json", RECORD,
)  # fmt: skip
_QUOTING = ("report.html", "report.json")  # they show examples
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """What went up, or would. ``url``: "" where nothing was sent; ``sent``: bytes by name; ``kept``: names that stay here.

    ``license``: "" where none is known, which the card then does not name; ``card``: the whole text that went up as README.md.
    """

    repository: str
    url: str
    is_new: bool
    sent: Mapping[str, int]
    kept: Sequence[str]
    license: str
    card: str


def push(
    folder: str | Path,
    repository: str,
    *,
    private: bool = False,
    license: str | None = None,
    quote: bool = False,
    card: str | Path | None = None,
    dry_run: bool = False,
    listener: ProgressListener = SILENT,
) -> Pushed:
    """Sends a trained model's folder to OWNER/NAME on the hub, as one commit.

    Model, tokenizer, ``jieyue.json`` and a card go up; checkpoints, the state for resuming, what judging remembers of the
    training examples, and reports stay here. ``private``: the repository that is made; a public one that is there is refused.
    ``license``: its identifier on the hub; None = that of the base model's card, and no entry where there is none.
    ``quote``: the card and the reports go up with the examples that they show. ``card``: a card of your own in place of the
    one that is written; a README.md that was edited by hand is refused without it. ``dry_run``: lists, and sends nothing; no
    token is needed. ``listener`` is told the list before anything is sent.
    ``InputError``: for a folder without a finished run, no token, whatever the hub refuses.
    """
    folder = Path(folder)
    check_repository(repository)
    if license is not None and not _LICENCE.fullmatch(license):
        raise InputError(message("license", repr(license), "an identifier of the hub's list, such as apache-2.0"))
    record = read_record(folder)
    if not (folder / "report.json").is_file():
        do = "train on with --resume"
        raise InputError(message(f"push {folder}", "no report.json", "the folder of a finished run", do))
    if not dry_run:
        check_token()
    job, report = task(str(record.get("recipe"))), Report.load(folder)
    entries = _entries(str(record.get("model", "")), license, may_ask=not dry_run)
    text = _card(folder, repository, job, report, entries, quote) if card is None else _own(Path(card), license)
    chosen, kept = _sorted(folder, quote)
    sizes = {name: (folder / name).stat().st_size for name in chosen} | {CARD: len(text.encode("utf-8"))}
    _tell(listener, sizes, kept, "" if card is not None else str(entries.get("license", "")), own=card is not None)
    url, is_new = "", False
    if not dry_run:
        contents: dict[str, Path | bytes] = {name: folder / name for name in chosen}
        contents[CARD] = text.encode("utf-8")
        url, is_new = upload(repository, contents, private=private, summary=f"{job.title}, trained with jieyue")
    return Pushed(
        repository=repository,
        url=url,
        is_new=is_new,
        sent=sizes,
        kept=kept,
        license=str(entries.get("license", "")),
        card=text,
    )


def _entries(model: str, license: str | None, *, may_ask: bool) -> dict[str, Entry]:
    """Of the card's header; a licence that is given is in place of the base model's."""
    found = base_entries(model, may_ask=may_ask) if model else {}
    if license is not None:
        found = {name: value for name, value in found.items() if not name.startswith("license")} | {"license": license}
    return found


def _card(
    folder: Path, repository: str, job: AnyTask, report: Report, entries: Mapping[str, Entry], quote: bool
) -> str:
    """The card that is written; refused where the folder's own says something else, which would be lost."""
    command = next(
        (str(fact.value) for where, fact in report.facts() if where == "Settings" and fact.what == "command"), ""
    )
    name = repository.partition("/")[2]
    here = folder / CARD
    if here.is_file():
        written = card_of(report, job, folder.name, command, {})
        if _compared(here.read_text(encoding="utf-8")) != _compared(written):
            do = f"--card {here} sends it as it is; without that file a card is written"
            raise InputError(message(f"push {folder}", f"a {CARD} that was edited", "the one that training wrote", do))
    made = card_of(report, job, name, command, entries, quote=quote)
    return made.replace("## Use\n", f"## Use\n\nFirst: `hf download {repository} --local-dir {name}`\n", 1)


def _compared(card: str) -> str:
    """A card without its header and the code that names its folder: both may change with the licence, and with a new place."""
    body = card.split("---\n", 2)[-1]
    return re.sub(r"## Use\n.*?(?=\n## |\Z)", "", body, flags=re.DOTALL).strip()


def _own(card: Path, license: str | None) -> str:
    if license is not None:
        raise InputError(message("license", "a card of one's own beside it", "one of the two", "write it in the card"))
    if not card.is_file():
        raise InputError(message("card", f"no file {card}", "a card in Markdown"))
    return card.read_text(encoding="utf-8")


def _sorted(folder: Path, quote: bool) -> tuple[list[str], list[str]]:
    """Names that go up, and names that stay; a folder stays as a whole."""
    wanted = (*_MODEL, *(_QUOTING if quote else ()))
    sent: list[str] = []
    kept: list[str] = []
    for path in sorted(folder.iterdir()):
        if path.name == CARD:
            continue
        goes = path.is_file() and any(fnmatch(path.name, pattern) for pattern in wanted)
        (sent if goes else kept).append(path.name + ("/" if path.is_dir() else ""))
    if not any(name.endswith(".safetensors") for name in sent):
        raise InputError(message(f"push {folder}", "no *.safetensors", "the weights of a trained model"))
    return sent, kept


def _tell(
    listener: ProgressListener, sizes: Mapping[str, int], kept: Sequence[str], license: str, *, own: bool
) -> None:
    """What is about to leave this machine, and what is not."""
    rows = [[name, format_bytes(size)] for name, size in sizes.items()]
    listener.table("What goes up", ["file", "size"], rows)
    listener.fact("stays here", files=", ".join(kept) or "nothing")
    if own:
        listener.say("The card goes up as it is")
    elif license:
        listener.fact("license", id=license)
    else:
        listener.say("No licence is known: the card names none; --license ID names one")
