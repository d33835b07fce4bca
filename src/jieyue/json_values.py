"""JSON values by name: what is measured, kept in a file, and read again."""

from __future__ import annotations

from typing import Any

__all__ = ["Facts"]

Facts = dict[str, Any]
