"""What is done to a text after the model has spoken: cleaned, words in and out, terms replaced, trigger words, cut to a
length."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from captioner.contracts import check_text
from captioner.decoding import check_whole, words_of
from captioner.errors import BadInput
from captioner.terms import begins_with_signs, beside, ends_in_signs
from captioner.text import clean
from captioner.text.length import clip_tokens, cut_to_tokens
from captioner.text.words import holds, replacements, with_replaced, with_words, without_words


@dataclass(frozen=True)
class Finish:
    """What is done to the text after the model has spoken."""

    clean: bool = True
    """False: the text exactly as the model said it."""
    consensus: bool | None = None
    """Choose among the candidates by expected cosine. None: as the model's own defaults say."""
    prefix: str = ""
    """A trigger word before the text: a comma term of its own, unless a space or a sign at its end says otherwise."""
    suffix: str = ""
    max_clip_tokens: int | None = None
    """Cut at a comma so that CLIP's text tower (77 tokens) would not truncate it."""
    forbid: tuple[str, ...] = ()
    """Words that the text does not contain: its comma terms go that hold one. `Decoding.forbid` avoids them before."""
    require: tuple[str, ...] = ()
    """Words that the text contains: what is missing is added as comma terms."""
    replace: tuple[str, ...] = ()
    """OLD=NEW: a whole comma term, in any case, with spaces or underscores, becomes another, or goes (OLD=), in the
    text that is chosen already. What is forbidden, required and too long is seen to in the new one."""
    plain: bool = False
    """Of a prompt that the picture carries the words alone: no weights, <lora:…> or BREAK. No model is taken to write
    such."""
    escape: bool = False
    """Brackets as \\( and \\): bare ones are a weight to the programs that draw, and tags have them (fate_(series))."""

    def __post_init__(self) -> None:
        for name in ("clean", "plain", "escape"):
            if not isinstance(getattr(self, name), bool):  # a trigger word without its name would be lost
                raise BadInput(f"{name} is True or False, not {getattr(self, name)!r}.")
        if not isinstance(self.consensus, bool | None):
            raise BadInput(f"consensus is True, False or None, not {self.consensus!r}.")
        for name in ("prefix", "suffix"):
            check_text(name, getattr(self, name))
        if self.max_clip_tokens is not None:
            check_whole("max_clip_tokens", self.max_clip_tokens, 3)  # those of the start, the end and one more
        for name in ("forbid", "require", "replace"):
            object.__setattr__(self, name, words_of(name, getattr(self, name)))
        _ = self._new_of  # what is malformed is refused at once
        if both := {word.lower() for word in self.forbid} & {word.lower() for word in self.require}:
            raise BadInput(f"Forbidden and required at once: {', '.join(sorted(both))}.")
        if self.max_clip_tokens and (triggers := clip_tokens(self._around(self._complete("")))) > self.max_clip_tokens:
            raise BadInput(
                f"Prefix, suffix and required words alone are {triggers} of CLIP's tokens, more than the limit of "
                f"{self.max_clip_tokens}: shorten them, or raise the limit."
            )

    def text(self, raw: str, finished: bool = True) -> str:
        """One candidate's finished text."""
        return self.dress(self.body(raw, finished))

    def body(self, raw: str, finished: bool = True) -> str:
        """The text without trigger words, no term replaced: what candidates are compared by."""
        body = clean.clean(raw, finished=finished) if self.clean else raw
        body = without_words(body, self.forbid)
        return body if self.replace else self._fitted(body)

    def dress(self, body: str) -> str:
        """Its terms replaced, its brackets escaped, and the trigger words around it."""
        if self.replace:
            body = self._fitted(without_words(with_replaced(body, self._new_of), self.forbid))
        return self._around(re.sub(r"(?<!\\)[()]", r"\\\g<0>", body) if self.escape else body)

    def idle(self, raw: str, among: Sequence[str]) -> list[str]:
        """Those of `replace` among these that change nothing in what a model said."""
        body = self.body(raw) if among else ""
        return [one for one in among if with_replaced(body, replacements([one])) == body]

    @cached_property
    def _new_of(self) -> dict[str, str]:
        return replacements(self.replace)

    def _fitted(self, body: str) -> str:
        """No longer than it may be, the required words included."""
        if self.max_clip_tokens:
            body = cut_to_tokens(
                body, lambda text: clip_tokens(self._around(self._complete(text))), self.max_clip_tokens
            )
        return self._complete(body)

    def _complete(self, body: str) -> str:
        """With the required words that neither it nor a trigger word holds."""
        return with_words(body, [word for word in self.require if not holds(self._around(""), word)])

    def _around(self, body: str) -> str:
        begun = beside(self.prefix, body, begins=begins_with_signs(body))
        return beside(begun, self.suffix, ends=ends_in_signs(body))
