"""How the service is reached and what it allows."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from captioner.errors import BadInput

PORT = 7860
"""Written into bots and plugins; the next free one is taken where it is not."""
MAX_BYTES = 20_000_000


@dataclass(frozen=True)
class Settings:
    """What `captioner serve` was told."""

    host: str = "127.0.0.1"
    api_key: str | None = None
    no_auth: bool = False
    """Another host without a key: said aloud."""
    allow_urls: bool = False
    """Fetch pictures from public addresses that requests name."""
    max_bytes: int = MAX_BYTES
    """Of one request's body."""
    root: Path | None = None
    """The folder that may be looked into and, in Review, written to."""
    page: bool = True
    tags: tuple[str, ...] = ()
    """Terms that Review offers while a text is typed, beside those of the folder."""

    def __post_init__(self) -> None:
        if self.api_key is not None and not self.api_key.strip():
            raise BadInput("api_key is empty: leave it out, or give a long random one.")
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable()):
            raise BadInput("api_key has a sign that clients cannot send in a header: letters and digits are enough.")
        if not self.is_local and self.api_key is None and not self.no_auth:
            raise BadInput(
                f"{self.host} can be reached from other machines: set api_key, or no_auth if everybody may ask."
            )

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect."""
        if self.host.lower().rstrip(".") == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
