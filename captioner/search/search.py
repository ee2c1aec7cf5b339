"""One search for every decoder: greedy, beam and sampling over the `read`/`step` contract.

Its ids equal those of transformers' `generate` with the same weights and settings: scores are float32 there, so they
are here, and the same logits processors run in the same order. What differs is the cost: the image's memory is not
copied per beam (but for a prefix of a few words), the start of the text is read once per image, and a finished image
leaves the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from captioner.contracts import Decoder, MemoryType, PastType, Processor
from captioner.decoding import Decoding
from captioner.search.words import forbidden_sequences

CACHED = 160_000
"""Logits that are looked at together: what is made of them stays in a core's cache, and takes no fresh memory."""
BLOCK = 128
"""Scores of which the largest is looked for first."""
NEVER = -1e9
"""The score of what must not be chosen; finite, as in transformers, so that such scores keep an order."""
LOOK = 8
"""Steps after which a search elsewhere than on a CPU asks what has ended: to ask is to wait for all that was begun."""

Quantiles: TypeAlias = Callable[[np.ndarray], np.ndarray]
"""Images → what their texts draw next, `[images, copies]` of all images."""


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
    if decoding.num_beams > 1 and not decoding.do_sample:
        return _beam_search(decoder, memory, processor, decoding)
    copies = decoding.num_return_sequences if decoding.do_sample else 1
    quantiles = _quantiles(decoding, image_seeds or [0] * len(memory)) if decoding.do_sample else None
    extend = _extend if _asks_at_once(decoder.device) else _extend_all
    return extend(decoder, memory, processor, decoding, copies, quantiles)


def _asks_at_once(device: torch.device) -> bool:
    """May a step depend on what the one before has brought? Elsewhere than on a CPU that takes longer than the step."""
    return device.type == "cpu"


def logits_processors(
    processor: Processor, decoding: Decoding, device: torch.device
) -> Callable[[Tensor, Tensor], Tensor]:
    """Ids and scores → scores, by transformers' own processors in the order in which its `generate` applies them.

    But for those that are a line here, and top-p, the last of them: `draw` sees to it. Not by its
    `LogitsProcessorList`, which inspects the signature of each at every step. Scores may be written into.
    """
    earliest, eos = len(processor.start_ids) + decoding.min_new_tokens, torch.tensor(processor.eos_ids, device=device)

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


