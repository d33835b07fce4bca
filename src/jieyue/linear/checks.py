"""Maps that cannot do what is asked of linear attention; its tensors are checked as ``attention.checks`` does."""

from __future__ import annotations

from jieyue.errors import InputError

from .features import FeatureMap

__all__ = ["refuse_positions"]


def refuse_positions(asked: str, features: FeatureMap, why: str) -> None:
    """``InputError`` for a map that normalises each key over all positions, where these cannot be known."""
    if features.over_positions:
        raise InputError(
            f"{asked} with features={features.name!r}, expected a map of each key alone: this one normalises each key over all "
            f"positions, so {why}; use elu, relu, cosine or taylor2"
        )
