"""The verbs that measure, verify and fit: each prints a report and can write it, and its code, to files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from jieyue.errors import InputError, check_least

from .console import Console, read_text, show
from .options import AsJson, writable

__all__ = ["add_to"]

_bench = typer.Typer(help="Measure on this machine: seconds, bytes, errors.", no_args_is_help=True)
_verify = typer.Typer(help="Verify on your own model what a change costs.", no_args_is_help=True)
_fit = typer.Typer(help="Fit an approximation and certify its error.", no_args_is_help=True)

Out = Annotated[Path | None, typer.Option(callback=writable, help="Folder for the report (HTML and JSON).")]
Repeats = Annotated[int, typer.Option(help="Alternating repeats; medians count.")]


def add_to(app: typer.Typer) -> None:
    """Registers every verb."""
    app.add_typer(_bench, name="bench")
    app.add_typer(_verify, name="verify")
    app.add_typer(_fit, name="fit")


@_bench.command("attention")
def bench_attention(
    parts: Annotated[
        str,
        typer.Option(
            help="Some of shares, small, rivals, curves, long, worn, linear; --out keeps an earlier run's others."
        ),
    ] = "shares,small,rivals,curves,long,worn,linear",
    repeats: Repeats = 5,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Patterns and linear maps beside the dense flash kernel and the rivals: rates, seconds and peak memory against length."""
    from jieyue.bench.attention import bench_attention as measure
    from jieyue.bench.attention_rows import joined
    from jieyue.report import Report

    console, name = Console(as_json), "attention" if device == "cpu" else "attention-cuda"
    report = measure(parts=parts.split(","), repeats=repeats, device=device, say=console.say).report()
    titles = tuple(section.title for section in report.sections)
    if out is not None and (out / f"{name}.json").exists():
        report = joined(Report.load(out / f"{name}.json"), report)
    show(console, report, titles, out=out, name=name)


