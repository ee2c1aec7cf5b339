"""A caption and the terms that CLIP finds nearest to the picture: artists, mediums, movements, flavours.

Modes, after CLIP Interrogator: `fast` adds the nearest terms, `classic` one of each kind in a fixed order, `best`
searches term by term and keeps the best of all, `negative` collects what the picture is least like. A batch is
captioned first and ranked afterwards; every picture's candidates are scored together. No text is longer than the text
tower reads.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path

import torch
from PIL.Image import Image
from rich.console import Console
from rich.progress import track
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from captioner import zoo
from captioner.contracts import PLAIN_REQUEST, LoadOptions, LoadOther, Model, Request
from captioner.decoding import Decoding
from captioner.errors import BadInput, MissingExtra
from captioner.files.atomic import replacing
from captioner.files.cache import cache_folder
from captioner.models.parts.ranker import Ranker
from captioner.prompt import Candidate, Reading
from captioner.text.length import cut_to_tokens
from captioner.text.terms import read_terms

OF_THE_CAPTIONER = frozenset({"prompt", "question", "instruction"})
"""What a request may say to the model that writes the caption."""
CAPTION_MODEL, CLIP_MODEL = "blip", "openai/clip-vit-large-patch14"
PACKAGE = "clip_interrogator"
KINDS = ("mediums", "movements", "trending", "artists", "flavors", "negative")
"""The tables. What stands in an earlier one is left out of later ones."""
CLASSIC = ("mediums", "artists", "trending", "movements", "flavors")
TEMPLATES = {"artists": ("by {}", "inspired by {}")}
SITES = (
    "artstation", "deviantart", "behance", "pixiv", "cgsociety", "polycount", "zbrush central", "dribbble", "pinterest",
    "tumblr", "instagram", "reddit", "flickr", "500px", "unsplash", "pexels", "pixabay", "shutterstock",
)  # fmt: skip
PHRASINGS = ("{}", "trending on {}", "featured on {}", "{} contest winner")

FAST_TERMS = 32
CLASSIC_FLAVORS = 3
CHAIN_TERMS = 2048
"""The nearest terms, among which the chain chooses."""
FEWEST, MOST = 8, 32
"""Terms in a chain. Up to the fewest, the next best is taken even where it lowers the similarity."""
PART = 2048
"""Terms whose vectors are kept together."""
AT_ONCE = 16384
"""Terms multiplied at once: the table stays in half precision but for these."""


@dataclass(frozen=True)
class Table:
    """Terms and their unit vectors `[n, d]` in half precision."""

    terms: list[str]
    vectors: Tensor

    def rank(self, pictures: Tensor) -> list[Iterable[str]]:
        """For each picture `[d]` all terms, nearest first."""
        scores = torch.cat([pictures @ part.to(pictures.dtype).T for part in self.vectors.split(AT_ONCE)], 1)
        orders = scores.argsort(dim=1, descending=True, stable=True).tolist()
        return [(self.terms[place] for place in order) for order in orders]


@dataclass(frozen=True)
class Tables:
    """The terms of every kind, and all but the negative ones together."""

    of_kind: dict[str, Table]
    everything: Table


class Interrogator:
    """A captioner, a ranker and tables of terms, each made when it is first needed: what is wrong with a request is
    said before anything large is loaded."""

    uses = frozenset({"mode", "terms", *OF_THE_CAPTIONER})
    longest = None
    """The captioner knows what it can write."""

    def __init__(self, load_captioner: Callable[[], Model], load_ranker: Callable[[], Ranker]) -> None:
        self.load_captioner = load_captioner
        self.load_ranker = load_ranker
        self.made: dict[tuple[Path, ...] | None, Tables] = {}

    def read_images(
        self, images: Sequence[Image], decoding: Decoding, request: Request = PLAIN_REQUEST
    ) -> list[Reading]:
        mode = request.mode or "best"
        if mode == "negative" and (unused := sorted(request.given() & OF_THE_CAPTIONER)):
            raise BadInput(f"The negative mode writes no caption: leave out {' and '.join(unused)}.")
        tables = self.tables(request.terms, mode)
        choose = Chooser(self.ranker, tables, decoding.forbid)
        if mode == "negative":
            pictures = self.ranker.pictures(images)
            return self._readings(pictures, [[text] for text in choose.negative(pictures)], 1)
        captions = self.captions(images, request)  # all of them first: the two models never work at the same time
        pictures = self.ranker.pictures(images)
        if mode != "best":
            texts = choose.fast(pictures, captions) if mode == "fast" else choose.classic(pictures, captions)
            return self._readings(pictures, [[text] for text in texts], 1)
        ways = (captions, *(way(pictures, captions) for way in (choose.classic, choose.fast, choose.best)))
        rivals = [list(dict.fromkeys(of_image)) for of_image in zip(*ways, strict=True)]
        return self._readings(pictures, rivals, decoding.num_return_sequences)

    def tables(self, files: tuple[Path, ...] | None, mode: str) -> Tables:
        """The terms of these files, or those of the package, ranked by the ranker's text tower."""
        lists = own_lists(files) if files else package_lists()
        _check(lists, mode)
        if files not in self.made:
            self.made[files] = make_tables(self.ranker, lists)
        return self.made[files]

    def captions(self, images: Sequence[Image], request: Request = PLAIN_REQUEST) -> list[str]:
        """One caption a picture. The captioner's own settings hold, but for what the request says."""
        one = {"num_return_sequences" if isinstance(request.decoding, Decoding) else "num_candidates": 1}
        asked = replace(request, decoding=replace(request.decoding, **one), mode=None, terms=None)
        prompts = self.captioner.generate(images, asked, batch_size=len(images))
        return [cut_to_tokens(prompt.text, self.ranker.tokens, self.ranker.limit) for prompt in prompts]

    @cached_property
    def captioner(self) -> Model:
        return self.load_captioner()

    @cached_property
    def ranker(self) -> Ranker:
        return self.load_ranker()

    def _readings(self, pictures: Tensor, texts: list[list[str]], count: int) -> list[Reading]:
        """The nearest texts of every picture, best first. The score is the log of the cosine, moved into 0..1."""
        readings = []
        for own, cosines in zip(texts, self.ranker.similarities(pictures, texts), strict=True):
            scored = [Candidate(t, math.log((1 + c) / 2)) for t, c in zip(own, cosines.tolist(), strict=True)]
            readings.append(Reading(tuple(sorted(scored, key=lambda each: -each.score)[:count])))
        return readings


