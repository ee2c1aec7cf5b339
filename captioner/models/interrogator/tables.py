"""Terms for the interrogator, in tables of their kind, with the vectors that they are ranked by.

They are those of the package clip-interrogator, or the user's own lists. Their vectors are computed once and kept in
the user's cache.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from captioner.contracts import TERM_KINDS
from captioner.errors import BadInput, MissingExtra
from captioner.files.atomic import replacing
from captioner.files.cache import cache_folder, cache_to_write
from captioner.models.parts.ranker import Ranker
from captioner.quiet import PROGRESS
from captioner.text.terms import read_terms

PACKAGE = "clip_interrogator"
KINDS = (*TERM_KINDS, "negative")
"""The tables. What stands in an earlier one is left out of later ones."""
CLASSIC = ("mediums", "artists", "trending", "movements", "flavors")
TEMPLATES = {"artists": ("by {}", "inspired by {}")}
SITES = (
    "artstation", "deviantart", "behance", "pixiv", "cgsociety", "polycount", "zbrush central", "dribbble", "pinterest",
    "tumblr", "instagram", "reddit", "flickr", "500px", "unsplash", "pexels", "pixabay", "shutterstock",
)  # fmt: skip
PHRASINGS = ("{}", "trending on {}", "featured on {}", "{} contest winner")
PART = 2048
"""Terms whose vectors are kept together."""
AT_ONCE = 2048
"""Terms multiplied at once: the table stays in half precision but for these, which stay in the processor's cache."""
PICTURES = 128
"""Pictures whose similarities to all terms are held at once: 50 MB for 100,000 terms."""


@dataclass(frozen=True)
class TermTable:
    """Terms of one kind and their unit vectors `[n, d]` in half precision."""

    terms: list[str]
    vectors: Tensor

    def nearest(self, pictures: Tensor, count: int | None, forbidden: re.Pattern | None = None) -> list[list[str]]:
        """For each picture `[d]` the nearest terms, best first, without those in which something forbidden is found."""
        return [list(terms) for terms in self.cosines(pictures, count, forbidden)]

    def cosines(
        self, pictures: Tensor, count: int | None, forbidden: re.Pattern | None = None
    ) -> list[dict[str, float]]:
        """The same terms with their cosines, as exact as the table is."""
        out = [n for n, term in enumerate(self.terms) if forbidden.search(term)] if forbidden else []
        count = min(len(self.terms) if count is None else count, len(self.terms) - len(out))
        if not count:
            return [{} for _ in pictures]
        return [terms for some in pictures.split(PICTURES) for terms in self._cosines(some, count, out)]

    def _cosines(self, pictures: Tensor, count: int, out: list[int]) -> list[dict[str, float]]:
        scores = pictures.new_empty(len(pictures), len(self.terms))
        exact = pictures.new_empty(AT_ONCE, pictures.shape[1])  # for all parts: fresh memory costs more than a product
        for columns, part in zip(scores.split(AT_ONCE, 1), self.vectors.split(AT_ONCE), strict=True):
            torch.mm(pictures, exact[: len(part)].copy_(part).T, out=columns)
        scores[:, out] = -torch.inf
        least = scores.topk(count).values[:, -1:]
        nearest = []
        for row, far in zip(scores, scores < least, strict=True):  # nothing is, if the numbers are none
            indices = far.logical_not().nonzero().squeeze(1)  # more than `count` where some are alike
            order = row[indices].argsort(descending=True, stable=True)[:count]  # of those alike, the first in the list
            indices = indices[order]
            nearest.append(
                dict(zip([self.terms[index] for index in indices.tolist()], row[indices].tolist(), strict=True))
            )
        return nearest


@dataclass(frozen=True)
class TermTables:
    """The terms of every kind, and all but the negative ones together."""

    of_kind: dict[str, TermTable]
    everything: TermTable


def own_lists(files: Sequence[Path]) -> dict[str, list[str]]:
    """The user's terms. A file named like a table (artists.txt, mediums.txt …) is that table; others are flavours."""
    lists: dict[str, list[str]] = {}
    for file in map(Path, files):
        lists.setdefault(file.stem if file.stem in KINDS else "flavors", []).extend(read_terms(file))
    return lists


