"""A trained model as an ONNX file: one forward pass, checked against the model, a pattern as its dense mask, int8 with its price.

The file takes ``input_ids`` and ``attention_mask`` [B, N] (and ``token_type_ids`` where the model has them), any B and N, and gives
the model's logits. Text that is shorter than its row is padded behind. What writes token by token is exported as the pass that
gives the next token's logits, without a cache.
"""

from __future__ import annotations

import inspect
import logging
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy
import torch
from torch import Tensor, nn

from jieyue.errors import InputError, MissingExtra
from jieyue.hf.dense import make_dense, patterns_of
from jieyue.hf.loading import load
from jieyue.record import RECORD, read_record
from jieyue.report import Report
from jieyue.tasks.table import task

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jieyue.attention import Pattern

__all__ = ["Exported", "Exporting", "export_onnx"]

TOLERANCE = 1e-3  # of the largest logit: float32 in another order of sums
_SHAPES = ((1, 5), (2, 16), (3, 31))  # rows and tokens that the file is checked at, none of them the traced ones
_TRACED = (2, 12)
_TIMED = 128
_NAMES = ("input_ids", "attention_mask", "token_type_ids")
Batch = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Exporting:
    """What is asked for. ``int8``: weights of matrix products as int8 (dynamic quantization of onnxruntime), an approximation."""

    folder: Path
    out: Path
    int8: bool = False
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written, and what it was measured to differ by. ``deviation``: of logits, relative to the largest one."""

    file: Path
    num_bytes: int
    deviation: float
    patterns: dict[str, Pattern]
    seconds: tuple[float, float]
    int8_bytes: int | None = None
    int8_deviation: float | None = None
    int8_changed: float | None = None
    int8_seconds: float | None = None

    def report(self) -> Report:
        """The facts, for people and programs."""
        report = Report(f"Export · {self.file.name}")
        section = report.section("Export")
        section.fact("file", str(self.file)).fact("size", self.num_bytes, "bytes", how="float32")
        how = f"largest difference of a logit, as a share of the largest logit, at {len(_SHAPES)} shapes"
        section.fact("difference from the model", self.deviation, how=how, key=True)
        timed = f"a row of {_TIMED} tokens, median of five"
        section.fact("this model in torch", self.seconds[0], "seconds", how=timed)
        section.fact("the file in onnxruntime", self.seconds[1], "seconds", how=timed)
        for pattern in dict.fromkeys(self.patterns.values()):
            share = pattern.pairs(_TIMED, _TIMED) / _TIMED**2
            price = f"the file computes every pair of {_TIMED} x {_TIMED}, the pattern only these: it is written as a dense mask"
            section.fact(f"pairs that {pattern} reads", share, "share", how=price)
        if self.int8_bytes is not None:
            section = report.section("The price of int8")
            section.fact("size in int8", self.int8_bytes, "bytes", key=True)
            section.fact("difference in int8", self.int8_deviation, how="as above; an approximation", key=True)
            how = "positions whose likeliest class is another one than in float32"
            section.fact("decisions that changed", self.int8_changed, "share", how=how, key=True)
            section.fact("the file in int8", self.int8_seconds, "seconds", how=timed)
        return report


def export_onnx(asked: Exporting) -> Exported:
    """Writes ``asked.out``, whole or not at all. Needs jieyue[onnx] (``MissingExtra``). Cost: the model twice in memory.

    ``InputError`` before anything is written: for a folder that is no model, linear attention (it has no dense mask), models of
    two parts (encoder and decoder), prefix LMs (their mask is their own), a file that is there already, and outputs that differ.
    """
    _check(asked)
    model, tokenizer = load(asked.folder, _head_of(asked.folder))
    model = model.float()
    patterns = patterns_of(model)  # linear attention is refused here
    names = tuple(name for name in _NAMES if name in _parameters(model))
    vocabulary = min(len(tokenizer), model.get_input_embeddings().num_embeddings)
    batches = [_batch(names, rows, tokens, vocabulary) for rows, tokens in _SHAPES]
    timed = _batch(names, 1, _TIMED, vocabulary)
    told = _Told(model, names)
    with torch.inference_mode():
        wanted = [told(*batch.values()) for batch in batches]
        in_torch = _seconds(lambda: told(*timed.values()))
    make_dense(model)
    with tempfile.TemporaryDirectory(dir=asked.out.parent, prefix=".export-") as place:
        file = Path(place) / asked.out.name
        _write(told, _batch(names, *_TRACED, vocabulary), names, file)
        run = _runner(file)
        found = [run(batch) for batch in batches]
        deviation = _deviation(wanted, found, batches)
        if not deviation <= TOLERANCE:
            said = f"outputs that differ by {deviation:.2g} of the largest logit"
            raise InputError(f"export {asked.folder}", said, f"at most {TOLERANCE:g}", "nothing was written")
        exported = Exported(
            file=asked.out,
            num_bytes=_size(file),
            deviation=deviation,
            patterns=patterns,
            seconds=(in_torch, _seconds(lambda: run(timed))),
        )
        if asked.int8:
            exported, file = _quantized(exported, file, batches, found, timed)
        for part in sorted(file.parent.iterdir(), key=lambda one: one == file):  # the file itself last
            shutil.move(part, asked.out.parent / part.name)
    return exported


def _check(asked: Exporting) -> None:
    """Everything that can be refused before the model is loaded."""
    for module in ("onnx", "onnxscript", "onnxruntime"):
        if find_spec(module) is None:
            raise MissingExtra(module, "onnx")
    if asked.out.suffix != ".onnx":
        raise InputError("--out", str(asked.out), "a name that ends in .onnx")
    if asked.out.exists() and not asked.overwrite:
        raise InputError("--out", f"{asked.out}, which is there", "a name that is free", "--overwrite writes it anew")
    if not asked.out.parent.is_dir():
        raise InputError("--out", f"no folder {asked.out.parent}", "one that is there")


def _head_of(folder: Path) -> str | None:
    """The head that the task uses; ``InputError`` for what is no single forward pass."""
    if not (folder / RECORD).is_file():
        read_record(folder)  # says what is missing
    record = read_record(folder)
    job = task(str(record["recipe"]))
    settings = job.settings_class.from_dict(record["settings"])
    head = settings.head(job.head)
    if head in ("prefix", "sequence-to-sequence"):
        do = "serve it with jieyue, or export a model with one head"
        raise InputError(
            f"export {folder}", f"a model that writes ({head})", "one whose answer is one forward pass", do
        )
    return head


def _parameters(model: nn.Module) -> Sequence[str]:
    return [*inspect.signature(model.forward).parameters]


class _Told(nn.Module):
    """The model with its inputs in order, and its logits alone."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> Tensor:
        options = {"use_cache": False} if "use_cache" in _parameters(self.model) else {}
        output = self.model(**dict(zip(self.names, inputs, strict=True)), **options)
        start, end = getattr(output, "start_logits", None), getattr(output, "end_logits", None)
        if start is not None and end is not None:
            return torch.stack([start, end], dim=-1)
        logits: Tensor = output.logits
        return logits


