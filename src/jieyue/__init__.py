"""jieyue (节约): Transformers on a budget. Every saving is proven exact, or its price is measured.

The names below are the whole public face; each is imported from its module on first use, so ``import jieyue`` costs
milliseconds and imports neither torch nor transformers.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_FACE = {
    "AccumulatedOptimizer": "jieyue.training.optimizer",
    "Budget": "jieyue.budget",
    "EffectiveBatchTrainer": "jieyue.hf.trainer",
    "Plan": "jieyue.budget",
    "Report": "jieyue.report",
    "RunConfig": "jieyue.tasks.config",
    "Tally": "jieyue.tally",
    "TrainingConfig": "jieyue.run.config",
    "accumulate": "jieyue.training.accumulation",
    "atrous": "jieyue.attention",
    "attend": "jieyue.attention",
    "attend_linear": "jieyue.linear",
    "compare": "jieyue.run.comparison",
    "evaluate": "jieyue.run.jobs",
    "fgm": "jieyue.training.remedies.adversarial",
    "first": "jieyue.attention",
    "fit_activation": "jieyue.activations",
    "full": "jieyue.attention",
    "gelu": "jieyue.activations",
    "global_tokens": "jieyue.attention",
    "load": "jieyue.hf.loading",
    "local": "jieyue.attention",
    "parse_pattern": "jieyue.attention",
    "plan": "jieyue.run.in_hand",
    "predict": "jieyue.run.predict",
    "push": "jieyue.run.push",
    "replace_tokens": "jieyue.training.remedies.replacement",
    "reshare": "jieyue.hf.albert",
    "sparse": "jieyue.attention",
    "sparsify": "jieyue.run.in_hand",
    "train": "jieyue.run.in_hand",
    "unshare": "jieyue.hf.albert",
    "use": "jieyue.hf.use",
    "verify": "jieyue.bench.verify",
}

_INSIDE = {"fit_activation": "fit", "parse_pattern": "parse"}  # what their own rooms call them
_EARLIER = {"Course": "TrainingConfig", "Materials": "RunConfig", "fit": "fit_activation", "parse": "parse_pattern"}

__all__ = ["__version__", *_FACE]


def __getattr__(name: str) -> Any:
    if name in _EARLIER:
        raise AttributeError(f"module 'jieyue' has no attribute {name!r}; it is called {_EARLIER[name]} now")
    if name not in _FACE:
        from .errors import near

        hint = near(name, _FACE)
        raise AttributeError(f"module 'jieyue' has no attribute {name!r}{hint}; it has {', '.join(_FACE)}")
    return getattr(import_module(_FACE[name]), _INSIDE.get(name, name))


def __dir__() -> list[str]:
    return sorted({*globals(), *_FACE})
