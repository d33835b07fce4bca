"""The waterfall: every row keeps the ones above, the exact come first, measured equals predicted, too large is not run."""

import math
from itertools import pairwise

import pytest
from transformers import BertConfig

from jieyue.bench.memory import measure_waterfall, steps_of
from jieyue.errors import InputError
from jieyue.planning.subject import Subject
from jieyue.report import Report, Table

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def subject(head="masked-lm"):
    return Subject(config=BertConfig(vocab_size=2000, max_position_embeddings=64, **SIZES), head=head, positions=32)


def test_each_step_adds_one_thing_and_keeps_the_rest():
    steps = steps_of(subject(), 8, 2, attention="local(4)")
    assert [setting.exact for _, setting in steps] == sorted((setting.exact for _, setting in steps), reverse=True)
    for (_, before), (_, after) in pairwise(steps):
        assert sum(vars(before)[name] != vars(after)[name] for name in vars(before)) == 1
    assert not any(setting.chunked for _, setting in steps_of(subject("classification"), 8, 2))
    with pytest.raises(InputError, match="1 to effective_batch=8"):
        steps_of(subject(), 8, 9)


@pytest.mark.slow
def test_measured_as_predicted_and_what_is_too_large_is_not_run():
    steps = steps_of(subject(), 8, 2, approximate=False)
    peaks = measure_waterfall(subject(), steps, 8, largest_bytes=0)
    assert all(step.measured_bytes is None and step.kind == "predicted" for step in peaks.steps)
    between = (peaks.steps[0].predicted_bytes + peaks.steps[1].predicted_bytes) // 2
    assert peaks.steps[1].predicted_bytes < between
    said = []
    found = measure_waterfall(subject(), steps[:3], 8, largest_bytes=between, say=said.append)
    assert [step.kind == "predicted" for step in found.steps] == [True, False, False] and len(said) == 3
    for step in found.steps[1:]:
        assert step.predicted_bytes == pytest.approx(step.measured_bytes, rel=0.01)
    report = Report("any")
    found.tell(report)
    text = report.markdown()
    assert "| predicted (beyond the limit, not run) |" in text and "tokens/s" in text
    peaks, rates = report.pictures()
    kinds = {series.name: [math.isfinite(y) for y in series.y] for series in peaks.series}
    assert kinds == {"measured": [False, True, True], "predicted": [True, False, False]}
    assert [series.name for series in rates.series] == ["measured"] and len(rates.series[0].y) == 2
    table = next(item for item in report.sections[0].items if isinstance(item, Table))
    changes = [row[2] for row in table.rows]
    assert changes == [0, *(after.peak_bytes - before.peak_bytes for before, after in pairwise(found.steps))]
