"""Where little room is left: a wall under tcmalloc; under glibc the faster of two exact plans is taken, and tcmalloc is named."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from test_planning import Reader, objective, step_of

from jieyue import timer
from jieyue.budget import Budget
from jieyue.hf.updates import Updates
from jieyue.hf.work import Work
from jieyue.planning.choice import choose
from jieyue.planning.setting import Setting
from jieyue.run import little_room
from jieyue.run.config import TrainingConfig
from jieyue.run.plan import RunPlan
from jieyue.training.microbatch import MicroBatch

MIB = 2**20
TRAINING = TrainingConfig(effective_batch=12)


@pytest.fixture(scope="module")
def tight():
    step = step_of(length=64, build_model=lambda: Reader(layers=1))
    whole = choose(step, Budget(), effective_batch=12, fixed_bytes=50 * MIB)
    budget = Budget(memory_bytes=whole.predicted.process_bytes + MIB)
    plan = choose(step, budget, effective_batch=12, fixed_bytes=50 * MIB)
    planned = RunPlan(plan, budget, step, Setting(micro_batch=plan.micro_batch))
    assert planned.tight and plan.micro_batch == 12
    return planned


@pytest.fixture
def told(monkeypatch):
    """What malloc is told, in order; the malloc itself is left as it is."""
    found = []
    monkeypatch.setattr(little_room, "give_back_freed_memory", lambda: found.append("gives back") or True)
    monkeypatch.setattr(little_room, "keep_freed_memory", lambda: found.append("keeps") or True)
    monkeypatch.setattr(little_room, "malloc_name", lambda: "glibc")
    return found


@pytest.mark.parametrize(("kept", "back", "roomy"), [(1.0, 1.5, True), (1.5, 1.0, False)])
def test_the_faster_of_two_exact_plans_is_taken(tight, told, kept, back, roomy):
    asked, lines = [], []

    def timed(step, plan):
        assert lines == [
            f"Little room is left: timing pieces of 12 and of {(asked or [[plan.micro_batch]])[0][0]} rows"
        ]
        asked.append((plan.micro_batch, list(told)))
        return kept if plan.micro_batch < 12 else back

    found, said = little_room.settled(tight, TRAINING, timed, lines.append)
    assert asked[0][0] < 12 and asked[0][1] == []  # timed before malloc is told anything
    assert asked[1] == (12, ["gives back"])
    assert told == (["gives back", "keeps"] if roomy else ["gives back"])
    assert found.tight is not roomy and (found.plan.micro_batch < 12) is roomy
    assert found.way.micro_batch == found.plan.micro_batch and found.plan.exact
    assert found.plan.predicted.process_bytes <= tight.budget.memory_bytes
    assert f"pieces of {asked[0][0]} that" in said and "libtcmalloc" in said and "1.5 s" in said


def test_what_is_not_asked_keeps_the_plan(tight, told, monkeypatch):
    def timed(step, plan):
        pytest.fail("timed")

    roomy = replace(tight, budget=Budget(memory_bytes=10 * tight.budget.memory_bytes))
    assert little_room.settled(roomy, TRAINING, timed) == (roomy, "") and told == []
    own = replace(TRAINING, plan=tight.plan)  # a plan that was given is obeyed
    assert little_room.settled(tight, own, timed)[0] is tight and told == ["gives back"]
    of_a_gpu = replace(tight, budget=replace(tight.budget, device="cuda"))
    assert little_room.settled(of_a_gpu, TRAINING, timed) == (of_a_gpu, "") and told == ["gives back"]


@pytest.mark.parametrize(("room", "rows"), [(0.3, 12), (0.0, 6)])
def test_tcmalloc_keeps_below_a_wall(tight, told, monkeypatch, room, rows):
    monkeypatch.setattr(little_room, "malloc_name", lambda: "tcmalloc")
    cost = tight.plan.predicted
    allowed = cost.process_bytes + int(room * cost.peak_bytes)
    monkeypatch.setattr(little_room, "LIBRARIES_BYTES", aside := 2**16)
    planned = replace(tight, budget=Budget(memory_bytes=allowed))
    found, said = little_room.settled(planned, TRAINING, pytest.fail)
    assert told == ["gives back"] and found.wall_bytes == allowed and "stays within" in said
    assert found.plan.micro_batch == found.way.micro_batch == rows and found.plan.exact
    kept = found.plan.predicted
    assert kept.process_bytes + little_room.HEADROOM * kept.peak_bytes + aside <= allowed

    own = replace(
        TRAINING, plan=tight.plan
    )  # a plan that was given is obeyed: below a wall where it leaves room for one
    obeyed, said = little_room.settled(planned, own, pytest.fail)
    assert obeyed.plan is planned.plan and obeyed.wall_bytes == (allowed if room else None)
    assert ("at once" in said) is not bool(room)


def test_seconds_are_of_the_whole_update(tight):
    plan = replace(tight.plan, micro_batch=4)
    one, whole = (little_room.update_seconds(tight.step, each) for each in (replace(plan, effective_batch=4), plan))
    assert 0 < one < whole < 30 * one


@pytest.mark.parametrize(("seconds", "passes"), [(0.5, 3), (4.0, 2), (60.0, 1)])
def test_a_piece_that_takes_long_is_not_run_again_and_again(tight, monkeypatch, seconds, passes):
    run = []
    monkeypatch.setattr(timer, "timed", lambda call: run.append(call) or seconds)
    plan = replace(tight.plan, micro_batch=4, effective_batch=12)
    assert little_room.update_seconds(tight.step, plan) == 3 * seconds
    assert len(run) == passes


@pytest.mark.filterwarnings("ignore:out of memory")
def test_a_wall_that_leaves_no_room_is_taken_down_and_changes_nothing(monkeypatch):
    step = step_of(length=16, dropout=0.1)
    asked, inside = [], []

    @contextmanager
    def walled(num_bytes):
        asked.append(num_bytes)
        inside.append(True)
        try:
            yield
        finally:
            inside.pop()

    def refused(model, batch):
        tally = objective(model, batch)  # draws dropout, as a pass that runs out of memory has
        if inside:
            raise MemoryError
        return tally

    def gradients(wall_bytes, objective):
        torch.manual_seed(0)
        model, batch = step.build_model().train(), step.example_batch(4, 16)
        work = Work(objective=objective, rows=[], collate=dict, batches=[], micro_batch=2, wall_bytes=wall_bytes)
        updates = Updates(work, MicroBatch(2), 1.0)
        updates.accumulated(model, batch, torch.Tensor.backward, False)
        return updates, [parameter.grad for parameter in model.parameters()]

    whole = gradients(None, objective)[1]
    monkeypatch.setattr("jieyue.hf.updates.walled", walled)
    with pytest.warns(UserWarning, match="the budget may be passed"):
        updates, found = gradients(2**30, refused)
    assert asked == [2**30] and updates.wall_bytes is None and updates.micro.rows == 2
    assert all(map(torch.equal, found, whole))
