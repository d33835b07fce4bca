"""Examples that tell how far they have been read, for whoever waits while they are encoded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar, overload

from jieyue.data.textstream import Progress

__all__ = ["Watched", "watched"]

Example = TypeVar("Example")
_STEPS = 200  # at most so many tellings of one reading


class Watched(Sequence[Example], Generic[Example]):
    """The same examples; a reading from the first to the last is told as ``progress(what, done, total)``."""

    def __init__(self, examples: Sequence[Example], what: str, progress: Progress) -> None:
        self.examples, self.what, self.progress = examples, what, progress

    def __len__(self) -> int:
        return len(self.examples)

    @overload
    def __getitem__(self, at: int) -> Example: ...

    @overload
    def __getitem__(self, at: slice) -> Sequence[Example]: ...

    def __getitem__(self, at: int | slice) -> Example | Sequence[Example]:
        return self.examples[at]

    def __iter__(self) -> Iterator[Example]:
        total = len(self.examples)
        every = max(1, total // _STEPS)
        for done, one in enumerate(self.examples):
            if done % every == 0:
                self.progress(self.what, done, total)
            yield one
        self.progress(self.what, total, total)


def watched(examples: Sequence[Example], what: str, progress: Progress | None) -> Sequence[Example]:
    """``examples`` as they are where nobody listens or where they are no plain list (large files tell of themselves).

    >>> told = []
    >>> list(watched(["a", "b"], "encoding", lambda *one: told.append(one))), told
    (['a', 'b'], [('encoding', 0, 2), ('encoding', 1, 2), ('encoding', 2, 2)])
    """
    return Watched(examples, what, progress) if progress is not None and isinstance(examples, list) else examples
