"""transformers under fake tensors takes the paths that it takes with real ones."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["fakes_as_real"]


@contextmanager
def fakes_as_real() -> Iterator[None]:
    """Inside, ``transformers.utils.import_utils.is_tracing`` does not see fake tensors.

    It would take them for a compiler's, and make attention masks that a run leaves out. What it asks of the values of a batch
    must be answered then (``planning.known_values``). What fails is raised, and told by whoever asked: torch's own log of it,
    a page for every operator, is silent.
    """
    from transformers.utils import import_utils

    own, log = import_utils.is_fake_tensor, logging.getLogger("torch._subclasses.fake_tensor")
    import_utils.is_fake_tensor, silent = lambda x: False, log.disabled
    log.disabled = True
    try:
        yield
    finally:
        import_utils.is_fake_tensor, log.disabled = own, silent
