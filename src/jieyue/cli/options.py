"""The flags that several verbs share, each written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "AsJson",
    "Attention",
    "BatchSize",
    "BudgetText",
    "Checkpointing",
    "Data",
    "Device",
    "Dtype",
    "EffectiveBatch",
    "Epochs",
    "HeldOut",
    "LabelColumn",
    "Labelled",
    "LearningRate",
    "Limit",
    "MaxTokens",
    "Model",
    "NewHead",
    "Optimizer",
    "Out",
    "PairColumn",
    "PlainText",
    "PseudoRows",
    "Questions",
    "ReaderKind",
    "Resume",
    "SaveSteps",
    "Search",
    "Seed",
    "Share",
    "SkipBad",
    "Slots",
    "Start",
    "Steps",
    "TextColumn",
    "Time",
    "TrainingFiles",
    "Unshare",
    "UnshareAfter",
    "Vocabulary",
    "WholeWords",
    "WindowTokens",
]

_DATA = "Training files (SQuAD, CMRC 2018, DRCD or multi-passage JSON; .gz, .xz). Default: the corpus that ships."
_HELD_OUT = "Files to judge by. Default: the shipped held-out part, or a tenth of the passages of --data."

Model = Annotated[
    str,
    typer.Option(
        help="A preset (tiny, small, base; albert-tiny, bert-tiny, albert-small, bert-small), a folder or a hub name."
    ),
]
Data = Annotated[list[Path] | None, typer.Option("--data", help=_DATA)]
TrainingFiles = Annotated[list[Path] | None, typer.Argument(help="Training files. Default: the corpus that ships.")]
HeldOut = Annotated[list[Path] | None, typer.Option("--held-out", help=_HELD_OUT)]
BudgetText = Annotated[str, typer.Option("--budget", help="Memory for the whole process, such as 1GiB or 800MB.")]
EffectiveBatch = Annotated[int, typer.Option(help="Rows of one update, whatever fits at once.")]
Questions = Annotated[
    int | None, typer.Option(help="At most this many training questions (and as many held-out ones).")
]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave broken records out, count and list them.")]
Attention = Annotated[
    str | None, typer.Option(help="A pattern in place of full attention, such as local(64)+atrous(16).")
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line on standard output, for machines.")]
BatchSize = Annotated[int, typer.Option(help="Windows read at once.")]
Slots = Annotated[int | None, typer.Option("--answer-slots", help="Longest answer in tokens, its [SEP] included.")]
Search = Annotated[
    str | None,
    typer.Option(help="How a masked reader finds answers: best (all n-grams compared, the default) or greedy."),
]
ReaderKind = Annotated[
    str | None,
    typer.Option(
        "--reader",
        help="How it reads: masked (the [MASK]s spell the answer, the default), span (start and end) or prefix (writes it).",
    ),
]
WindowTokens = Annotated[int | None, typer.Option(help="Passage tokens in one window, its [SEP] included.")]
Vocabulary = Annotated[Path | None, typer.Option(help="A vocab.txt for a preset. Default: learned from the data.")]
NewHead = Annotated[
    bool, typer.Option("--new-head", help="Permit a checkpoint without a masked-LM head; the head starts anew.")
]
Checkpointing = Annotated[
    bool | None,
    typer.Option("--checkpointing/--no-checkpointing", help="Activation checkpointing (exact). Default: if needed."),
]
Limit = Annotated[int | None, typer.Option(help="At most this many training examples (and as many held-out ones).")]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
Steps = Annotated[int | None, typer.Option(help="Updates to train for.")]
Epochs = Annotated[float | None, typer.Option(help="Passes over the rows (default 2).")]
Time = Annotated[str | None, typer.Option(help="Train for about this long, such as 4min: turned into updates first.")]
LearningRate = Annotated[
    float | None,
    typer.Option(help="Default: 1e-3 for a preset, 3e-5 for a checkpoint; a hundred times that for momentum."),
]
Optimizer = Annotated[
    str, typer.Option(metavar="NAME", help="adamw, adafactor, momentum (SGD) or adamw-8bit (needs bitsandbytes).")
]
Dtype = Annotated[
    str,
    typer.Option("--dtype", metavar="NAME", help="Of matrix products: float32, or bfloat16 (autocast; approximate)."),
]
SaveSteps = Annotated[int, typer.Option(help="Updates between checkpoints.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out, with the same flags.")]
Out = Annotated[Path, typer.Option(help="Folder for the model, its card, checkpoints and the report.")]
Start = Annotated[
    str | None,
    typer.Option(help="How a preset's weights begin: orthogonal-copy or normal. Default: the preset's own way."),
]
Unshare = Annotated[
    str | None,
    typer.Option(
        metavar="[GROUPS]",
        help="Give an ALBERT's layers blocks of their own: so many, or each its own without a number.",
    ),
]
UnshareAfter = Annotated[int, typer.Option(metavar="STEPS", help="Unshare only after so many updates.")]
MaxTokens = Annotated[int, typer.Option(help="Tokens of a row, special ones included.")]
Labelled = Annotated[
    list[Path] | None,
    typer.Option(
        "--data", help="Training files: TSV, CSV, JSON or JSON lines. Default: the corpus that ships, by topic."
    ),
]
PlainText = Annotated[
    list[Path] | None,
    typer.Option("--data", help="Training files of plain text, a paragraph a line. Default: the corpus that ships."),
]
TextColumn = Annotated[str | None, typer.Option(help="The text's column: a name, or a number from 1 without header.")]
LabelColumn = Annotated[str | None, typer.Option(help="The label's column: a name or a number.")]
PairColumn = Annotated[str | None, typer.Option(help="A second text's column: a name or a number.")]
WholeWords = Annotated[bool, typer.Option("--whole-words", help="Hide all pieces of a word together.")]
Share = Annotated[float, typer.Option(help="Share of a row's tokens that is hidden.")]
PseudoRows = Annotated[int, typer.Option(help="Held-out rows whose pseudo-perplexity is computed.")]
