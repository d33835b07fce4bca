"""The ARM build of the attention kernel under qemu, against float64: ``make qemu-check``.

Needs a cross-compiler and an emulator (Debian: ``g++-aarch64-linux-gnu``, ``qemu-user``); says so and stops where they are missing.
Calls are recorded here, with the oracle's results beside them; a static program replays them, so nothing of Python is emulated.
This is no proof of an ARM machine: memory order, speed and the system's loader are this machine's.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
import hatch_build  # noqa: E402

from jieyue.attention import Call, parse  # noqa: E402
from jieyue.attention.call import Upstream  # noqa: E402
from jieyue.attention.engines import native  # noqa: E402
from jieyue.attention.engines.dense import DENSE  # noqa: E402
from jieyue.attention.segments import runs_of  # noqa: E402

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
PATTERNS = ["local(40)", "causal(full())", "causal(first(5)+sparse(8))", "global(9)+local(20)", "local(3, step=4)"]


class Recorder(native.Native):
    """Writes down what it is asked to compute, as driver.cpp reads it; the results are the oracle's."""

    def __init__(self, path: Path, expected: dict[str, Tensor], allowed: float) -> None:
        super().__init__()
        self.path, self.expected, self.allowed = path, expected, allowed

    def _run(self, which, work, views, lse, delta=None):
        self.extra = {"lse": lse, "delta": delta, "key_mask": work.call.key_mask, "sinks": work.sinks}
        self.extra |= {"starts": work.starts, "stops": work.stops}
        self.work = work
        super()._run(which, work, views, lse, delta)

    def _call(self, which, arguments, views):
        for name, x in views.items():
            setattr(arguments, name, native.view_of(x))
        arguments.nonfinite = arguments.shared = arguments.workspace = None
        arguments.parallel = native.Parallel()
        work, outputs = self.work, {name: x for name, x in (views | self.extra).items() if name in self.expected}
        slots: list[int] = []
        size = 40 + 8 * 64 + 40 * 8
        blob = bytearray(size + ctypes.sizeof(arguments) + (-(size + ctypes.sizeof(arguments)) % 64))
        at = size

        def put(data: bytes) -> int:
            place = len(blob)
            blob.extend(data + bytes(-len(data) % 64))
            return place

        def store(x: Tensor) -> int:
            """The memory that x spans, from its first element on."""
            count = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
            return put(ctypes.string_at(x.data_ptr(), count * x.element_size()))

        places = {name: store(x) for name, x in (views | self.extra).items() if x is not None}
        for name in places:
            if name in views:
                getattr(arguments, name).data = None
            else:
                setattr(arguments, name, None)
        bands = (native._Band * len(work.bands))()
        for number in range(len(bands)):
            ctypes.memmove(
                ctypes.byref(bands[number]), ctypes.byref(arguments.bands[number]), ctypes.sizeof(bands[number])
            )
            bands[number].bias = store(work.tables[number]) + 4 * native._PAD if work.tables else 0
            bands[number].bias_grad = store(work.grads[number]) + 4 * native._PAD if work.grads else 0
        place = put(bytes(bands))
        for number in range(len(bands)):
            slots += [
                place + number * ctypes.sizeof(native._Band) + offset
                for offset in (native._Band.bias.offset, native._Band.bias_grad.offset)
            ]
        wholes = put(bytes((native._Whole * len(work.wholes))(*work.wholes))) if work.wholes else 0
        arguments.bands, arguments.wholes = None, None
        blob[at : at + ctypes.sizeof(arguments)] = bytes(arguments)

        def point(offset: int, to: int) -> None:
            blob[at + offset : at + offset + 8] = to.to_bytes(8, "little")
            slots.append(at + offset)

        for name, to in places.items():
            point(getattr(native._Arguments, name).offset, to)
        point(native._Arguments.bands.offset, place)
        point(native._Arguments.wholes.offset, wholes)
        checks = b""
        for name, x in outputs.items():
            rows = x.transpose(1, 2) if x.dim() == 4 else x
            expected = self.expected[name].transpose(1, 2) if x.dim() == 4 else self.expected[name]
            assert rows.is_contiguous() and rows.shape == expected.shape
            numbers = expected.float().contiguous()
            values = put(ctypes.string_at(numbers.data_ptr(), numbers.nbytes))
            largest = max(1.0, float(expected[expected.isfinite()].abs().max()))
            check = (places[name], values, rows.numel(), int(x.dtype == torch.bfloat16))
            checks += b"".join(n.to_bytes(8, "little") for n in check) + bytes(ctypes.c_double(self.allowed * largest))
        head = (ctypes.sizeof(arguments), at, int(which == "backward"), len(slots), len(outputs))
        front = b"".join(n.to_bytes(8, "little") for n in (*head, *slots)) + checks
        assert len(front) <= size, (len(front), size)
        blob[: len(front)] = front
        self.path.write_bytes(blob)


