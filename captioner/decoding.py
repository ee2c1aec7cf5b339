"""How text is searched for: the settings of `search.py`, named as transformers names them."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real

from captioner.errors import BadInput


@dataclass(frozen=True)
class Decoding:
    """Settings of one search. `num_beams=1` without `do_sample` is greedy."""

    num_beams: int = 4
    """Hypotheses kept per image. 1 is greedy."""
    num_return_sequences: int = 1
    """Candidates returned per image; at most `num_beams` unless sampling."""
    max_new_tokens: int = 48
    min_new_tokens: int = 0
    length_penalty: float = 1.0
    """A hypothesis scores `sum of log-probabilities / length ** length_penalty`."""
    early_stopping: bool | str = False
    """False, True or "never", as in transformers' beam search."""
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    do_sample: bool = False
    """Draw `num_return_sequences` independent texts; `num_beams` then plays no part."""
    temperature: float = 1.0
    top_k: int = 0
    """0 keeps every token."""
    top_p: float = 1.0
    seed: int | None = None
    """Sampling with the same seed, image and settings gives the same text, whatever the batch size."""
    forbid: tuple[str, ...] = ()
    """Words that are never written, whatever their case: their token sequences cannot be produced."""

    def __post_init__(self) -> None:
        for name, least in WHOLE_NUMBERS.items():
            value = getattr(self, name)
            if not isinstance(value, Integral) or value < least:
                raise BadInput(f"{name} must be a whole number, {least} or more, not {value!r}.")
        for name, (least, most) in NUMBERS.items():
            value = getattr(self, name)
            if not isinstance(value, Real) or not least <= value <= most:  # a NaN is in no range
                raise BadInput(f"{name} must be a number from {least} to {most}, not {value!r}.")
        if self.min_new_tokens > self.max_new_tokens:
            raise BadInput(
                f"min_new_tokens ({self.min_new_tokens}) is above max_new_tokens ({self.max_new_tokens}): "
                "raise max_new_tokens."
            )
        if not self.do_sample and self.num_return_sequences > self.num_beams:
            raise BadInput(
                f"num_return_sequences ({self.num_return_sequences}) is above num_beams ({self.num_beams}): "
                f"raise num_beams, or set do_sample."
            )
        if not all(map(str.strip, self.forbid)):
            raise BadInput("An empty word cannot be forbidden.")
        if self.early_stopping not in (False, True, "never"):
            raise BadInput('early_stopping is False, True or "never".')


WHOLE_NUMBERS = {
    "num_beams": 1,
    "num_return_sequences": 1,
    "max_new_tokens": 1,
    "min_new_tokens": 0,
    "no_repeat_ngram_size": 0,
    "top_k": 0,
}
"""Fields of `Decoding` that count something, with the least they may be."""
NUMBERS = {
    "length_penalty": (-100, 100),
    "repetition_penalty": (0.01, 100),
    "temperature": (0.01, 100),  # logits are divided by it: what is smaller leaves float32
    "top_p": (0.001, 1),
}
"""The others, with their ranges."""
