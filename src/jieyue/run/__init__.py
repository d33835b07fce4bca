"""Whole jobs by recipe: ``plan``, ``train``, ``evaluate``, ``doctor``. Joins recipes, planning, transformers and data."""

from .comparison import Variant, compare
from .jobs import doctor, evaluate, plan, train
from .tasks import TASKS, Task, task
from .values import Course, Materials

__all__ = ["TASKS", "Course", "Materials", "Task", "Variant", "compare", "doctor", "evaluate", "plan", "task", "train"]
