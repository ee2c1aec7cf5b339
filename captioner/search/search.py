"""One search for every decoder: greedy, beam and sampling over the `read`/`step` contract.

Its ids equal those of transformers' `generate` with the same weights and settings: scores are float32 there, so they
are here, and the same logits processors run in the same order. What differs is the cost: the image's memory is not
copied per beam (but for a prefix of a few words), the start of the text is read once per image, and a finished image
leaves the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import compress

import numpy as np
import torch
from torch import Tensor

from captioner.contracts import Decoder, MemoryType, PastType, Processor
from captioner.decoding import Decoding
from captioner.search.words import forbidden_sequences

NEVER = -1e9
"""The score of what must not be chosen; finite, as in transformers, so that such scores keep an order."""


@dataclass(frozen=True)
class Hypothesis:
    """One text that the search ended with."""

    ids: list[int]
    """Generated ids, without the start, the end token and padding."""
    score: float
    """Mean log-probability of its tokens, the end token among them."""
    finished: bool
    """False when the length limit cut the text short."""


def search(
    decoder: Decoder[MemoryType, PastType],
    memory: MemoryType,
    processor: Processor,
    decoding: Decoding,
    image_seeds: Sequence[int] | None = None,
) -> list[list[Hypothesis]]:
    """For every image of the memory, `num_return_sequences` texts, best first.

    Sampling draws from one generator per image, seeded by `decoding.seed` and `image_seeds` (anything that depends on
    the image alone), so that neither the batch size nor the position in the batch changes an image's text.
    """
    if decoding.do_sample:
        choose = _sampler(decoding, image_seeds or [0] * len(memory))
        return _extend(decoder, memory, processor, decoding, choose, decoding.num_return_sequences)
    if decoding.num_beams == 1:
        return _extend(decoder, memory, processor, decoding, lambda scores, images: scores.argmax(-1), copies=1)
    return _beam_search(decoder, memory, processor, decoding)


def logits_processors(
    processor: Processor, decoding: Decoding, device: torch.device
) -> Callable[[Tensor, Tensor], Tensor]:
    """Ids and scores → scores, by transformers' own processors in the order in which its `generate` applies them.

    But for temperature, one division, and top-p, the last of them: `_sampler` sees to it. Not by its
    `LogitsProcessorList`, which inspects the signature of each at every step.
    """
    start, eos = len(processor.start_ids), torch.tensor(processor.eos_ids, device=device)
    chain: list[Callable[[Tensor, Tensor], Tensor]] = []
    if decoding.repetition_penalty != 1:
        chain.append(_published("RepetitionPenaltyLogitsProcessor", decoding.repetition_penalty))
    if decoding.no_repeat_ngram_size:
        chain.append(_published("NoRepeatNGramLogitsProcessor", decoding.no_repeat_ngram_size))
    if forbidden := forbidden_sequences(decoding.forbid, processor):
        chain.append(_published("NoBadWordsLogitsProcessor", forbidden, eos))
    if decoding.min_new_tokens:
        chain.append(
            _published("MinNewTokensLengthLogitsProcessor", start, decoding.min_new_tokens, eos, device=str(device))
        )
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


def _read_start(
    decoder: Decoder[MemoryType, PastType], memory: MemoryType, processor: Processor, copies: int
) -> tuple[Tensor, Tensor, PastType]:
    """Read the start of the text once per image, then fork: ids [rows, start], logits [rows, vocabulary], past."""
    ids = torch.tensor([processor.start_ids], dtype=torch.long, device=decoder.device).repeat(len(memory), 1)
    logits, past = decoder.step(ids, memory, None)
    if copies == 1:
        return ids, logits, past
    rows = torch.arange(len(memory), device=decoder.device).repeat_interleave(copies)
    return ids[rows], logits[rows], past.select(rows)


def _is_any(tokens: Tensor, wanted: Tensor) -> Tensor:
    """`torch.isin` for a few wanted ids, in a tenth of its time."""
    return (tokens[..., None] == wanted).any(-1)


def _rows_of(images: Tensor, copies: int) -> Tensor:
    """The rows of these images, image-major."""
    return (images[:, None] * copies + torch.arange(copies, device=images.device)).flatten()


def _extend(
    decoder: Decoder[MemoryType, PastType],
    memory: MemoryType,
    processor: Processor,
    decoding: Decoding,
    choose: Callable[[Tensor, list[int]], Tensor],
    copies: int,
) -> list[list[Hypothesis]]:
    """Greedy search and sampling: `copies` texts per image, extended token by token until all of an image's ended."""
    process = logits_processors(processor, decoding, decoder.device)
    eos = torch.tensor(processor.eos_ids, device=decoder.device)
    images = list(range(len(memory)))  # those still in the batch
    hypotheses: list[list[Hypothesis]] = [[] for _ in images]
    ids, logits, past = _read_start(decoder, memory, processor, copies)
    ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    log_probs = torch.zeros(len(ids), 0, device=ids.device)  # of the generated tokens
    for length in range(1, decoding.max_new_tokens + 1):
        logits = logits.to(torch.float32, copy=True)  # some processors write into it
        plain = logits.log_softmax(-1)
        tokens = choose(process(ids, logits), images).masked_fill(ended, processor.pad_id)  # [rows]
        ids = torch.cat((ids, tokens[:, None]), dim=1)
        log_probs = torch.cat((log_probs, plain.gather(1, tokens[:, None])), dim=1)
        ended |= _is_any(tokens, eos)
        over = (ended.view(-1, copies).all(1) | (length == decoding.max_new_tokens)).tolist()
        for index in compress(range(len(images)), over):
            of_image = slice(index * copies, (index + 1) * copies)
            generated = ids[of_image, len(processor.start_ids) :].tolist()
            texts = [_hypothesis(t, p, processor) for t, p in zip(generated, log_probs[of_image], strict=True)]
            hypotheses[images[index]] = sorted(texts, key=lambda text: -text.score)
        if all(over):
            return hypotheses
        if any(over):
            left = [index for index, done in enumerate(over) if not done]
            images = [images[index] for index in left]
            stay = torch.tensor(left, device=ids.device)
            rows = _rows_of(stay, copies)
            memory, past = memory.select(stay), past.select(rows)
            ids, log_probs, ended = ids[rows], log_probs[rows], ended[rows]
        logits, past = decoder.step(ids[:, -1:], memory, past)
    raise AssertionError("the last step ends every text")


