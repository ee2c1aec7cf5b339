"""Greedy search and sampling: texts that are extended token by token, each for itself."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from captioner import compute
from captioner.contracts import Decoder, MemoryType, PastType, Processor
from captioner.decoding import Decoding
from captioner.search.draws import Quantiles, draw, draw_in_place, exact
from captioner.search.steps import LOOK, Hypothesis, is_any, logits_processors, read_start

CACHED = 160_000
"""Logits that are looked at together: what is made of them stays in a core's cache, and takes no fresh memory."""


def extend(
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
    ids, logits, past = read_start(decoder, memory, processor, 1 if forks else copies, at_once=True)
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


def extend_all(
    decoder: Decoder[MemoryType, PastType],
    memory: MemoryType,
    processor: Processor,
    decoding: Decoding,
    copies: int,
    quantiles: Quantiles | None,
) -> list[list[Hypothesis]]:
    """As `extend`, where to ask takes long: all texts go on until none does, and what follows an end is cut off."""
    process = logits_processors(processor, decoding, decoder.device)
    eos = compute.sent(torch.tensor(processor.eos_ids), decoder.device)
    images = np.arange(len(memory))
    drawn = None  # [new tokens, rows]
    if quantiles is not None:
        every = np.stack([quantiles(images).flatten() for _ in range(decoding.max_new_tokens)])
        drawn = torch.from_numpy(every).to(decoder.device, exact(decoder.device))
    ids, logits, past = read_start(decoder, memory, processor, copies, at_once=False)
    start, going, log_probs = ids.shape[1], torch.ones(len(ids), dtype=torch.bool, device=ids.device), []
    for length in range(1, decoding.max_new_tokens + 1):
        plain, scores = _scored(logits, ids, process)
        if drawn is None:
            tokens = scores.argmax(-1, keepdim=True)
        else:
            tokens = draw_in_place(scores.softmax(-1), drawn[length - 1], decoding.top_p)
        ids = torch.cat((ids, tokens), dim=1)
        log_probs.append(plain.gather(1, tokens))
        going &= ~is_any(tokens[:, 0], eos)
        if length == decoding.max_new_tokens or (length % LOOK == 0 and not going.any()):
            break
        logits, past = decoder.step(tokens, memory, past)
    hypotheses = []
    for written, scored in zip(ids[:, start:].tolist(), torch.cat(log_probs, dim=1).tolist(), strict=True):
        length = next((n for n, token in enumerate(written, 1) if token in processor.eos_ids), len(written))
        hypotheses.append(_hypothesis(written[:length], scored[:length], processor))
    return _by_image(hypotheses, copies)


def _hypothesis(ids: list[int], log_probs: list[float], processor: Processor) -> Hypothesis:
    """Without the end token; its log-probability counts, as it does in a beam's score."""
    finished = ids[-1] in processor.eos_ids
    score = torch.tensor(log_probs, dtype=torch.float32).mean().item()
    return Hypothesis(ids[:-1] if finished else ids, score, finished)


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


def _scored(logits: Tensor, ids: Tensor, process: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """The log-probabilities of the next tokens, and the scores by which they are chosen, both `[rows, vocabulary]`."""
    scores = logits.to(torch.float32, copy=True)  # some processors write into it
    plain = scores.log_softmax(-1)
    return plain, process(ids, scores)
