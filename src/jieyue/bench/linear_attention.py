"""Seconds and bytes of linear attention on this machine: its share of the matrix-product rate, rivals, and decoding.

Share: floating-point operations per second over those of a 1024³ float32 matrix product, best of the repeats of each within
the same run. Operations are counted at chunks of C = 64 whatever chunk is used, for each query head and position:

    forward   causal 2·C·(D + V) + 4·D·V      all keys 4·D·V          (the triangle's upper half is counted too)
    backward  causal 2·C·(3·D + 2·V) + 8·D·V  all keys 8·D·V          (sums made again are not counted)
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from jieyue.linear import LinearState
from jieyue.timer import Timed, median_seconds, peak_bytes, take_turns

from .linear_rivals import LINEAR_RIVALS, linear
from .linear_rows import DecodingRow, GoalRow, LinearBench
from .rival_rows import COLD_SECONDS, SLOW_SECONDS, RivalRow, crossing
from .rivals import Attention

__all__ = ["bench_linear"]

HEADS, DEPTH, CHUNK, LONG = 12, 64, 64, 65536
GOALS = {True: 0.5, False: 0.6}
RIVAL_LENGTHS = (64, 256, 1024, 4096, 16384)
STATE_CONTEXTS = (4096, 32768, 131072)
MODEL_CONTEXTS = {"linear(elu)": (1024, 4096, 16384, 65536), "full()": (1024, 4096, 16384)}
_MOST_DENSE = 16384  # positions of dense attention, forward and backward, that are worth waiting for on a CPU


def bench_linear(
    *,
    repeats: int = 5,
    device: str = "cpu",
    goal_length: int = LONG,
    lengths: Sequence[int] = RIVAL_LENGTHS,
    state_contexts: Sequence[int] = STATE_CONTEXTS,
    model_contexts: dict[str, Sequence[int]] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> LinearBench:
    """The goals, the rivals with the crossover, and decoding, by a state alone and by a model's ``generate``-like steps.

    Cost: about 4 minutes on two cores with the defaults, most of it dense attention.
    """
    say(f"linear(elu) at N = {goal_length}")
    rate, goals = _goals(goal_length, max(3, repeats), device)
    rivals: list[RivalRow] = []
    for causal in (True, False):
        for n in lengths:
            say(f"linear(elu), {'causal' if causal else 'all keys'}, N = {n}, beside others")
            rivals += _rivals(causal, n, repeats, device)
    say("decoding")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # one token has no work for two
    try:
        decoding = _state_rows(state_contexts, device)
        for attention, contexts in (MODEL_CONTEXTS if model_contexts is None else model_contexts).items():
            decoding += _model_rows(attention, contexts)
    finally:
        torch.set_num_threads(threads)
    crossover = {
        what: crossing(
            {r.n: r.both_seconds for r in rivals if r.pattern == what and r.name == "SDPA, full" and r.both_seconds},
            {r.n: r.both_seconds for r in rivals if r.pattern == what and r.name == "jieyue" and r.both_seconds},
        )
        for what in dict.fromkeys(r.pattern for r in rivals)
    }
    return LinearBench(rate, tuple(goals), tuple(rivals), crossover, tuple(decoding))


def _tensors(n: int, device: str) -> list[Tensor]:
    """q, k, v that want gradients, and the gradient of out, [1, H, n, D] in [1, n, H, D] memory."""
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    made = [torch.randn(1, n, HEADS, DEPTH, device=device, dtype=dtype).transpose(1, 2) for _ in range(4)]
    return [*(x.requires_grad_() for x in made[:3]), made[3]]


def _calls(function: Attention, tensors: list[Tensor]) -> dict[str, Timed]:
    q, k, v, grad = tensors
    plain = [x.detach() for x in (q, k, v)]
    return {
        "forward": lambda: function(*plain),
        "both": lambda: torch.autograd.grad(function(q, k, v), (q, k, v), grad),
    }


def operations(n: int, causal: bool) -> tuple[int, int]:
    """(forward, forward and backward), counted as the module says."""
    forward = 2 * n * HEADS * (causal * 2 * CHUNK * DEPTH + 2 * DEPTH * DEPTH)
    backward = 2 * n * HEADS * (causal * 5 * CHUNK * DEPTH + 4 * DEPTH * DEPTH)
    return forward, forward + backward


def _goals(n: int, repeats: int, device: str) -> tuple[float, list[GoalRow]]:
    left, right = (torch.randn(1024, 1024, device=device) for _ in range(2))

    def product() -> None:
        for _ in range(10):
            left @ right

    tensors = _tensors(n, device)
    calls = {
        f"{name} {causal}": call
        for causal in (True, False)
        for name, call in _calls(linear("elu", causal), tensors).items()
    }
    seconds = median_seconds({"product": product} | calls, repeats)
    rate = 10 * 2 * 1024**3 / seconds["product"][0]
    held = sum(x.nbytes for x in tensors)
    rows = []
    for causal in (True, False):
        forward, both = (seconds[f"{name} {causal}"][0] for name in ("forward", "both"))
        first, second = (count / s / rate for count, s in zip(operations(n, causal), (forward, both), strict=True))
        peak = held + peak_bytes(calls[f"both {causal}"], device)
        rows.append(GoalRow(causal, n, forward, both, first, second, GOALS[causal], peak))
    return rate, rows


def _rivals(causal: bool, n: int, repeats: int, device: str) -> list[RivalRow]:
    tensors, what = _tensors(n, device), "linear(elu), causal" if causal else "linear(elu), all keys"
    ours = _row(what, n, "jieyue", linear("elu", causal), tensors, repeats, device)
    rows = [ours]
    for rival in LINEAR_RIVALS:
        try:
            made = rival.make(causal, n, device)
            if isinstance(made, str) or (rival.name == "SDPA, full" and device == "cpu" and n > _MOST_DENSE):
                reason = made if isinstance(made, str) else "it would take minutes"
                rows.append(RivalRow(what, n, rival.name, note=f"not measured: {reason}"))
                continue
            row = _row(what, n, rival.name, made, tensors, repeats, device)
        except Exception as error:  # another project's code: its failure is a finding, not ours to judge
            row = RivalRow(what, n, rival.name, note=f"not measured: {type(error).__name__}: {str(error)[:80]}")
        if row.both_seconds and ours.both_seconds:
            row = RivalRow(**vars(row) | {"both_times": row.both_seconds / ours.both_seconds})
        rows.append(row)
    return rows


def _row(
    what: str, n: int, name: str, function: Attention, tensors: list[Tensor], repeats: int, device: str
) -> RivalRow:
    calls = _calls(function, tensors)
    taken = take_turns(calls, repeats, slow_seconds=SLOW_SECONDS, cold_seconds=COLD_SECONDS)
    middle = {key: statistics.median(values) for key, values in taken.items()}
    peak = peak_bytes(calls["both"], device)
    return RivalRow(what, n, name, forward_seconds=middle["forward"], both_seconds=middle["both"], peak_bytes=peak)


def _state_rows(contexts: Sequence[int], device: str) -> list[DecodingRow]:
    """Append and read of one token on 12 heads, after each context; all contexts in turn."""
    q, k, v, _ = (x.detach() for x in _tensors(64, device))
    one = [x[:, :, :1] for x in (q, k, v)]
    states, calls = [], {}

    def stepper(state: LinearState) -> Callable[[], None]:
        def step() -> None:
            for _ in range(50):
                state.append(one[1], one[2])
                state.read(one[0])

        return step

    with torch.no_grad():
        for context in contexts:
            state = LinearState.empty(k, v)
            for _ in range(context // 64):
                state.append(k, v)
            states.append(state)
            calls[str(context)] = stepper(state)
        seconds = median_seconds(calls, 9)
    return [
        DecodingRow("linear(elu), one layer's state", context, seconds[str(context)][4] / 50, state.nbytes)
        for context, state in zip(contexts, states, strict=True)
    ]


def _model_rows(attention: str, contexts: Sequence[int]) -> list[DecodingRow]:
    """Steps of a small Llama (4 layers, hidden 256) after each context; the prompt is read in one call."""
    from jieyue.hf.decoders import fresh_decoder

    rows = []
    model = fresh_decoder(attention, hidden=256, num_layers=4, num_heads=4, num_positions=max(contexts) + 128)
    for context in contexts:
        with torch.no_grad():
            found = model(torch.randint(3, 1000, (1, context)), use_cache=True, logits_to_keep=1)
            past, token, times = found.past_key_values, torch.tensor([[5]]), []
            for _ in range(24):
                start = time.perf_counter()
                model(token, past_key_values=past, use_cache=True)
                times.append(time.perf_counter() - start)
        rows.append(DecodingRow(f"{attention}, a model of 4 layers", context, sorted(times[4:])[10], past.nbytes))
    return rows
