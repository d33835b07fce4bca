"""What ptxas reports for the Triton kernels, for GPUs that are not here: registers, spills, shared memory.

    python benchmarks/ptxas.py --out benchmarks/results                                  # all cells anew
    python benchmarks/ptxas.py --add --out benchmarks/results                            # those that are missing, kernels as they are
    python benchmarks/ptxas.py --add --architectures 90 --dtypes bfloat16 --widths 64    # some of them

The fused engine launches as it does on a GPU of that architecture; each launch is compiled by Triton down to machine code instead
of run. No GPU and no CUDA is needed: ptxas comes with Triton. A cell takes two to ten seconds of a processor, and is written to
``ptxas.jsonl`` as it is known; ``ptxas.json`` is the report.
"""

import argparse
import contextlib
import hashlib
import io
import itertools
import json
import re
from importlib.metadata import version
from pathlib import Path
from unittest import mock

import torch

from jieyue.attention import parse
from jieyue.attention.call import Call, Upstream
from jieyue.attention.engines import fused
from jieyue.report import Report, write_whole

ROOT = Path(__file__).parents[1]
KIB = 2**10
LIMITS = {90: 227 * KIB, 80: 163 * KIB, 100: 227 * KIB, 120: 99 * KIB, 89: 99 * KIB, 86: 99 * KIB}
# shared memory that one block may have, by architecture (CUDA C++ programming guide, technical specifications); in turn
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}
WIDTHS, HEADS, LENGTH, PATTERN = (64, 128), 4, 1024, "causal(local(256))"
WEARING = ("plain", "together", "decoding", "softcap", "sinks", "offset bias", "segments")
FORWARD = ("decoding", "sinks")  # say something of the forward kernel alone
KEYS = ("architecture", "dtype", "width", "wearing", "kernel")


def call(dtype, width, wearing):
    """What is attended to; ``together``: all of it, with a key mask and dropout."""
    rows = 1 if wearing == "decoding" else LENGTH
    q = torch.zeros(2, HEADS, rows, width, dtype=dtype)
    k, v = (torch.zeros(2, HEADS, LENGTH, width, dtype=dtype) for _ in range(2))
    starts = (torch.arange(LENGTH, dtype=torch.int32) // 512 * 512).expand(2, LENGTH)
    all_of_it = {
        "softcap": {"softcap": 20.0},
        "sinks": {"sinks": torch.zeros(HEADS)},
        "offset bias": {"offset_bias": torch.zeros(HEADS, 2 * LENGTH - 1)},
        "segments": {"runs": (starts, starts + 512)},
    }
    more = dict(all_of_it.get(wearing, {}))
    if wearing == "together":
        more = {name: value for one in all_of_it.values() for name, value in one.items()}
        more |= {"key_mask": torch.ones(2, LENGTH, dtype=torch.bool), "dropout": 0.1, "seed": 5}
    return Call(q, k, v, parse(PATTERN), scale=width**-0.5, q_offset=LENGTH - rows, **more)


class Absent:
    """What Triton asks of a GPU before it compiles."""

    def __init__(self, architecture):
        self.architecture = architecture

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self):
        return self.architecture  # compiled kernels are kept by device

    def get_current_stream(self, device):
        return 0


class Kernels:
    """In place of the module of kernels: notes launches as (name, arguments, options)."""

    def __init__(self):
        self.launches = []

    def __getattr__(self, name):
        return Kernel(name, self.launches)


class Kernel:
    def __init__(self, name, launches):
        self.name, self.launches = name, launches

    def __getitem__(self, grid):
        return lambda *arguments, **options: self.launches.append((self.name, arguments, options))


def launches(architecture, dtype, width, wearing):
    """What the engine would launch there."""
    kernels, asked = Kernels(), call(DTYPES[dtype], width, wearing)
    limit = LIMITS[architecture]
    with (
        mock.patch.object(fused, "_kernels", return_value=kernels),
        mock.patch.object(fused, "_room", return_value=limit),
    ):
        out, lse = fused.FUSED.attend(asked)
        if wearing not in FORWARD:
            out, lse = torch.zeros_like(asked.q), torch.zeros(asked.q.shape[:3])
            delta = fused.FUSED.delta(out, out) if wearing == "plain" else lse
            fused.FUSED.differentiate(asked, Upstream(out, lse, delta))
    return kernels.launches


def compile_one(architecture, name, arguments, options):
    """What ptxas says of one launch."""
    from triton import knobs
    from triton.runtime import driver

    log = io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(driver, "_active", Absent(architecture)))
        stack.enter_context(knobs.compilation.scope())
        stack.enter_context(knobs.nvidia.scope())
        stack.enter_context(contextlib.redirect_stdout(log))
        knobs.compilation.always_compile, knobs.nvidia.dump_ptxas_log = True, True
        made = getattr(fused._kernels(), name).warmup(*arguments, grid=(1, 1), **options)
    return reported(log.getvalue()) | {"shared_bytes": made.metadata.shared}


