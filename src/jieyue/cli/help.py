"""How the command line explains itself: verbs and flags in groups, each verb's examples, lines that fit the terminal.

``Verb`` and ``Verbs`` stand in for Typer's own command and group. A flag's group is told by ``FLAGS``; what stands in none is
under "Options". ``examples.py`` has the examples.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import typer
from typer.core import TyperCommand, TyperGroup

from jieyue.report.plaintext import columns, wrapped

from .examples import EXAMPLES
from .language import said
from .optional import with_values
from .settings_file import with_settings

if TYPE_CHECKING:
    from typer._click import Command, Context, HelpFormatter  # Typer's own; earlier versions take click's

__all__ = ["FLAGS", "VERBS", "Verb", "Verbs", "explained"]

VERBS = {
    "Prepare": ("doctor", "plan"),
    "Train": ("train", "sparsify", "compare"),
    "Use a trained model": (
        "evaluate", "read", "predict", "classify", "tag", "title", "chat", "serve", "export", "push",
    ),
    "Measure": ("bench", "verify", "fit", "reproduce"),
}  # fmt: skip

FLAGS = {
    "Data": (
        "--data", "--held-out", "--questions", "--limit", "--skip-bad", "--encoding", "--delimiter", "--roles",
        "--text-column", "--label-column", "--pair-column", "--label-separator", "--problem", "--tag-column",
        "--source-column", "--title-column", "--over-long", "--text", "--file", "--question", "--strict", "--scale",
        "--second-data", "--calibration-tokens", "--price-tokens", "--needles",
    ),
    "Model": (
        "--model", "--vocabulary", "--new-head", "--head", "--attention", "--unshare", "--unshare-after", "--start",
        "--reader", "--answer-slots", "--window-tokens", "--search", "--max-tokens", "--kind", "--source-tokens",
        "--title-tokens", "--beams", "--thresholds", "--pseudo-rows", "--recipe", "--form", "--target", "--criterion",
        "--domain", "--fix", "--length", "--full-layers", "--full-heads", "--candidates", "--positions", "--position-factor",
        "--row-tokens", "--train", "--distill", "--rank", "--weights",
    ),
    "Training": (
        "--effective-batch", "--steps", "--epochs", "--time", "--learning-rate", "--warmup-steps", "--schedule",
        "--weight-decay", "--max-grad-norm", "--evaluate-every", "--keep", "--patience", "--seed", "--seeds",
        "--curriculum", "--remedy", "--variant", "--class-weights", "--loss-on", "--share", "--whole-words", "--packed",
        "--tokens", "--control",
    ),
    "Budget": (
        "--budget", "--device", "--allocator", "--checkpointing", "--adapter", "--base", "--in-backward",
        "--optimizer", "--dtype", "--micro-batch",
        "--batch-size",
    ),
    "Output": (
        "--out", "--overwrite", "--resume", "--save-steps", "--log", "--json", "--config", "--show", "--language",
        "--picture", "--code", "--page", "--scripts", "--docs", "--measure", "--to", "--int8", "--quote", "--license",
        "--savings-at",
    ),
}  # fmt: skip
_GROUPED = ("train", "plan", "doctor", "compare", "sparsify")
_GROUP_OF = {flag: group for group, flags in FLAGS.items() for flag in flags}
_LEFT = 32  # columns of the flags' side
_SETTLED = re.compile(r"\s+\[(default: .*|required)\]$", re.DOTALL)


class Verb(TyperCommand):
    """A verb: its flags in groups, its examples, and ``--config FILE`` where it has that flag."""

    def format_help(self, ctx: Context, formatter: HelpFormatter) -> None:
        """The whole page."""
        _write_page(self, ctx, formatter)

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """With the settings of ``--config`` before what was typed, so that the latter holds."""
        if any("--config" in one.opts for one in self.params):
            args = with_settings(args, self.params)
        return super().parse_args(ctx, args)


class Verbs(TyperGroup):
    """A group of verbs; flags that may stand without a value get it."""

    def format_help(self, ctx: Context, formatter: HelpFormatter) -> None:
        """The whole page."""
        _write_page(self, ctx, formatter)

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """With the values of flags that stand alone."""
        return super().parse_args(ctx, with_values(args))


def explained(app: typer.Typer) -> typer.Typer:
    """Every verb and group of the app, and of those inside it, explains itself in our way; returns it."""
    app.info.cls = Verbs
    for verb in app.registered_commands:
        verb.cls = Verb
    for group in app.registered_groups:
        if group.typer_instance is not None:
            explained(group.typer_instance)
    return app


def _write_page(command: Command, context: Context, formatter: HelpFormatter) -> None:
    """Usage, what it does, arguments, flags by group, verbs by group, examples."""
    width = formatter.width
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    formatter.write(f"{said('Usage')}: {usage}\n\n")
    for paragraph in (command.help or "").split("\n\n"):
        formatter.write(_block(said(" ".join(paragraph.split())), width) + "\n")
    for title, rows in (*_parameters(command, context), *_verbs(command, context)):
        formatter.write(f"\n{said(title)}:\n{_rows(rows, width)}")
    examples = EXAMPLES.get(" ".join(_names(context)), ())
    if examples:
        formatter.write(f"\n{said('Examples')}:\n")
        for line, does in examples:
            formatter.write(f"  {line}\n{_block(said(does), width, 6)}\n")


def _names(context: Context) -> list[str]:
    """The verb's words after the program's name."""
    return [*_names(context.parent), context.info_name or ""] if context.parent is not None else []


def _parameters(command: Command, context: Context) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Arguments, then flags by group, then those of no group."""
    found: dict[str, list[tuple[str, str]]] = {name: [] for name in ("Arguments", *FLAGS, "Options")}
    group_of = _GROUP_OF if _names(context)[:1] and _names(context)[0] in _GROUPED else {}
    for one in command.get_params(context):
        record = one.get_help_record(context)
        if record is None:
            continue
        flag = next((name for name in one.opts if name in group_of), "")
        group = "Arguments" if one.param_type_name == "argument" else group_of.get(flag, "Options")
        shown = record[0].replace("-h, --help", "--help, -h")  # long names first, as everywhere
        found[group].append((shown, _explained(record[1])))
    return ((title, rows) for title, rows in found.items() if rows)


