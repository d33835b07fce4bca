"""The operator's laws: parts of the keys merged equal the whole, derivatives of any order, tracing, memory, refusals."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from jieyue.attention import ENGINES, Partial, Pattern, atrous, attend, full, local, parse, sparse
from jieyue.attention.engines import Call, named
from jieyue.errors import InputError
from jieyue.timer import peak_bytes

NEAR = {"atol": 1e-12, "rtol": 0}


def randoms(*shapes, dtype=torch.float64):
    return [torch.randn(*shape, dtype=dtype, requires_grad=True) for shape in shapes]


def finite(lse):
    return torch.where(lse.isinf(), 0.0, lse)


@settings(max_examples=40)
@given(
    n=st.integers(1, 40), m=st.integers(1, 40), rate=st.integers(2, 6), window=st.integers(0, 9), causal=st.booleans()
)
@pytest.mark.parametrize("engine", ["composed", "dense"])
def test_bands_merged_are_the_whole(engine, n, m, rate, window, causal):
    pattern = sparse(rate, window).causal() if causal else sparse(rate, window)
    q, k, v = randoms((1, 2, n, 3), (1, 2, m, 3), (1, 2, m, 3))
    whole = Partial(*attend(q, k, v, pattern, engine=engine, return_lse=True))
    merged = Partial.empty(q, v)
    for band in pattern.bands:
        merged = merged.merge(Partial(*attend(q, k, v, Pattern((band,)), engine=engine, return_lse=True)))
    torch.testing.assert_close(merged.out, whole.out, **NEAR)
    torch.testing.assert_close(merged.lse, whole.lse, **NEAR)
    grads = [torch.autograd.grad((p.out.sin().sum() + finite(p.lse).sum()), (q, k, v)) for p in (merged, whole)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, **NEAR)


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.floats(-5, 5), st.floats(-30, 30) | st.just(-torch.inf)), min_size=1, max_size=6), st.data()
)
def test_merge_is_a_commutative_monoid(parts, data):
    partials = [Partial(torch.tensor([out]).double(), torch.tensor(lse).double()) for out, lse in parts]
    empty = Partial(torch.zeros(1).double(), torch.tensor(-torch.inf).double())

    def together(some):
        whole = empty
        for part in some:
            whole = whole.merge(part)
        return whole

    expected = together(partials)
    cut = data.draw(st.integers(0, len(parts)))
    shuffled = data.draw(st.permutations(partials))
    for found in (together(partials[:cut]).merge(together(partials[cut:])), together(shuffled)):
        if expected.lse.isfinite():
            torch.testing.assert_close(found.out, expected.out, atol=1e-10, rtol=0)
        torch.testing.assert_close(found.lse, expected.lse, atol=1e-10, rtol=0)
    assert not expected.out.isnan().any()


@pytest.mark.parametrize("engine", ["composed", "dense"])
@pytest.mark.parametrize("text", ["full()", "causal(local(2))", "atrous(2)", "sparse(3)", "band(2,2,4)"])
def test_derivatives_of_both_orders(engine, text):
    """With grouped heads, masked keys, rows that see nothing, and the gradient of lse."""
    q, k, v = randoms((2, 2, 4, 2), (2, 1, 4, 2), (2, 1, 4, 1))
    key_mask = torch.ones(2, 4, dtype=torch.bool)
    key_mask[0, 2], key_mask[1] = False, False

    def call(q, k, v):
        out, lse = attend(q, k, v, text, key_mask=key_mask, q_offset=1, scale=0.7, engine=engine, return_lse=True)
        return out, finite(lse)

    assert torch.autograd.gradcheck(call, (q, k, v))
    if engine == "composed" or text == "sparse(3)":
        assert torch.autograd.gradgradcheck(call, (q, k, v))


@pytest.mark.parametrize(
    ("engine", "text"), [("dense", "causal(first(1)+local(1))"), ("composed", "global(1)+atrous(2)")]
)
def test_derivatives_of_both_orders_of_what_real_models_wear(engine, text):
    """Segments, one row of none, sinks, soft-capping and offset biases together, grouped heads, the gradient of lse."""
    q, k, v, sinks, bias = randoms((1, 2, 4, 2), (1, 1, 4, 2), (1, 1, 4, 1), (2,), (2, 7))
    segments, key_mask = torch.tensor([[3, 3, 3, -1]]), torch.tensor([[True, False, True, True]])

    def call(q, k, v, sinks, bias):
        options = {"segments": segments, "key_mask": key_mask, "softcap": 1.5, "engine": engine, "return_lse": True}
        out, lse = attend(q, k, v, text, sinks=sinks, offset_bias=bias, **options)
        return out, finite(lse)

    assert torch.autograd.gradcheck(call, (q, k, v, sinks, bias))
    assert torch.autograd.gradgradcheck(call, (q, k, v, sinks, bias))


def test_derivatives_with_dropout():
    q, k, v = randoms((1, 2, 4, 2), (1, 1, 4, 2), (1, 1, 4, 1))

    def call(q, k, v):
        torch.manual_seed(3)
        return attend(q, k, v, sparse(3), dropout=0.4)

    assert torch.autograd.gradcheck(call, (q, k, v))
    assert torch.autograd.gradgradcheck(call, (q, k, v))


def test_third_order():
    q, k, v = randoms((1, 1, 4, 2), (1, 1, 4, 2), (1, 1, 4, 2))

    def penalty(q):
        (grad,) = torch.autograd.grad(attend(q, k, v, local(1)).pow(2).sum(), q, create_graph=True)
        return grad.pow(2).sum()

    assert torch.autograd.gradgradcheck(penalty, (q,))


@pytest.mark.parametrize("rows", [1, 3])
def test_second_order_in_chunks(monkeypatch, rows):
    """The backward of the backward takes rows a few at a time: the same numbers whatever the chunk."""
    q, k, v = randoms((1, 2, 9, 3), (1, 2, 9, 3), (1, 2, 9, 3))

    def penalty():
        grads = torch.autograd.grad(attend(q, k, v, sparse(3)).sin().sum(), (q, k, v), create_graph=True)
        return torch.autograd.grad(sum(grad.pow(2).sum() for grad in grads), (q, k, v))

    expected = penalty()
    monkeypatch.setattr("jieyue.attention.second_order._CHUNK_SCORES", 9 * rows)
    for one, other in zip(penalty(), expected, strict=True):
        torch.testing.assert_close(one, other, **NEAR)


@pytest.mark.parametrize("engine", [engine.name for engine in ENGINES])
def test_only_visible_keys_matter(engine):
    """Changing what the pattern and the mask hide changes nothing; what is hidden gets no gradient."""
    q, k, v = randoms((1, 1, 12, 4), (1, 1, 12, 4), (1, 1, 12, 4), dtype=torch.float32)
    reason = named(engine).refuses(Call(q, k, v, full()))
    if reason is not None:
        pytest.skip(reason)
    key_mask = torch.ones(1, 12, dtype=torch.bool)
    key_mask[0, 4] = False
    hidden = [j for j in range(12) if j == 4 or 6 - j not in local(2)]
    out = attend(q, k, v, local(2), key_mask=key_mask, engine=engine)[:, :, 6]
    grads = torch.autograd.grad(out.sum(), (k, v), retain_graph=True)
    assert all(grad[:, :, hidden].abs().max() == 0 for grad in grads)
    with torch.no_grad():
        k[:, :, hidden] += 7.0
        v[:, :, hidden] -= 5.0
    torch.testing.assert_close(attend(q, k, v, local(2), key_mask=key_mask, engine=engine)[:, :, 6], out, **NEAR)


def test_long_ranges_are_cut_into_tiles():
    """More than one tile of keys and many pieces of rows, against the definition."""
    q, k, v = randoms((1, 2, 90, 4), (1, 1, 2500, 4), (1, 1, 2500, 3))
    key_mask = torch.rand(1, 2500) > 0.2
    for text in ("full()", "band(1, -inf, 40)", "band(3, -2000, 90)"):
        out = attend(q, k, v, text, key_mask=key_mask, q_offset=70)
        sees = parse(text).mask(90, 2500, 70) & key_mask
        scores = (q @ k.mT / 2).masked_fill(~sees, -torch.inf)
        expected = torch.where(sees.any(-1, keepdim=True), scores.softmax(-1), 0.0) @ v
        torch.testing.assert_close(out, expected, **NEAR)
        grads = [torch.autograd.grad(o.sin().sum(), (q, k, v)) for o in (out, expected)]
        for one, other in zip(*grads, strict=True):
            torch.testing.assert_close(one, other, **NEAR)


def test_long_ranges_of_what_real_models_wear():
    """Tiles, pieces, runs longer than a tile and rows in no run, composed against dense at a size that dense still takes."""
    q, k, v, sinks, bias = randoms((1, 2, 500, 4), (1, 1, 500, 4), (1, 1, 500, 3), (2,), (2, 999))
    segments = torch.tensor([[4] * 300 + [-1] * 20 + [0] * 90 + [1] * 90])
    results = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jieyue.attention.engines.composed._WIDEST_TILE", 64)
        for engine in ("composed", "dense"):
            options = {"sinks": sinks, "softcap": 3.0, "offset_bias": bias, "segments": segments, "engine": engine}
            out, lse = attend(q, k, v, "global(2)+sparse(7, 20)", return_lse=True, **options)
            loss = out.sin().sum() + finite(lse).sin().sum()
            results.append((out, lse, *torch.autograd.grad(loss, (q, k, v, sinks, bias))))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, **NEAR)


def test_dropout_is_fair_and_repeats():
    q, k = torch.zeros(2, 3, 200, 4), torch.zeros(2, 3, 200, 4)
    v = torch.ones(2, 3, 200, 1)
    torch.manual_seed(5)
    first = attend(q, k, v, local(50), dropout=0.25)
    torch.manual_seed(5)
    assert torch.equal(attend(q, k, v, local(50), dropout=0.25), first)
    assert not torch.equal(attend(q, k, v, local(50), dropout=0.25), first)
    assert abs(first.mean() - 1) < 0.01  # 100 000 draws: deviation of the mean .0015
    assert 0.05 < first.std() < 0.08  # √(p / (1 − p) / keys) = .058 with 101 keys, more near the ends


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("engine", ["native", "composed"])
def test_no_tensor_of_all_pairs(engine, causal):
    """Peak of forward and backward beside inputs, output and gradients: a few rows of queries, not N·M = 64 MiB."""
    n, pattern = 4096, sparse(64).causal() if causal else sparse(64)
    q, k, v = randoms((1, 1, n, 8), (1, 1, n, 8), (1, 1, n, 8), dtype=torch.float32)
    if named(engine).refuses(Call(q, k, v, pattern)):
        pytest.skip("the native library is not built")

    def step():
        torch.autograd.grad(attend(q, k, v, pattern, engine=engine).sum(), (q, k, v))

    step()
    assert peak_bytes(step) < 6 * 2**20


@pytest.mark.parametrize("text", ["full()", "local(64)", "atrous(16)", "sparse(64)", "causal(sparse(64))"])
def test_memory_is_what_the_docstring_says(text):
    """Native, forward and backward: beside out, its gradient and dq, dk, dv only lse and δ grow, unions included."""
    heads, depth, peaks = 2, 16, []
    pattern = parse(text)
    for n in (2048, 4096):
        q, k, v = (torch.randn(1, n, heads, depth).transpose(1, 2).requires_grad_() for _ in range(3))
        grad = torch.randn(1, n, heads, depth).transpose(1, 2)
        if named("native").refuses(Call(q, k, v, pattern)):
            pytest.skip("the native library is not built")

        def step(q=q, k=k, v=v, grad=grad):
            torch.autograd.grad(attend(q, k, v, pattern, engine="native"), (q, k, v), grad)

        step()
        peaks.append(peak_bytes(step))
    outputs = 4 * depth * 4  # out, dq, dk, dv, float32
    assert peaks[1] - peaks[0] <= 2048 * heads * (outputs + 2 * 4) * 1.02


def test_fake_tensors_see_shapes():
    for dtype, wide in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        with FakeTensorMode():
            q = torch.empty(2, 4, 10**6, 8, dtype=dtype, requires_grad=True)
            k, v = torch.empty(2, 2, 10**6, 8, dtype=dtype), torch.empty(2, 2, 10**6, 6, dtype=dtype)
            out, lse = attend(q, k, v, sparse(32), dropout=0.1, return_lse=True)
            assert out.shape == (2, 4, 10**6, 6) and out.dtype == dtype and lse.dtype == wide
            out.sum().backward()
            assert q.grad.shape == q.shape


def test_operators_are_well_made():
    """torch's own battery: schema, fake tensors, autograd registration, tracing through AOT autograd."""
    q, k, v = randoms((1, 2, 5, 3), (1, 1, 5, 3), (1, 1, 5, 2))
    key_mask = torch.tensor([[True, True, False, True, True]])
    plain = (q, k, v, None, None, None, None, None, "local(2)", 0.5, 0.0, 0, 0.0, "")
    torch.library.opcheck(torch.ops.jieyue.attend.default, plain)
    segments = torch.tensor([[1, 1, -1, 0, 0]])
    runs = torch.ops.jieyue.runs(segments)
    worn = (key_mask, runs, torch.tensor(5), "first(1)+local(2)", 0.5, 0.5, 0, 2.0, "dense")
    torch.library.opcheck(torch.ops.jieyue.attend.default, (q, k, v, *randoms((2,), (1, 9)), *worn))
    torch.library.opcheck(torch.ops.jieyue.runs.default, (segments,))


