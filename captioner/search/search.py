"""One search for every decoder: greedy, beam and sampling over the `read`/`step` contract.

Its ids equal those of transformers' `generate` with the same weights and settings: scores are float32 there, so they
are here, and the same logits processors run in the same order. What differs is the cost: the image's memory is not
copied per beam (but for a prefix of a few words), the start of the text is read once per image, and a finished image
leaves the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from captioner.contracts import Decoder, MemoryType, PastType, Processor
from captioner.decoding import Decoding
from captioner.search.beams import beam_search
from captioner.search.draws import quantiles_of
from captioner.search.extend import extend, extend_all
from captioner.search.steps import Hypothesis


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
    at_once = _asks_at_once(decoder.device)
    if decoding.num_beams > 1 and not decoding.do_sample:
        return beam_search(decoder, memory, processor, decoding, at_once)
    copies = decoding.num_return_sequences if decoding.do_sample else 1
    quantiles = quantiles_of(decoding, image_seeds or [0] * len(memory)) if decoding.do_sample else None
    extended = extend if at_once else extend_all
    return extended(decoder, memory, processor, decoding, copies, quantiles)


def _asks_at_once(device: torch.device) -> bool:
    """May a step depend on what the one before has brought? Elsewhere than on a CPU that takes longer than the step."""
    return device.type == "cpu"