def _explained(text: str) -> str:
    """A flag's help in the reader's language; Typer has put the default behind it."""
    settled = _SETTLED.search(text)
    if settled is None:
        return said(text)
    word, _, value = settled[1].partition(": ")
    return f"{said(text[: settled.start()])} [{said(word)}{': ' + value if value else ''}]".strip()


def _verbs(command: Command, context: Context) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    own = command.commands if isinstance(command, TyperGroup) else {}
    grouped = {} if _names(context) else dict(VERBS)  # below, the same names are tasks: "read" of train, of plan
    grouped["Verbs"] = tuple(name for name in own if not any(name in names for names in grouped.values()))
    for title, names in grouped.items():
        rows = [(name, said(" ".join((own[name].help or "").split()))) for name in names if name in own]
        if rows:
            yield title, rows


def _block(text: str, width: int, indent: int = 2) -> str:
    return "\n".join(" " * indent + line for line in wrapped(text, width - indent))


def _rows(rows: Sequence[tuple[str, str]], width: int) -> str:
    """Two columns; what is too wide for the first has a line of its own."""
    left = min(_LEFT, max(columns(name) for name, _ in rows) + 4)
    lines = []
    for name, text in rows:
        first, *rest = wrapped(text, width - left) or [""]
        head = f"  {name}"
        if columns(head) + 2 > left:
            lines += [head, " " * left + first]
        else:
            lines.append(head + " " * (left - columns(head)) + first)
        lines += [" " * left + line for line in rest]
    return "\n".join(line.rstrip() for line in lines) + "\n"
