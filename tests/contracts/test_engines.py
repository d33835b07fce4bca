"""Every engine × pattern × dtype × layout × groups × padding × dropout against the definition in float64."""

from dataclasses import replace

import pytest
import torch
from attention_cases import definition, drop_weights, gradients, tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerance import assert_near

from jieyue.attention import ENGINES, Call, attend, first, full, global_tokens, local, parse, pick, why
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
    **more,
):
    """out, lse and gradients of one engine within the computed tolerance; the engine asked for is the one that ran."""
    batch, heads, _, n, m, _, width = shape
    inputs = [x.detach().to(device).requires_grad_() for x in tensors(shape, dtype, layout)]
    call = Call(*inputs, pattern, key_mask, dropout=dropout, q_offset=q_offset)
    lifted = Call(*(x.float() for x in inputs), pattern) if dtype in HALF and device == "cpu" else call
    assert pick(lifted, engine).name == engine
    extra = [x.requires_grad_() for x in (more.get("sinks"), more.get("offset_bias")) if x is not None]
    grad_out = torch.randn(batch, heads, n, width, dtype=torch.float64).to(device)
    grad_lse = torch.randn(batch, heads, n, dtype=torch.float64).to(device) if with_lse else None
    torch.manual_seed(7)
    drop = drop_weights(int(draw_seed()), batch, heads, n, m, dropout, q_offset) if dropout else None
    torch.manual_seed(7)
    out, lse = attend(
        *inputs, pattern, key_mask=key_mask, dropout=dropout, q_offset=q_offset, engine=engine, return_lse=True, **more
    )
    assert out.dtype == dtype and out.transpose(1, 2).is_contiguous()
    options = {"key_mask": key_mask, "q_offset": q_offset, "drop": drop} | more
    found = out, lse, *(x.to(dtype) for x in gradients(out, lse, [*inputs, *extra], grad_out.to(dtype), grad_lse))
    exact, plain = [], []
    for results, to in ((exact, torch.float64), (plain, dtype)):
        leaves = [x.detach().to(to).requires_grad_() for x in inputs]
        o, s = definition(*leaves, pattern, **options)
        results += [o, s, *(x.to(to) for x in gradients(o, s, [*leaves, *extra], grad_out.to(dtype), grad_lse))]
    assert_near(found[:2], exact[:2], plain[:2], names=["out", "lse"])
    assert_near(
        found[2:],
        exact[2:],
        plain[2:],
        gradient=True,
        names=["dq", "dk", "dv", "one more", "and another"][: len(found) - 2],
    )


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


