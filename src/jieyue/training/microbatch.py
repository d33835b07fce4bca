"""Cuts an effective batch into pieces that fit, and halves them after a real out-of-memory; the batch never changes."""

from __future__ import annotations

import random
import sys
from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn

from jieyue.budget import Plan
from jieyue.errors import InputError

from .objective import IGNORED, Batch, num_rows

__all__ = ["MicroBatch", "RandomState", "is_out_of_memory"]

ALIGNED = (
    "input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds", "special_tokens_mask", "bbox",
    "labels",
)  # fmt: skip


class MicroBatch:
    """How many rows go through the model at once; changed by nothing but an out-of-memory, and remembered.

    ``rows``: at most this many rows a piece. ``mask``: the name of the padding mask ([B, T], 0 = padding); columns at
    the right end that are padding in all rows of a piece are then cut off, from the mask and from the [B, T, ...] tensors
    (and [..., T, T] masks) named in ``columns``. None: from those with a name that transformers gives to positions
    (``ALIGNED``); another one whose shape has T in that place may be a feature of T numbers, so it is refused until
    ``columns`` says what it is. That is exact for models that mask padding (in float64 to rounding); ``labels`` that would
    be cut must be ignored ones. ``tokens``: rows are sorted by length inside the effective batch and a piece holds at most
    this many positions, its widest row times its rows (never less than one row). It needs ``mask``.

    ``halvings`` and ``skipped`` count the retries and the updates refused for a non-finite gradient.
    """

    def __init__(
        self,
        rows: int | Plan,
        *,
        mask: str | None = None,
        tokens: int | None = None,
        columns: Collection[str] | None = None,
    ) -> None:
        self.plan = rows if isinstance(rows, Plan) else None
        self.rows = rows.micro_batch if isinstance(rows, Plan) else rows
        self.mask, self.tokens = mask, tokens
        self.columns = None if columns is None else frozenset(columns)
        self.halvings = self.skipped = 0
        if not isinstance(self.rows, int) or self.rows < 1:
            raise InputError(f"micro_batch={self.rows!r}: expected a whole number, at least 1 row")
        if isinstance(columns, str) or (columns is not None and mask is None):
            raise InputError(
                f"MicroBatch(columns={columns!r}, mask={mask!r}): expected a list of names, and the mask's"
            )
        if tokens is not None and (mask is None or tokens < 1):
            raise InputError(f"MicroBatch(tokens={tokens}, mask={mask!r}): expected tokens >= 1 and the mask's name")

    def __repr__(self) -> str:
        return f"MicroBatch(rows={self.rows}, tokens={self.tokens}, mask={self.mask!r})"

    @property
    def checkpointing(self) -> bool:
        return self.plan is not None and self.plan.checkpointing

    def halve(self, widest: int) -> bool:
        """Halves the rows (and tokens) of a piece that held at most ``widest`` rows; False when that was a single row."""
        self.rows = min(self.rows, max(1, widest))
        if self.rows == 1:
            return False
        self.rows //= 2
        self.tokens = None if self.tokens is None else max(1, self.tokens // 2)
        self.halvings += 1
        return True

    def pieces(self, batch: Batch) -> Iterator[dict[str, Tensor]]:
        """The pieces of a batch, in order (by length under ``tokens``), each row in exactly one."""
        for index in self.cuts(batch):
            yield self._trimmed({name: _take(value, index) for name, value in batch.items()})

    def cuts(self, batch: Batch) -> list[slice | list[int]]:
        """Which rows each piece holds."""
        total = num_rows(batch)
        if self.tokens is None:
            return [slice(start, min(start + self.rows, total)) for start in range(0, total, self.rows)]
        lengths = _lengths(self._mask_of(batch)).tolist()
        cuts: list[slice | list[int]] = []
        piece: list[int] = []
        for row in sorted(range(total), key=lambda row: lengths[row]):
            if piece and (len(piece) == self.rows or (len(piece) + 1) * lengths[row] > self.tokens):
                cuts.append(piece)
                piece = []
            piece.append(row)
        return [*cuts, piece] if piece else cuts

    def _mask_of(self, batch: Batch) -> Tensor:
        mask = batch.get(self.mask) if self.mask is not None else None
        if not isinstance(mask, Tensor) or mask.ndim != 2:
            raise InputError(f"MicroBatch(mask={self.mask!r})", f"{sorted(batch)}", "a [B, T] tensor of that name")
        return mask

    def _trimmed(self, piece: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.mask is None:
            return piece
        mask = self._mask_of(piece)
        full = mask.shape[1]
        keep = max(1, int(_lengths(mask).max()))
        if keep == full:
            return piece
        aligned = {name for name, value in piece.items() if _is_as_wide(value, full) and self._is_aligned(name, value)}
        if "labels" in aligned and bool((piece["labels"][:, keep:] != IGNORED).any()):
            do = "or list what belongs to the mask's positions: columns=(...)"
            raise InputError("labels", "a label where the mask says padding", f"{IGNORED} in padding", do)
        return {name: _narrow(value, full, keep) if name in aligned else value for name, value in piece.items()}

    def _is_aligned(self, name: str, value: Tensor) -> bool:
        """Whether the tensor's columns are the mask's positions; its width alone cannot tell."""
        if name == self.mask:
            return True
        if self.columns is not None:
            return name in self.columns
        if name in ALIGNED and not (name == "labels" and value.is_floating_point()):
            return True
        if name.startswith("decoder_"):
            return False
        raise InputError(
            f"MicroBatch(mask={self.mask!r})",
            f"{name} of shape {[*value.shape]}, as wide as the mask",
            "to know whether its columns are the mask's positions",
            f"columns=({name!r}, ...) lists those that are; others stay whole",
        )


def _take(value: Tensor, index: slice | list[int]) -> Tensor:
    if isinstance(index, slice) or isinstance(value, Tensor):
        return value[index]
    return [value[row] for row in index]  # a list stays one


def _lengths(mask: Tensor) -> Tensor:
    """Position of the last kept column, plus one."""
    return (mask != 0).mul(torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(dim=1)


def _is_as_wide(value: Tensor, full: int) -> bool:
    if not isinstance(value, Tensor) or value.ndim < 2:
        return False
    return value.shape[1] == full or (value.ndim >= 3 and value.shape[-2:] == (full, full))


def _narrow(value: Tensor, full: int, keep: int) -> Tensor:
    if value.ndim >= 3 and value.shape[-2:] == (full, full):
        return value[..., :keep, :keep]
    return value[:, :keep]


def is_out_of_memory(error: BaseException) -> bool:
    """True for what torch raises when its allocator gets no memory, on a GPU or (where the system says no) on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("can't allocate memory" in text or "not enough memory" in text)


class RandomState:
    """The random state of Python, numpy (where loaded) and torch, CPU and the model's GPU; ``restore()`` puts it back."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.python = random.getstate()
        self.cpu = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        self.numpy = sys.modules["numpy"].random.get_state() if "numpy" in sys.modules else None

    def restore(self) -> None:
        random.setstate(self.python)
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, self.device)
        if self.numpy is not None:
            sys.modules["numpy"].random.set_state(self.numpy)


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter lives; the CPU for a model without any."""
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def to_device(piece: Batch, device: torch.device) -> dict[str, Tensor]:
    """The tensors of a piece on the model's device; only pieces travel, never the effective batch."""
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in piece.items()
    }
