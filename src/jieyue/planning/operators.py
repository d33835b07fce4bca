"""What torch hands a dispatch mode: an operator and what it is called with, which torch itself leaves untyped."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, TypeAlias

from torch._ops import OpOverload

__all__ = ["Arguments", "Keywords", "Operator", "Result", "Types"]

Operator: TypeAlias = OpOverload
Types: TypeAlias = Collection[type]
Arguments: TypeAlias = tuple[Any, ...]  # tensors, numbers, lists of them
Keywords: TypeAlias = dict[str, Any]
Result: TypeAlias = Any  # a tensor, several, a number