def _scored(logits: Tensor, ids: Tensor, process: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """The log-probabilities of the next tokens, and the scores by which they are chosen, both `[rows, vocabulary]`."""
    scores = logits.to(torch.float32, copy=True)  # some processors write into it
    plain = scores.log_softmax(-1)
    return plain, process(ids, scores)


def _is_any(tokens: Tensor, wanted: Tensor) -> Tensor:
    """`torch.isin` for a few wanted ids, in a tenth of its time."""
    return (tokens[..., None] == wanted).any(-1)


def _extend(
    decoder: Decoder[MemoryType, PastType],
    memory: MemoryType,
    processor: Processor,
    decoding: Decoding,
    copies: int,
    quantiles: Quantiles | None,
) -> list[list[Hypothesis]]:
    """Greedy search and sampling: `copies` texts per image, extended token by token until all of an image's ended.

    Where the decoder forks, texts of an image with the same words so far are one row, and texts that ended are none:
    of mini's sixteen that leaves ten in the mean. quantiles: what each image's texts draw, `[images, copies]`.
    """
    process = logits_processors(processor, decoding, decoder.device)
    forks = copies > 1 and getattr(decoder, "forks", False)
    texts = np.arange(len(memory) * copies)  # those that have not ended; text // copies is its image
    rows = texts // copies if forks else texts  # of each, where the decoder has its words
    written: list[list[int]] = [[] for _ in texts]
    log_probs: list[list[float]] = [[] for _ in texts]
    ids, logits, past = _read_start(decoder, memory, processor, 1 if forks else copies)
    for length in range(1, decoding.max_new_tokens + 1):
        drawn = None if quantiles is None else quantiles(np.unique(texts // copies)).flatten()[texts]
        tokens, scores = _next_tokens(logits, ids, rows, process, drawn, decoding.top_p)
        for text, token, score in zip(texts.tolist(), tokens.tolist(), scores.tolist(), strict=True):
            written[text].append(token)
            log_probs[text].append(score)
        going = ~np.isin(tokens, processor.eos_ids)
        if length == decoding.max_new_tokens or not going.any():
            break
        texts, rows, tokens = texts[going], rows[going], tokens[going]
        if forks:
            parents, tokens, rows = _shared(rows, tokens)
        else:
            images, parents, tokens, rows = _together(rows, tokens, copies, processor.pad_id)
            if len(images) < len(memory):
                memory = memory.select(torch.from_numpy(images))
        order, read = torch.from_numpy(parents), torch.from_numpy(tokens[:, None])
        ids = torch.cat((ids[order], read), dim=1)
        logits, past = decoder.step(read, memory, past.select(order))
    return _by_image([_hypothesis(*text, processor) for text in zip(written, log_probs, strict=True)], copies)


def _by_image(hypotheses: list[Hypothesis], copies: int) -> list[list[Hypothesis]]:
    """Those of each image, best first."""
    of_images = (hypotheses[first : first + copies] for first in range(0, len(hypotheses), copies))
    return [sorted(of_image, key=lambda text: -text.score) for of_image in of_images]


def _extend_all(
    decoder: Decoder[MemoryType, PastType],
    memory: MemoryType,
    processor: Processor,
    decoding: Decoding,
    copies: int,
    quantiles: Quantiles | None,
) -> list[list[Hypothesis]]:
    """As `_extend`, where to ask takes long: all texts go on until none does, and what follows an end is cut off."""
    process = logits_processors(processor, decoding, decoder.device)
    eos = torch.tensor(processor.eos_ids, device=decoder.device)
    images = np.arange(len(memory))
    drawn = None  # [new tokens, rows]
    if quantiles is not None:
        every = np.stack([quantiles(images).flatten() for _ in range(decoding.max_new_tokens)])
        drawn = torch.from_numpy(every).to(decoder.device, _exact(decoder.device))
    ids, logits, past = _read_start(decoder, memory, processor, copies)
    start, going, log_probs = ids.shape[1], torch.ones(len(ids), dtype=torch.bool, device=ids.device), []
    for length in range(1, decoding.max_new_tokens + 1):
        plain, scores = _scored(logits, ids, process)
        if drawn is None:
            tokens = scores.argmax(-1, keepdim=True)
        else:
            tokens = draw_in_place(scores.softmax(-1), drawn[length - 1], decoding.top_p)
        ids = torch.cat((ids, tokens), dim=1)
        log_probs.append(plain.gather(1, tokens))
        going &= ~_is_any(tokens[:, 0], eos)
        if length == decoding.max_new_tokens or (length % LOOK == 0 and not going.any()):
            break
        logits, past = decoder.step(tokens, memory, past)
    hypotheses = []
    for written, scored in zip(ids[:, start:].tolist(), torch.cat(log_probs, dim=1).tolist(), strict=True):
        ends = [place for place, token in enumerate(written) if token in processor.eos_ids]
        length = ends[0] + 1 if ends else len(written)
        hypotheses.append(_hypothesis(written[:length], scored[:length], processor))
    return _by_image(hypotheses, copies)


def _hypothesis(ids: list[int], log_probs: list[float], processor: Processor) -> Hypothesis:
    """Without the end token; its log-probability counts, as it does in a beam's score."""
    finished = ids[-1] in processor.eos_ids
    return Hypothesis(ids[:-1] if finished else ids, torch.tensor(log_probs).mean().item(), finished)


def _next_tokens(
    logits: Tensor,
    ids: Tensor,
    rows: np.ndarray,
    process: Callable[[Tensor, Tensor], Tensor],
    quantiles: np.ndarray | None,
    top_p: float,
) -> tuple[np.ndarray, np.ndarray]:
    """The next token of every text, at its quantile or the likeliest, and the token's log-probability.

    logits `[rows, vocabulary]` and ids `[rows, length]` of the decoder's rows; rows `[texts]`: where each text is.
    """
    tokens, log_probs = np.empty(len(rows), np.int64), np.empty(len(rows), np.float32)
    at_once = max(1, CACHED // logits.shape[1])
    for start in range(0, len(logits), at_once):
        part = slice(start, start + at_once)
        plain, scores = _scored(logits[part], ids[part], process)
        texts = np.flatnonzero((start <= rows) & (rows < start + at_once))
        of_texts = rows[texts] - start
        if quantiles is None:
            tokens[texts] = scores.argmax(-1).numpy()[of_texts]
        else:
            tokens[texts] = draw(scores.softmax(-1).numpy(), quantiles[texts], top_p, of_texts)
        log_probs[texts] = plain.numpy()[of_texts, tokens[texts]]
    return tokens, log_probs


def _shared(rows: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One row for all texts that were in the same row and go on by the same token.

    Returns of every new row its parent and its token, and the new row of every text.
    """
    forks, of_texts = np.unique(rows << 32 | tokens, return_inverse=True)
    return forks >> 32, forks & 0xFFFFFFFF, of_texts


def _together(
    rows: np.ndarray, tokens: np.ndarray, copies: int, pad: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The images of which texts go on, with all of their rows: those that share one memory stay side by side.

    Returns these images, of every new row its parent and its token, and the new row of every text.
    """
    images = np.unique(rows // copies)
    parents = (images[:, None] * copies + np.arange(copies)).flatten()
    rows = np.searchsorted(parents, rows)
    read = np.full(len(parents), pad)
    read[rows] = tokens
    return images, parents, read, rows


def _quantiles(decoding: Decoding, image_seeds: Sequence[int]) -> Quantiles:
    """What the texts of these images draw next, from one generator per image, on the CPU so that devices agree."""
    seed = int(torch.randint(2**31, ())) if decoding.seed is None else decoding.seed
    # Generators seeded with neighbouring numbers are only unrelated if the numbers are mixed first.
    generators = [torch.Generator().manual_seed(hash((seed, image_seed)) % 2**63) for image_seed in image_seeds]
    quantiles = np.zeros((len(generators), decoding.num_return_sequences))

    def draw_for(images: np.ndarray) -> np.ndarray:
        for image in images.tolist():
            quantiles[image] = torch.rand(quantiles.shape[1], dtype=torch.float64, generator=generators[image]).numpy()
        return quantiles

    return draw_for


def draw(
    probabilities: np.ndarray, quantiles: np.ndarray, top_p: float = 1.0, rows: np.ndarray | None = None
) -> np.ndarray:
    """Inverse-CDF sampling, after top-p: the token at each quantile `[texts]` of a row of probabilities
    `[rows, tokens]`: of its own, or of the one that `rows` `[texts]` names."""
    tokens, likely = nucleus(probabilities, top_p)
    cumulative = likely.cumsum(axis=1, dtype=np.float64)
    if rows is not None:
        tokens, cumulative = tokens[rows], cumulative[rows]
    passed = (cumulative <= quantiles[:, None] * cumulative[:, -1:]).sum(axis=1, keepdims=True)
    return np.take_along_axis(tokens, np.minimum(passed, tokens.shape[1] - 1), axis=1)[:, 0]


def draw_in_place(probabilities: Tensor, quantiles: Tensor, top_p: float = 1.0) -> Tensor:
    """`draw` where the probabilities are: the token at the quantile `[rows]` of each row `[rows, 1]`."""
    exact = _exact(probabilities.device)
    if top_p < 1:
        descending = probabilities.sort(dim=-1, descending=True).values
        before = descending.cumsum(-1, dtype=exact) - descending
        kept = (descending > 0) & (before < top_p * probabilities.sum(-1, keepdim=True))
        last = descending.gather(1, kept.sum(-1, keepdim=True) - 1)
        probabilities = torch.where(probabilities >= last, probabilities, 0)
    cumulative = probabilities.cumsum(-1, dtype=exact)
    passed = (cumulative <= quantiles[:, None] * cumulative[:, -1:]).sum(-1, keepdim=True)
    return passed.clamp_max_(probabilities.shape[1] - 1)


def _exact(device: torch.device) -> torch.dtype:
    """What sums of many probabilities are kept in: Apple's GPUs have nothing above float32."""
    return torch.float32 if device.type == "mps" else torch.float64


def nucleus(probabilities: np.ndarray, top_p: float) -> tuple[np.ndarray, np.ndarray]:
    """The likeliest tokens of every row `[rows, tokens]` that together reach top_p: those that transformers keeps.

    Tokens in the order of the vocabulary and their probabilities, both `[rows, most]`; 0 of what is not kept.
    transformers sorts the whole vocabulary to find them, which took a third of a small model's time.
    """
    least = (1 - top_p) / probabilities.shape[1]  # tokens that are less likely have less than 1 - top_p all together
    if top_p == 1:
        return _likely(probabilities, np.full(len(probabilities), least))
    # For almost all rows those suffice that are sixteen times as likely: they reach top_p, and are few to sort.
    wanted = top_p * probabilities.sum(axis=1)
    tokens, likely = _likely(probabilities, np.full(len(probabilities), 16 * least))
    short = likely.sum(axis=1, dtype=np.float64) < 1.000001 * wanted
    if short.any():
        tokens, likely = _likely(probabilities, np.where(short, least, 16 * least))
    descending = np.sort(likely)[:, ::-1]
    before = descending.cumsum(axis=1, dtype=np.float64) - descending
    kept = (descending > 0) & (before < wanted[:, None])
    last = np.take_along_axis(descending, kept.sum(axis=1, keepdims=True) - 1, axis=1)
    return tokens, np.where(likely >= last, likely, 0)


def _likely(probabilities: np.ndarray, least: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of every row the tokens above its least probability, and their probabilities: both `[rows, most]`, then 0."""
    indices = np.flatnonzero(probabilities > least[:, None])  # by far quicker than where in two dimensions
    rows, chosen = np.divmod(indices, probabilities.shape[1])
    counts = np.bincount(rows, minlength=len(probabilities))
    filled = np.arange(max(1, counts.max())) < counts[:, None]
    tokens, likely = np.zeros(filled.shape, dtype=np.int64), np.zeros(filled.shape, dtype=probabilities.dtype)
    tokens[filled], likely[filled] = chosen, probabilities.ravel()[indices]
    return tokens, likely


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
        return _Beams(*(function(vars(self)[name]) for name in self.__dataclass_fields__))


def _beam_search(
    decoder: Decoder[MemoryType, PastType], memory: MemoryType, processor: Processor, decoding: Decoding
) -> list[list[Hypothesis]]:
    """Beam search as transformers defines it (early stopping, length penalty and ties included)."""
    beams, start = decoding.num_beams, len(processor.start_ids)
    process = logits_processors(processor, decoding, decoder.device)
    eos = torch.tensor(processor.eos_ids, device=decoder.device)
    at_once = _asks_at_once(decoder.device)
    images = list(range(len(memory)))  # those still in the batch
    hypotheses: list[list[Hypothesis]] = [[] for _ in images]
    ids, logits, past = _read_start(decoder, memory, processor, beams)
    state = _Beams.start(ids[::beams], beams, decoding.max_new_tokens, processor.pad_id)
    first_rows = torch.arange(0, len(ids), beams, device=ids.device)[:, None]
    for length in range(1, decoding.max_new_tokens + 1):
        log_probs = logits.float().log_softmax(-1)  # [rows, vocabulary]
        log_probs = process(state.ids[:, :, : start + length - 1].flatten(0, 1), log_probs)
        parents = _advance(state, log_probs, start + length - 1, length, eos, decoding)
        rows = first_rows[: len(parents)] + parents  # [images, beams]
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


def _advance(state: _Beams, log_probs: Tensor, position: int, length: int, eos: Tensor, decoding: Decoding) -> Tensor:
    """Extend every hypothesis by the `length`-th new token, at `position`; returns each new one's parent beam
    `[images, beams]`. What an image that is over has ended with stays."""
    images, beams = state.scores.shape
    vocabulary = log_probs.shape[-1]
    totals = log_probs.unflatten(0, (images, beams)).add_(state.scores[:, :, None]).flatten(1)
    # Enough candidates that `beams` of them go on even if all others end here.
    scores, choice = _top(totals, max(2, 1 + len(eos)) * beams)  # [images, candidates]
    parents, tokens = choice // vocabulary, choice % vocabulary
    ids = _gather(state.ids, parents)
    ids[:, :, position] = tokens
    ends = _is_any(tokens, eos) | (length == decoding.max_new_tokens)

    going = (scores + ends * NEVER).topk(beams)
    ending = ends.clone()
    ending[:, beams:] = False  # a candidate outside the best `beams` is only there to go on
    ending &= ~state.over[:, None]
    final = scores / length**decoding.length_penalty + ~ending * NEVER
    merged = torch.cat((state.ended_scores, final), dim=1).topk(beams)
    lengths = torch.cat((state.ended_lengths, torch.full_like(tokens, length)), dim=1)

    state.ended_ids = _gather(torch.cat((state.ended_ids, ids), dim=1), merged.indices)
    state.ended_scores = merged.values
    state.ended_lengths = lengths.gather(1, merged.indices)
    state.ended = torch.cat((state.ended, ending), dim=1).gather(1, merged.indices)
    state.ids, state.scores = _gather(ids, going.indices), going.values
    state.over = state.over | _cannot_improve(state, length, decoding)
    return parents.gather(1, going.indices)


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
