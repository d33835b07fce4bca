"""Ctrl-C that arrives where it can do no harm: at once while weights are untouched, else after the running update."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

__all__ = ["Interrupted", "Interrupts"]


class Interrupted(KeyboardInterrupt):
    """Training was stopped by Ctrl-C; ``checkpoint`` is the folder that ``resume_from_checkpoint`` continues from."""

    def __init__(self, checkpoint: Path | None) -> None:
        super().__init__(f"stopped; the checkpoint is {checkpoint}")
        self.checkpoint = checkpoint


class Interrupts:
    """As a ``with`` block: the first SIGINT sets ``asked`` (or raises, inside ``immediate()``), the second always raises."""

    def __init__(self) -> None:
        self.asked = False
        self._immediate = False
        self._previous: Any = None

    def __enter__(self) -> Interrupts:
        self.asked = False
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None

    @contextmanager
    def immediate(self, enabled: bool = True) -> Iterator[None]:
        """Where stopping needs no waiting: nothing has been changed yet that a restart would miss."""
        self._immediate = enabled
        try:
            if enabled and self.asked:
                raise KeyboardInterrupt
            yield
        finally:
            self._immediate = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked or self._immediate:
            raise KeyboardInterrupt
        self.asked = True
