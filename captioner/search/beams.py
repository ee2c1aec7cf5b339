"""Beam search as transformers defines it, over the `read`/`step` contract."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from captioner import compute
from captioner.contracts import Decoder, MemoryType, PastType, Processor
from captioner.decoding import Decoding
from captioner.search.steps import LOOK, Hypothesis, is_any, logits_processors, of_ids, read_start

BLOCK = 128
"""Scores of which the largest is looked for first."""
NEVER = -1e9
"""The score of what must not be chosen; finite, as in transformers, so that such scores keep an order."""


@dataclass
class _Beams:
    """The hypotheses of every image still in the batch; a hypothesis is its whole text `[…, start + new tokens]`."""

    ids: Tensor  # [images, beams, limit], running
    scores: Tensor  # [images, beams], sums of log-probabilities
    ended_ids: Tensor  # [images, beams, limit], the best that ended so far
    ended_scores: Tensor  # [images, beams], after the length penalty, best first
    ended_lengths: Tensor  # [images, beams], generated tokens
    ended: Tensor  # [images, beams], False: a slot not filled yet
    over: Tensor  # [images], nothing can become better

    @staticmethod
    def start(ids: Tensor, beams: int, new_tokens: int, pad: int) -> _Beams:
        """Only the first beam counts at the beginning, or all beams would be the same."""
        images, start = ids.shape
        whole = ids.new_full((images, beams, start + new_tokens), pad)
        whole[:, :, :start] = ids[:, None]
        scores = torch.zeros(images, beams, device=ids.device)
        scores[:, 1:] = NEVER
        none = torch.zeros(images, beams, dtype=torch.long, device=ids.device)
        over = none[:, 0].bool()
        return _Beams(whole, scores, whole.clone(), torch.full_like(scores, NEVER), none, none.bool(), over)

    def select(self, images: Tensor) -> _Beams:
        return self.map(lambda tensor: tensor[images])

    def map(self, function: Callable[[Tensor], Tensor]) -> _Beams:
        """The same of each tensor."""
        return _Beams(*map(function, vars(self).values()))


def beam_search(
    decoder: Decoder[MemoryType, PastType],
    memory: MemoryType,
    processor: Processor,
    decoding: Decoding,
    at_once: bool,
) -> list[list[Hypothesis]]:
    """The best texts of every image. at_once: an image leaves the batch as soon as nothing can become better for it."""
    beams, start = decoding.num_beams, len(processor.start_ids)
    images = list(range(len(memory)))  # those still in the batch
    hypotheses: list[list[Hypothesis]] = [[] for _ in images]
    ids, logits, past = read_start(decoder, memory, processor, beams, at_once)
    state = _Beams.start(ids[::beams], beams, decoding.max_new_tokens, processor.pad_id)
    with _turns(decoder, state, logits, processor, decoding) as (turn, state):
        for length in range(1, decoding.max_new_tokens + 1):
            rows = turn(state, logits, length)
            if (at_once or length % LOOK == 0 or length == decoding.max_new_tokens) and state.over.any():
                all_over = bool(state.over.all())
                if at_once or all_over:
                    found = state.map(Tensor.cpu)
                    for index in found.over.nonzero().flatten().tolist():
                        hypotheses[images[index]] = _best(found, index, processor, decoding)
                if all_over:
                    return hypotheses
                if at_once:  # they leave the batch
                    stay = (~state.over).nonzero().flatten()
                    images = [images[index] for index in stay.tolist()]
                    memory, state, rows = memory.select(stay), state.select(stay), rows[stay]
            past = past.select(rows.flatten())
            logits, past = decoder.step(state.ids[:, :, start + length - 1].reshape(-1, 1), memory, past)
    raise AssertionError("the last step ends every hypothesis")


Turn: TypeAlias = Callable[[_Beams, Tensor, int], Tensor]
"""(hypotheses, the logits after them `[rows, vocabulary]`, the number of the next word) → the row in which each of them
was `[images, beams]`. They are extended in place."""


@contextmanager
def _turns(
    decoder: Decoder, state: _Beams, logits: Tensor, processor: Processor, decoding: Decoding
) -> Iterator[tuple[Turn, _Beams]]:
    """What extends these hypotheses, and the hypotheses where it wants them."""
    if of_ids(decoding) or not compute.pays_to_record(logits):
        process = logits_processors(processor, decoding, logits.device)
        eos = compute.sent(torch.tensor(processor.eos_ids), logits.device)
        yield partial(_turn, process, eos, decoding), state
        return
    lending = _RECORDED.setdefault(decoder, compute.Lending(RecordedTurn.KEPT))
    # What a turn does not look at must not make another of it.
    like = (state, logits, processor.eos_ids, replace(decoding, seed=None, num_return_sequences=1))
    turn = lending.take(lambda kept: kept.fits(*like), lambda: RecordedTurn(*like))
    try:
        turn.begin(state)
        yield turn, turn.state
    finally:
        lending.give_back(turn)


def _turn(
    process: Callable[[Tensor, Tensor], Tensor],
    eos: Tensor,
    decoding: Decoding,
    state: _Beams,
    logits: Tensor,
    length: int,
) -> Tensor:
    log_probs = logits.float().log_softmax(-1)  # [rows, vocabulary]
    written = state.ids.shape[2] - decoding.max_new_tokens + length - 1
    return _advance(state, process(state.ids[:, :, :written].flatten(0, 1), log_probs), length, eos, decoding)


class RecordedTurn:
    """A `Turn` at fixed places, for so many hypotheses and these settings: its sixty kernels are launched as one."""

    KEPT = 4
    """Those of one decoder that wait for hypotheses of their sizes."""

    def __init__(self, state: _Beams, logits: Tensor, eos_ids: tuple[int, ...], decoding: Decoding) -> None:
        self.state, self.logits = state.map(torch.clone), logits.clone()
        self.eos_ids, self.decoding = eos_ids, decoding
        self.eos = compute.sent(torch.tensor(eos_ids), logits.device)
        self.length = torch.ones(1, dtype=torch.long, device=logits.device)
        self.replay = compute.recorded(self._turn, logits.device)

    def fits(self, state: _Beams, logits: Tensor, eos_ids: tuple[int, ...], decoding: Decoding) -> bool:
        """Can it extend these?"""
        pairs = (self.state.ids, state.ids), (self.logits, logits)
        alike = all((own.shape, own.dtype) == (given.shape, given.dtype) for own, given in pairs)
        return alike and (self.eos_ids, self.decoding) == (eos_ids, decoding)

    def begin(self, state: _Beams) -> None:
        """Take these over."""
        self._keep(state)
        self.length.fill_(1)

    def __call__(self, state: _Beams, logits: Tensor, length: int) -> Tensor:
        self.logits.copy_(logits)
        return self.replay()

    def _turn(self) -> Tensor:
        log_probs = self.logits.float().log_softmax(-1)
        if self.decoding.min_new_tokens:
            not_yet = torch.where(self.length <= self.decoding.min_new_tokens, -torch.inf, 0.0)
            log_probs.index_add_(1, self.eos, not_yet.expand(len(log_probs), len(self.eos)))
        state = replace(self.state)
        rows = _advance(state, log_probs, self.length, self.eos, self.decoding)
        self._keep(state)
        self.length.add_(1)
        return rows

    def _keep(self, state: _Beams) -> None:
        for name, own in vars(self.state).items():
            own.copy_(getattr(state, name))


_RECORDED: WeakKeyDictionary[Decoder, compute.Lending[RecordedTurn]] = WeakKeyDictionary()


def _advance(state: _Beams, log_probs: Tensor, length: int | Tensor, eos: Tensor, decoding: Decoding) -> Tensor:
    """Extend every hypothesis by the `length`-th new token; returns the row in which each was `[images, beams]`.

    What an image that is over has ended with stays."""
    images, beams, limit = state.ids.shape
    vocabulary = log_probs.shape[-1]
    totals = log_probs.unflatten(0, (images, beams)).add_(state.scores[:, :, None]).flatten(1)
    # Enough candidates that `beams` of them go on even if all others end here.
    scores, choice = _top(totals, max(2, 1 + len(eos)) * beams)  # [images, candidates]
    parents, tokens = choice // vocabulary, choice % vocabulary
    is_new = torch.arange(limit, device=eos.device) == limit - decoding.max_new_tokens + length - 1
    ids = torch.where(is_new, tokens[:, :, None], _gather(state.ids, parents))
    ends = is_any(tokens, eos) | (length == decoding.max_new_tokens)

    going = (scores + ends * NEVER).topk(beams)
    ending = ends.clone()
    ending[:, beams:] = False  # a candidate outside the best `beams` is only there to go on
    ending &= ~state.over[:, None]
    final = scores / length ** float(decoding.length_penalty) + ~ending * NEVER
    merged = torch.cat((state.ended_scores, final), dim=1).topk(beams)
    lengths = torch.cat((state.ended_lengths, torch.zeros_like(tokens) + length), dim=1)

    state.ended_ids = _gather(torch.cat((state.ended_ids, ids), dim=1), merged.indices)
    state.ended_scores = merged.values
    state.ended_lengths = lengths.gather(1, merged.indices)
    state.ended = torch.cat((state.ended, ending), dim=1).gather(1, merged.indices)
    state.ids, state.scores = _gather(ids, going.indices), going.values
    state.over = state.over | _cannot_improve(state, length, decoding)
    first_rows = torch.arange(0, images * beams, beams, device=eos.device)[:, None]
    return first_rows + parents.gather(1, going.indices)


def _top(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`topk` of rows `[n, many]`, in a third of its time: the largest are in those blocks whose largest are largest."""
    many = scores.shape[1]
    whole = many // BLOCK * BLOCK
    if whole < 4 * count * BLOCK:
        return scores.topk(count)
    largest = scores[:, :whole].unflatten(1, (-1, BLOCK)).amax(-1)
    blocks = largest.topk(count).indices.sort().values
    in_blocks = (blocks[:, :, None] * BLOCK + torch.arange(BLOCK, device=scores.device)).flatten(1)
    rest = torch.arange(whole, many, device=scores.device).expand(len(scores), -1)
    indices = torch.cat((in_blocks, rest), dim=1)
    values, chosen = scores.gather(1, indices).topk(count)
    return values, indices.gather(1, chosen)


