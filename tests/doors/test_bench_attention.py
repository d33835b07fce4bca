"""The benchmark of attention at small sizes: every part gives its rows, and what did not run says why in place of a number."""

import pytest

from jieyue.bench import attention as bench
from jieyue.bench.attention import Cell, bench_attention
from jieyue.bench.rivals import RIVALS


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(bench, "DENSE_ROWS", 256)
    monkeypatch.setattr(bench, "CELLS", (Cell("local(16)", 512, 0.0, 0.0), Cell("causal(sparse(8))", 512, 99.0, None)))
    monkeypatch.setattr(bench, "RIVAL_CELLS", (("local(16)", 256),))
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


def test_the_report_says_what_was_not_measured(small):
    text = bench_attention(parts=("shares",), repeats=1).report().markdown()
    cuda = text[text.index("On CUDA") :]
    assert cuda.count("not measured") >= 4 * 3 and "causal(sparse(64, 256))" in cuda


def test_curves_become_two_pictures(small):
    report = bench_attention(parts=("curves",), repeats=1, lengths=(64, 128)).report()
    titles = [picture.title for picture in report.pictures()]
    assert any("time against N" in title for title in titles) and any("peak memory" in title for title in titles)


def test_unknown_parts_are_refused():
    with pytest.raises(ValueError, match="expected some of long, shares"):
        bench_attention(parts=("speed",))
