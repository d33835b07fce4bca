"""Every engine × pattern × dtype × layout × groups × padding × dropout against the definition in float64."""

import pytest
import torch
from attention_cases import definition, drop_weights, gradients, tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerance import assert_near

from jieyue.attention import ENGINES, Call, attend, full, local, parse, pick, why
from jieyue.attention.dropout import draw_seed
from jieyue.attention.engines import named
from jieyue.errors import InputError

ON_CPU = ("native", "composed", "dense")
HALF = (torch.float16, torch.bfloat16)


def check(
    engine,
    shape,
    pattern,
    dtype,
    *,
    layout="bnhd",
    key_mask=None,
    dropout=0.0,
    q_offset=0,
    with_lse=True,
    device="cpu",
):
    """out, lse and gradients of one engine within the computed tolerance; the engine asked for is the one that ran."""
    batch, heads, _, n, m, _, width = shape
    inputs = [x.detach().to(device).requires_grad_() for x in tensors(shape, dtype, layout)]
    call = Call(*inputs, pattern, key_mask, dropout=dropout, q_offset=q_offset)
    lifted = Call(*(x.float() for x in inputs), pattern) if dtype in HALF and device == "cpu" else call
    assert pick(lifted, engine).name == engine
    grad_out = torch.randn(batch, heads, n, width, dtype=torch.float64).to(device)
    grad_lse = torch.randn(batch, heads, n, dtype=torch.float64).to(device) if with_lse else None
    torch.manual_seed(7)
    drop = drop_weights(int(draw_seed()), batch, heads, n, m, dropout, q_offset) if dropout else None
    torch.manual_seed(7)
    out, lse = attend(
        *inputs, pattern, key_mask=key_mask, dropout=dropout, q_offset=q_offset, engine=engine, return_lse=True
    )
    assert out.dtype == dtype and out.transpose(1, 2).is_contiguous()
    options = {"key_mask": key_mask, "q_offset": q_offset, "drop": drop}
    found = out, lse, *gradients(out, lse, inputs, grad_out.to(dtype), grad_lse)
    exact, plain = [], []
    for results, to in ((exact, torch.float64), (plain, dtype)):
        leaves = [x.detach().to(to).requires_grad_() for x in inputs]
        o, s = definition(*leaves, pattern, **options)
        results += [o, s, *gradients(o, s, leaves, grad_out.to(dtype), grad_lse)]
    assert_near(found[:2], exact[:2], plain[:2], names=["out", "lse"])
    assert_near(found[2:], exact[2:], plain[2:], gradient=True, names=["dq", "dk", "dv"])


def skip_unless_it_runs(engine, dtype):
    x = torch.zeros(1, 1, 1, 1, dtype=torch.float32 if dtype in HALF else dtype)
    reason = named(engine).refuses(Call(x, x, x, full()))
    if reason is not None:
        pytest.skip(reason)


