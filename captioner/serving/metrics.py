"""Counts for whoever watches the service, in Prometheus' text format."""

from __future__ import annotations

import collections
import threading
from bisect import bisect_left
from collections.abc import Iterator, Sequence

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
SIZES = (1, 2, 4, 8, 16, 32, 64)


class Counter:
    """A number that only grows, one for each set of labels."""

    def __init__(self, name: str, help: str, labels: Sequence[str] = ()) -> None:
        self.name, self.help, self.labels = name, help, labels
        self._counts: collections.Counter[tuple[str, ...]] = collections.Counter()
        self._lock = threading.Lock()

    def add(self, *values: str) -> None:
        """Count one more under these labels."""
        with self._lock:
            self._counts[values] += 1

    def lines(self) -> Iterator[str]:
        """As Prometheus reads it."""
        yield f"# HELP {self.name} {self.help}"
        yield f"# TYPE {self.name} counter"
        for values, count in sorted(self._counts.items()):
            yield f"{self.name}{_labels(self.labels, values)} {count}"


class Histogram:
    """How numbers are spread over buckets."""

    def __init__(self, name: str, help: str, bounds: Sequence[float]) -> None:
        self.name, self.help, self.bounds = name, help, bounds
        self.total = 0.0
        self._counts = [0] * (len(bounds) + 1)
        self._lock = threading.Lock()

    def see(self, number: float) -> None:
        """One more number."""
        with self._lock:
            self._counts[bisect_left(self.bounds, number)] += 1
            self.total += number

    def lines(self) -> Iterator[str]:
        """As Prometheus reads it."""
        yield f"# HELP {self.name} {self.help}"
        yield f"# TYPE {self.name} histogram"
        up_to = 0
        for bound, count in zip((*map("{:g}".format, self.bounds), "+Inf"), self._counts, strict=True):
            up_to += count
            yield f'{self.name}_bucket{{le="{bound}"}} {up_to}'
        yield f"{self.name}_sum {self.total:.6f}"
        yield f"{self.name}_count {up_to}"


def gauge(name: str, help: str, value: int) -> Iterator[str]:
    """A number as it is now."""
    yield f"# HELP {name} {help}"
    yield f"# TYPE {name} gauge"
    yield f"{name} {value:d}"


def _labels(names: Sequence[str], values: Sequence[str]) -> str:
    if not names:
        return ""
    pairs = (f'{name}="{_escaped(value)}"' for name, value in zip(names, values, strict=True))
    return "{" + ",".join(pairs) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
