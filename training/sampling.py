"""Captions of a fixed validation sample while a captioner trains: read along, and select by what counts in the end."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from datasets import Dataset
from peft import PeftModel
from torch import nn

from captioner.contracts import Processor
from captioner.decoding import Decoding
from captioner.models.parts.speaker import SearchedDecoder
from captioner.text.clean import clean
from captioner.text.embedding import text_embedder
from training.data.readable import ReadableRows

BATCH = 8


def sampler(
    processor: Processor, rows: Dataset, count: int, max_tokens: int
) -> Callable[[nn.Module], list[tuple[str, str, float]]]:
    """A function: model → (truth, what it says, their MiniLM cosine) for `count` rows spread over the validation."""
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int))
    readable = ReadableRows(rows)
    decoding = Decoding(num_beams=1, max_new_tokens=max_tokens)

    def speak(model: nn.Module) -> list[tuple[str, str, float]]:
        decoder = model.get_base_model() if isinstance(model, PeftModel) else model
        was_training = decoder.training
        decoder.eval()
        speaker, truths, said = SearchedDecoder(decoder, processor), [], []
        for start in range(0, len(chosen), BATCH):
            batch = [readable[int(index)] for index in chosen[start : start + BATCH]]
            truths += [row["text"] for row in batch]
            for reading in speaker.read_images([row["image"] for row in batch], decoding):
                best = reading.candidates[0]
                said.append(clean(best.text, finished=best.finished))
        decoder.train(was_training)
        embed = text_embedder()
        cosines = (embed(truths) * embed(said)).sum(1)
        return [(truth, text, float(cosine)) for truth, text, cosine in zip(truths, said, cosines, strict=True)]

    return speak
