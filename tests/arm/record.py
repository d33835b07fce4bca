"""One call of a C library with what must come of it, as a file that driver.cpp replays: the structure, what its pointers point
to, and the oracle's results with how far from them is allowed."""

from __future__ import annotations

import ctypes
import math
import struct
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor

from jieyue.attention.engines import native as band
from jieyue.linear import native as linear

__all__ = ["Allowed", "BandRecorder", "LinearRecorder", "Record"]

FRONT = 1 << 13  # bytes for the head, the slots, the sums and the checks
PASSES = {"forward": 0, "backward": 1, "delta": 2}


class Allowed(NamedTuple):
    """The exact result, and what is allowed: of the largest error, of the root of their mean square, and of the mean error of
    rows in standard deviations of that mean (0: not looked at)."""

    exact: Tensor
    most: float
    root_mean_square: float = math.inf
    lean: float = 0.0


class Record:
    """A file in the making; places are offsets into it."""

    def __init__(self, call: ctypes.Structure, which: str) -> None:
        self.blob, self.call, self.which = bytearray(FRONT), call, which
        self.slots: list[int] = []
        self.sums: list[bytes] = []
        self.checks: list[bytes] = []
        self.at = self.put(bytes(call))

    def put(self, data: bytes) -> int:
        place = len(self.blob)
        self.blob.extend(data + bytes(-len(data) % 64))
        return place

    def store(self, x: Tensor) -> int:
        """The memory that x spans, from its first element on."""
        count = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
        return self.put(ctypes.string_at(x.data_ptr(), count * x.element_size()))

    def slot(self, at: int, to: int) -> None:
        """The eight bytes at ``at`` shall point to ``to``."""
        self.blob[at : at + 8] = to.to_bytes(8, "little")
        self.slots.append(at)

    def point(self, name: str, to: int) -> None:
        """A field of the call shall point to ``to``; a tensor's field begins with its pointer."""
        self.slot(self.at + getattr(type(self.call), name).offset, to)

    def add(self, source: int, to: int, count: int, step: int) -> None:
        self.sums.append(struct.pack("<4q", source, to, count, step))

    def check(self, name: str, x: Tensor, place: int, allowed: Allowed) -> None:
        """``x`` stands for what the kernel writes at ``place``: its type and its order in memory."""
        assert allowed.exact.shape == x.shape, (name, allowed.exact.shape, x.shape)
        values = torch.empty_strided(x.shape, x.stride(), dtype=torch.float64).copy_(allowed.exact)
        numbers = struct.pack(
            "<16s5q3d",
            *(name.encode(), place, self.store(values), x.numel(), x.dtype == torch.bfloat16, x.shape[-1]),
            *(allowed.most, allowed.root_mean_square**2, allowed.lean),
        )
        self.checks.append(numbers)

    def write(self, path: Path) -> None:
        counts = (
            ctypes.sizeof(self.call),
            self.at,
            PASSES[self.which],
            *map(len, (self.slots, self.sums, self.checks)),
        )
        front = struct.pack(f"<{6 + len(self.slots)}q", *counts, *self.slots) + b"".join(self.sums + self.checks)
        assert len(front) <= FRONT, len(front)
        self.blob[: len(front)] = front
        path.write_bytes(self.blob)


class BandRecorder(band.Native):
    """Writes down what the attention kernel is asked to compute instead of asking it."""

    def __init__(self, path: Path, expected: dict[str, Allowed]) -> None:
        super().__init__()
        self.path, self.expected = path, expected
        self.work, self.more = None, {}

    def _run(self, which, work, views, lse, delta=None):
        self.work, call = work, work.call
        self.more = {"lse": lse, "delta": delta, "key_mask": call.key_mask, "sinks": work.sinks}
        self.more |= {"starts": work.starts, "stops": work.stops, "nonfinite": work.odd}
        super()._run(which, work, views, lse, delta)

    def _call(self, which, arguments, views):
        for name, x in views.items():
            setattr(arguments, name, band.view_of(x))
        record = Record(arguments, which)
        tensors = views | {name: x for name, x in self.more.items() if x is not None}
        if which == "delta":
            tensors |= {"delta": self.expected["delta"].exact.float()}
        places = {name: record.store(x) for name, x in tensors.items()}
        for name, place in places.items():
            record.point(name, place)
        if self.work is not None:
            self._put_bands(record, arguments)
        for name, allowed in self.expected.items():
            if name in tensors:
                record.check(name, tensors[name], places[name], allowed)
        record.write(self.path)

    def _put_bands(self, record: Record, arguments: ctypes.Structure) -> None:
        work, size = self.work, ctypes.sizeof(band._Band)
        place = record.put(ctypes.string_at(arguments.bands, size * len(work.bands)))
        record.point("bands", place)
        if work.wholes:
            record.point("wholes", record.put(bytes((band._Whole * len(work.wholes))(*work.wholes))))
        grads = [record.store(grad) for grad in work.grads]
        for number in range(len(work.bands)):
            for tables, field in ((work.tables, band._Band.bias), (work.grads, band._Band.bias_grad)):
                if tables:
                    stored = grads[number] if tables is work.grads else record.store(tables[number])
                    record.slot(place + number * size + field.offset, stored + 4 * band._PAD)
        if "offset_bias" in self.expected and grads:  # as Native.bias_gradient adds the bands' up
            n, offset, found = work.call.q.shape[2], work.call.q_offset, torch.zeros_like(work.call.offset_bias)
            total = record.store(found)
            for band_, grad, at in zip(work.bands, work.grads, grads, strict=True):
                first, columns = (n - 1 + offset) % band_.step, grad.shape[1] - 2 * band._PAD
                for head in range(len(grad)):
                    to = total + 4 * (head * found.shape[1] + first)
                    record.add(at + 4 * (head * grad.shape[1] + band._PAD), to, columns, band_.step)
            bias = self.expected["offset_bias"]
            record.check("offset_bias", found, total, bias._replace(exact=bias.exact.flip(1)))


class LinearRecorder(linear.Native):
    """The same of linear attention's kernel."""

    def __init__(self, path: Path, expected: dict[str, Allowed]) -> None:
        super().__init__()
        self.path, self.expected = path, expected

    def _run(self, which, tensors, key_mask, form, **more):
        library = _Library()
        with mock.patch.object(linear, "_opened", return_value=library):
            super()._run(which, tensors, key_mask, form, **more)
        record = Record(library.asked, which)
        for name, x in (tensors | more | {"key_mask": key_mask}).items():
            if x is None or not x.numel():
                continue
            place = record.store(x)
            record.point(name, place)
            if name in self.expected:
                record.check(name, x, place, self.expected[name])
        record.write(self.path)


class _Library:
    """In place of the library: keeps the structure that it is given."""

    asked: ctypes.Structure

    def jieyue_linear_workspace(self, _rank, _call, _backward):
        return 0

    def jieyue_linear_forward(self, _rank, call):
        self.asked = call._obj

    jieyue_linear_backward = jieyue_linear_forward
