"""Stage `split`: which pair prompts are held back to choose by, grouped so that no near copy stays in training."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.data import dedupe
from training.mini import sources
from training.mini.saving import save_array

NEAR = 0.75
"""Prompts this near to each other (MiniLM cosine) are one group."""
REBUILT = {"easydiffusion-modifiers", "supagruen-tiles", "horde-styles", "sd35-artists", "sd35-styles"}
"""Style studies: few subjects in hundreds of styles."""
DESCRIBED = {"flickr8k", "tuxpaint-stamps"}
"""Photographs and clip art: no prompt made them."""
CHOSEN_FROM_PROMPTS, CHOSEN_FROM_CAPTIONS, CHOSEN_FROM_STYLES = 330, 40, 40


@dataclass
class Pairs:
    """Every training picture: its row of features, the row of its prompt, and where it comes from."""

    features: np.ndarray  # [pictures, 2992] float16
    prompt: np.ndarray  # [pictures] row in texts
    source: list[str]
    texts: list[str]
    embeddings: np.ndarray  # [texts, 384]
    group: np.ndarray  # [texts]
    validation: np.ndarray  # [texts] bool

    def weights(self) -> np.ndarray:
        """One part per prompt, shared by its pictures. [pictures]"""
        return 1 / np.bincount(self.prompt, minlength=len(self.texts))[self.prompt]

    def aside(self) -> np.ndarray:
        """Not a generated picture with its literal prompt. [pictures]"""
        return np.isin(self.source, [*REBUILT, *DESCRIBED])


def load_pairs(data: Path, work: Path) -> Pairs:
    """The pairs whose prompt is clear of the held-out prompts."""
    texts = json.loads((work / "pair-texts.json").read_text())["text"]
    row_of_text = {text: row for row, text in enumerate(texts)}
    files = sources.pair_files(data)
    rows = [row for file in files for row in sources.pair_rows(file)]
    prompt = np.array([row_of_text.get(sources.clean(row["text"]), -1) for row in rows])
    clear = np.flatnonzero(prompt >= 0)
    embeddings = np.load(work / "pair-texts.npy").astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    group = groups(embeddings)
    origin = {int(prompt[row]): rows[row]["source"] for row in clear}
    return Pairs(
        np.concatenate([np.load(work / "features" / f"{file.stem}.npy") for file in files])[clear],
        prompt[clear],
        [rows[row]["source"] for row in clear],
        texts,
        embeddings,
        group,
        np.load(work / "validation.npy") if (work / "validation.npy").exists() else choose(group, origin),
    )


def groups(embeddings: np.ndarray) -> np.ndarray:
    """A group number for every text: the connected components of the graph "nearer than NEAR"."""
    return dedupe.groups(dedupe.neighbours(embeddings, NEAR, exact=True))


def choose(group: np.ndarray, origin: dict[int, str], seed: int = 11) -> np.ndarray:
    """Whole groups at random, mostly of generated pictures with literal prompts: what mini is for."""
    left = {"prompts": CHOSEN_FROM_PROMPTS, "captions": CHOSEN_FROM_CAPTIONS, "styles": CHOSEN_FROM_STYLES}
    chosen = np.zeros(len(group), dtype=bool)
    order = sorted(set(group.tolist()))
    random.Random(seed).shuffle(order)
    for number in order:
        members = np.flatnonzero(group == number)
        source = origin.get(int(members[0]), "")
        kind = "styles" if source in REBUILT else "captions" if source in DESCRIBED else "prompts"
        if len(members) <= min(30, left[kind]):
            chosen[members] = True
            left[kind] -= len(members)
    return chosen


def split(data: Path, work: Path) -> None:
    """Stage `split`."""
    pairs = load_pairs(data, work)
    save_array(work / "validation.npy", pairs.validation)
    save_array(work / "validation-embeddings.npy", pairs.embeddings[pairs.validation])
    print(f"{pairs.validation.sum()} of {len(pairs.texts)} prompts held back, {len(set(pairs.group))} groups")
