"""A caption and the terms that CLIP finds nearest to the picture: artists, mediums, movements, flavours.

Modes, after CLIP Interrogator: `fast` adds the nearest terms, `classic` one of each kind in a fixed order, `best`
searches term by term and keeps the best of all, `negative` collects what the picture is least like. A batch is
captioned first and ranked afterwards; every picture's candidates are scored together. No text is longer than the text
tower reads.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path

from PIL.Image import Image
from torch import Tensor

from captioner import zoo
from captioner.contracts import PLAIN_REQUEST, TERM_KINDS, LoadOptions, LoadOther, Model, Request, check_kinds
from captioner.decoding import Decoding
from captioner.errors import BadInput
from captioner.models.interrogator.tables import (
    CLASSIC,
    KINDS,
    TermTable,
    TermTables,
    check_lists,
    distinct,
    make_tables,
    own_lists,
    package_lists,
)
from captioner.models.parts.ranker import Ranker
from captioner.prompt import Candidate, Reading
from captioner.text.length import cut_to_tokens

CAPTION_MODEL = "blip"
FAST_TERMS = 32
CLASSIC_FLAVORS = 3
CHAIN_TERMS = 2048
"""The nearest terms, among which the chain chooses."""
FEWEST, MOST = 8, 32
"""Terms in a chain. Up to the fewest, the next best is taken even where it lowers the similarity."""


class Interrogator:
    """A captioner, a ranker and tables of terms, each made when it is first needed: what is wrong with a request is
    said before anything large is loaded."""

    uses = zoo.asked_with("interrogator")
    longest = None
    """The captioner knows what it can write."""

    def __init__(self, load_captioner: Callable[[], Model], load_ranker: Callable[[], Ranker]) -> None:
        self.load_captioner = load_captioner
        self.load_ranker = load_ranker
        self.lists: dict[tuple[Path, ...] | None, dict[str, list[str]]] = {}
        self.made_tables: dict[tuple[tuple[Path, ...] | None, tuple[str, ...]], TermTables] = {}

    def read_images(
        self, images: Sequence[Image], decoding: Decoding, request: Request = PLAIN_REQUEST
    ) -> list[Reading]:
        mode = request.mode or "best"
        if mode == "negative" and (unused := sorted(request.given() & zoo.OF_A_CAPTION)):
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

    def analyze(
        self,
        images: Sequence[Image],
        count: int = 5,
        kinds: Sequence[str] = (),
        terms: tuple[Path, ...] | None = None,
    ) -> list[dict[str, dict[str, float]]]:
        """For each picture the nearest terms of these kinds, or of all `TERM_KINDS`, with their cosines, nearest
        first. terms: as of a `Request`."""
        check_kinds(kinds)
        tables = self.tables(Request(terms=terms).terms, "fast", tuple(kinds)).of_kind
        pictures = self.ranker.pictures(images)
        nearest = {kind: tables[kind].cosines(pictures, count) for kind in TERM_KINDS if kind in tables}
        return [{kind: of_kind[n] for kind, of_kind in nearest.items()} for n in range(len(images))]

    def tables(self, files: tuple[Path, ...] | None, mode: str, kinds: tuple[str, ...] = ()) -> TermTables:
        """The terms of these files, or those of the package, ranked by the ranker's text tower. kinds: these alone."""
        if files not in self.lists:
            self.lists[files] = distinct(own_lists(files) if files else package_lists())
        lists = self.lists[files]
        check_lists(lists, mode, kinds)  # before the ranker is loaded
        if (files, kinds) not in self.made_tables:
            wanted = {kind: terms for kind, terms in lists.items() if kind in (kinds or KINDS)}
            self.made_tables[files, kinds] = make_tables(self.ranker, wanted)
        return self.made_tables[files, kinds]

    def captions(self, images: Sequence[Image], request: Request = PLAIN_REQUEST) -> list[str]:
        """One caption a picture. The captioner's own settings hold, but for what the request says."""
        request = request.changed(num_candidates=1, mode=None, terms=None)
        prompts = self.captioner.generate(images, request, batch_size=len(images))
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
        for rivals, cosines in zip(texts, self.ranker.similarities(pictures, texts), strict=True):
            scored = [Candidate(t, math.log((1 + c) / 2)) for t, c in zip(rivals, cosines.tolist(), strict=True)]
            readings.append(Reading(tuple(sorted(scored, key=lambda candidate: -candidate.score)[:count])))
        return readings