PATTERNS = [
    "full()",
    "causal(full())",
    "local(5)",
    "causal(local(40))",
    "local(3, step=4)",
    "atrous(7)",
    "causal(atrous(4))",
    "sparse(8)",
    "causal(sparse(8))",
    "local(20)+atrous(5)",
    "band(1, -inf, -3)+band(2, 10, inf)",
    "band(1, 90, 95)",
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("engine", ON_CPU)
def test_battery(engine, dtype):
    skip_unless_it_runs(engine, dtype)
    for number, text in enumerate(PATTERNS):
        shape = [(2, 4, 2, 83, 83, 16, 16), (1, 3, 3, 61, 97, 8, 12), (2, 2, 1, 1, 50, 5, 5)][number % 3]
        key_mask = torch.rand(shape[0], shape[4]) > 0.3 if number % 2 else None
        layout = ["bnhd", "bhnd", "slice"][number // 3 % 3]
        check(engine, shape, parse(text), dtype, layout=layout, key_mask=key_mask, q_offset=[0, 36, 49][number % 3])


@pytest.mark.parametrize("engine", ON_CPU)
def test_battery_with_dropout(engine):
    dtype = torch.float32 if engine == "native" else torch.float64
    skip_unless_it_runs(engine, dtype)
    for text in PATTERNS:
        check(engine, (2, 4, 2, 60, 60, 8, 8), parse(text), dtype, dropout=0.3)


@st.composite
def calls(draw):
    groups, n, m = draw(st.integers(1, 3)), draw(st.integers(1, 70)), draw(st.integers(1, 70))
    rate, window = draw(st.integers(1, 9)), draw(st.integers(0, 30))
    pattern = draw(
        st.sampled_from(
            [f"local({window}, {rate})", f"atrous({rate})", f"sparse({rate})", f"sparse({rate}, {window})", "full()"]
        )
    )
    return {
        "shape": (draw(st.integers(1, 2)), groups * draw(st.integers(1, 3)), groups, n, m, *draw_sizes(draw)),
        "pattern": parse(f"causal({pattern})" if draw(st.booleans()) else pattern),
        "key_mask_seed": draw(st.none() | st.integers(0, 99)),
        "q_offset": draw(st.sampled_from([0, 0, m - n, draw(st.integers(-80, 80))])),
        "dropout": draw(st.sampled_from([0.0, 0.0, 0.1, 0.8])),
        "layout": draw(st.sampled_from(["bnhd", "bhnd", "slice"])),
        "with_lse": draw(st.booleans()),
    }


def draw_sizes(draw):
    depth = draw(st.integers(1, 12))
    return depth, draw(st.sampled_from([depth, depth, draw(st.integers(1, 12))]))


@settings(max_examples=60)
@given(case=calls())
@pytest.mark.parametrize("engine", ON_CPU)
def test_any_call(engine, case):
    dtype = torch.float32 if engine == "native" else torch.float64
    skip_unless_it_runs(engine, dtype)
    settings_of_call = dict(case)
    shape, pattern = settings_of_call.pop("shape"), settings_of_call.pop("pattern")
    seed = settings_of_call.pop("key_mask_seed")
    if seed is not None:
        settings_of_call["key_mask"] = (
            torch.rand(shape[0], shape[4], generator=torch.Generator().manual_seed(seed)) > seed / 99
        )
    check(engine, shape, pattern, dtype, **settings_of_call)


class WrongWindow:
    """A broken twin: sees one key too many."""

    name = "dense"

    def __init__(self, engine):
        self.engine = engine

    def refuses(self, call):
        return None

    def forward_union(self, q, k, v, bands, **options):
        return self.engine.forward_union(q, k, v, local(6).bands, **options)

    def backward_union(self, *arguments, **options):
        return self.engine.backward_union(*arguments, **options)


class ForgetfulBackward(WrongWindow):
    """A broken twin: leaves the gradient through lse out."""

    def forward_union(self, *arguments, **options):
        return self.engine.forward_union(*arguments, **options)

    def backward_union(self, grad_out, q, k, v, lse, delta, bands, *, out=None, **options):
        return self.engine.backward_union(grad_out, q, k, v, lse, delta + 1.0, bands, **options)


@pytest.mark.parametrize(("twin", "names"), [(WrongWindow, "out"), (ForgetfulBackward, "dq|dk")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_the_alarm_rings(monkeypatch, twin, names, dtype):
    shape = (1, 2, 1, 40, 40, 8, 8)
    check("dense", shape, local(5), dtype)
    monkeypatch.setattr("jieyue.attention.engines.ENGINES", (twin(named("dense")),))
    with pytest.raises(AssertionError, match=names):
        check("dense", shape, local(5), dtype)


def test_an_engine_asked_for_never_falls_back():
    q = torch.zeros(1, 1, 600, 4)
    with pytest.raises(InputError, match="600·600 is more than 512²"):
        attend(q, q, q, local(3), engine="dense")
    with pytest.raises(InputError, match="native, fused, dense, composed"):
        attend(q, q, q, local(3), engine="fast")


def test_why_gives_each_engine_a_reason():
    q = torch.zeros(1, 1, 600, 4, dtype=torch.float64)
    reasons = dict(why(Call(q, q, q, local(3))))
    assert list(reasons) == [engine.name for engine in ENGINES]
    assert "512²" in reasons["dense"] and reasons["composed"] is None
    assert pick(Call(q, q, q, local(3))).name == "composed"
