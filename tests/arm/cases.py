"""What the ARM builds are asked, with the oracle's answers: attention with all that it wears, linear attention, in float32 and in
bfloat16, results and gradients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
from attention_cases import definition, drop_weights
from record import Allowed, BandRecorder, LinearRecorder
from tolerance import allowed_error, largest
from torch import Tensor

from jieyue.attention import Call, parse
from jieyue.attention.call import Upstream
from jieyue.attention.segments import runs_of
from jieyue.linear import FEATURES, chunked
from jieyue.linear.tiles import Form

__all__ = ["attention_files", "broken_file", "linear_files"]

PATTERNS = [  # with the sizes of a query and of a value: 62 is no multiple of four, 19 fills no pair
    ("local(40)", 24, 40),
    ("causal(full())", 62, 48),
    ("causal(first(5)+sparse(8))", 64, 64),
    ("global(9)+local(20)", 40, 24),
    ("local(3, step=4)", 19, 19),
]
NAMES = ("dq", "dk", "dv", "offset_bias")


def _draw(generator: torch.Generator, n: int, heads: int, columns: int, batch: int = 1) -> Tensor:
    return torch.randn(batch, n, heads, columns, generator=generator).transpose(1, 2)


def _calls() -> Iterator[tuple[str, Call, Tensor, Tensor | None]]:
    """Names, calls, gradients of their out, segments: patterns with and without everything else."""
    for number, (text, depth, width) in enumerate(PATTERNS):
        generator = torch.Generator().manual_seed(number)
        n, heads, groups = 190, 2, 1 + number % 2
        q, k, v = (_draw(generator, n, h, c) for h, c in ((heads, depth), (groups, depth), (groups, width)))
        plain, grad = Call(q, k, v, parse(text), scale=depth**-0.5), _draw(generator, n, heads, width)
        segments = torch.tensor([[0] * 70 + [-1] * 9 + [4] * 111])
        dressed = replace(
            plain,
            key_mask=torch.rand(1, n, generator=generator) > 0.2,
            dropout=0.1,
            seed=7,
            runs=runs_of(segments),
            sinks=torch.randn(heads, generator=generator),
            softcap=2.0,
            offset_bias=torch.randn(heads, 2 * n - 1, generator=generator),
        )
        for dtype, name in ((torch.float32, "float32"), (torch.bfloat16, "bfloat16")):
            for call, wearing, own in ((plain, "plain", None), (dressed, "everything", segments)):
                made = replace(call, q=q.to(dtype), k=k.to(dtype), v=v.to(dtype))
                yield f"{number}-{wearing}-{name}", made, grad.to(dtype), own


def _defined(call: Call, grad: Tensor, segments: Tensor | None, dtype: torch.dtype) -> dict[str, Tensor]:
    """out, lse and the gradients by the definition, each step rounded to ``dtype``."""
    leaves = [x.detach().to(dtype).requires_grad_() for x in (call.q, call.k, call.v)]
    options = {"key_mask": call.key_mask, "segments": segments, "sinks": call.sinks, "softcap": call.softcap or None}
    if call.dropout:
        sizes = (*call.q.shape[:3], call.k.shape[2])
        options["drop"] = drop_weights(call.seed, *sizes, call.dropout)
    if call.offset_bias is not None:
        options["offset_bias"] = call.offset_bias.detach().to(dtype).requires_grad_()
        leaves.append(options["offset_bias"])
    out, lse = definition(*leaves[:3], call.pattern, scale=call.scale, **options)
    grads = torch.autograd.grad((out * grad.to(dtype)).sum(), leaves)
    return {"out": out.detach(), "lse": lse.detach()} | dict(zip(NAMES, grads, strict=False))


def _stock(call: Call, grad: Tensor) -> dict[str, Tensor]:
    """The same by torch's own attention in bfloat16."""
    leaves = [x.detach().requires_grad_() for x in (call.q, call.k, call.v)]
    sees = call.pattern.mask(call.q.shape[2], call.k.shape[2])
    attend = torch.nn.functional.scaled_dot_product_attention
    out = attend(*leaves, attn_mask=sees, scale=call.scale, enable_gqa=True)
    return {"out": out.detach()} | dict(zip(NAMES, torch.autograd.grad(out, leaves, grad), strict=False))