def _cannot_improve(state: _Beams, length: int | Tensor, decoding: Decoding) -> Tensor:
    """Which images are done: `early_stopping` says how the best running hypothesis is compared with the ended ones."""
    hopeful = decoding.early_stopping == "never" and decoding.length_penalty > 0
    best_length = decoding.max_new_tokens if hopeful else length
    best_possible = state.scores[:, :1] / best_length ** float(decoding.length_penalty)
    worst_ended = torch.where(state.ended, state.ended_scores.min(1, keepdim=True).values, NEVER)
    over = ~(best_possible > worst_ended).any(1) | (length == decoding.max_new_tokens)
    return over | state.ended.all(1) if decoding.early_stopping is True else over


def _best(state: _Beams, image: int, processor: Processor, decoding: Decoding) -> list[Hypothesis]:
    """The best ended hypotheses of one image. The ranking is by the penalised score, the score is per token."""
    start = state.ids.shape[2] - decoding.max_new_tokens
    best: list[Hypothesis] = []
    for beam in range(decoding.num_return_sequences):
        length = int(state.ended_lengths[image, beam])
        total = state.ended_scores[image, beam].item() * length**decoding.length_penalty
        if best and total <= NEVER / 2:
            break  # so much was forbidden that fewer texts than beams remained
        ids = state.ended_ids[image, beam, start : start + length].tolist()
        finished = ids[-1] in processor.eos_ids
        best.append(Hypothesis(ids[:-1] if finished else ids, total / length, finished))
    return best


def _gather(ids: Tensor, beams: Tensor) -> Tensor:
    """ids [images, n, limit] at beams [images, m] → [images, m, limit]."""
    return ids.gather(1, beams[:, :, None].expand(-1, -1, ids.shape[2]))
