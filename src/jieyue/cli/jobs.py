"""What the verbs train, plan and doctor do, whatever the recipe: run it, show its report."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import typer

from jieyue.budget import Budget

from .bundles import Planning, Running
from .console import Door, show

__all__ = ["examine", "plan_recipe", "train_recipe"]


def train_recipe(recipe: str, materials: Any, course: Any, out: Path, running: Running, *, then: str) -> None:
    """Trains and shows; ``then``: the command to try next, with {} for the folder."""
    from jieyue import run

    door = Door(running.as_json)
    try:
        report = run.train(
            recipe,
            materials,
            out,
            budget=Budget.parse(running.budget, running.device),
            course=course,
            resume=running.resume,
            command=shlex.join(["jieyue", *sys.argv[1:]]),
            watch=door,
        )
    except KeyboardInterrupt as stopped:
        door.say(f"{stopped or 'stopped before the first update'}; the same command with --resume goes on from there")
        raise typer.Exit(130) from None
    if not door.speaks:  # another process of the same torchrun reports
        return
    show(door, report, (*run.task(recipe).shown, "Memory", "Sharing"))
    door.fact("saved", model=str(out), report=str(out / "report.html"))
    if not running.as_json:
        place = shlex.quote(str(out))
        door.say(f"\nNext:\n  jieyue evaluate {place}\n  {then.format(place)}")


def plan_recipe(recipe: str, materials: Any, course: Any, planning: Planning) -> None:
    """Plans and shows."""
    from jieyue import run

    budget = Budget.parse(planning.budget, planning.device)
    show(Door(planning.as_json), run.plan(recipe, materials, budget=budget, course=course))


def examine(recipe: str, as_json: bool, **materials: Any) -> None:
    """Examines the data and shows what was found; ``materials``: fields of ``Materials``, files not given as None."""
    from jieyue import run

    files = {name: materials[name] or () for name in ("data", "held_out")}
    show(Door(as_json), run.doctor(recipe, run.Materials(**(materials | files))))
