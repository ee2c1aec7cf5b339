"""Stage `split`: which pair prompts are held back to choose by, grouped so that no near copy stays in training."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from itertools import compress
from pathlib import Path

import numpy as np
import pyarrow
from pyarrow import parquet

from captioner.errors import BadInput, counted
from captioner.files.atomic import replacing
from captioner.text.embedding import text_embedder
from training.data import dedupe
from training.mini import sources
from training.mini.saving import save_array

NEAR = 0.75
"""Prompts this near to each other (MiniLM cosine) are one group."""
REBUILT = {
    "easydiffusion-modifiers", "supagruen-tiles", "horde-styles", "sd35-artists", "sd35-styles", "fooocus-styles",
}  # fmt: skip
"""Style studies: few subjects in hundreds of styles."""
ALIKE = {"dead-era", "evosporting", "classroyale-cards"}
"""One look each, in dozens of pictures."""
DESCRIBED = {"flickr8k", "tuxpaint-stamps"}
"""Photographs and clip art: no prompt made them."""
CHOSEN_FROM_PROMPTS, CHOSEN_FROM_CAPTIONS, CHOSEN_FROM_STYLES = 330, 40, 40
LATER = {
    "richartkeil-dalle2", "blogs2", "mj-profiles", "sdnext-references", "png-metadata3", "small-misc2",
    "web-prompts-misc", "kalaith-games", "hai-no-tsugite", "mossbench", "cards-subjects", "childbooks", "erebus",
    "aussie-workplace", "scoundrel-cards", "vkmaxcleanz", "dead-era", "evosporting", "classroyale-cards",
    "fooocus-styles",
}  # fmt: skip
"""Files that were not there when the first validation prompts were chosen: those stay, to compare versions by."""
CHOSEN_FROM_LATER, CHOSEN_FROM_PHOTOGRAPHS = 120, 160
"""Validation prompts more: of the later files with literal prompts, and of photographs."""


@dataclass
class Pairs:
    """Every training picture: its row of features, the row of its prompt, and where it comes from."""

    features: np.ndarray  # [pictures, 2992] float16
    prompt: np.ndarray  # [pictures] row in texts
    source: list[str]
    texts: list[str]
    embeddings: np.ndarray  # [texts, 384] of the whole prompts, as they were typed
    group: np.ndarray  # [texts]
    validation: np.ndarray  # [texts] bool

    def weights(self) -> np.ndarray:
        """One part per prompt, shared by its pictures. [pictures]"""
        return 1 / np.bincount(self.prompt, minlength=len(self.texts))[self.prompt]

    def aside(self) -> np.ndarray:
        """Not a generated picture with its literal prompt. [pictures]"""
        return np.isin(self.source, [*REBUILT, *DESCRIBED])


@dataclass
class Texts:
    """The pairs' texts as stage `texts` has left them, and the row of every picture's text, -1 where it has none."""

    lines: list[str]
    embeddings: np.ndarray  # [texts, 384] of the cleaned texts
    whole: np.ndarray  # [texts, 384] of the prompts as they were typed
    prompt: np.ndarray  # [pictures]
    source: list[str]  # [pictures]
    file: list[str]  # [pictures]


def load_texts(data: Path, work: Path) -> Texts:
    """The texts that are clear of the held-out prompts."""
    lines = json.loads((work / "pair-texts.json").read_text())["text"]
    row_of_line = {line: row for row, line in enumerate(lines)}
    whole = np.load(work / "pair-whole-texts.npy").astype(np.float32)
    rows = [(file.stem, row) for file in sources.pair_files(data) for row in sources.pair_rows(file)]
    prompt = np.array([row_of_line.get(sources.clean(row["text"]), -1) for _, row in rows])
    prompt[~whole.any(1)[prompt]] = -1
    return Texts(
        lines,
        unit(np.load(work / "pair-texts.npy").astype(np.float32)),
        whole,
        prompt,
        [row["source"] for _, row in rows],
        [file for file, _ in rows],
    )


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1; those of length 0 stay."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1)


def load_pairs(data: Path, work: Path) -> Pairs:
    """The pairs whose prompt is clear of the held-out prompts."""
    texts = load_texts(data, work)
    clear = np.flatnonzero(texts.prompt >= 0)
    features = [np.load(work / "features" / f"{file.stem}.npy") for file in sources.pair_files(data)]
    return Pairs(
        np.concatenate(features)[clear],
        texts.prompt[clear],
        [texts.source[row] for row in clear],
        texts.lines,
        unit(texts.whole),
        groups(texts.embeddings),
        np.load(work / "validation.npy"),
    )


def groups(embeddings: np.ndarray) -> np.ndarray:
    """A group number for every text: the connected components of the graph "nearer than NEAR"."""
    return dedupe.groups(dedupe.neighbours(embeddings, NEAR, exact=True))


def choose(group: np.ndarray, kinds: dict[int, str], left: dict[str, int], seed: int = 11) -> np.ndarray:
    """Whole groups at random, of each kind at most so many texts as are left of it. [texts] bool

    kinds: of each text that may be chosen; others neither are nor count.
    """
    left, chosen = dict(left), np.zeros(len(group), dtype=bool)
    order = sorted(set(group.tolist()))
    random.Random(seed).shuffle(order)
    for number in order:
        members = np.flatnonzero(group == number)
        of_group = kinds.get(int(members[0]), "none")
        if len(members) <= min(30, left.get(of_group, 0)):
            chosen[members] = True
            left[of_group] -= len(members)
    return chosen


def kind(source: str) -> str:
    """What validation prompts of this source count as."""
    kinds = {"styles": REBUILT, "captions": DESCRIBED, "alike": ALIKE}
    return next((name for name, of_kind in kinds.items() if source in of_kind), "prompts")


def chosen_texts(texts: Texts) -> np.ndarray:
    """The validation prompts: first those of the earlier files, as ever, then more of the later ones and of
    photographs, and whatever is near one of them. [texts] bool"""
    known = np.flatnonzero(texts.prompt >= 0)
    earlier = {int(texts.prompt[row]): kind(texts.source[row]) for row in known if texts.file[row] not in LATER}
    rows = np.array(sorted(earlier))
    first = {"prompts": CHOSEN_FROM_PROMPTS, "captions": CHOSEN_FROM_CAPTIONS, "styles": CHOSEN_FROM_STYLES}
    chosen = np.zeros(len(texts.lines), dtype=bool)
    chosen[rows] = choose(
        groups(texts.embeddings[rows]), {number: earlier[int(row)] for number, row in enumerate(rows)}, first
    )
    later = {int(texts.prompt[row]): kind(texts.source[row]) for row in known if texts.file[row] in LATER}
    photographs = {row: "photographs" for row, name in earlier.items() if name == "captions"}
    more = {"prompts": CHOSEN_FROM_LATER, "photographs": CHOSEN_FROM_PHOTOGRAPHS}
    chosen |= choose(groups(texts.embeddings), later | photographs, more)
    return chosen | ~sources.clear_of(texts.embeddings[chosen], texts.embeddings, NEAR)


def validation_texts(work: Path) -> set[str]:
    """The cleaned prompts that are held back to choose by."""
    texts = json.loads((work / "pair-texts.json").read_text())["text"]
    return set(compress(texts, np.load(work / "validation.npy")))


def split(data: Path, work: Path) -> None:
    """Stage `split`; the validation photographs become a data file of their own, to measure the finished model on, and
    their further captions are held back from the decoder as well."""
    texts = load_texts(data, work)
    validation = chosen_texts(texts)
    if validation[texts.prompt[texts.prompt >= 0]].all():
        raise BadInput(f"All {counted(len(texts.lines), 'prompt')} would be held back to choose by: this takes more.")
    photographs = validation_photographs(data, texts, validation)
    captions = {sources.clean(caption) for of_one in photographs["texts"].to_pylist() for caption in of_one}
    held_back = text_embedder()(sorted(captions)) if captions else texts.embeddings[:0]
    save_array(work / "validation.npy", validation)
    save_array(work / "validation-embeddings.npy", np.concatenate((texts.embeddings[validation], held_back)))
    with replacing(work / "validation-photographs.parquet") as new:
        parquet.write_table(photographs, new)
    print(f"{validation.sum()} of {len(texts.lines)} prompts held back; {len(photographs)} photographs")


def validation_photographs(data: Path, texts: Texts, validation: np.ndarray) -> pyarrow.Table:
    """The photographs of validation prompts with all their captions."""
    tables = []
    for file in sources.pair_files(data):
        prompt = texts.prompt[np.array(texts.file) == file.stem]
        if file.stem in sources.PHOTOGRAPHS:
            rows = np.flatnonzero((prompt >= 0) & validation[prompt])
            tables.append(parquet.read_table(file, columns=["image", "text", "texts", "source"]).take(rows))
    return pyarrow.concat_tables(tables) if tables else pyarrow.table({"texts": []})