def _batch(names: Sequence[str], rows: int, tokens: int, vocabulary: int) -> Batch:
    """Drawn rows; each is a token shorter than the one before, padded behind."""
    generator = torch.Generator().manual_seed(rows * 1000 + tokens)
    batch = {name: torch.ones(rows, tokens, dtype=torch.long) for name in names}
    batch["input_ids"] = torch.randint(0, vocabulary, (rows, tokens), generator=generator)
    for row in range(rows):
        batch["attention_mask"][row, tokens - row :] = 0
    if "token_type_ids" in batch:
        batch["token_type_ids"] = torch.zeros(rows, tokens, dtype=torch.long)
    return batch


def _write(told: nn.Module, batch: Batch, names: Sequence[str], file: Path) -> None:
    rows, tokens = torch.export.Dim("rows", min=1), torch.export.Dim("tokens", min=2)
    with _quietly(), torch.inference_mode():
        torch.onnx.export(
            told.eval(),
            tuple(batch.values()),
            str(file),
            input_names=list(names),
            output_names=["logits"],
            dynamic_shapes=(tuple({0: rows, 1: tokens} for _ in names),),
            dynamo=True,
            external_data=sum(weight.nbytes for weight in told.parameters()) > 1.5 * 2**30,
            verbose=False,
        )


@contextmanager
def _quietly() -> Iterator[None]:
    """torch's exporter and onnxruntime tell of their own affairs."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _runner(file: Path) -> Callable[[Batch], Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    known = {one.name for one in session.get_inputs()}

    def run(batch: Batch) -> Tensor:
        (found,) = session.run(None, {name: value.numpy() for name, value in batch.items() if name in known})
        return torch.from_numpy(numpy.asarray(found))

    return run


def _kept(logits: Tensor, batch: Batch) -> Tensor:
    """The logits of tokens; of rows where there is one answer a row."""
    mask = batch["attention_mask"].bool()
    return logits[mask] if logits.shape[:2] == mask.shape else logits


def _deviation(wanted: Sequence[Tensor], found: Sequence[Tensor], batches: Sequence[Batch]) -> float:
    worst = 0.0
    for one, other, batch in zip(wanted, found, batches, strict=True):
        own, theirs = _kept(one, batch).double(), _kept(other, batch).double()
        if own.shape != theirs.shape:
            return float("inf")
        worst = max(worst, float((own - theirs).abs().max() / own.abs().max().clamp_min(1e-12)))
    return worst


def _changed(wanted: Sequence[Tensor], found: Sequence[Tensor], batches: Sequence[Batch]) -> float:
    """The share of positions whose likeliest class is another one."""
    pairs = [(_kept(one, batch), _kept(other, batch)) for one, other, batch in zip(wanted, found, batches, strict=True)]
    changed = [one.argmax(-1) != other.argmax(-1) for one, other in pairs]
    return float(torch.cat([one.flatten() for one in changed]).double().mean())


def _quantized(
    exported: Exported, file: Path, batches: Sequence[Batch], wanted: Sequence[Tensor], timed: Batch
) -> tuple[Exported, Path]:
    """The file with int8 weights in a folder of its own, and what that costs."""
    from dataclasses import replace

    from onnxruntime.quantization import QuantType, quantize_dynamic

    place = file.parent / "int8"
    place.mkdir()
    small = place / file.name
    with _quietly():
        quantize_dynamic(str(file), str(small), weight_type=QuantType.QInt8)
    run = _runner(small)
    found = [run(batch) for batch in batches]
    more = replace(
        exported,
        int8_bytes=_size(small),
        int8_deviation=_deviation(wanted, found, batches),
        int8_changed=_changed(wanted, found, batches),
        int8_seconds=_seconds(lambda: run(timed)),
    )
    return more, small


def _size(file: Path) -> int:
    return sum(one.stat().st_size for one in file.parent.iterdir() if one.is_file())


def _seconds(call: Callable[[], Tensor]) -> float:
    call()
    taken = []
    for _ in range(5):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return median(taken)