def test_compiled_graph_is_whole():
    q, k, v = randoms((1, 2, 9, 4), (1, 2, 9, 4), (1, 2, 9, 4))

    segments, sinks, bias = torch.tensor([[0] * 5 + [1] * 4]), torch.randn(2).double(), torch.randn(1, 17).double()

    def call(q, k, v):
        more = {"segments": segments, "sinks": sinks, "softcap": 3.0, "offset_bias": bias}
        worn = attend(q, k, v, "causal(first(1)+local(2))", **more)
        return attend(q * 2, k, v, sparse(3), dropout=0.1).sin() + worn

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=True)
    results = []
    for function in (call, compiled):
        torch.manual_seed(1)
        out = function(q, k, v)
        results.append((out, *torch.autograd.grad(out.sum(), (q, k, v))))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, **NEAR)


def test_checkpointing_draws_the_same_dropout():
    q, k, v = randoms((1, 2, 9, 4), (1, 2, 9, 4), (1, 2, 9, 4))
    results = []
    for saving in (True, False):
        torch.manual_seed(1)
        call = (lambda *x: torch.utils.checkpoint.checkpoint(layer, *x, use_reentrant=False)) if saving else layer
        out = call(q, k, v)
        results.append((out, *torch.autograd.grad(out.sum(), (q, k, v))))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def layer(q, k, v):
    return attend(q, k, v, atrous(2), dropout=0.5).sin()