class Chooser:
    """The modes: pictures `[n, d]` and captions → one text a picture."""

    def __init__(self, ranker: Ranker, tables: TermTables, forbid: Sequence[str] = ()) -> None:
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
        nothing: list[list[str]] = [[] for _ in captions]
        nearest = {
            kind: self._nearest(self.tables[kind], pictures, count) if kind in self.tables else nothing
            for kind, count in counts.items()
        }
        texts = []
        for n, caption in enumerate(captions):
            medium, artist, *others = (nearest[kind][n] for kind in CLASSIC)
            medium = [term for term in medium if not caption.startswith(term)]  # "a painting of …, a painting"
            texts.append(self._fitting([caption, " ".join(medium + artist), *(t for terms in others for t in terms)]))
        return texts

    def best(self, pictures: Tensor, captions: list[str]) -> list[str]:
        return self.chain(pictures, captions, self._nearest(self.everything, pictures, CHAIN_TERMS))

    def negative(self, pictures: Tensor) -> list[str]:
        """The chain towards the picture's opposite: nearest to it is what the picture is least like."""
        opposites = -pictures
        candidates: list[list[str]] = [[] for _ in pictures]
        for kind, count in (("flavors", CHAIN_TERMS), ("negative", None)):
            if kind in self.tables:
                near = self._nearest(self.tables[kind], opposites, count)
                candidates = [old + new for old, new in zip(candidates, near, strict=True)]
        return self.chain(opposites, [""] * len(pictures), candidates)

    def chain(self, pictures: Tensor, texts: list[str], candidates: list[list[str]], rounds: int = MOST) -> list[str]:
        """Add the best term again and again, as long as the similarity rises. A round scores every picture's
        candidates together. Returns the best text on the way."""
        texts, terms = list(texts), [list(of_picture) for of_picture in candidates]
        now = [scores.item() for scores in self.ranker.similarities(pictures, [[text] for text in texts])]
        now = [score if text else -math.inf for score, text in zip(now, texts, strict=True)]
        best = list(zip(now, texts, strict=True))
        going = list(range(len(texts)))
        for count in range(rounds):
            going = [n for n in going if terms[n]]
            if not going:
                break
            longer = [[_joined([texts[n], term]) for term in terms[n]] for n in going]
            similarities = self.ranker.similarities(pictures[going], longer)
            goes_on = []
            for n, rivals, scores in zip(going, longer, similarities, strict=True):
                nearest = scores.max(0)
                score, index = nearest.values.item(), int(nearest.indices)
                if score == -math.inf or (score <= now[n] and count >= FEWEST):
                    continue  # nothing fits any more, or nothing helps
                now[n], texts[n] = score, rivals[index]
                best[n] = max(best[n], (score, rivals[index]), key=lambda scored: scored[0])
                del terms[n][index]
                goes_on.append(n)
            going = goes_on
        return [text for _, text in best]

    def _nearest(self, table: TermTable, pictures: Tensor, count: int | None) -> list[list[str]]:
        return table.nearest(pictures, count, self.forbidden)

    def _fitting(self, parts: list[str]) -> str:
        return cut_to_tokens(_joined(parts), self.ranker.tokens, self.ranker.limit)


def _joined(parts: list[str]) -> str:
    return ", ".join(part for part in parts if part)


# --- loading ----------------------------------------------------------------------------------------------------------


def load(folder: None, options: LoadOptions, load_other: LoadOther) -> Interrogator:
    """The parts are models of their own: `options` names them."""
    return Interrogator(partial(load_other, options.caption_model or CAPTION_MODEL), partial(_load_ranker, options))


def _load_ranker(options: LoadOptions) -> Ranker:
    return Ranker.from_folder(zoo.weights_folder(options.clip_model or zoo.CLIP), options)
