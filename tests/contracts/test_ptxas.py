"""The Triton kernels compiled for GPUs that are not here: default tiles spill no registers and fit into shared memory."""

import importlib.util
import itertools
import json
from pathlib import Path

import pytest
import torch

from jieyue.attention.engines.fused import _TILES, tiles

ROOT = Path(__file__).parents[2]
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


@pytest.fixture
def ptxas(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("ptxas")


def _compiled(ptxas, architecture, dtype, width, wearing, kernels=None):
    for name, arguments, options in ptxas.launches(architecture, dtype, width, wearing):
        if kernels is None or name in kernels:
            yield name, ptxas.compile_one(architecture, name, arguments, options)


@needs_triton
def test_default_tiles_of_one_architecture_do_not_spill(ptxas):
    """The quickest of them; all the others are slow."""
    found = dict(_compiled(ptxas, 90, "bfloat16", 64, "plain", ("add_query_gradients", "row_products")))
    assert set(found) == {"add_query_gradients", "row_products"}
    for one in found.values():
        assert one["spilled_bytes"] == 0 and 0 < one["registers"] <= 255 and one["shared_bytes"] <= 227 * 1024


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("wearing", ["plain", "together"])
def test_no_default_tile_spills_on_the_smallest_shared_memory(ptxas, dtype, wearing):
    for name, one in _compiled(ptxas, 89, dtype, 64, wearing):
        assert one["spilled_bytes"] == 0 and one["shared_bytes"] <= 99 * 1024, (name, one)


@needs_triton
@pytest.mark.slow
def test_the_alarm_rings(ptxas, monkeypatch):
    """A broken twin: tiles four times as large spill."""
    name, arguments, options = next(
        one for one in ptxas.launches(80, "bfloat16", 64, "plain") if one[0] == "add_query_gradients"
    )
    found = ptxas.compile_one(80, name, arguments, options | {"ROWS": 256, "KEYS": 128, "num_warps": 4})
    assert found["spilled_bytes"] > 0


def test_what_ptxas_says_is_read(ptxas):
    said = (
        "ptxas info    : 0 bytes gmem\nptxas info    : Compiling entry function 'attend_band' for 'sm_90a'\n"
        "ptxas info    : Function properties for attend_band\n    16 bytes stack frame, 24 bytes spill stores, 32 bytes"
        " spill loads\nptxas info    : Used 231 registers, used 1 barriers\n"
    )
    assert ptxas.reported(said) == {"registers": 231, "spilled_bytes": 24, "reloaded_bytes": 32}
    with pytest.raises(ValueError, match="no registers and spills"):
        ptxas.reported("ptxas fatal: nothing")


def test_the_published_cells_spill_nothing_and_fit(ptxas):
    """Each is of the tile that is launched today. Plain attention and all that it wears together are there for all six
    architectures, two types and two widths."""
    lines = (ROOT / "benchmarks" / "results" / "ptxas.jsonl").read_text(encoding="utf-8").splitlines()
    cells = [json.loads(line) for line in lines]
    for cell in cells:
        limit = ptxas.LIMITS[cell["architecture"]]
        assert cell["shared_bytes"] <= limit, cell
        if cell["kernel"] in _TILES:  # the others have no tile to choose
            assert cell["spilled_bytes"] == 0, cell
            worn = cell["wearing"] not in ("plain", "decoding", "sinks")
            assert cell["tile"] == tiles(cell["kernel"], ptxas.DTYPES[cell["dtype"]], cell["width"], worn, limit), cell
    known = {tuple(cell[key] for key in ptxas.KEYS) for cell in cells}
    kernels = ("attend_band", "add_query_gradients", "add_key_gradients", "row_products")
    types = ["bfloat16", "float32"]
    assert known >= set(itertools.product(ptxas.LIMITS, types, [64, 128], ["plain"], kernels))
    assert known >= set(itertools.product(ptxas.LIMITS, types, [64, 128], ["together"], kernels[:3]))


@pytest.mark.parametrize("room", [99 * 1024, 163 * 1024, 227 * 1024])
def test_tiles_have_room_at_every_width(room):
    """Stages go where shared memory is small, never below one; what stays fits."""
    for kernel, dtype, widest, worn in itertools.product(
        _TILES, (torch.float32, torch.bfloat16), (16, 64, 128, 256), (False, True)
    ):
        tile = tiles(kernel, dtype, widest, worn, room)
        rows, keys, stages = tile["ROWS"], tile["KEYS"], tile["num_stages"]
        stays = {"attend_band": rows, "add_query_gradients": 2 * rows, "add_key_gradients": 2 * keys}[kernel]
        passes = 2 * (rows if kernel == "add_key_gradients" else keys)
        assert dtype.itemsize * widest * (stays + stages * passes) <= room and stages >= 1
    wide = [tiles("attend_band", torch.float32, 256, room=one)["num_stages"] for one in (99 * 1024, 227 * 1024)]
    assert wide == [2, 3]