@st.composite
def packed(draw, batch, n):
    """[batch, n] ids, each in one run, some rows of no segment; not in any order."""
    rows = []
    for _ in range(batch):
        lengths = draw(st.lists(st.integers(1, max(1, n // 2)), min_size=1, max_size=6))
        ids = draw(st.permutations([-1, *range(len(lengths))]))[: len(lengths)]
        row = [number for number, length in zip(ids, lengths, strict=True) for _ in range(length)][:n]
        rows.append(row + [-1 if row[-1] != -1 and -1 not in row else 90] * (n - len(row)))
    return torch.tensor(rows)


@st.composite
def wearing(draw):
    """A call as in ``calls``, with first keys, global rows, segments, sinks, soft-capping and offset biases in any mixture."""
    case = draw(calls())
    batch, heads, groups, n, m, *sizes = case["shape"]
    pattern, generator = case["pattern"], torch.Generator().manual_seed(draw(st.integers(0, 99)))
    ends = draw(st.sampled_from(["", "first", "first", "global", "both"]))
    if ends in ("first", "both"):
        pattern = pattern | first(draw(st.integers(1, 9)))
    if ends in ("global", "both"):
        pattern = pattern | global_tokens(draw(st.integers(1, 4)))
    if draw(st.booleans()):
        pattern = pattern.causal()
    if draw(st.booleans()):
        case |= {"shape": (batch, heads, groups, n, n, *sizes), "q_offset": 0, "segments": draw(packed(batch, n))}
        m = n
    if draw(st.booleans()):
        case["sinks"] = torch.randn(heads, generator=generator, dtype=torch.float64)
    if draw(st.booleans()):
        case["softcap"] = draw(st.sampled_from([0.5, 2.0, 30.0]))
    if draw(st.booleans()):
        rows = draw(st.sampled_from([1, heads]))
        case["offset_bias"] = torch.randn(rows, n + m - 1, generator=generator, dtype=torch.float64)
    return case | {"pattern": pattern}


@settings(max_examples=40)
@given(case=wearing())
@pytest.mark.parametrize("engine", ON_CPU)
def test_any_call_that_wears_something(engine, case):
    dtype = torch.float32 if engine == "native" else torch.float64
    skip_unless_it_runs(engine, dtype)
    options = dict(case)
    shape, pattern, seed = (options.pop(name) for name in ("shape", "pattern", "key_mask_seed"))
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        options["key_mask"] = torch.rand(shape[0], shape[4], generator=generator) > seed / 99
    try:
        check(engine, shape, pattern, dtype, **options)
    except InputError as error:  # an engine may refuse what it cannot do, by name
        if engine == "dense" or f"the {engine} engine has no" not in str(error):
            raise


class WrongWindow:
    """A broken twin: sees one key too many."""

    name = "dense"
    halves = ()

    def __init__(self, engine):
        self.engine = engine

    def refuses(self, call):
        return None

    def attend(self, call):
        return self.engine.attend(replace(call, pattern=local(6)))

    def differentiate(self, call, given):
        return self.engine.differentiate(call, given)

    def delta(self, grad_out, out):
        return self.engine.delta(grad_out, out)


class ForgetfulBackward(WrongWindow):
    """A broken twin: leaves the gradient through lse out."""

    def attend(self, call):
        return self.engine.attend(call)

    def differentiate(self, call, given):
        return self.engine.differentiate(call, given._replace(delta=given.delta + 1.0))


@pytest.mark.parametrize(("twin", "names"), [(WrongWindow, "out"), (ForgetfulBackward, "dq|dk")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_the_alarm_rings(monkeypatch, twin, names, dtype):
    shape = (1, 2, 1, 40, 40, 8, 8)
    check("dense", shape, local(5), dtype)
    monkeypatch.setattr("jieyue.attention.engines.ENGINES", (twin(named("dense")),))
    with pytest.raises(AssertionError, match=names):
        check("dense", shape, local(5), dtype)


class Forgetful(WrongWindow):
    """A broken twin: forgets or shifts one thing that the call wears, in both passes."""

    def __init__(self, engine, forget):
        super().__init__(engine)
        self.forget = forget

    def attend(self, call):
        return self.engine.attend(self.forget(call))

    def differentiate(self, call, given):
        return self.engine.differentiate(self.forget(call), given)


FORGETFUL = {
    "one first key less": lambda call: replace(call, pattern=local(3) | first(1)),
    "first keys from the row's beginning": lambda call: replace(call, runs=call.runs.clamp(max=12)),
    "global rows not seeing": lambda call: replace(call, pattern=local(3) | first(2)),
    "segments": lambda call: replace(call, runs=None),
    "sinks": lambda call: replace(call, sinks=None),
    "softcap": lambda call: replace(call, softcap=0.0),
    "softcap after the bias": lambda call: replace(call, softcap=call.softcap * 1.01),
    "offset_bias turned round": lambda call: replace(call, offset_bias=call.offset_bias.flip(-1)),
    "offset_bias of the first head": lambda call: replace(call, offset_bias=call.offset_bias[:1].expand(2, -1)),
}


@pytest.mark.parametrize("what", FORGETFUL)
def test_the_alarm_rings_for_what_is_forgotten(monkeypatch, what):
    shape, segments = (1, 2, 1, 24, 24, 8, 8), torch.tensor([[0] * 12 + [1] * 12])
    worn = {
        "sinks": torch.randn(2).double(),
        "softcap": 1.0,
        "offset_bias": torch.randn(2, 47).double(),
        "segments": segments,
    }
    pattern = local(3) | (global_tokens(2) if "global" in what else first(2))
    check("dense", shape, pattern, torch.float64, **worn)
    monkeypatch.setattr("jieyue.attention.engines.ENGINES", (Forgetful(named("dense"), FORGETFUL[what]),))
    with pytest.raises(AssertionError, match=r"out|lse"):
        check("dense", shape, pattern, torch.float64, **worn)


class SilentBias(WrongWindow):
    """A broken twin: no gradient for offset_bias."""

    def attend(self, call):
        return self.engine.attend(call)

    def differentiate(self, call, given):
        found = self.engine.differentiate(call, given)
        return found._replace(offset_bias=torch.zeros_like(found.offset_bias))


def test_the_alarm_rings_for_a_bias_without_a_gradient(monkeypatch):
    shape, bias = (1, 2, 1, 24, 24, 8, 8), torch.randn(1, 47).double()
    monkeypatch.setattr("jieyue.attention.engines.ENGINES", (SilentBias(named("dense")),))
    with pytest.raises(AssertionError, match="one more"):
        check("dense", shape, local(3), torch.float64, offset_bias=bias)


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
