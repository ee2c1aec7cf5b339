"""How far a model's captions change with its precision, and what that costs in cosine to the true prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from captioner import compute, pipeline, zoo
from captioner.compute import agreement
from captioner.contracts import LoadOptions
from captioner.errors import BadInput
from captioner.files.cache import cache_to_write
from captioner.sinks.row import groups
from captioner.statistics import Interval, paired_difference
from captioner.text.embedding import text_embedder
from eval.data import Pairs, read_pairs
from eval.progress import track
from eval.speed.clock import check_file, write_figures

WITH = "fp32"
"""What the other precisions are compared with."""
BATCH = 8


@dataclass(frozen=True)
class Agreement:
    """One precision against fp32 on the same pictures."""

    precision: str
    pictures: int
    same: float
    """The share of captions that are the same."""
    cosine: float
    """Mean MiniLM cosine of the two captions of a picture."""
    loss: Interval
    """Mean loss of cosine to the true prompt: fp32's less this one's."""

    def to_dict(self) -> dict[str, object]:
        """As JSON has it."""
        loss = {"mean": self.loss.mean, "low": self.loss.low, "high": self.loss.high}
        return {"precision": self.precision, "pictures": self.pictures, "same": self.same, "cosine": self.cosine,
                "loss": loss}  # fmt: skip


def measure(model: str, precisions: Sequence[str], pairs: Pairs, device: str = "auto") -> list[Agreement]:
    """Every precision but fp32 against fp32; what is measured of bf16 tells `auto` what to take from now on."""
    others = [precision for precision in precisions if precision != WITH]
    if not others:
        raise BadInput(f"Name a precision to compare with {WITH}: --precisions fp32,bf16")
    folder = zoo.resolve(model).folder
    if folder is not None and not (folder.is_dir() and compute.device(device).type == "cpu"):
        folder = None  # nothing is kept of it
    if folder is not None:
        cache_to_write("precision")  # before what may take hours
    vectors: dict[str, np.ndarray] = {}
    texts: dict[str, list[str]] = {}
    embed = text_embedder(None)
    for precision in (WITH, *others):
        texts[precision] = list(_captions(model, LoadOptions(device=device, precision=precision), pairs))
        vectors[precision] = embed(texts[precision])
    truths = embed([item.truths[0] for item in pairs.items])
    to_truth = {precision: (vectors[precision] * truths).sum(1) for precision in vectors}
    prompts = [item.truths[0] for item in pairs.items]
    measured = []
    for precision in others:
        same = float(np.mean([a == b for a, b in zip(texts[WITH], texts[precision], strict=True)]))
        loss = paired_difference(to_truth[precision], to_truth[WITH], prompts).interval
        cosine = float((vectors[WITH] * vectors[precision]).sum(1).mean())
        measured.append(Agreement(precision, len(prompts), same, cosine, loss))
        if folder is not None:
            agreement.keep(folder, precision, same, len(prompts))
    return measured


def _captions(model: str, options: LoadOptions, pairs: Pairs) -> Iterator[str]:
    captioner = pipeline.load(model, options)
    if not isinstance(captioner, pipeline.Captioner):
        raise BadInput(f"{model} writes no text: there are no captions to compare.")
    batches = list(groups(range(len(pairs.items)), BATCH))
    for indices in track(batches, len(batches), f"{captioner.name}, {options.precision}"):
        for prompt in captioner.generate([pairs.image(index) for index in indices]):
            yield prompt.text


def show(
    model: str, precisions: Sequence[str], data: Sequence[str], limit: int | None, out: Path | None, device: str
) -> None:
    """Measure on these pairs: a table, and JSON where it is wanted."""
    check_file(out)
    measured = measure(model, precisions, read_pairs(data, limit), device)
    write_figures(out, {"model": model, "rows": [one.to_dict() for one in measured]})
    print_table(measured)


def print_table(measured: Sequence[Agreement]) -> None:
    """What a reader looks for: how many captions are the same, and whether the others are worse."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("precision", "pictures", "same captions", "cosine of the two", "loss in cosine to the truth"):
        table.add_column(heading)
    for one in measured:
        loss = f"{one.loss.mean:+.4f} ({one.loss.low:+.4f} to {one.loss.high:+.4f})"
        table.add_row(Text(one.precision), str(one.pictures), f"{one.same:.1%}", f"{one.cosine:.4f}", loss)
    Console().print(table)
