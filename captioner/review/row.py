"""A picture of the folder, its text, and what is counted of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captioner.terms import term_key
from captioner.text.length import clip_tokens

if TYPE_CHECKING:
    from captioner.review.outputs import Output


@dataclass(slots=True, eq=False)
class Row:
    """One picture. Counts are made when they are first asked for, and anew when the text changes."""

    name: str
    """Relative to the root, with / between folders; what everybody calls it by."""
    path: Path
    text: str | None = None
    """None: there is none anywhere. An empty text stands somewhere."""
    score: float | None = None
    """Of what the model said, whatever has become of the text since."""
    problem: str | None = None
    """Why it failed: it cannot be read, its text cannot be kept, the model had no answer."""
    original: str | None = None
    was_edited: bool = False
    """Whether `original` holds what stood here before the first edit."""
    places: dict[Output, str | None] = field(default_factory=dict)
    """What each output holds of it now, the first of them the one that is shown. None: nothing yet."""
    said: dict[str, Any] = field(default_factory=dict)
    """What a model that was asked in this session answered: a row as `generate` writes it."""
    _of: str | None = None
    """The text that what follows was counted of."""
    _lower: str | None = None
    _tokens: int | None = None
    _terms: dict[str, str] | None = None

    @property
    def is_edited(self) -> bool:
        return self.was_edited and self.text != self.original

    def _forget(self) -> None:
        if self._of is not self.text:
            self._of, self._lower, self._tokens, self._terms = self.text, None, None, None

    @property
    def lower(self) -> str:
        self._forget()
        if self._lower is None:
            self._lower = (self.text or "").lower()
        return self._lower

    @property
    def tokens(self) -> int:
        """Of CLIP's text tower, its start and end included; 0 of no text."""
        self._forget()
        if self._tokens is None:
            self._tokens = clip_tokens(self.text) if self.text else 0
        return self._tokens

    @property
    def has_tokens(self) -> bool:
        """Whether they are counted already."""
        return self._of is self.text and self._tokens is not None

    def counted(self, text: str, tokens: int) -> None:
        """They were counted together with others."""
        self._forget()
        if self._of is text:
            self._tokens = tokens

    @property
    def term_keys(self) -> dict[str, str]:
        """The comma terms: what they compare by → as they are written."""
        self._forget()
        if self._terms is None:
            parts = (part.strip() for part in (self.text or "").split(","))
            self._terms = {term_key(part): part for part in parts if part}
        return self._terms
