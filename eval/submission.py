"""The competition's format: `imgId_eId,val`, 384 rows an image. Written and checked as a stream, in constant memory."""

from __future__ import annotations

import csv
import itertools
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from captioner.errors import BadImage, BadInput, BadOutput
from captioner.statistics import Interval, bootstrap_interval
from eval.metrics import cosines

if TYPE_CHECKING:
    from PIL.Image import Image

    from captioner.pipeline import Captioner, DirectEmbedder

HEADER = ["imgId_eId", "val"]
DIMENSIONS = 384
UNREADABLE = np.full(DIMENSIONS, DIMENSIONS**-0.5, dtype=np.float32)
"""Says nothing, but keeps the file complete: a submission that lacks an image is refused as a whole."""


def write(
    model: Captioner | DirectEmbedder,
    images: Iterable[tuple[str, Callable[[], Image]]],
    out: Path,
    batch_size: int = 8,
) -> list[str]:
    """Write the rows of every (id, how to open it); returns the ids whose picture could not be read."""
    refuse_existing(out)
    beside = out.with_name(f".{out.name}.part")
    unreadable: list[str] = []
    seen: set[str] = set()
    try:
        with beside.open("w", encoding="utf-8", newline="") as stream:
            rows = csv.writer(stream, lineterminator="\n")
            rows.writerow(HEADER)
            for identifier, vector in _vectors(model, images, batch_size, unreadable):
                if identifier in seen:
                    raise BadInput(f"Two images are called {identifier!r}: a submission needs one id an image.")
                seen.add(identifier)
                rows.writerows((f"{identifier}_{i}", f"{value:.7g}") for i, value in enumerate(vector))
        os.replace(beside, out)
    except OSError as error:
        raise BadOutput(f"{out} cannot be written ({error.strerror}).") from error
    finally:
        beside.unlink(missing_ok=True)
    return unreadable


def refuse_existing(out: Path) -> None:
    """Asked before a model is loaded, too."""
    if out.exists():
        raise BadOutput(f"{out} is there already. Choose another --out, or delete it.")
    if not os.access(out.parent, os.W_OK):
        raise BadOutput(f"{out.parent} is no folder that can be written to. Choose another --out.")


def pictures(specs: list[str]) -> Iterator[tuple[str, Callable[[], Image]]]:
    """Ids and pictures of a folder of images (names without their ending), or of any data source."""
    from datasets import Image as ImageColumn

    from captioner.images import EXTENSIONS, open_image
    from training.data.readable import picture_of
    from training.data.sources import load_pairs

    for spec in specs:
        folder = Path(spec) / "images" if (Path(spec) / "images").is_dir() else Path(spec)
        files = sorted(f for f in folder.iterdir() if f.suffix.lower() in EXTENSIONS) if folder.is_dir() else []
        for file in files:  # the hidden test set has no prompts
            yield file.stem, lambda file=file: open_image(file)
        if not files:
            for row in load_pairs([spec], streaming=True).cast_column("image", ImageColumn(decode=False)):
                yield row["id"], lambda row=row: picture_of(row["image"])


def _vectors(model, images, batch_size: int, unreadable: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    stream = iter(images)
    while batch := list(itertools.islice(stream, batch_size)):
        opened = {}
        for place, (identifier, open_picture) in enumerate(batch):
            try:
                opened[place] = open_picture()
            except BadImage as error:
                print(f"{identifier}: {error}", file=sys.stderr)
                unreadable.append(identifier)
        embedded = model.embed(list(opened.values()), batch_size=len(opened)) if opened else []
        vectors = dict(zip(opened, embedded, strict=True))
        for place, (identifier, _) in enumerate(batch):
            yield identifier, vectors.get(place, UNREADABLE)


# --- checking --------------------------------------------------------------------------------------------------------


@dataclass
class Check:
    """What a submission file is worth."""

    images: int = 0
    problems: list[str] = field(default_factory=list)
    """Reasons why the file would be refused."""
    notes: list[str] = field(default_factory=list)
    cosine: Interval | None = None


def check(submission: Path, prompts: Path, embed_texts: Callable | None = None, batch: int = 256) -> Check:
    """Validate the format against prompts.csv (imgId, prompt) and score it."""
    if embed_texts is None:
        from captioner.embedding import text_embedder

        embed_texts = text_embedder()
    truths = _prompts(prompts)
    result = Check()
    missing, values, groups, odd_lengths = set(truths), [], [], 0
    stream = _images_of(submission, result)
    while part := list(itertools.islice(stream, batch)):
        known = []
        for identifier, vector in part:
            result.images += 1
            if identifier in missing:
                missing.discard(identifier)
                known.append((identifier, vector))
            else:
                what = "comes twice" if identifier in truths else "is not in the prompts"
                result.problems.append(f"image {identifier!r} {what}")
        if known:
            vectors = np.stack([vector for _, vector in known])
            odd_lengths += int((np.abs(np.linalg.norm(vectors, axis=1) - 1) > 1e-3).sum())
            values += cosines(vectors, embed_texts([truths[identifier] for identifier, _ in known])).tolist()
            groups += [truths[identifier] for identifier, _ in known]
    if missing:
        result.problems.append(f"{len(missing):,} images are missing, e.g. {sorted(missing)[0]!r}")
    if odd_lengths:
        result.notes.append(f"{odd_lengths:,} vectors are not of length 1; the cosine does not mind.")
    if values:
        result.cosine = bootstrap_interval(values, groups)
    return result


def _images_of(submission: Path, result: Check, most: int = 20) -> Iterator[tuple[str, np.ndarray]]:
    """(id, vector) of every image whose 384 rows are in order; what is wrong goes to `result.problems`."""
    try:
        with submission.open(encoding="utf-8", newline="") as lines:
            rows = csv.reader(lines)
            if (header := next(rows, None)) != HEADER:
                result.problems.append(f"the first line is {header}, not {','.join(HEADER)}")
                return
            for identifier, of_image in itertools.groupby(
                rows, key=lambda row: row[0].rpartition("_")[0] if row else ""
            ):
                vector = _vector(identifier, list(of_image), result)
                if vector is not None:
                    yield identifier, vector
                if len(result.problems) >= most:
                    result.problems.append("… and perhaps more: stopped here")
                    return
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{submission} cannot be read ({error}).") from error


def _vector(identifier: str, rows: list[list[str]], result: Check) -> np.ndarray | None:
    expected = [f"{identifier}_{i}" for i in range(DIMENSIONS)]
    if [row[0] if row else "" for row in rows] != expected:
        result.problems.append(f"image {identifier!r}: its rows are not {identifier}_0 to _{DIMENSIONS - 1} in order")
        return None
    try:
        vector = np.array([float(value) for _, value in rows])
    except ValueError:
        result.problems.append(f"image {identifier!r}: a row without exactly one number")
        return None
    if not all(map(math.isfinite, vector)) or not vector.any():
        result.problems.append(f"image {identifier!r}: values that are not finite, or all 0")
        return None
    return vector


def _prompts(table: Path) -> dict[str, str]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines)
            if not {"imgId", "prompt"} <= set(reader.fieldnames or ()):
                raise BadInput(f"{table} needs the columns imgId and prompt.")
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{table} cannot be read ({error}).") from error
    found = {row["imgId"]: row["prompt"] for row in rows}
    if len(found) < len(rows):
        raise BadInput(f"{table}: {len(rows) - len(found):,} ids occur more than once.")
    if not found:
        raise BadInput(f"{table} has no rows.")
    return found