def _hypothesis(ids: list[int], log_probs: Tensor, processor: Processor) -> Hypothesis:
    """Cut at the end token; its log-probability counts, as it does in a beam's score."""
    end = next((index for index, token in enumerate(ids) if token in processor.eos_ids), len(ids))
    length = min(end + 1, len(ids))
    return Hypothesis(ids[:end], log_probs[:length].mean().item(), end < len(ids))


def _sampler(decoding: Decoding, image_seeds: Sequence[int]) -> Callable[[Tensor, list[int]], Tensor]:
    """Draw tokens by inverse-CDF sampling, with one generator per image, on the CPU so that devices agree."""
    seed = int(torch.randint(2**31, ())) if decoding.seed is None else decoding.seed
    # Generators seeded with neighbouring numbers are only unrelated if the numbers are mixed first.
    generators = [torch.Generator().manual_seed(hash((seed, image_seed)) % 2**63) for image_seed in image_seeds]

    def choose(scores: Tensor, images: list[int]) -> Tensor:
        copies = len(scores) // len(images)
        uniform = torch.cat([torch.rand(copies, dtype=torch.float64, generator=generators[i]) for i in images])
        drawn = draw(scores.softmax(-1).cpu().numpy(), uniform.numpy(), decoding.top_p)
        return torch.from_numpy(drawn).to(scores.device)

    return choose


def draw(probabilities: np.ndarray, quantiles: np.ndarray, top_p: float = 1.0) -> np.ndarray:
    """Inverse-CDF sampling, after top-p: the token at every row's quantile. `[rows, tokens]`, `[rows]` → `[rows]`"""
    tokens, likely = nucleus(probabilities, top_p)
    cumulative = likely.cumsum(axis=1, dtype=np.float64)
    passed = (cumulative <= quantiles[:, None] * cumulative[:, -1:]).sum(axis=1, keepdims=True)
    return np.take_along_axis(tokens, np.minimum(passed, tokens.shape[1] - 1), axis=1)[:, 0]


def nucleus(probabilities: np.ndarray, top_p: float) -> tuple[np.ndarray, np.ndarray]:
    """The likeliest tokens of every row `[rows, tokens]` that together reach top_p: those that transformers keeps.

    Tokens in the order of the vocabulary and their probabilities, both `[rows, most]`; 0 of what is not kept.
    transformers sorts the whole vocabulary to find them, which took a third of a small model's time.
    """
    # Tokens that are less likely than this have less than 1 - top_p all together.
    wanted = probabilities > (1 - top_p) / probabilities.shape[1]
    counts = wanted.sum(axis=1, keepdims=True)
    filled = np.arange(max(1, counts.max())) < counts  # [rows, most]: what is wanted, moved to the beginning of its row
    tokens, likely = np.zeros(filled.shape, dtype=np.int64), np.zeros(filled.shape, dtype=probabilities.dtype)
    tokens[filled], likely[filled] = wanted.nonzero()[1], probabilities[wanted]
    if top_p == 1:
        return tokens, likely
    descending = np.sort(likely)[:, ::-1]
    before = descending.cumsum(axis=1, dtype=np.float64) - descending
    short = filled & (before < top_p * probabilities.sum(axis=1, keepdims=True))
    least = np.take_along_axis(descending, short.sum(axis=1, keepdims=True) - 1, axis=1)
    return tokens, np.where(likely >= least, likely, 0)


