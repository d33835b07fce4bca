"""The fused engine: its kernels in Triton's interpreter everywhere, compiled for GPUs that are not here, and run on one that is."""

import importlib.util
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from test_engines import PATTERNS, check

from jieyue.attention import Call, atrous, attend, full, local, parse, pick, sparse
from jieyue.attention.engines import fused
from jieyue.attention.engines.fused import FUSED, tiles

HERE = Path(__file__).parent
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


@needs_triton
@pytest.mark.parametrize("chosen", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_kernels_in_the_interpreter(chosen):
    options = ["-x", "-p", "no:cacheprovider", "--all", "-m", chosen]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(HERE / "fused_battery.py")],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=HERE,
        capture_output=True,
        text=True,
        check=False,
    )
    if "only 0-dimensional arrays can be converted to Python scalars" in done.stdout:  # inside triton itself
        pytest.skip(f"the interpreter of triton {version('triton')} does not go with numpy {version('numpy')}")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    found = re.search(r"(\d+) passed", done.stdout)
    assert found and int(found[1]) >= (16 if chosen == "not slow" else 20) and "skipped" not in done.stdout


def test_refusals_name_the_reason(monkeypatch):
    q = torch.zeros(1, 1, 2, 4)
    if importlib.util.find_spec("triton") is not None:
        assert "computes on CUDA, q is on cpu" in FUSED.refuses(Call(q, q, q, full()))
        assert "q is torch.float64" in FUSED.refuses(Call(q.double(), q, q, full()))
    monkeypatch.setattr(fused.importlib.util, "find_spec", lambda _: None)
    assert "Triton, which is not installed" in FUSED.refuses(Call(q, q, q, full()))


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("worn", [False, True])
@pytest.mark.parametrize("kernel", ["attend_band", "add_query_gradients", "add_key_gradients"])
def test_kernels_compile_without_a_gpu(kernel, worn, arch):
    """Down to machine code, within the shared memory of a small card."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = getattr(fused._kernels(), kernel)
    shape = tiles(kernel, torch.bfloat16, 64, worn)
    settings = {"D": 64, "V": 64, "WIDE_D": 64, "WIDE_V": 64, "ROWS": shape["ROWS"], "KEYS": shape["KEYS"]}
    settings |= dict.fromkeys(("MASKED", "DROPPED", "HOLED", "PACKED", "CAPPED", "BIASED"), worn) | {"MERGED": False}
    kinds = {"lse": "*fp32", "delta": "*fp32", "key_mask": ("*u8", "i64", "i64"), "scale": "fp32", "kept_scale": "fp32"}
    kinds |= {
        "sizes": ("i32",) * 5,
        "band": ("i32",) * 5,
        "part": ("i32",) * 4,
        "within": ("i32",) * 4,
        "softcap": "fp32",
    }
    kinds |= {"runs": ("*i32", "*i32"), "bias": ("*fp32", "i64", "*fp32")}
    kinds |= dict.fromkeys(("seed_low", "seed_high", "threshold"), "i64")
    views = dict.fromkeys(function.arg_names, ("*bf16", "i64", "i64", "i64"))
    signature = {name: "constexpr" if name in settings else kinds.get(name, views[name]) for name in function.arg_names}
    places = {(function.arg_names.index(name),): value for name, value in settings.items()}
    source = ASTSource(function, signature=signature, constexprs=places)
    pipeline = {name: shape[name] for name in ("num_warps", "num_stages")}
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=pipeline)
    assert len(compiled.asm["cubin"]) > 0 and compiled.metadata.shared <= 99 * 1024


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("depth", [16, 64, 100, 128, 256])
def test_battery_on_cuda(dtype, depth):
    for number, text in enumerate(PATTERNS):
        shape = [(2, 4, 2, 383, 383, depth, depth), (1, 3, 3, 61, 597, depth, depth), (2, 2, 1, 1, 250, depth, 5)][
            number % 3
        ]
        key_mask = (torch.rand(shape[0], shape[4]) > 0.3).cuda() if number % 2 else None
        options = {"layout": ["bnhd", "bhnd", "slice"][number // 3 % 3], "q_offset": [0, 336, 249][number % 3]}
        check("fused", shape, parse(text), dtype, key_mask=key_mask, device="cuda", **options)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("text", ["first(4)+local(50)", "causal(first(4)+sparse(16))", "global(3)+atrous(7)", "full()"])
@pytest.mark.parametrize("is_packed", [False, True])
def test_what_real_models_wear_on_cuda(dtype, text, is_packed):
    """Segments or an offset of the queries, with sinks, soft-capping and offset biases, each alone and together."""
    heads, n = 4, 400 if is_packed else 300
    generator = torch.Generator().manual_seed(5)
    worn = {
        "sinks": torch.randn(heads, generator=generator, dtype=torch.float64).cuda(),
        "softcap": 20.0,
        "offset_bias": torch.randn(heads, n + 400 - 1, generator=generator, dtype=torch.float64).cuda(),
    }
    lengths = ((3, 90), (-1, 11), (0, 200), (9, 99))
    segments = torch.tensor([[number for number, length in lengths for _ in range(length)]] * 2).cuda()
    more = {"segments": segments} if is_packed else {"q_offset": 100}
    for names in ((), ("sinks",), ("softcap",), ("offset_bias",), tuple(worn)):
        chosen = {name: value for name, value in worn.items() if name in names}
        check("fused", (2, heads, 2, n, 400, 64, 64), parse(text), dtype, device="cuda", **more, **chosen)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("text", ["local(128)", "atrous(16)", "causal(sparse(64, 256))", "causal(full())"])
def test_long_gradients_on_cuda(dtype, text):
    """At D = 64, where a sparse backward of another library was silently wrong, and with dropout too."""
    shape = (1, 4, 2, 2048, 2048, 64, 64)
    check("fused", shape, parse(text), dtype, device="cuda")
    check("fused", shape, parse(text), dtype, device="cuda", dropout=0.1)


@pytest.mark.gpu
def test_cuda_picks_fused_repeats_itself_and_holds_no_pairs():
    q, k, v = (torch.randn(1, 2, 8192, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    for pattern in (local(256), atrous(16), sparse(64).causal()):
        assert pick(Call(q, k, v, pattern)).name == "fused"
        runs = []
        for _ in range(2):
            out = attend(q, k, v, pattern)
            runs.append((out, *torch.autograd.grad(out.float().square().sum(), (q, k, v))))
        assert all(torch.equal(one, two) for one, two in zip(*runs, strict=True))
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        torch.autograd.grad(attend(q, k, v, pattern).sum(), (q, k, v))
        assert torch.cuda.max_memory_allocated() - before < 16 * q.numel() * q.element_size()
