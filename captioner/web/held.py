"""How many bytes requests hold in memory: their bodies, and the pictures that are fetched for them."""

from __future__ import annotations

import threading
from contextvars import ContextVar

from captioner.serving.scheduler import Busy

BYTES_AT_ONCE = 500_000_000
"""Of all requests that are being received or answered."""
SOON = 1.0
"""Seconds after which it is worth to ask again."""


class Held:
    """What all requests hold."""

    def __init__(self, largest: int) -> None:
        """largest: what one alone may always hold."""
        self.most = max(BYTES_AT_ONCE, largest)
        self.bytes = 0
        self.lock = threading.Lock()


class Share:
    """What one request holds, until it has been answered; it may be counted in any thread."""

    def __init__(self, held: Held) -> None:
        self.held = held
        self.bytes = 0
        self.is_over = False

    def take(self, size: int) -> None:
        """So much more, or less; `Busy` where that is too much."""
        with self.held.lock:
            if self.is_over or (size > 0 and self.held.bytes + size > self.held.most):
                raise Busy(SOON)
            self.bytes += size
            self.held.bytes += size

    def end(self) -> None:
        """All is given back, and nothing more is taken by what is still on its way."""
        with self.held.lock:
            self.is_over = True
            self.held.bytes -= self.bytes


OF_REQUEST: ContextVar[Share | None] = ContextVar("OF_REQUEST", default=None)
"""The share of the request that is being answered; None: what is asked comes from this machine's user."""
