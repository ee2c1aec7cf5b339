"""The competition's format: `imgId_eId,val`, 384 rows an image. Written and checked as a stream, in constant memory.

While a file is made, OUT.part holds one line an image, so that a run that was stopped goes on with `--resume`.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from captioner.contracts import LoadOptions, Model
from captioner.errors import BadImage, BadInput, BadOutput, counted
from captioner.files import atomic
from captioner.files.lock import lock
from captioner.sinks.checks import check_place, explained
from captioner.sinks.journal import write_whole
from captioner.sinks.row import groups
from captioner.statistics import Interval, bootstrap_interval
from eval import baselines, tables
from eval.answers import Answer, Track
from eval.metrics import cosines
from eval.progress import say
from eval.provenance import weights_hash

if TYPE_CHECKING:
    from io import FileIO

    from PIL.Image import Image


HEADER = ["imgId_eId", "val"]
DIMENSIONS = 384
UNREADABLE = np.full(DIMENSIONS, DIMENSIONS**-0.5, dtype=np.float32)
"""Says nothing, but keeps the file complete: a submission that lacks an image is refused as a whole."""

SHORTEST = 1e-15
"""Below it, and above its inverse, squares of float32 are 0 or infinite."""

MOST_PROBLEMS = 20
"""After so many a check stops."""

MAKE_ROOM = "What is done is kept: make room, then add --resume."

Opener = Callable[[], "Image"]
Pictures = Iterable[tuple[str, Opener]]


@dataclass(frozen=True)
class Settings:
    """Who embeds the pictures, and how. A run that goes on must have the same."""

    model: str
    batch_size: int = 8
    device: str = "auto"
    precision: str = "auto"


def write(settings: Settings, data: str, out: Path, track: Track, resume: bool = False) -> list[str]:
    """Write the rows of every picture of `data`; returns the ids whose picture could not be read."""
    journal = out.with_name(f"{out.name}.part")
    refuse_existing(out, journal, resume)
    images, total = pictures(data)
    begins = {"weights": weights_hash(settings.model), "data": data, **asdict(settings)}
    options = LoadOptions(device=settings.device, precision=settings.precision)
    with explained(journal):
        stream = open(journal, "ab", buffering=0)  # noqa: SIM115 - closed below
    with stream:
        lock(stream, str(journal))
        done = _go_on(stream, journal, begins)
        missing = ((identifier, opener) for identifier, opener in images if identifier not in done)
        left = None if total is None else total - len(done)
        _append(stream, lambda: baselines.load(settings.model, options), missing, left, settings, track)
    unreadable = _write_rows(journal, out)
    journal.unlink()
    return unreadable


def refuse_existing(out: Path, journal: Path, resume: bool) -> None:
    """Asked before a model is loaded."""
    check_place(out.parent)
    if out.exists():
        raise BadOutput(f"{out} is there already. Choose another --out, or delete it.")
    if journal.exists() and not resume:
        raise BadOutput(f"{journal} is what a stopped run left. Add --resume to go on, or delete it.")


def pictures(spec: str) -> tuple[Pictures, int | None]:
    """Ids and pictures of a folder of images (names without their ending), or of any data source; and how many."""
    from captioner.images import looks_like_picture, open_image

    folder = Path(spec) / "images" if (Path(spec) / "images").is_dir() else Path(spec)
    files = sorted(f for f in folder.iterdir() if looks_like_picture(f.name)) if folder.is_dir() else []
    if files:  # the hidden test set has no prompts
        name, count = Counter(file.stem for file in files).most_common(1)[0]
        if count > 1:
            raise BadInput(f"Two images are called {name!r}: a submission needs one id an image.")
        return ((file.stem, partial(open_image, file)) for file in files), len(files)
    from datasets import Image as ImageColumn

    from training.data.sources import load_pairs

    return _of_rows(load_pairs([spec], streaming=True).cast_column("image", ImageColumn(decode=False))), None


def _of_rows(rows: Iterable[dict[str, Any]]) -> Iterator[tuple[str, Opener]]:
    from training.data.readable import picture_of

    seen: set[str] = set()
    for row in rows:
        if row["id"] in seen:
            raise BadInput(f"Two images are called {row['id']!r}: a submission needs one id an image.")
        seen.add(row["id"])
        yield row["id"], partial(picture_of, row["image"])


def _go_on(stream: FileIO, journal: Path, begins: dict) -> set[str]:
    """The ids of the pictures that an earlier run has done; a line of it that a kill cut off is taken away."""
    first = next(_lines(journal), None)
    if first is None:
        stream.truncate(0)
        _write(stream, json.dumps(begins) + "\n")
        return set()
    if first != json.dumps(begins) + "\n":
        raise BadOutput(
            f"{journal} was begun with another model, other data or other settings. Give the same, or delete it."
        )
    done = {answer.id for answer in _answers(journal)}
    with journal.open("rb") as lines:
        stream.truncate(sum(len(line) for line in lines if line.endswith(b"\n")))
    return done


def _append(
    stream: FileIO,
    load: Callable[[], Model],
    missing: Pictures,
    left: int | None,
    settings: Settings,
    track: Track,
) -> None:
    """Embed what is missing; one whole batch of lines at a time."""
    batches = groups(missing, settings.batch_size)
    model = None
    for batch in track(batches, None if left is None else -(-left // settings.batch_size), settings.model):
        opened: dict[str, Image] = {}
        for identifier, open_picture in batch:
            try:
                opened[identifier] = open_picture()
            except BadImage as error:
                say(f"{identifier}: {error}")
        vectors = {}
        if opened:
            model = model or load()
            embedded = model.embed(list(opened.values()), batch_size=len(opened))
            if embedded.shape[1] != DIMENSIONS or not np.isfinite(embedded).all():
                raise BadInput(f"{settings.model} does not give {DIMENSIONS} finite numbers a picture.")
            vectors = dict(zip(opened, embedded, strict=True))
        for identifier, _ in batch:
            text = None if identifier in vectors else "unreadable"
            _write(stream, Answer(identifier, text, vectors.get(identifier, UNREADABLE), None).line())


def _write(stream: FileIO, line: str) -> None:
    with explained(Path(str(stream.name)), MAKE_ROOM):
        write_whole(stream, line.encode())


def _write_rows(journal: Path, out: Path) -> list[str]:
    """The journal as the competition wants it; returns the ids of unreadable pictures."""
    unreadable = []

    def vectors() -> Iterator[tuple[str, np.ndarray]]:
        for answer in _answers(journal):
            if answer.text is not None:
                unreadable.append(answer.id)
            yield answer.id, answer.vector
        atomic.refuse_new(out, "add --resume")

    write_vectors(out, vectors())
    return unreadable


def write_vectors(out: Path, vectors: Iterable[tuple[str, np.ndarray]]) -> None:
    """A submission of these (id, vector)."""
    with (
        explained(out, MAKE_ROOM),
        atomic.replacing(out) as new,
        new.open("w", encoding="utf-8", newline="") as stream,
    ):
        rows = csv.writer(stream, lineterminator="\n")
        rows.writerow(HEADER)
        for identifier, vector in vectors:
            rows.writerows((f"{identifier}_{i}", f"{value:.7g}") for i, value in enumerate(vector))


def _lines(journal: Path) -> Iterator[str]:
    """The whole lines: a kill may have cut off the last."""
    with journal.open(encoding="utf-8", errors="replace", newline="\n") as lines:
        yield from (line for line in lines if line.endswith("\n"))


def _answers(journal: Path) -> Iterator[Answer]:
    for number, line in enumerate(_lines(journal), 1):
        if number > 1:
            try:
                yield Answer.parse(line)
            except ValueError as error:
                raise BadInput(f"{journal}, line {number}, is damaged. Delete the file, and start again.") from error


# --- checking --------------------------------------------------------------------------------------------------------


@dataclass
class Check:
    """What a submission file is worth."""

    images: int = 0
    problems: list[str] = field(default_factory=list)
    """Reasons why the file would be refused."""
    notes: list[str] = field(default_factory=list)
    cosine: Interval | None = None


def check(
    submission: Path, prompts: Path | None = None, embed_texts: Callable | None = None, batch: int = 256
) -> Check:
    """Validate the format; with prompts.csv (imgId, prompt) also which images are in it, and score it."""
    tables.check(submission)
    result = Check()
    if prompts is None:
        seen: set[str] = set()
        for identifier, _ in _images_of(submission, result):
            result.images += 1
            if identifier in seen:
                result.problems.append(f"image {identifier!r} comes twice")
            seen.add(identifier)
        return result
    truths = _prompts(prompts)
    if embed_texts is None:
        from captioner.text.embedding import text_embedder

        embed_texts = text_embedder()
    missing, values, prompts_of, odd_lengths = set(truths), [], [], 0
    for part in groups(_images_of(submission, result), batch):
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
            prompts_of += [truths[identifier] for identifier, _ in known]
    if missing:
        result.problems.append(f"{counted(len(missing), 'image')} missing, e.g. {sorted(missing)[0]!r}")
    if odd_lengths:
        result.notes.append(f"{counted(odd_lengths, 'vector')} not of length 1; the cosine does not mind.")
    if values:
        result.cosine = bootstrap_interval(values, prompts_of)
    return result


def _images_of(submission: Path, result: Check) -> Iterator[tuple[str, np.ndarray]]:
    """(id, vector) of every image whose 384 rows are in order; what is wrong goes to `result.problems`."""
    try:
        with submission.open(encoding="utf-8", newline="") as lines:
            rows = csv.reader(lines)
            if (header := next(rows, None)) != HEADER:
                begins = "it is empty" if header is None else f"its first line is {','.join(header)[:80]!r}"
                result.problems.append(f"{begins}, not {','.join(HEADER)}")
                return
            for identifier, of_image in itertools.groupby(
                rows, key=lambda row: row[0].rpartition("_")[0] if row else ""
            ):
                vector = _vector(identifier, list(itertools.islice(of_image, DIMENSIONS + 1)), result)
                if vector is not None:
                    yield identifier, vector
                if len(result.problems) >= MOST_PROBLEMS:
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
    if not SHORTEST <= np.abs(vector).max() <= 1 / SHORTEST:  # nor NaN
        result.problems.append(
            f"image {identifier!r}: values that are not finite, or too large or too small for a cosine"
        )
        return None
    return vector


def _prompts(table: Path) -> dict[str, str]:
    rows = tables.read_rows(table, ("imgId", "prompt"))
    prompts = {row["imgId"] or "": row["prompt"] or "" for row in rows}
    if len(prompts) < len(rows):
        raise BadInput(f"{table}: {len(rows) - len(prompts):,} ids occur more than once.")
    if empty := [identifier for identifier, prompt in prompts.items() if not (identifier and prompt)]:
        raise BadInput(f"{table}: {counted(len(empty), 'row')} without the id or the prompt, e.g. {empty[0]!r}.")
    return prompts
