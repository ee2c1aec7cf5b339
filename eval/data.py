"""The pairs to evaluate on: read once, checked, fingerprinted. Whatever is odd about them becomes a note in the report.

Rows come from `training.data.sources`, so that every layout that can be trained on can be measured on. Pictures are
opened when they are needed and never all held.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING

from captioner.errors import BadImage, BadInput, counted, printable
from captioner.pairs import layouts
from captioner.pairs.fingerprint import picture_fingerprint
from captioner.pairs.layouts import NAMED, LeftOut, ReadOptions
from captioner.pairs.provenance import name_of
from captioner.pairs.sources import check_options, parse_all

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL.Image import Image


AHEAD = 256
"""Pictures that are hashed before the first of them is asked for."""


@dataclass(frozen=True)
class Item:
    """One picture and what it was made from."""

    row: int
    """Where the picture is in the source rows."""
    id: str
    truths: tuple[str, ...]
    image_hash: str
    """sha256 of the upright RGB pixels: the same picture in another file is the same."""
    source: str = ""
    """What the data it comes from is called."""


@dataclass(frozen=True)
class Pairs:
    """All items that can be measured on."""

    rows: Dataset
    items: list[Item]
    names: tuple[str, ...]
    """What the sources are called: compared with what models were trained on."""
    notes: list[str] = field(default_factory=list)
    """What had to be left out or renamed, in sentences."""
    corpus: list[str] = field(default_factory=list)
    """The prompts of all rows, also of those that a limit leaves out: what is frequent is told by them."""

    def image(self, index: int) -> Image:
        """The picture of one item, upright RGB."""
        from training.data.readable import picture_of

        return picture_of(self.rows[self.items[index].row]["image"])

    @cached_property
    def fingerprint(self) -> str:
        """Changes with every picture, prompt and id, and with their order."""
        digest = hashlib.sha256()
        for item in self.items:
            digest.update(repr((item.id, item.truths, item.image_hash)).encode())
        return digest.hexdigest()


def read_pairs(
    specs: Sequence[str],
    limit: int | None = None,
    seed: int = 0,
    named: bool = True,
    reading: ReadOptions | None = None,
) -> Pairs:
    """Read every source; limit: that many pictures drawn by chance. named: notes name the odd pictures."""
    from datasets import Image

    from training.data.sources import load_pairs

    left_out: list[LeftOut] = []
    reading = reading or ReadOptions()
    sources = parse_all(specs)
    check_options(sources, reading)
    rows = load_pairs(
        list(specs),
        text_column=reading.text_column,
        image_column=reading.image_column,
        split=reading.split,
        max_nsfw=reading.max_nsfw,
        left_out=left_out,
    )
    notes = layouts.summaries(left_out, named)
    rows = rows.cast_column("image", Image(decode=False))
    names = sorted(set(map(name_of, sources)) | set(rows.unique("source")) - {None, ""})
    corpus = list(rows["text"])
    if limit is not None and limit < len(rows):
        rows = _drawn(rows, limit, seed, notes)
    items, unreadable = _items(rows)
    notes += _oddities(items, unreadable, named)
    if not items:
        raise BadInput(f"Of {counted(len(rows), 'picture')} none can be read. " + " ".join(notes))
    return Pairs(rows, _unique_ids(items, notes, named), tuple(names), notes, corpus)


def _drawn(rows: Dataset, limit: int, seed: int, notes: list[str]) -> Dataset:
    """All rows of so many pictures: a picture keeps each of its captions."""
    shuffled = rows.shuffle(seed=seed)
    rows_of: dict[tuple[str, str], list[int]] = {}
    for row, picture in enumerate(zip(shuffled["source"], shuffled["id"], strict=True)):
        rows_of.setdefault(picture, []).append(row)
    if limit >= len(rows_of):
        return rows
    notes.append(f"{limit:,} of {len(rows_of):,} pictures, drawn by chance (seed {seed}).")
    return shuffled.select([row for of_picture in islice(rows_of.values(), limit) for row in of_picture])


def _items(rows: Dataset) -> tuple[list[Item], list[str]]:
    """Rows of one picture (several captions) become one item. Also the ids of pictures that cannot be read."""
    texts, ids, sources = rows["text"], rows["id"], rows["source"]
    captions_of: dict[tuple[str, str], tuple[int, list[str]]] = {}
    unreadable = []
    for row, image_hash in enumerate(_image_hashes(rows)):
        if image_hash is None:
            unreadable.append(ids[row])
        else:
            captions_of.setdefault((ids[row], image_hash), (row, []))[1].append(texts[row])
    items = [
        Item(row, identifier, tuple(dict.fromkeys(captions)), image_hash, sources[row] or "")
        for (identifier, image_hash), (row, captions) in captions_of.items()
    ]
    return items, unreadable


def _image_hashes(rows: Dataset) -> Iterator[str | None]:
    from training.data.readable import picture_of

    def one(row: int) -> str | None:
        try:
            return picture_fingerprint(picture_of(rows[row]["image"]))
        except BadImage:
            return None  # the caller counts and names it

    with ThreadPoolExecutor(4) as pool:
        for start in range(0, len(rows), AHEAD):
            yield from pool.map(one, range(start, min(start + AHEAD, len(rows))))


def _oddities(items: list[Item], unreadable: list[str], named: bool) -> list[str]:
    notes = []
    if unreadable:
        notes.append(f"{counted(len(unreadable), 'picture')} {layouts.UNREADABLE} left out{_some(unreadable, named)}.")
    seen = Counter(item.image_hash for item in items)
    if doubles := [item.id for item in items if seen[item.image_hash] > 1]:
        notes.append(
            f"{counted(len(doubles), 'row')} with a picture that occurs more than once{_some(doubles, named)}."
        )
    return notes


def _unique_ids(items: list[Item], notes: list[str], named: bool) -> list[Item]:
    """The second picture of one id is called id#2, or by the next number that no picture has."""
    taken = {item.id for item in items}
    seen: Counter[str] = Counter()
    unique, renamed = [], []
    for item in items:
        identifier = item.id
        seen[identifier] += 1
        if seen[identifier] > 1:
            while (name := f"{identifier}#{seen[identifier]}") in taken:
                seen[identifier] += 1
            taken.add(name)
            renamed.append(identifier)
            item = replace(item, id=name)
        unique.append(item)
    if renamed:
        which = _some(renamed, named)
        notes.append(f"{counted(len(renamed), 'id')} used for another picture too; renamed to id#2 …{which}.")
    return unique


def _some(names: list[str], named: bool) -> str:
    which = ": " + ", ".join(dict.fromkeys(names[:NAMED])) + (" …" if len(names) > NAMED else "")
    return printable(which) if named else ""