def reported(log):
    """Registers of a thread, and bytes that it spills, from ptxas's log."""
    registers = re.search(r"Used (\d+) registers", log)
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    if registers is None or spills is None:
        raise ValueError(f"found no registers and spills in what ptxas said: {log[:500]!r}")
    return {"registers": int(registers[1]), "spilled_bytes": int(spills[1]), "reloaded_bytes": int(spills[2])}


def digest():
    """Of the kernels' source: cells of other kernels are not kept."""
    folder = Path(fused.__file__).parent
    text = "".join((folder / name).read_text(encoding="utf-8") for name in ("fused_kernels.py", "fused_lanes.py"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def tell(cells):
    """The report: for each kernel the worst over what is worn, by architecture."""
    report = Report("The Triton kernels as ptxas compiles them")
    section = report.section("Kernels")
    spilling = [cell for cell in cells if cell["spilled_bytes"]]
    large = [cell for cell in cells if cell["shared_bytes"] > LIMITS[cell["architecture"]]]
    compiled = sorted({cell["architecture"] for cell in cells})
    section.fact("cells compiled", len(cells), how=f"architectures {', '.join(f'sm_{one}' for one in compiled)}")
    section.fact("cells that spill registers", len(spilling), how=_names(spilling))
    section.fact("cells with more shared memory than a block may have", len(large), how=_names(large))
    rows = []
    for kernel, dtype, width in _groups(cells):
        row = [kernel, dtype, width]
        for architecture in LIMITS:
            own = [c for c in cells if (c["kernel"], c["dtype"], c["width"], c["architecture"])
                   == (kernel, dtype, width, architecture)]  # fmt: skip
            worst = {
                key: max((c[key] for c in own), default=0) for key in ("registers", "spilled_bytes", "shared_bytes")
            }
            told = f"{worst['registers']} · {worst['spilled_bytes']} · {worst['shared_bytes'] / KIB:.0f} · {len(own)}"
            row.append(told if own else "not compiled")
        rows.append(row)
    note = (
        f"Registers of a thread · bytes spilled · KiB of shared memory · cells; the highest of {', '.join(WEARING)} (with key"
        f" mask and dropout together). KiB that a block may have: "
        + ", ".join(f"sm_{name} {limit // KIB}" for name, limit in LIMITS.items())
        + ". Compiled, not run: no such GPU was at hand."
    )
    section.table(
        ["kernel", "dtype", "width", *(f"sm_{one}" for one in LIMITS)], rows, title="By architecture", note=note
    )
    section = report.section("Compilers")
    section.fact("triton", version("triton"))
    section.fact("kernels", digest(), how="sha256 of fused_kernels.py and fused_lanes.py, begun")
    return report


def _groups(cells):
    kernels = ("attend_band", "add_query_gradients", "add_key_gradients", "row_products")
    known = {(cell["kernel"], cell["dtype"], cell["width"]) for cell in cells}
    return [group for group in itertools.product(kernels, DTYPES, WIDTHS) if group in known]


def _names(cells):
    return "; ".join(" ".join(str(cell[key]) for key in KEYS) for cell in cells[:6])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--architectures", nargs="+", type=int, choices=list(LIMITS), default=list(LIMITS))
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--widths", nargs="+", type=int, choices=WIDTHS, default=list(WIDTHS))
    parser.add_argument("--wearing", nargs="+", choices=WEARING, default=list(WEARING))
    parser.add_argument(
        "--add", action="store_true", help="keep what was compiled before of these very kernels and tiles"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    given = parser.parse_args()
    kept, kernels = given.out / "ptxas.jsonl", digest()
    lines = kept.read_text(encoding="utf-8").splitlines() if given.add and kept.is_file() else []
    cells = {tuple(cell[key] for key in KEYS): cell for cell in map(json.loads, lines) if cell["kernels"] == kernels}
    asked = itertools.product(given.dtypes, given.wearing, given.architectures, given.widths)
    for dtype, wearing, architecture, width in asked:
        for name, arguments, options in launches(architecture, dtype, width, wearing):
            tile = {key: options[key] for key in ("ROWS", "KEYS", "num_warps", "num_stages") if key in options}
            key = (architecture, dtype, width, wearing, name)
            if key in cells and cells[key]["tile"] == tile:
                continue
            cell = dict(zip(KEYS, key, strict=True)) | {"tile": tile, "kernels": kernels}
            cells[key] = cell | compile_one(architecture, name, arguments, options)
            print(json.dumps(cells[key]), flush=True)
            write_whole(kept, "".join(json.dumps(one) + "\n" for one in cells.values()))
            tell(list(cells.values())).save(given.out, "ptxas")


if __name__ == "__main__":
    main()