def calls() -> list[tuple[str, Call, Tensor]]:
    """Named calls and gradients of their out: patterns with and without everything else."""
    found = []
    for number, text in enumerate(PATTERNS):
        generator = torch.Generator().manual_seed(number)
        n, heads, groups, depth, width = 190, 2, 1 + number % 2, (24, 64, 19)[number % 3], (40, 64, 19)[number % 3]

        def one(h: int, columns: int, generator: torch.Generator = generator, n: int = n) -> Tensor:
            return torch.randn(1, n, h, columns, generator=generator).transpose(1, 2)

        plain = Call(one(heads, depth), one(groups, depth), one(groups, width), parse(text), scale=depth**-0.5)
        grad = one(heads, width)
        dressed = replace(
            plain,
            key_mask=torch.rand(1, n, generator=generator) > 0.2,
            dropout=0.1,
            seed=7,
            runs=runs_of(torch.tensor([[0] * 70 + [-1] * 9 + [4] * 111])),
            sinks=torch.randn(heads, generator=generator),
            softcap=2.0,
            offset_bias=torch.randn(heads, 2 * n - 1, generator=generator),
        )
        found += [(f"{number}-plain", plain, grad), (f"{number}-everything", dressed, grad)]
        half = replace(plain, q=plain.q.bfloat16(), k=plain.k.bfloat16(), v=plain.v.bfloat16())
        found.append((f"{number}-bfloat16", half, grad.bfloat16()))
    return found


def record(folder: Path) -> list[Path]:
    """Files of forward and backward passes."""
    files = []
    for name, call, grad in calls():
        wide = replace(
            call,
            q=call.q.double(),
            k=call.k.double(),
            v=call.v.double(),
            sinks=None if call.sinks is None else call.sinks.double(),
            offset_bias=None if call.offset_bias is None else call.offset_bias.double(),
        )
        out, lse = DENSE.attend(wide)
        delta = DENSE.delta(grad.double(), out)
        grads = DENSE.differentiate(wide, Upstream(grad.double(), lse, delta))
        allowed = 3e-5 if call.q.dtype == torch.float32 else 2e-2
        files += [folder / f"{name}-forward", folder / f"{name}-backward"]
        Recorder(files[-2], {"out": out, "lse": lse}, allowed).attend(call)
        expected = dict(zip(("dq", "dk", "dv"), grads[:3], strict=True))
        Recorder(files[-1], expected, allowed).differentiate(call, Upstream(grad, lse.float(), delta.float()))
    return files


def build(folder: Path) -> Path:
    """The static program with every ARM build in it."""
    os.environ["CXX"] = COMPILER
    target = hatch_build.Target.of(COMPILER)
    source, objects = hatch_build.LIBRARIES[0].parent / "csrc", [str(Path(__file__).with_name("driver.cpp"))]
    for name, flags in target.builds(hatch_build.LIBRARIES[0]).items():
        objects.append(str(folder / f"{name}.o"))
        define = [f"-DKERNEL=kernel_{name}", f'-DKERNEL_NAME="{name}"']
        command = [
            COMPILER,
            *hatch_build.FLAGS.split(),
            *flags.split(),
            *define,
            "-c",
            str(ROOT / source / "kernel.cpp"),
        ]
        hatch_build.compiled([*command, "-o", objects[-1]])
    program = folder / "driver"
    rest = [target.define, str(ROOT / source / "dispatch.cpp"), "-static", "-o", str(program)]
    hatch_build.compiled([COMPILER, "-std=c++17", "-O2", *objects, *rest])
    return program


def main() -> int:
    missing = [tool for tool in (COMPILER, EMULATOR) if shutil.which(tool) is None]
    if missing:
        print(f"qemu-check skipped: {' and '.join(missing)} not found (Debian: g++-aarch64-linux-gnu, qemu-user)")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        files = record(Path(folder))
        program = build(Path(folder))
        return subprocess.run([EMULATOR, "-cpu", "max", str(program), *map(str, files)], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
