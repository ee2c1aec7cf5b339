"""How text is searched for: the settings of `search.py`, named as transformers names them."""

from __future__ import annotations

from dataclasses import dataclass

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
        if self.num_beams < 1 or self.num_return_sequences < 1 or self.max_new_tokens < 1:
            raise BadInput("num_beams, num_return_sequences and max_new_tokens must be at least 1.")
        if self.min_new_tokens > self.max_new_tokens:
            raise BadInput(f"min_new_tokens ({self.min_new_tokens}) is above max_new_tokens ({self.max_new_tokens}).")
        if not self.do_sample and self.num_return_sequences > self.num_beams:
            raise BadInput(
                f"{self.num_return_sequences} candidates need at least as many beams: "
                f"use --num-beams {self.num_return_sequences} or --do-sample."
            )
        if self.temperature <= 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise BadInput("temperature must be above 0, top_p in (0, 1], top_k 0 or more.")
        if self.repetition_penalty <= 0:
            raise BadInput("repetition_penalty must be above 0.")
        if not all(map(str.strip, self.forbid)):
            raise BadInput("An empty word cannot be forbidden.")
        if self.early_stopping not in (False, True, "never"):
            raise BadInput('early_stopping is False, True or "never".')
