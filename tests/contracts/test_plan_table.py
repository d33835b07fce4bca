"""The table of a plan: exact first, every row fits, the chosen settings cost what was predicted, the floor is named."""

import json
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from transformers import BertConfig, GPT2Config, T5Config, ViTConfig

from jieyue.budget import Budget, Cost
from jieyue.errors import BudgetError, InputError, MissingExtra
from jieyue.hf.depth import num_layers, with_layers
from jieyue.planning import bfloat16, calibration, measurement, prediction, search
from jieyue.planning.calibration import Calibration, through_depths
from jieyue.planning.measurement import measure_alone, measure_step
from jieyue.planning.prediction import predict
from jieyue.planning.setting import OPTIMIZERS, Setting
from jieyue.planning.subject import Subject
from jieyue.planning.table import feasible, kinds
from jieyue.run.any_model import open_subject, plan_model, plan_subject
from jieyue.training.accumulation import accumulate
from jieyue.training.techniques import APPROXIMATE, OTHER, UPDATES, technique

MIB = 2**20
SIZES = {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": 1000}


def bert(**changes):
    return BertConfig(intermediate_size=256, max_position_embeddings=64, **(SIZES | changes))


def subject(head="masked-lm", positions=32, **changes):
    return Subject(config=bert(**changes), head=head, positions=positions)


def gpt2():
    config = GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=64, vocab_size=500)
    return Subject(config=config, head="causal-lm", positions=32)


def warm_peak(step, setting, effective):
    """Measured, in the second update."""
    model = step.build_model().train()
    optimizer, batch = step.make_optimizer(model), step.example_batch(effective, step.length)
    accumulate(step.objective, model, batch, micro_batch=setting.plan(effective))
    optimizer.step()
    optimizer.zero_grad()
    return measure_step(step.objective, model, batch, optimizer, micro_batch=setting.plan(effective), weigh=step.weigh)


FAST = [
    (subject, Setting(micro_batch=2, chunked=True)),
    (subject, Setting(micro_batch=2, chunked=True, checkpointing=True, dtype="bfloat16", optimizer="adafactor")),
    (lambda: subject("classification"), Setting(micro_batch=4, checkpointing=True)),
    (gpt2, Setting(micro_batch=3, chunked=True, optimizer="momentum", in_backward=True)),
]
SLOW = [
    (subject, Setting(micro_batch=2)),
    (subject, Setting(micro_batch=2, chunked=True, checkpointing=True)),
    (subject, Setting(micro_batch=2, optimizer="adafactor")),
    (subject, Setting(micro_batch=2, dtype="bfloat16")),
    (subject, Setting(micro_batch=2, attention="local(4)", optimizer="momentum")),
    (gpt2, Setting(micro_batch=3, chunked=True)),
    (subject, Setting(micro_batch=2, optimizer="momentum", in_backward=True)),
    (subject, Setting(micro_batch=2, chunked=True, checkpointing=True, in_backward=True)),
]


@pytest.mark.parametrize(
    ("make", "setting"),
    FAST + [pytest.param(*case, marks=pytest.mark.slow) for case in SLOW],
)
def test_every_setting_costs_what_is_predicted(make, setting):
    found, effective = make(), 6
    step = found.step(setting)
    cost = predict(
        step, effective_batch=effective, micro_batch=setting.micro_batch, checkpointing=setting.checkpointing
    )
    measured = warm_peak(step, setting, effective)
    assert cost.peak_bytes == pytest.approx(measured, rel=0.01)
    other = predict(step, effective_batch=effective, micro_batch=1, checkpointing=not setting.checkpointing)
    assert other.peak_bytes != pytest.approx(measured, rel=0.01)  # the broken twin


def test_gradients_of_a_tied_embedding_meet_in_place(monkeypatch):
    """The chunked loss's and the embedding's are summed into the first; the broken twin counts the sum besides."""
    setting = Setting(micro_batch=2, chunked=True, checkpointing=True)
    step = subject(vocab_size=8000).step(setting)
    measured = warm_peak(step, setting, 4)
    how = {"effective_batch": 4, "micro_batch": 2, "checkpointing": True}
    assert predict(step, **how).peak_bytes == pytest.approx(measured, rel=0.01)
    monkeypatch.setattr(prediction, "sole_owner", lambda: None)
    assert predict(step, **how).peak_bytes > 1.1 * measured


