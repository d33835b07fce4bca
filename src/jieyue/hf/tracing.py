"""transformers under fake tensors takes the paths that it takes with real ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["fakes_as_real"]


@contextmanager
def fakes_as_real() -> Iterator[None]:
    """Inside, ``transformers.utils.import_utils.is_tracing`` does not see fake tensors.

    It would take them for a compiler's, and make attention masks that a run leaves out. What it asks of the values of a batch
    must be answered then (``planning.known_values``).
    """
    from transformers.utils import import_utils

    own = import_utils.is_fake_tensor
    import_utils.is_fake_tensor = lambda x: False
    try:
        yield
    finally:
        import_utils.is_fake_tensor = own