def _tolerance(name: str, exact: dict[str, Tensor], plain: Tensor) -> Allowed:
    """By the computed tolerance of the contracts: twice (gradients three times) what the plain computation is off, and a little."""
    e = exact[name]
    finite = torch.where(e.isinf(), 0.0, e)
    reference = largest(*(exact[one] for one in NAMES if one in exact)) if name in NAMES else largest(finite)
    plain = torch.where(e.isinf(), 0.0, plain).to(plain.dtype)
    return Allowed(e, allowed_error(finite, plain, reference, name in NAMES))


def _twice(exact: Tensor, plain: Tensor) -> Allowed:
    """Twice what torch's own bfloat16 attention is off (the definition, each step rounded, where that has no such call), the
    largest and in the mean."""
    error = plain.double() - exact
    return Allowed(exact, 2 * largest(error), 2 * error.square().mean().sqrt().item())


def attention_files(folder: Path) -> list[Path]:
    """Forward, delta and backward of each call; and long rows in bfloat16, whose rounding must have no direction."""
    files = []
    for name, call, grad, segments in _calls():
        exact = _defined(call, grad, segments, torch.float64)
        plain = _defined(call, grad, segments, call.q.dtype)
        allowed = {one: _tolerance(one, exact, x) for one, x in plain.items()}
        if call.q.dtype == torch.bfloat16:
            rounded = plain if call.runs is not None else _stock(call, grad)
            wide = _defined(call, grad, segments, torch.float32)
            floats = {one: _tolerance(one, exact, wide[one]) for one in ("lse", "offset_bias") if one in wide}
            allowed = {one: _twice(exact[one], x) for one, x in rounded.items()} | floats
        delta = (grad.double() * exact["out"]).sum(-1)
        files += [folder / f"{name}-forward", folder / f"{name}-backward"]
        BandRecorder(files[-2], {one: allowed[one] for one in ("out", "lse")}).attend(call)
        own = {one: x for one, x in allowed.items() if one in NAMES}
        BandRecorder(files[-1], own).differentiate(call, Upstream(grad, exact["lse"].float(), delta.float()))
    for dtype in (torch.float32, torch.bfloat16):
        files.append(folder / f"delta-{str(dtype).removeprefix('torch.')}")
        out = exact["out"].to(dtype)
        product = out.double() * grad.double()
        most = 8 * torch.finfo(torch.float32).eps * product.abs().sum(-1).max().item()
        recorder = BandRecorder(files[-1], {"delta": Allowed(product.sum(-1), most)})
        recorder.delta(grad.to(dtype), out)
    return [*files, _long_rows(folder), *_not_a_number(folder)]


def _not_a_number(folder: Path) -> Iterator[Path]:
    """A query that is NaN stays so, and its row alone."""
    for name, call, grad, _ in list(_calls())[:3:2]:
        clean, rounded = (_defined(call, grad, None, x) for x in (torch.float64, call.q.dtype))
        spoilt = replace(call, q=call.q.clone())
        spoilt.q[0, 0, 7] = torch.nan
        exact = _defined(spoilt, grad, None, torch.float64)
        assert exact["out"].isnan().any(-1).sum() == 1
        allowed = {one: Allowed(exact[one], _tolerance(one, clean, rounded[one]).most) for one in ("out", "lse")}
        path = folder / f"{name}-not-a-number-forward"
        BandRecorder(path, allowed).attend(spoilt)
        yield path