def package_lists() -> dict[str, list[str]]:
    """The tables that the package clip-interrogator ships. It is not imported: that would need all it depends on."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise MissingExtra(
            "The interrogator's terms come with an optional package: `pip install --no-deps clip-interrogator==0.6.0`. "
            "Or give lists of your own as terms."
        )
    data = Path(spec.origin).parent / "data"
    lists = {kind: read_terms(data / f"{kind}.txt") for kind in KINDS if kind != "trending"}
    return lists | {"trending": [phrasing.format(site) for phrasing in PHRASINGS for site in SITES]}


def distinct(lists: dict[str, list[str]]) -> dict[str, list[str]]:
    """The terms of each kind as they are ranked, each once; kinds of which nothing is left are left out."""
    seen: set[str] = set()
    terms: dict[str, list[str]] = {}
    for kind in sorted(lists, key=KINDS.index):
        written = [form.format(term) for term in lists[kind] for form in TEMPLATES.get(kind, ("{}",))]
        terms[kind] = [term for term in dict.fromkeys(written) if kind == "negative" or term not in seen]
        seen.update(terms[kind])
    return {kind: of_kind for kind, of_kind in terms.items() if of_kind}


def check_lists(lists: dict[str, list[str]], mode: str, kinds: Sequence[str] = ()) -> None:
    """Whether the mode has what it needs, and what was asked for is there."""
    for kind in kinds:
        if kind not in lists:
            raise BadInput(
                f"There are no {kind} among the terms, their list is called {kind}.txt: name one more list as terms."
            )
    if mode == "negative" and not lists.keys() & {"flavors", "negative"}:
        raise BadInput("The negative mode needs flavours or a negative.txt: name one more list as terms.")
    if mode != "negative" and lists.keys() == {"negative"}:
        raise BadInput("A negative.txt alone serves the negative mode only: name one more list as terms.")
    missing = [kind for kind in CLASSIC if kind not in lists]
    if mode == "classic" and missing:
        print(
            f"Classic prompts without {', '.join(missing)}: among the terms there are no such lists.", file=sys.stderr
        )


def make_tables(ranker: Ranker, terms: dict[str, list[str]]) -> TermTables:
    """A table of each kind, and all but the negative one together; they share one block of vectors."""
    vectors = torch.cat([_vectors(ranker, kind, of_kind) for kind, of_kind in terms.items()]).to(ranker.model.device)
    parts = vectors.split([len(of_kind) for of_kind in terms.values()])
    tables = {kind: TermTable(of_kind, part) for (kind, of_kind), part in zip(terms.items(), parts, strict=True)}
    positive = [term for kind, of_kind in terms.items() if kind != "negative" for term in of_kind]
    return TermTables(tables, TermTable(positive, vectors[: len(positive)]))


def _vectors(ranker: Ranker, kind: str, terms: list[str]) -> Tensor:
    """The terms' unit vectors in half precision, computed once and then read from the user's cache.

    They lie there in parts: a run that is stopped goes on with the part that it had begun.
    """
    parts = [terms[start : start + PART] for start in range(0, len(terms), PART)]
    files = [_cache_file(ranker, kind, part) for part in parts]
    cached = [_read_vectors(file, len(part)) for file, part in zip(files, parts, strict=True)]
    missing = [number for number, vectors in enumerate(cached) if vectors is None]
    if missing:
        cache_to_write("terms")  # before what may take minutes
        count = sum(len(parts[number]) for number in missing)
        PROGRESS.warning(f"Reading {count:,} {kind} for the ranking; this is done once …")
    computed = {}
    disable = len(missing) < 2 or not PROGRESS.isEnabledFor(logging.WARNING)
    for number in track(missing, kind, console=Console(stderr=True), transient=True, disable=disable):
        computed[number] = ranker.texts(parts[number]).half().cpu().contiguous()
        with replacing(files[number]) as new:
            save_file({"vectors": computed[number]}, new)
    return torch.cat([computed[n] if vectors is None else vectors for n, vectors in enumerate(cached)])


def _cache_file(ranker: Ranker, kind: str, terms: list[str]) -> Path:
    key = hashlib.sha256("\n".join([ranker.fingerprint, *terms]).encode()).hexdigest()
    return cache_folder("terms") / f"{kind}-{key[:32]}.safetensors"


def _read_vectors(file: Path, count: int) -> Tensor | None:
    """Vectors of an earlier run; None where there are none, or a file is cut short or foreign."""
    if not file.is_file():
        return None
    try:
        vectors = load_file(file)["vectors"]
    except (SafetensorError, KeyError):
        return None
    return vectors if len(vectors) == count else None
