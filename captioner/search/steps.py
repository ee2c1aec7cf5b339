"""What every search does at a step: logits become scores, by the processors that transformers' `generate` has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce

import torch
from torch import Tensor

from captioner import compute
from captioner.contracts import Decoder, MemoryType, PastType, Processor
from captioner.decoding import Decoding
from captioner.search.words import forbidden_sequences

LOOK = 8
"""Steps after which a search elsewhere than on a CPU asks what has ended: to ask is to wait for all that was begun."""


@dataclass(frozen=True)
class Hypothesis:
    """One text that the search ended with."""

    ids: list[int]
    """Generated ids, without the start, the end token and padding."""
    score: float
    """Mean log-probability of its tokens, the end token among them."""
    finished: bool
    """False when the length limit cut the text short."""


def logits_processors(
    processor: Processor, decoding: Decoding, device: torch.device
) -> Callable[[Tensor, Tensor], Tensor]:
    """Ids and scores → scores, by transformers' own processors in the order in which its `generate` applies them.

    But for those that are a line here, and top-p, the last of them: `draw` sees to it. Not by its
    `LogitsProcessorList`, which inspects the signature of each at every step. Scores may be written into.
    """
    earliest = len(processor.start_ids) + decoding.min_new_tokens
    eos = compute.sent(torch.tensor(processor.eos_ids), device)

    def not_yet(ids: Tensor, scores: Tensor) -> Tensor:
        """No end before `min_new_tokens`. transformers looks for the end's ids among all of the vocabulary."""
        return scores.index_fill_(-1, eos, -torch.inf) if ids.shape[1] < earliest else scores

    chain: list[Callable[[Tensor, Tensor], Tensor]] = []
    if decoding.repetition_penalty != 1:
        chain.append(_published("RepetitionPenaltyLogitsProcessor", decoding.repetition_penalty))
    if decoding.no_repeat_ngram_size:
        chain.append(partial(_forbid_repeated, size=decoding.no_repeat_ngram_size))
    if forbidden := forbidden_sequences(decoding.forbid, processor):
        chain.append(_published("NoBadWordsLogitsProcessor", forbidden, eos))
    if decoding.min_new_tokens:
        chain.append(not_yet)
    if decoding.do_sample:
        if decoding.temperature != 1:
            chain.append(lambda _ids, scores: scores / decoding.temperature)
        if decoding.top_k:
            chain.append(_published("TopKLogitsWarper", decoding.top_k))
    return lambda ids, scores: reduce(lambda scores, process: process(ids, scores), chain, scores)


def _published(name: str, *settings, **more) -> Callable[[Tensor, Tensor], Tensor]:
    """transformers' processor of this name, imported when one is asked for: 20 MB that most searches do without."""
    from transformers.generation import logits_process

    return getattr(logits_process, name)(*settings, **more)


def _forbid_repeated(ids: Tensor, scores: Tensor, size: int) -> Tensor:
    """No token that ends a sequence of this size that is there already. transformers asks row by row, in Python."""
    if ids.shape[1] < size:
        return scores
    sequences = ids.unfold(1, size, 1)  # [rows, places, size]
    again = (sequences[:, :, :-1] == ids[:, None, ids.shape[1] - size + 1 :]).all(-1)
    most = torch.where(again, -torch.inf, torch.inf).to(scores.dtype)
    return scores.scatter_reduce_(1, sequences[:, :, -1], most, "amin")


def of_ids(decoding: Decoding) -> bool:
    """Do the scores depend on the words so far, and not on their number alone?"""
    return bool(decoding.repetition_penalty != 1 or decoding.no_repeat_ngram_size or decoding.forbid)


def read_start(
    decoder: Decoder[MemoryType, PastType], memory: MemoryType, processor: Processor, copies: int, at_once: bool
) -> tuple[Tensor, Tensor, PastType]:
    """Read the start of the text: ids [rows, start], logits [rows, vocabulary], past.

    Once per image, then it forks; unless it is one word, which elsewhere than on a CPU (not `at_once`) all copies read
    by themselves, by the step that they go on with.
    """
    start = torch.tensor([processor.start_ids], dtype=torch.long)  # of no words, too
    ids = compute.sent(start, decoder.device).repeat(len(memory), 1)
    rows = torch.arange(len(memory), device=decoder.device).repeat_interleave(copies)
    if copies == 1 or (ids.shape[1] == 1 and not at_once):
        return ids[rows], *decoder.step(ids[rows], memory, None)
    logits, past = decoder.step(ids, memory, None)
    return ids[rows], logits[rows], past.select(rows)


def is_any(tokens: Tensor, wanted: Tensor) -> Tensor:
    """`torch.isin` for a few wanted ids, in a tenth of its time."""
    return (tokens[..., None] == wanted).any(-1)
