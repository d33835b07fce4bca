"""The benchmark of attention at small sizes: every part gives its rows, and what did not run says why in place of a number."""

import time

import pytest

from jieyue.attention import first, local
from jieyue.bench import attention as bench
from jieyue.bench.attention import Cell, bench_attention
from jieyue.bench.attention_rows import joined
from jieyue.bench.linear_rivals import LINEAR_CURVES
from jieyue.bench.rivals import RIVALS, local_window
from jieyue.report import Report
from jieyue.timer import take_turns


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(bench, "DENSE_ROWS", 256)
    monkeypatch.setattr(bench, "CELLS", (Cell("local(16)", 512, 0.0, 0.0), Cell("causal(sparse(8))", 512, 99.0, None)))
    monkeypatch.setattr(bench, "RIVAL_CELLS", (("local(16)", 256),))
    monkeypatch.setattr(bench, "WORN_ROWS", 512)
    monkeypatch.setattr(bench, "LONG", ("local(16)", 2048, 6 * 2**30))
    monkeypatch.setattr(bench, "RIVALS", tuple(rival for rival in RIVALS if "Flex" not in rival.name))  # it compiles


def test_every_row_is_a_number_or_a_reason(small):
    found = bench_attention(parts=("long", "shares", "rivals"), repeats=2)
    assert [row.reached for row in found.shares] == [True, False]
    assert all(row.forward_share > 0 and row.both_seconds > 0 for row in found.shares)
    assert found.long is not None and 4 * 2048 * 12 * 64 * 8 <= found.long.tensor_bytes < found.long.allowed_bytes
    rows = {row.name: row for row in found.rivals}
    assert rows["jieyue"].forward_times == rows["jieyue"].both_times == 1.0
    for name in ("flash-attn", "NATTEN"):
        assert rows[name].forward_seconds is None and "runs on CUDA only" in rows[name].note
    for name in ("SDPA, full", "SDPA, dense mask", "Longformer (transformers)"):
        assert rows[name].both_seconds > 0 and rows[name].peak_bytes > rows["jieyue"].peak_bytes / 2


def test_what_is_worn_has_a_rate_and_a_goal(small):
    found = bench_attention(parts=("worn",), repeats=1)
    assert {"sinks", "softcap", "offset_bias"} < {row.what for row in found.worn} and len(found.worn) == 7
    assert all(row.forward > 0 and row.both > 0 and row.both_goal > 0 for row in found.worn)
    text = found.report().markdown()
    assert "What real models wear" in text and "8 of 16 packed" in text


def test_rivals_without_first_keys_say_so():
    assert local_window(local(4)) == (4, False) and local_window(first(2) | local(4)) is None
    made = next(rival for rival in RIVALS if "Flex" in rival.name).make(first(2) | local(4), 512, "cpu")
    assert made == "its blocks are made for bands alone"


def test_the_report_says_what_was_not_measured(small):
    text = bench_attention(parts=("shares",), repeats=1).report().markdown()
    cuda = text[text.index("On CUDA") :]
    assert cuda.count("not measured") >= 4 * 3 and "causal(sparse(64, 256))" in cuda


def test_curves_become_two_pictures(small):
    found = bench_attention(parts=("curves",), repeats=1, lengths=(64, 128))
    rows = {(row.name, row.n): row for row in found.curves}
    for name in (*bench.CURVES, *LINEAR_CURVES, "SDPA, full", "SDPA, dense mask"):
        assert all(rows[name, n].both_seconds > 0 and rows[name, n].peak_bytes > 0 for n in (64, 128)), name
    report = found.report()
    titles = [picture.title for picture in report.pictures()]
    assert any("time against N" in title for title in titles) and any("peak memory" in title for title in titles)


def test_a_point_of_a_curve_that_would_take_minutes_is_left_out(small, monkeypatch):
    assert bench._forecast({}, 64) == 0.0 and bench._forecast({100: 1.0}, 200) == 4.0
    assert bench._forecast({100: 1.0, 200: 2.0}, 800) == pytest.approx(8.0)
    monkeypatch.setattr(bench, "_MOST_FORECAST", 0.0)
    found = bench_attention(parts=("curves",), repeats=1, lengths=(64, 128))
    assert all(row.both_seconds for row in found.curves if row.n == 64)
    assert all(row.both_seconds is None and "left out" in row.note for row in found.curves if row.n == 128)
    assert "predicted" in found.report().markdown()


def test_a_run_of_some_parts_keeps_the_others(small):
    earlier = bench_attention(parts=("shares", "long"), repeats=1).report()
    again = bench_attention(parts=("long",), repeats=2).report()
    both = joined(earlier, again)
    assert [section.title for section in both.sections] == ["Against dense attention", "A long sequence"]
    assert both.sections[0] == earlier.sections[0] and both.sections[1] == again.sections[0]
    assert "1 repeats" in both.sections[0].items[0].value and "2 repeats" in both.sections[1].items[0].value
    with pytest.raises(ValueError, match="name another folder"):
        joined(Report("Attention on this machine", about="cuda"), again)


def test_a_cold_first_call_is_no_slow_call():
    waits = iter([0.06, 0.0, 0.0, 0.0])
    found = take_turns(
        {"warm": lambda: time.sleep(next(waits)), "slow": lambda: time.sleep(0.06)},
        2,
        slow_seconds=0.05,
        cold_seconds=1.0,
    )
    assert len(found["warm"]) == 2 and max(found["warm"]) < 0.05 and len(found["slow"]) == 1


def test_what_makes_ready_is_done_before_each_call_and_is_not_timed():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    before = {name: lambda name=name: (time.sleep(0.02), order.append(f"ready {name}")) for name in "ab"}
    found = take_turns(calls, 2, before=before)
    assert order == ["ready a", "a", "ready b", "b"] * 3
    assert all(len(own) == 2 and min(own) < 0.02 for own in found.values())


def test_unknown_parts_are_refused():
    with pytest.raises(ValueError, match="expected some of shares"):
        bench_attention(parts=("speed",))