class Chooser:
    """The modes: pictures `[n, d]` and captions → one text a picture."""

    def __init__(self, ranker: Ranker, tables: Tables, forbid: Sequence[str] = ()) -> None:
        self.ranker = ranker
        self.tables = tables.of_kind
        self.everything = tables.everything
        words = "|".join(map(re.escape, forbid))
        self.forbidden = re.compile(rf"(?<!\w)(?:{words})(?!\w)", re.IGNORECASE) if words else None

    def fast(self, pictures: Tensor, captions: list[str]) -> list[str]:
        tops = self._nearest(self.everything, pictures, FAST_TERMS)
        return [self._fitting([caption, *terms]) for caption, terms in zip(captions, tops, strict=True)]

    def classic(self, pictures: Tensor, captions: list[str]) -> list[str]:
        """ "caption, medium by artist, trending, movement, three flavours"; kinds without a table are left out."""
        counts = {kind: CLASSIC_FLAVORS if kind == "flavors" else 1 for kind in CLASSIC}
        found = {
            kind: self._nearest(self.tables[kind], pictures, count) if kind in self.tables else [[] for _ in captions]
            for kind, count in counts.items()
        }
        texts = []
        for n, caption in enumerate(captions):
            medium, artist, *others = (found[kind][n] for kind in CLASSIC)
            medium = [each for each in medium if not caption.startswith(each)]  # "a painting of …, a painting"
            texts.append(self._fitting([caption, " ".join(medium + artist), *(t for terms in others for t in terms)]))
        return texts

    def best(self, pictures: Tensor, captions: list[str]) -> list[str]:
        return self._chain(pictures, captions, self._nearest(self.everything, pictures, CHAIN_TERMS))

    def negative(self, pictures: Tensor) -> list[str]:
        """The chain towards the picture's opposite: nearest to it is what the picture is least like."""
        opposites = -pictures
        candidates = [[] for _ in pictures]
        for kind, count in (("flavors", CHAIN_TERMS), ("negative", None)):
            if kind in self.tables:
                near = self._nearest(self.tables[kind], opposites, count)
                candidates = [old + new for old, new in zip(candidates, near, strict=True)]
        return self._chain(opposites, [""] * len(pictures), candidates)

    def _chain(self, pictures: Tensor, texts: list[str], candidates: list[list[str]]) -> list[str]:
        """Add the best term again and again, as long as the similarity rises. A round scores every picture's
        candidates together. Returns the best text on the way."""
        texts, terms = list(texts), [list(own) for own in candidates]
        now = [scores.item() for scores in self.ranker.similarities(pictures, [[text] for text in texts])]
        now = [score if text else -math.inf for score, text in zip(now, texts, strict=True)]
        best = list(zip(now, texts, strict=True))
        going = list(range(len(texts)))
        for count in range(MOST):
            going = [n for n in going if terms[n]]
            if not going:
                break
            longer = [[_joined([texts[n], term]) for term in terms[n]] for n in going]
            found = self.ranker.similarities(pictures[going], longer)
            goes_on = []
            for n, rivals, scores in zip(going, longer, found, strict=True):
                score, place = (each.item() for each in scores.max(0))
                if score == -math.inf or (score <= now[n] and count >= FEWEST):
                    continue  # nothing fits any more, or nothing helps
                now[n], texts[n] = score, rivals[place]
                best[n] = max(best[n], (score, rivals[place]), key=lambda each: each[0])
                del terms[n][place]
                goes_on.append(n)
            going = goes_on
        return [text for _, text in best]

    def _nearest(self, table: Table, pictures: Tensor, count: int | None) -> list[list[str]]:
        return [list(islice(filter(self._allowed, ranked), count)) for ranked in table.rank(pictures)]

    def _allowed(self, term: str) -> bool:
        return self.forbidden is None or not self.forbidden.search(term)

    def _fitting(self, parts: list[str]) -> str:
        return cut_to_tokens(_joined(parts), self.ranker.tokens, self.ranker.limit)