def _long_rows(folder: Path) -> Path:
    """Values of one sign over 2,000 keys, where a rounding that leans adds up (as in tests/contracts/test_bfloat16.py)."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (_draw(generator, n, 2, 32).bfloat16() for n in (400, 2000, 2000))
    v = (v.abs() + 1).bfloat16()
    call = Call(q, k, v, parse("full()"), scale=32**-0.5)
    grad = torch.zeros_like(q)
    exact = _defined(call, grad, None, torch.float64)["out"]
    path = folder / "long-rows-bfloat16-forward"
    BandRecorder(path, {"out": _twice(exact, _stock(call, grad)["out"])._replace(lean=5.0)}).attend(call)
    return path


def broken_file(folder: Path) -> Path:
    """The broken twin: results of a call that sees one key less. The driver must find it wrong."""
    _, call, grad, _ = next(_calls())
    mask = torch.ones(1, call.k.shape[2], dtype=torch.bool)
    mask[:, 7] = False
    exact, plain = (_defined(replace(call, key_mask=mask), grad, None, x) for x in (torch.float64, torch.float32))
    path = folder / "broken-twin"
    BandRecorder(path, {"out": _tolerance("out", exact, plain["out"])}).attend(call)
    return path


def linear_files(folder: Path) -> list[Path]:
    """Every map of the kernel in every direction, with a mask, with sums given, in both types."""
    files = []
    for number, name in enumerate(("elu", "relu", "cosine")):
        for direction in (0, 1, -1):
            for dtype in (torch.float32, torch.bfloat16):
                n = 1100 if (direction, name) == (1, "elu") else 150
                label = f"{name}-{('all', 'past', 'future')[direction]}-{str(dtype).removeprefix('torch.')}"
                files += _linear_pair(folder / label, name, direction, dtype, n, number)
    return files


def _linear_pair(path: Path, name: str, direction: int, dtype: torch.dtype, n: int, seed: int) -> list[Path]:
    generator, (d, v) = torch.Generator().manual_seed(seed), ((5, 7), (24, 40), (16, 12))[seed]
    tensors = [_draw(generator, n, h, c, 2).to(dtype) for h, c in ((4, d), (2, d), (2, v))]
    grad, grad_mass = _draw(generator, n, 4, v, 2).to(dtype), torch.randn(2, 4, n, generator=generator)
    mask = torch.rand(2, n, generator=generator) > 0.3
    features = FEATURES[name]
    form = Form(features, features.polynomial, features.scale_for(None, d), direction, 64)
    start = torch.rand(2, 2, d + (name == "cosine"), v + 1, generator=generator) + 1

    def forward(engine, to):
        with mock.patch.object(chunked, "native", engine):
            return chunked.forward(*(x.to(to) for x in tensors), mask, start.to(_wide(to)), form, True)

    def backward(engine, results, to):
        out, mass, total, marks = results
        kept = (*(x.to(to) for x in tensors), out, mass, marks if direction else total)
        with mock.patch.object(chunked, "native", engine):
            return chunked.backward(grad.to(to), grad_mass.to(_wide(to)), None, kept, mask, form)

    stock = mock.Mock(refuses=lambda *_: "stock operations")
    exact, plain = ((found := forward(stock, to), backward(stock, found, to)) for to in (torch.float64, dtype))
    files = [path.with_name(f"{path.name}-{which}") for which in ("forward", "backward")]
    for number, names in enumerate((("out", "mass", "total", "marks"), ("dq", "dk", "dv", "grad_start"))):
        triples = zip(names, exact[number], plain[number], strict=True)
        allowed = {one: _near(e, p, exact[1] if number else (e,)) for one, e, p in triples}
        recorder = LinearRecorder(files[number], allowed)
        if number:
            backward(recorder, plain[0], dtype)
        else:
            forward(recorder, dtype)
    return files


def _near(exact: Tensor, plain: Tensor, group: tuple[Tensor, ...]) -> Allowed:
    """Three times what stock operations are off, and a little for sums in another order."""
    off = largest(plain.double() - exact)
    return Allowed(exact, 3 * off + 8 * torch.finfo(torch.float32).eps * largest(*group))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
