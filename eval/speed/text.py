"""Texts: every metric against a plain loop of difflib, MiniLM against its matrix products, a report against its models.

Prompts are drawn at random: words of MiniLM's vocabulary by Zipf's law, 3 to 12 comma terms. In the mean they have 22
words and 151 letters, as prompts that people typed do. A prediction has half of its truth's terms.
"""

from __future__ import annotations

import csv
import difflib
import gc
import random
import re
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import accumulate
from pathlib import Path
from unittest import mock

import torch
from tokenizers import Tokenizer

from captioner import compute
from captioner.models.parts.narrow import all_of
from captioner.pipeline import Captioner
from captioner.text.bert import Layer
from captioner.text.embedding import text_embedder
from captioner.text.minilm import MiniLM, packaged_minilm, split
from eval import anatomy, metrics, ngrams
from eval.answers import Step
from eval.report import report
from eval.results import text_values
from eval.speed.clock import by_turns, timed
from eval.speed.folder import photographs
from eval.speed.suite import Row

WORDS = 8000
"""The first of the vocabulary, which begins with the most frequent ones."""
PAIRS = 16_000
LOOPED = 400
"""Pairs that the loop is timed with: its time grows with their number."""
EMBEDDED = 500
EMBEDDING_TURNS = 9
"""So short, single ones lie up to a seventh from their median."""
PICTURES = 1000
REPEATS = 3


def measure(say: Callable[[str], object]) -> list[Row]:
    """All three."""
    return [*every_metric(PAIRS), minilm(EMBEDDED), models_in_a_report(PICTURES)]


def prompts(count: int) -> tuple[list[str], list[str]]:
    """Predictions and true prompts."""
    draw = random.Random(0)
    vocabulary = Tokenizer.from_file(str(packaged_minilm() / "tokenizer.json")).get_vocab()
    words = [word for word in sorted(vocabulary, key=vocabulary.__getitem__) if re.fullmatch("[a-z]{4,}", word)][:WORDS]
    chances = [*accumulate(1 / (rank + 3) for rank in range(len(words)))]

    def terms(number: int) -> list[str]:
        return [" ".join(draw.choices(words, cum_weights=chances, k=draw.randint(1, 5))) for _ in range(number)]

    truths = [terms(draw.randint(3, 12)) for _ in range(count)]
    predictions = [[*truth[: len(truth) // 2], *terms(len(truth) - len(truth) // 2)] for truth in truths]
    return [", ".join(text) for text in predictions], [", ".join(text) for text in truths]


def every_metric(count: int) -> list[Row]:
    """Each metric that needs no model as if it were the only one, and all in one go, as a report does."""
    predictions, truths = prompts(count)
    references = [(truth,) for truth in truths]
    every = (*metrics.TEXT_METRICS, *metrics.modifier_metrics(), metrics.rouge_l_coco, metrics.cider_d_coco)
    loop, together = "loop", f"all {len(every)} in one go"
    ways: dict[str, Callable[[], object]] = {
        loop: lambda: list(map(difflib_ratio, predictions[:LOOPED], truths[:LOOPED])),
        **{metric.name: partial(metric, predictions, truths) for metric in every},
        together: lambda: text_values({"": predictions}, references, extra=every[-2:]),
    }
    for metric in every:
        metric(predictions[:2], truths[:2])  # imports what it needs
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    gc.freeze()  # what the suite has imported is not looked through in the middle of a metric
    for name, way in [*ways.items()] * REPEATS:
        _forget()
        seconds[name] += timed(way)
    gc.unfreeze()
    looped = [taken * count / LOOPED for taken in seconds.pop(loop)]
    return [
        Row(
            f"{count:,} pairs, {name}",
            "times faster than a loop of difflib's ratio",
            [one / other for one, other in zip(looped, taken, strict=True)],
            least=None if name == together else 20,
            details={"seconds": taken, "seconds_of_the_loop": looped},
        )
        for name, taken in seconds.items()
    ]


def _forget() -> None:
    """Nothing is left of the metric before."""
    anatomy.split.cache_clear()
    ngrams.forget()


def difflib_ratio(a: str, b: str) -> float:
    """As everybody writes it, without the guess for long texts."""
    return difflib.SequenceMatcher(None, a, b, autojunk=False).ratio()


def minilm(count: int) -> Row:
    """Texts a second against the linear layers alone, by the same packed weights, of the same batches and threads.

    GELU is in both, within its layer where that pays; attention, norms, sums and the look-up of words are in the whole
    alone.
    """
    texts, _ = prompts(count)
    model = MiniLM()
    lengths = [len(ids) for ids in model.encode(texts)]
    tokens = [sum(lengths[row] for row in rows) for rows in split(lengths)]
    narrow, wide = torch.randn(max(tokens), 384), torch.randn(max(tokens), 1536)

    @torch.inference_mode()
    def products(number: int) -> None:
        for layer in all_of(model.model.layers, Layer):
            for product in (layer.query_key_value, layer.mix):
                product(narrow[:number])
            layer.gelu(layer.widen(narrow[:number]))
            layer.narrow(wide[:number])

    whole, alone = by_turns(
        lambda: model(texts),
        lambda: list(compute.side_by_side().map(products, reversed(tokens))),
        repeats=EMBEDDING_TURNS,
    )
    return Row(
        f"MiniLM, {count} prompts",
        "share of its linear layers' and GELU's speed",
        [a / b for a, b in zip(alone, whole, strict=True)],
        least=0.9,
        details={"texts_a_second": [count / seconds for seconds in whole], "tokens_a_text": sum(lengths) / count},
    )


def models_in_a_report(count: int) -> Row:
    """Of `python -m eval report`, the share of time in mini and MiniLM. Pictures of 512 × 512."""
    _, truths = prompts(count)
    within: list[float] = []
    inside = False

    def watched(call: Callable) -> Callable:
        def run(*args, **kwargs):
            nonlocal inside
            if inside:  # mini itself asks MiniLM
                return call(*args, **kwargs)
            inside, start = True, time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                inside = False
                within.append(time.perf_counter() - start)

        return run

    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data"
        photographs(data, count, ((512, 512),))
        files = sorted(data.iterdir())
        with (data / "metadata.csv").open("w", newline="", encoding="utf-8") as table:
            rows = csv.writer(table)
            rows.writerow(("file_name", "text"))
            rows.writerows((file.name, text) for file, text in zip(files, truths, strict=True))
        embedder = text_embedder()
        embedder(["warm"])
        with (
            mock.patch.object(Captioner, "generate", watched(Captioner.generate)),
            mock.patch.object(MiniLM, "__call__", watched(MiniLM.__call__)),
        ):
            (whole,) = timed(lambda: report([str(data)], ["mini"], Path(scratch) / "report", _untracked))
    return Row(
        f"eval report, {count} pictures, mini",
        "share of time in models",
        [sum(within) / whole],
        least=0.9,
        details={"seconds": whole},
    )


def _untracked(steps: Iterable[Step], total: int | None, what: str, /) -> Iterable[Step]:
    return steps