@pytest.mark.slow
def test_the_table_is_sorted_and_fits(monkeypatch):
    seconds = {False: 2.0, True: 1.0}  # chunked is quicker here
    monkeypatch.setattr(Calibration, "seconds", lambda self, setting, rows: seconds[setting.chunked])
    half, fixed = predict(subject().step(Setting(micro_batch=8)), effective_batch=16, micro_batch=8), 100 * MIB
    budget = Budget(memory_bytes=fixed + half.peak_bytes)
    settings = list(kinds(subject(), optimizer="adamw"))
    found = feasible(subject(), budget, effective_batch=16, settings=settings, fixed_bytes=fixed)
    assert found.rows and all(row.cost.process_bytes <= budget.memory_bytes for row in found.rows)
    keys = [(not row.setting.exact, row.cost.seconds) for row in found.rows]
    assert keys == sorted(keys) and keys[0] == (False, 1.0) and keys[-1][0]
    shown = {(row.setting.chunked, row.setting.checkpointing) for row in found.rows if row.setting.exact}
    assert len(shown) >= 2
    for row in found.rows:
        parts = (row.cost.weight_bytes, row.cost.gradient_bytes, row.cost.optimizer_bytes, row.cost.activation_bytes)
        assert sum(parts) + row.cost.temporary_bytes == row.cost.peak_bytes
        whole = -(-16 // row.setting.micro_batch)
        assert row.setting.plan(16).pieces == whole


def test_the_third_trace_checks_the_line(monkeypatch):
    """Where the peak is not below the line (a broken twin of convexity), the search goes on until something fits."""
    asked = []

    def concave(step, *, effective_batch, micro_batch, checkpointing=False):
        asked.append(micro_batch)
        return Cost(peak_bytes=int(100 * micro_batch**0.5))

    monkeypatch.setattr(search, "predict", concave)
    only = [Setting(micro_batch=1)]
    row = feasible(
        subject(), Budget(memory_bytes=200), effective_batch=16, settings=only, fixed_bytes=0, timed=False
    ).rows[0]
    assert row.cost.peak_bytes <= 200 and row.setting.micro_batch == 4
    asked.clear()
    monkeypatch.setattr(
        search, "predict", lambda *_, micro_batch, **__: asked.append(micro_batch) or Cost(peak_bytes=10 * micro_batch)
    )
    row = feasible(
        subject(), Budget(memory_bytes=80), effective_batch=16, settings=only, fixed_bytes=0, timed=False
    ).rows[0]
    assert row.setting.micro_batch == 8 and len(asked) == 3


def test_checkpointing_is_left_out_where_all_fits():
    settings = list(kinds(subject(), optimizer="adamw", dtype="float32"))
    found = feasible(subject(), Budget(), effective_batch=2, settings=settings, fixed_bytes=0, timed=False)
    assert not any(row.setting.checkpointing for row in found.rows)
    assert {why for _, why in found.rejected} == {"not needed: the whole batch fits without it"}


def test_the_floor_is_named():
    only = [Setting(micro_batch=1)]
    with pytest.raises(BudgetError, match=r"Floor for any batch and length.*What would fit.*smaller model"):
        feasible(subject(), Budget(memory_bytes=MIB), effective_batch=4, settings=only, fixed_bytes=MIB)
    least = predict(subject().step(Setting(micro_batch=1)), effective_batch=4, micro_batch=1)
    held = least.weight_bytes + least.gradient_bytes + least.optimizer_bytes
    assert least.gradient_bytes > 0 and held < least.peak_bytes - 1
    with pytest.raises(BudgetError, match="shorter rows"):
        feasible(subject(), Budget(memory_bytes=held + 1), effective_batch=4, settings=only, fixed_bytes=0)


def test_kinds_try_one_approximation_at_a_time():
    found = list(kinds(subject(), attention="local(4)"))
    assert [kind.exact for kind in found[:4]] == [True] * 4 and not any(kind.exact for kind in found[4:])
    for kind in found[4:]:
        other = kind.optimizer != "adamw" or kind.in_backward
        assert (kind.attention is not None) + other + (kind.dtype != "float32") == 1
    assert {kind.update for kind in found if kind.optimizer == "momentum"} == {OTHER}
    assert {kind.update for kind in found if kind.optimizer == "adamw" and kind.in_backward} == {APPROXIMATE}
    with pytest.raises(InputError, match="momentum, adamw"):
        Setting(micro_batch=1, optimizer="adafactor", in_backward=True)
    assert not any(kind.chunked for kind in kinds(subject("classification")))


def test_kinds_of_one_optimizer_and_dtype_alone(monkeypatch):
    found = list(kinds(subject(), optimizer="adafactor", dtype="bfloat16", attention="local(4)"))
    assert {(kind.optimizer, kind.dtype) for kind in found} == {("adafactor", "bfloat16")}
    assert {kind.in_backward for kind in found} == {False} and {kind.attention for kind in found} == {None, "local(4)"}
    assert {kind.in_backward for kind in kinds(subject(), optimizer="momentum")} == {False, True}
    assert {kind.optimizer for kind in kinds(subject(), dtype="float32")} >= {"adamw", "adafactor", "momentum"}
    for bad in ({"optimizer": "lion"}, {"dtype": "int8"}):
        with pytest.raises(InputError, match="one of"):
            list(kinds(subject(), **bad))
    choice = replace(OPTIMIZERS["adamw-8bit"], package="not_installed_anywhere")
    monkeypatch.setitem(OPTIMIZERS, "adamw-8bit", choice)
    with pytest.raises(MissingExtra, match="not_installed_anywhere"):
        list(kinds(subject(), optimizer="adamw-8bit"))


@pytest.mark.slow
def test_updates_in_backward_come_where_the_budget_needs_them():
    """No gradient is kept: under the accumulating settings' floor there is room for them; with room for all they go."""
    settings = list(kinds(subject(), optimizer="adamw", dtype="float32"))
    settings += [kind for kind in kinds(subject(), optimizer="momentum", dtype="float32") if kind.in_backward]
    least = [predict(subject().step(kind), effective_batch=8, micro_batch=1, checkpointing=kind.checkpointing)
             for kind in settings if kind.checkpointing and not kind.in_backward]  # fmt: skip
    budget = Budget(memory_bytes=min(cost.peak_bytes for cost in least) - 1)
    found = feasible(subject(), budget, effective_batch=8, settings=settings, fixed_bytes=0, timed=False)
    rows = found.rows
    assert rows and all(row.setting.in_backward and row.cost.process_bytes <= budget.memory_bytes for row in rows)
    assert {row.setting.optimizer for row in rows} == {"momentum", "adamw"}
    assert [row.setting.update for row in rows] == sorted((row.setting.update for row in rows), key=UPDATES.index)
    ample = feasible(subject(), Budget(), effective_batch=2, settings=settings, fixed_bytes=0, timed=False)
    assert not any(row.setting.in_backward for row in ample.rows)


def test_an_update_in_backward_is_timed_and_run_as_it_is():
    """Calibration and measurement fold too: nothing is left in ``.grad``."""
    setting = Setting(micro_batch=2, optimizer="momentum", in_backward=True)
    step = subject(num_hidden_layers=2).step(setting)
    assert Calibration(subject(num_hidden_layers=2)).seconds(setting, 4) > 0
    model, _, update = measurement.update_of(step, setting, 4)
    before = [parameter.clone() for parameter in model.parameters()]
    update()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not all(map(torch.equal, before, model.parameters()))


def test_seconds_come_from_two_depths(monkeypatch):
    """A layer of 2 s, the rest 1 s, an update of 0.25 s a layer: three pieces of a model of 7 layers."""
    monkeypatch.setattr(calibration, "_piece_seconds", lambda step, setting: 1 + 2 * num_layers(depth(step)))
    monkeypatch.setattr(calibration, "_update_seconds", lambda step, setting: 0.25 * num_layers(depth(step)))
    found = Calibration(subject(num_hidden_layers=7)).seconds(Setting(micro_batch=4), 12)
    assert found == pytest.approx(3 * 15 + 7 * 0.25)
    assert through_depths((1, 2.0), (3, 1.0), 12) == 2.0  # noise never makes a deeper model quicker


def depth(step):
    with torch.device("meta"):
        return step.build_model().config


def test_layer_lists_are_cut():
    config = bert()
    config.layer_types = ["a", "b", "c"]
    shallow = with_layers(config, 2)
    assert (shallow.num_hidden_layers, shallow.layer_types, num_layers(config)) == (2, ["a", "b"], 3)
    assert num_layers(with_layers(GPT2Config(n_layer=4), 1)) == 1


@pytest.mark.slow
def test_a_process_of_its_own():
    setting = Setting(micro_batch=2, chunked=True)
    found = measure_alone(subject(), setting, 4)
    cost = predict(subject().step(setting), effective_batch=4, micro_batch=2)
    assert cost.peak_bytes == pytest.approx(found.peak_bytes, rel=0.01)
    assert found.process_bytes > found.fixed_bytes > 50 * MIB and found.seconds > 0
    assert measure_alone(subject(), setting, 4, timed=False).seconds is None


class Heard:
    def __init__(self):
        self.said, self.counts = [], {}

    def say(self, line):
        self.said.append(line)

    @contextmanager
    def progress(self, what):
        yield lambda done, total, facts: self.counts.setdefault(what, []).append((done, total))


def test_slow_calls_are_not_repeated_at_length(monkeypatch):
    """The fault: of a real model every call took seconds, and each was made five times."""
    for enough, calls in ((0.0, 3), (3600.0, 9)):
        asked = []
        monkeypatch.setattr(calibration, "ENOUGH_SECONDS", enough)
        assert calibration._seconds(lambda asked=asked: asked.append(1)) >= 0 and len(asked) == calls


def test_plan_of_a_folder_with_a_configuration_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(Calibration, "seconds", lambda *_: 1.0)
    bert(architectures=["BertForMaskedLM"]).save_pretrained(tmp_path)
    heard = Heard()
    planned = plan_subject("bert", open_subject(str(tmp_path), length=16), effective_batch=4, listener=heard)
    count = len(list(kinds(planned.subject)))
    assert heard.said == [f"Planning: {count} kinds of setting are traced, and those that fit are timed"], "the silence"
    assert heard.counts["tracing settings"][-1] == (count, count)
    assert heard.counts["timing settings"][-1] == (len(planned.table.rows),) * 2
    text = planned.report().markdown()
    assert "cheapest exact first" in text and "chunked" in text
    named = {one.name for row in planned.table.rows for one in row.setting.techniques}
    assert named and all(technique(name).where in text.replace("\\_", "_") for name in named)
    values = json.loads(planned.report().json())
    assert values["sections"]
    with pytest.raises(InputError, match="65"):
        plan_model(str(tmp_path), length=65)
    with pytest.raises(InputError, match="prefix"):
        plan_model(str(tmp_path), length=16, head="prefix")


def test_images_and_encoder_decoders_are_planned_by_their_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(Calibration, "seconds", lambda *_: 1.0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    folders = {
        "image-classification": ViTConfig(
            image_size=32, patch_size=8, architectures=["ViTForImageClassification"], **sizes
        ),
        "sequence-to-sequence": T5Config(
            d_model=32,
            d_kv=16,
            d_ff=64,
            num_layers=1,
            num_heads=2,
            vocab_size=99,
            architectures=["T5ForConditionalGeneration"],
        ),
    }
    for head, config in folders.items():
        config.save_pretrained(tmp_path / head)
        planned = plan_model(str(tmp_path / head), effective_batch=2, settings=lambda _: [Setting(micro_batch=1)])
        assert planned.subject.head == head and planned.table.rows and planned.bfloat16 is None
    assert planned.subject.positions == 128


def test_bfloat16_is_priced_here(monkeypatch):
    """Where it is emulated, the plan says slower; the ratio is of times that were measured."""
    assert 0.02 < bfloat16.bfloat16_price().ratio < 50
    monkeypatch.setattr(bfloat16, "take_turns", lambda calls, turns: {"float32": [2.0, 1.0], "bfloat16": [3.0, 2.5]})
    assert bfloat16.bfloat16_price().ratio == 2.5 and "emulated" in bfloat16.bfloat16_price().text
    assert "emulated" not in bfloat16.Bfloat16Price(0.5).text


def test_lengths_of_a_file_are_used(tmp_path, monkeypatch):
    monkeypatch.setattr(Calibration, "seconds", lambda *_: 1.0)
    texts = tmp_path / "texts.txt"
    texts.write_text("a word\nsome more words than that\n\n", encoding="utf-8")
    planned = plan_model("tiny", data=texts, effective_batch=2)
    assert len(planned.rows.lengths) == 2 and planned.subject.positions == planned.rows.lengths[-1]
    assert "Lengths" in planned.report().text()


def test_unknown_names_are_refused():
    for bad in ({"optimizer": "lion"}, {"dtype": "int8"}):
        with pytest.raises(InputError, match="one of"):
            Setting(micro_batch=1, **bad)
    assert {name for name, one in OPTIMIZERS.items() if one.exact} == {"adamw"}