@_bench.command("activation")
def bench_activation(
    elements: Annotated[int, typer.Option(help="Inputs per call.")] = 2**22,
    dtype: Annotated[list[str] | None, typer.Option(help="float32, bfloat16, float16 or float64.")] = None,
    repeats: Repeats = 9,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Every GELU's time, saved bytes and error, beside torch's own."""
    from jieyue.bench.activation import bench_activation as measure

    found = measure(elements=elements, dtypes=dtype or ("float32", "bfloat16"), repeats=repeats, device=device)
    show(Console(as_json), found.report(), out=out, name="activation")


@_bench.command("memory")
def bench_memory(
    model: Annotated[str, typer.Option(help="A preset, a folder (its config.json is enough) or a hub name.")] = "tiny",
    effective_batch: Annotated[int, typer.Option(help="Rows of one update.")] = 16,
    micro_batch: Annotated[int, typer.Option(help="Rows of a piece, from the second row of the table on.")] = 2,
    length: Annotated[int | None, typer.Option(help="Tokens of a row. Default: the longest of --data, or 128.")] = None,
    data: Annotated[Path | None, typer.Option("--data", help="A text a line: rows as long as the longest.")] = None,
    attention: Annotated[str | None, typer.Option(help="A pattern to add, such as local(64).")] = None,
    approximate: Annotated[
        bool, typer.Option("--approximate/--exact", help="With Adafactor and bfloat16, or exact ones alone.")
    ] = True,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """One saving after another: peak and tokens per second of an update, each measured in its own process."""
    from jieyue.bench.memory import bench_memory as measure

    console = Console(as_json)
    report = measure(
        model,
        effective_batch=effective_batch,
        micro_batch=micro_batch,
        length=length,
        data=data,
        attention=attention,
        approximate=approximate,
        say=console.say,
    )
    show(console, report, out=out, name="memory")


@_verify.command("activation")
def verify_activation(
    model: Annotated[str, typer.Argument(help="A folder or a hub name.")],
    text: Annotated[
        Path | None, typer.Option(help="Text like the training text, a passage a line. Default: the corpus.")
    ] = None,
    rows: Annotated[int, typer.Option(help="Rows of a batch.")] = 8,
    max_tokens: Annotated[int, typer.Option(help="Tokens of a row.")] = 128,
    max_texts: Annotated[int, typer.Option(help="Texts used.")] = 64,
    variants: Annotated[str, typer.Option(help="GELUs to try, separated by commas.")] = "none,tanh,sigmoid",
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Swap GELU's variants in a loaded model: logits, loss and layers under each, and which it was trained with."""
    from jieyue.hf.activation_check import verify_activation as verify

    loaded, batches = _model_and_batches(model, text, rows, max_tokens, max_texts)
    show(Console(as_json), verify(loaded, batches, variants.split(",")).report(), out=out, name="activation")


@_verify.command("attention")
def verify_attention(
    model: Annotated[str, typer.Argument(help="A folder or a hub name.")],
    text: Annotated[
        Path | None, typer.Option(help="Text like the training text, a passage a line. Default: the corpus.")
    ] = None,
    attention: Annotated[
        list[str] | None, typer.Option(help='What to try, such as "linear(elu)"; more than once for several.')
    ] = None,
    rows: Annotated[int, typer.Option(help="Rows of a batch.")] = 8,
    max_tokens: Annotated[
        int | None, typer.Option(help="Tokens of a row. Default: 128, or more, so that a pattern drops keys.")
    ] = None,
    max_texts: Annotated[
        int | None, typer.Option(help="Texts used. Default: 64, or fewer where rows are long.")
    ] = None,
    share: Annotated[
        float, typer.Option(help="A pattern's bound is told for this share of the text's queries.")
    ] = 0.99,
    confidence: Annotated[float, typer.Option(help="At this confidence, for all layers and heads together.")] = 0.99,
    queries: Annotated[int | None, typer.Option(help="Queries drawn. Default: as many as the statement needs.")] = None,
    seed: Annotated[int, typer.Option(help="Of the draw.")] = 0,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """What another attention changes: entropies and loss, and for patterns how far each head's output moves, bounded and measured."""
    from dataclasses import asdict

    from jieyue.bench.deviation import add_statements, statements
    from jieyue.hf.attention_check import verify_attention as verify
    from jieyue.hf.attention_deviation import check_drops, measure_deviation
    from jieyue.hf.loading import check_own_attention
    from jieyue.hf.row_losses import as_written

    for name, value in (("share", share), ("confidence", confidence)):
        if not 0 < value < 1:
            raise InputError(f"{name}={value}: expected a share between 0 and 1")
    check_least(1, queries=queries)
    check_own_attention(model, "verify attention")
    tried = attention or ["linear(elu)", "linear(relu)", "linear(taylor2)", "local(16)+linear(elu)"]
    bounded = [name for name in tried if "linear" not in name]
    loaded, batches = _model_and_batches(model, text, rows, max_tokens, max_texts, bounded)
    longest = max(int(batch["attention_mask"].sum(1).max()) for batch in batches)
    tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
    for name in bounded:
        check_drops(name, longest)
    if loaded.config.is_encoder_decoder:
        bounded = []
    texts = [as_written(batch) for batch in batches]
    found = {
        name: measure_deviation(loaded, texts, name, num_queries=queries, share=share, confidence=confidence, seed=seed)
        for name in bounded
    }
    console, report = Console(as_json), verify(loaded, batches, tried).report()
    section = report.section("Candidates").fact("longest row", longest, "tokens")
    section.fact(
        "tokens read", tokens, "tokens", how="of the text's first passages; --max-texts and --max-tokens read more"
    )
    if unbounded := [name for name in tried if name not in bounded]:
        section.note(
            f"No bound for {', '.join(unbounded)}: it is of softmax weights that a pattern drops, in a decoder or an encoder alone."
        )
    for name in bounded:
        made = statements(found[name], share=share, confidence=confidence)
        section = report.section(f"Deviation under {name}")
        add_statements(section, made, share=share, confidence=confidence, tokens=tokens)
        if as_json:
            for one in made:
                console.fact("deviation", attention=name, **asdict(one))
    show(console, report, out=out, name="attention")


def _model_and_batches(
    name: str, text: Path | None, rows: int, max_tokens: int | None, max_texts: int | None, bounded: Sequence[str] = ()
) -> tuple[Any, Any]:
    """The model, and labelled batches of the text's lines (of the corpus's passages without one).

    For the patterns ``bounded`` rows are running text, neighbouring lines together, so long that these drop keys.
    """
    from jieyue.data.corpora import heldout_path
    from jieyue.data.qa_files import read_questions
    from jieyue.decoding.slots import positions_of
    from jieyue.hf.attention_deviation import SHORT, tokens_to_drop
    from jieyue.hf.loading import head_of, load
    from jieyue.hf.row_losses import text_batches

    check_least(1, rows=rows, max_texts=max_texts)
    check_least(2, max_tokens=max_tokens)
    loaded, tokenizer = load(name, head_of(name))
    if text is None:
        texts = [question.passages[0].text for question in read_questions(heldout_path())[0]]
    else:
        texts = read_text(text).splitlines()
    if max_tokens is None:
        positions = positions_of(loaded)
        max_tokens = max([SHORT, *(tokens_to_drop(one, positions) for one in bounded)])
        max_tokens = max_tokens if positions is None else min(max_tokens, positions)
    texts = list(dict.fromkeys(line for line in texts if line.strip()))
    if bounded:
        texts = list(_passages(texts, 8 * max_tokens))
        rows, max_texts = max(1, min(rows, 2048 // max_tokens)), max_texts or max(4, 16_384 // max_tokens)
    return loaded, text_batches(loaded, tokenizer, texts[: max_texts or 64], rows=rows, max_tokens=max_tokens)


def _passages(lines: Sequence[str], characters: int) -> Iterator[str]:
    """Neighbouring lines together, as many as hold so many characters; what is left at the end too."""
    found: list[str] = []
    for line in lines:
        found.append(line)
        if sum(map(len, found)) >= characters:
            yield "\n".join(found)
            found = []
    if found:
        yield "\n".join(found)


@_verify.command("update")
def verify_update(
    model: Annotated[str, typer.Argument(help="A folder, a hub name or a preset.")],
    data: Annotated[list[Path] | None, typer.Option("--data", help="The recipe's files. Default: the corpus.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Default: the one that trained the folder, else read.")] = None,
    rows: Annotated[int, typer.Option(help="Rows of the undivided batch.")] = 16,
    micro_batch: Annotated[int, typer.Option(help="Rows of a piece.")] = 4,
    settings: Annotated[
        str, typer.Option(help="Some of accumulation, checkpointing, unsharing, attention, processes, transformers.")
    ] = "accumulation,checkpointing,unsharing,attention,processes,transformers",
    dtype: Annotated[str, typer.Option(help="float32, as training sees it, or float64.")] = "float32",
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Is the update of each saving the undivided batch's, on this model and these data? And transformers' own?"""
    from jieyue.bench.verify import verify

    found = verify(
        "update",
        model,
        recipe=recipe,
        data=tuple(data or ()),
        rows=rows,
        micro_batch=micro_batch,
        settings=tuple(settings.split(",")),
        dtype=dtype,
    )
    show(Console(as_json), found.report(), out=out, name="update")


@_verify.command("trainer")
def verify_trainer(
    name: Annotated[
        str, typer.Argument(help="jieyue, transformers, trl, accelerate, lightning, sentence-transformers, …")
    ],
    scripts: Annotated[Path | None, typer.Option(help="Folder for a script of each cell that is not exact.")] = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Is the update of a trainer that is installed here the undivided batch's? Tiny models, heads, labels, pieces."""
    from jieyue.bench.trainers import verify_trainer as verify
    from jieyue.bench.trainers import write_scripts

    found = verify(name)
    if scripts is not None:
        write_scripts(found, scripts)
    show(Console(as_json), found.report(), out=out, name="trainer")


@_fit.command("gelu")
def fit_gelu(
    form: Annotated[str, typer.Option(help="tanh, sigmoid, … or a formula such as 'x*sigmoid(k*x)'.")] = "tanh",
    target: Annotated[str, typer.Option(help="gelu, phi, erf, silu, … or a formula in x.")] = "gelu",
    criterion: Annotated[str, typer.Option(help="minimax, local, grid, mixed or gaussian(sigma).")] = "minimax",
    domain: Annotated[str, typer.Option(help="Two numbers, such as -8,8.")] = "",
    fixed: Annotated[str, typer.Option("--fix", help="Constants held, such as a=0.79788 or a=local.")] = "",
    picture: Annotated[Path | None, typer.Option(help="Write the error curve here (.svg or .png).")] = None,
    language: Annotated[str | None, typer.Option("--code", help="Print source code: python or c.")] = None,
    page: Annotated[
        Path | None, typer.Option(help="Instead: write the whole page of GELU's constants into this folder.")
    ] = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """The constants that are best for a form, with the largest error, where it is, and a certified bound."""
    from jieyue.activations.constants_code import check_language, code
    from jieyue.activations.page import write_page
    from jieyue.activations.pictures import error_picture, fit_report
    from jieyue.activations.texts import fit_text
    from jieyue.report import save_picture
    from jieyue.report.drawing import check_picture

    console = Console(as_json)
    if page is not None:
        for path in write_page(page):
            console.fact("wrote", path=str(path))
        return
    if language is not None:
        check_language(language)
    if picture is not None:
        check_picture(picture)
    found = fit_text(form, target, criterion, domain, fixed)
    show(console, fit_report(found, f"{form} for {target}, {criterion}"), out=out, name="fit")
    if picture is not None:
        drawn = error_picture({str(found): found}, f"Error on {target}")
        console.fact("wrote", path=str(save_picture(drawn, picture)))
    if language is not None:
        text = code(found, language)
        if as_json:
            console.fact("code", language=language, text=text)
        else:
            console.print("\n" + text)
