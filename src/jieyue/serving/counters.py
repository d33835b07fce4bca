"""What the server has done, in Prometheus' text form."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable

from jieyue.machine import resident_bytes

from .batching import Batcher

__all__ = ["Counters"]

_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Counters:
    """``request(path, status)`` and ``first_token(seconds)`` count; ``text(batchers)`` is the page at /metrics."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._paths = frozenset(paths)  # others count as one, so that strangers cannot make names
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._waits = [0] * (len(_BUCKETS) + 1)
        self._waited = 0.0

    def request(self, path: str, status: int) -> None:
        with self._lock:
            self._requests[path if path in self._paths else "other", status] += 1

    def first_token(self, seconds: float) -> None:
        with self._lock:
            self._waits[next((n for n, most in enumerate(_BUCKETS) if seconds <= most), len(_BUCKETS))] += 1
            self._waited += seconds

    def text(self, batchers: dict[str, Batcher]) -> str:
        lines: list[str] = []

        def metric(name: str, kind: str, about: str, rows: Iterable[tuple[str, float]]) -> None:
            lines.extend([f"# HELP jieyue_{name} {about}", f"# TYPE jieyue_{name} {kind}"])
            lines.extend(f"jieyue_{name}{labels} {value:g}" for labels, value in rows)

        with self._lock:
            requests = sorted(self._requests.items())
            waits, waited = list(self._waits), self._waited
        metric(
            "requests_total",
            "counter",
            "Answers by path and status.",
            ((f'{{path="{path}",status="{status}"}}', count) for (path, status), count in requests),
        )
        total = 0
        rows: list[tuple[str, float]] = []
        for most, count in zip([*map(str, _BUCKETS), "+Inf"], waits, strict=True):
            total += count
            rows.append((f'_bucket{{le="{most}"}}', float(total)))
        rows += [("_sum", waited), ("_count", total)]
        metric("first_token_seconds", "histogram", "From a request to the first token of its reply.", rows)
        for name, kind, about in (
            ("prompt_tokens", "counter", "Tokens of prompts."),
            ("reused_tokens", "counter", "Of these, not read again: the state of an earlier turn had them."),
            ("reply_tokens", "counter", "Tokens of replies."),
            ("steps", "counter", "Steps of a batch."),
            ("cancelled", "counter", "Replies whose client left."),
            ("failed", "counter", "Steps that failed."),
            ("num_active", "gauge", "Replies in the making."),
            ("num_waiting", "gauge", "Requests that wait."),
        ):
            shown = name.removeprefix("num_") + ("_total" if kind == "counter" else "")
            found = ((f'{{model="{_label(model)}"}}', float(getattr(one, name))) for model, one in batchers.items())
            metric(shown, kind, about, found)
        metric("resident_bytes", "gauge", "Memory of the process.", [("", float(resident_bytes()))])
        return "\n".join(lines) + "\n"


def _label(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