def test_autocast_casts_as_torch_does():
    q, k, v = randoms((1, 1, 5, 4), (1, 1, 5, 4), (1, 1, 5, 4), dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert attend(q, k.bfloat16(), v, full()).dtype == torch.bfloat16


Q, K, V = (torch.zeros(2, 4, 5, 3), torch.zeros(2, 2, 6, 3), torch.zeros(2, 2, 6, 3))
SAME = {"k": K[:, :, :5], "v": V[:, :, :5]}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"q": Q[0]}, r"q has shape \[4, 5, 3\], expected \[B, H, N, D\]"),
        ({"k": K[:1]}, r"k has shape \[1, 2, 6, 3\], expected \[2, G, M, 3\]"),
        ({"k": K[..., :2]}, r"k has shape .*expected \[2, G, M, 3\]"),
        ({"v": V[:, :, :4]}, r"v has shape \[2, 2, 4, 3\], expected \[2, 2, 6\]"),
        ({"q": Q[:, :3]}, "q has 3 heads and k has 2, expected a multiple"),
        ({"k": K.double()}, "k has dtype torch.float64 and q torch.float32"),
        ({"q": Q.long()}, "q has dtype torch.int64, expected a floating type"),
        ({"q": Q[:, :, :0]}, "q has shape .*every size at least 1"),
        ({"k": K[:, :, :0], "v": V[:, :, :0]}, "k has shape .*every size at least 1"),
        ({"k": K.to("meta")}, "k is on meta and q on cpu"),
        ({"q": [1.0]}, "q is list"),
        ({"key_mask": torch.ones(2, 5, dtype=torch.bool)}, r"key_mask has shape \[2, 5\], expected \[2, 6\]"),
        ({"key_mask": torch.ones(2, 6)}, "key_mask is torch.float32, expected a bool"),
        ({"pattern": "locl(3)"}, "did you mean local"),
        ({"pattern": 3}, "pattern is int"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"dropout": -0.1}, "dropout=-0.1"),
        ({"q_offset": 1.5}, "q_offset=1.5"),
        ({"scale": float("nan")}, "scale=nan"),
        ({"engine": "magic"}, "engine='magic'"),
        ({"segments": torch.zeros(2, 5)}, "segments is torch.float32, expected a tensor of whole numbers"),
        ({"segments": torch.zeros(2, 6).long()}, r"segments has shape \[2, 6\], expected \[2, 5\]"),
        ({"segments": torch.zeros(2, 5).long()}, "segments with 5 queries and 6 keys, expected as many"),
        (SAME | {"segments": torch.tensor([[0, 0, 1, 1, 0]] * 2)}, "in row 0 the id 0 fills more than one run"),
        (SAME | {"segments": torch.tensor([[0, 0, -1, 0, 0]] * 2)}, "the id 0 fills more than one run"),
        (SAME | {"segments": torch.tensor([[0, 0, -2, 1, 1]] * 2)}, "segments holds -2, expected ids from 0 on"),
        (SAME | {"segments": torch.zeros(2, 5).long(), "q_offset": 1}, "segments with q_offset=1, expected 0"),
        ({"sinks": torch.zeros(2)}, r"sinks has shape \[2\], expected \[4\]"),
        ({"sinks": torch.zeros(4).long()}, "sinks has dtype torch.int64"),
        ({"softcap": 0.0}, "softcap=0.0, expected a finite number above 0"),
        ({"softcap": "much"}, "softcap='much'"),
        ({"offset_bias": torch.zeros(4, 11)}, r"offset_bias has shape \[4, 11\], expected \[4, 10\] or \[1, 10\]"),
        ({"offset_bias": [1.0]}, "offset_bias is list"),
    ],
)
def test_wrong_arguments_are_named(change, says):
    arguments = {"q": Q, "k": K, "v": V, "pattern": local(2)} | change
    with pytest.raises(InputError, match=says):
        attend(arguments.pop("q"), arguments.pop("k"), arguments.pop("v"), arguments.pop("pattern"), **arguments)


def test_the_alarm_rings():
    """Broken twins: bands that overlap count keys twice, a merge by plain mean is no softmax."""
    q, k, v = randoms((1, 2, 24, 4), (1, 2, 24, 4), (1, 2, 24, 4))
    whole = attend(q, k, v, sparse(2, 4))
    parts = [Partial(*attend(q, k, v, p, return_lse=True)) for p in (local(4), atrous(2))]
    assert (parts[0].merge(parts[1]).out - whole).abs().max() > 1e-3
    assert ((parts[0].out + parts[1].out) / 2 - whole).abs().max() > 1e-3
