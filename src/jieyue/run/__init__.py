"""Whole jobs by recipe: ``plan``, ``train``, ``evaluate``, ``doctor``. Joins recipes, planning, transformers and data."""

from .jobs import doctor, evaluate, plan, train
from .training import Course

__all__ = ["Course", "doctor", "evaluate", "plan", "train"]
