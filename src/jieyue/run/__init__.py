"""Whole jobs by recipe: ``plan``, ``train``, ``evaluate``, ``doctor``. Joins recipes, planning, transformers and data."""

from .jobs import doctor, evaluate, plan, read, train
from .training import Course, Materials, default_settings

__all__ = ["Course", "Materials", "default_settings", "doctor", "evaluate", "plan", "read", "train"]