def _joined(parts: list[str]) -> str:
    return ", ".join(part for part in parts if part)


# --- loading ----------------------------------------------------------------------------------------------------------


def load(folder: None, options: LoadOptions, load_other: LoadOther) -> Interrogator:
    """The parts are models of their own: `options` names them."""
    return Interrogator(
        lambda: load_other(options.caption_model or CAPTION_MODEL),
        lambda: Ranker.from_folder(zoo.weights_folder(options.clip_model or CLIP_MODEL), options),
    )


def own_lists(files: Sequence[Path]) -> dict[str, list[str]]:
    """The user's terms. A file named like a table (artists.txt, mediums.txt …) is that table; others are flavours."""
    lists: dict[str, list[str]] = {}
    for file in map(Path, files):
        lists.setdefault(file.stem if file.stem in KINDS else "flavors", []).extend(read_terms(file))
    return lists


def package_lists() -> dict[str, list[str]]:
    """The tables that the package clip-interrogator ships. It is not imported: that would need all it depends on."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise MissingExtra(
            "The interrogator's terms come with an optional package: `pip install --no-deps clip-interrogator==0.6.0`. "
            "Or give lists of your own with --terms FILE."
        )
    data = Path(found.origin).parent / "data"
    lists = {kind: read_terms(data / f"{kind}.txt") for kind in KINDS if kind != "trending"}
    return lists | {"trending": [phrasing.format(site) for phrasing in PHRASINGS for site in SITES]}


def _check(lists: dict[str, list[str]], mode: str) -> None:
    """Whether the mode has what it needs."""
    if mode == "negative" and not lists.keys() & {"flavors", "negative"}:
        raise BadInput("The negative mode needs flavours or a negative.txt: name one more list with --terms.")
    if mode != "negative" and lists.keys() == {"negative"}:
        raise BadInput("A negative.txt alone serves the negative mode only: name one more list with --terms.")
    missing = [kind for kind in CLASSIC if kind not in lists]
    if mode == "classic" and missing:
        print(f"Classic prompts without {', '.join(missing)}: --terms has no such lists.", file=sys.stderr)


def make_tables(ranker: Ranker, lists: dict[str, list[str]]) -> Tables:
    """A table of each kind, and all but the negative one together; they share one block of vectors."""
    seen: set[str] = set()
    terms: dict[str, list[str]] = {}
    for kind in sorted(lists, key=KINDS.index):
        written = [form.format(term) for term in lists[kind] for form in TEMPLATES.get(kind, ("{}",))]
        terms[kind] = [term for term in dict.fromkeys(written) if kind == "negative" or term not in seen]
        seen.update(terms[kind])
    terms = {kind: own for kind, own in terms.items() if own}
    vectors = torch.cat([_vectors(ranker, kind, own) for kind, own in terms.items()]).to(ranker.model.device)
    parts = vectors.split([len(own) for own in terms.values()])
    tables = {kind: Table(own, part) for (kind, own), part in zip(terms.items(), parts, strict=True)}
    positive = [term for kind, own in terms.items() if kind != "negative" for term in own]
    return Tables(tables, Table(positive, vectors[: len(positive)]))


def _vectors(ranker: Ranker, kind: str, terms: list[str]) -> Tensor:
    """The terms' unit vectors in half precision, computed once and then read from the user's cache.

    They lie there in parts: a run that is stopped goes on with the part that it had begun.
    """
    parts = [terms[start : start + PART] for start in range(0, len(terms), PART)]
    files = [_cached(ranker, kind, part) for part in parts]
    vectors = [_kept(file, len(part)) for file, part in zip(files, parts, strict=True)]
    missing = [number for number, kept in enumerate(vectors) if kept is None]
    if missing:
        count = sum(len(parts[number]) for number in missing)
        print(f"Reading {count:,} {kind} for the ranking; this is done once …", file=sys.stderr)
    for number in track(missing, kind, console=Console(stderr=True), transient=True, disable=len(missing) < 2):
        vectors[number] = ranker.texts(parts[number]).half().cpu().contiguous()
        with replacing(files[number]) as new:
            save_file({"vectors": vectors[number]}, new)
    return torch.cat(vectors)


def _cached(ranker: Ranker, kind: str, terms: list[str]) -> Path:
    key = hashlib.sha256("\n".join([ranker.fingerprint, *terms]).encode()).hexdigest()
    return cache_folder("terms") / f"{kind}-{key[:32]}.safetensors"


def _kept(file: Path, count: int) -> Tensor | None:
    """Vectors of an earlier run; None where there are none, or a file is cut short or foreign."""
    if not file.is_file():
        return None
    try:
        vectors = load_file(file)["vectors"]
    except (SafetensorError, KeyError):
        return None
    return vectors if len(vectors) == count else None
