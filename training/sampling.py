"""Captions of a fixed validation sample while a captioner trains: to read, and to select the best checkpoint by."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from datasets import Dataset
from torch import nn

from captioner.decoding import Decoding
from captioner.models.parts.speaker import SearchedDecoder
from captioner.text.clean import clean
from captioner.text.embedding import text_embedder
from training.data.readable import ReadableRows
from training.job import Sample

BATCH = 8


def sampler(
    speaker: SearchedDecoder, model: nn.Module, rows: Dataset, count: int, max_tokens: int
) -> Callable[[], list[Sample]]:
    """A function that captions `count` rows spread over the validation, each with the cosine to its true prompt.

    model: the decoder of `speaker`, or the adapter around it; it is put into evaluation mode meanwhile.
    """
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int))
    readable = ReadableRows(rows)
    decoding = Decoding(num_beams=1, max_new_tokens=max_tokens)

    def caption_sample() -> list[Sample]:
        was_training = model.training
        model.eval()
        truths: list[str] = []
        captions: list[str] = []
        for start in range(0, len(chosen), BATCH):
            batch = [readable[int(index)] for index in chosen[start : start + BATCH]]
            truths += [row["text"] for row in batch]
            for reading in speaker.read_images([row["image"] for row in batch], decoding):
                best = reading.candidates[0]
                captions.append(clean(best.text, finished=best.finished))
        model.train(was_training)
        embed = text_embedder()
        cosines = (embed(truths) * embed(captions)).sum(1).tolist()
        return list(zip(truths, captions, cosines, strict=True))

    return caption_sample