@dataclass
class _Beams:
    """The hypotheses of every image still in the batch; a hypothesis is its whole text `[…, start + new tokens]`."""

    ids: Tensor  # [images, beams, limit], running
    scores: Tensor  # [images, beams], sums of log-probabilities
    ended_ids: Tensor  # [images, beams, limit], the best that ended so far
    ended_scores: Tensor  # [images, beams], after the length penalty, best first
    ended_lengths: Tensor  # [images, beams], generated tokens
    ended: Tensor  # [images, beams], False: a slot not filled yet

    @staticmethod
    def start(ids: Tensor, beams: int, new_tokens: int, pad: int) -> _Beams:
        """Only the first beam counts at the beginning, or all beams would be the same."""
        images, start = ids.shape
        whole = ids.new_full((images, beams, start + new_tokens), pad)
        whole[:, :, :start] = ids[:, None]
        scores = torch.zeros(images, beams, device=ids.device)
        scores[:, 1:] = NEVER
        none = torch.zeros(images, beams, dtype=torch.long, device=ids.device)
        return _Beams(whole, scores, whole.clone(), torch.full_like(scores, NEVER), none, none.bool())

    def select(self, images: Tensor) -> _Beams:
        return _Beams(*(vars(self)[name][images] for name in self.__dataclass_fields__))


def _beam_search(
    decoder: Decoder[MemoryType, PastType], memory: MemoryType, processor: Processor, decoding: Decoding
) -> list[list[Hypothesis]]:
    """Beam search as transformers defines it (early stopping, length penalty and ties included)."""
    beams, start = decoding.num_beams, len(processor.start_ids)
    process = logits_processors(processor, decoding, decoder.device)
    eos = torch.tensor(processor.eos_ids, device=decoder.device)
    images = list(range(len(memory)))  # those still in the batch
    hypotheses: list[list[Hypothesis]] = [[] for _ in images]
    ids, logits, past = _read_start(decoder, memory, processor, beams)
    state = _Beams.start(ids[::beams], beams, decoding.max_new_tokens, processor.pad_id)
    for length in range(1, decoding.max_new_tokens + 1):
        log_probs = logits.float().log_softmax(-1)  # [rows, vocabulary]
        log_probs = process(state.ids[:, :, : start + length - 1].flatten(0, 1), log_probs)
        parents = _advance(state, log_probs, start + length - 1, length, eos, decoding)  # [images, beams]
        over = _cannot_improve(state, length, decoding)
        for index in over.nonzero().flatten().tolist():
            hypotheses[images[index]] = _best(state, index, processor, decoding)
        if over.all():
            return hypotheses
        stay = (~over).nonzero().flatten()
        rows = (stay[:, None] * beams + parents[stay]).flatten()
        past = past.select(rows)
        if over.any():
            images = [images[index] for index in stay.tolist()]
            memory, state = memory.select(stay), state.select(stay)
        logits, past = decoder.step(state.ids[:, :, start + length - 1].reshape(-1, 1), memory, past)
    raise AssertionError("the last step ends every hypothesis")


def _advance(state: _Beams, log_probs: Tensor, position: int, length: int, eos: Tensor, decoding: Decoding) -> Tensor:
    """Extend every hypothesis by the `length`-th new token, at `position`; returns each new one's parent beam."""
    images, beams = state.scores.shape
    vocabulary = log_probs.shape[-1]
    totals = (log_probs.view(images, beams, vocabulary) + state.scores[:, :, None]).view(images, -1)
    # Enough candidates that `beams` of them go on even if all others end here.
    scores, choice = totals.topk(max(2, 1 + len(eos)) * beams)  # [images, candidates]
    parents, tokens = choice // vocabulary, choice % vocabulary
    ids = _gather(state.ids, parents)
    ids[:, :, position] = tokens
    ends = _is_any(tokens, eos) | (length == decoding.max_new_tokens)

    going = (scores + ends * NEVER).topk(beams)
    ending = ends.clone()
    ending[:, beams:] = False  # a candidate outside the best `beams` is only there to go on
    final = scores / length**decoding.length_penalty + ~ending * NEVER
    merged = torch.cat((state.ended_scores, final), dim=1).topk(beams)
    lengths = torch.cat((state.ended_lengths, torch.full_like(tokens, length)), dim=1)

    state.ended_ids = _gather(torch.cat((state.ended_ids, ids), dim=1), merged.indices)
    state.ended_scores = merged.values
    state.ended_lengths = lengths.gather(1, merged.indices)
    state.ended = torch.cat((state.ended, ending), dim=1).gather(1, merged.indices)
    state.ids, state.scores = _gather(ids, going.indices), going.values
    return parents.gather(1, going.indices)


def _cannot_improve(state: _Beams, length: int, decoding: Decoding) -> Tensor:
    """Which images are done: `early_stopping` says how the best running hypothesis is compared with the ended ones."""
    if length == decoding.max_new_tokens:
        return torch.ones(len(state.ids), dtype=torch.bool, device=state.ids.device)
    hopeful = decoding.early_stopping == "never" and decoding.length_penalty > 0
    best_length = decoding.max_new_tokens if hopeful else length
    best_possible = state.scores[:, :1] / best_length**decoding.length_penalty
    worst_ended = torch.where(state.ended, state.ended_scores.min(1, keepdim=True).values, NEVER)
    over = ~(best_possible > worst_ended).any(1)
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
