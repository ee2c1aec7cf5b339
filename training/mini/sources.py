"""What mini learns from: prompts alone, and pictures with their prompts, cleaned and clear of the held-out prompts."""

from __future__ import annotations

import gzip
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
from PIL import Image

from captioner.errors import BadInput

PHOTOGRAPHS = {"flickr8k"}
"""Sources of photographs with several captions each."""
LONGEST = 120
"""Characters: what follows is rarely visible in a picture, and long texts cost the most to learn."""
SHORTEST_PART = 30
"""Characters that a part of a long prompt has at least."""
TOO_NEAR = 0.9
"""A training text this near (MiniLM cosine) to a held-out prompt is left out."""

SWITCHES = re.compile(
    r"https?://\S+|<[^<>]*>|(?<!\w)--?[a-z]+\b(\s+[\d.:]+)?|::\s*-?[\d.]*|:\s*-?\d+(\.\d+)?(?=[\s,)\]}]|$)"
)
INVISIBLE = re.compile(
    r"\b((ultra|full|quad)[ -]?)?u?hd\b|\b\d+ ?k\b( resolution| uhd)?|\b\d{3,4} ?x ?\d{3,4}\b"
    r"|\b(high|hi)[ -]res(olution)?\b"
)
"""Words of resolution: no picture shows them."""


def clean(text: str) -> str:
    """A prompt in lower-case ASCII without weights, switches, links and words of resolution, cut at a comma."""
    text = cleaned_whole(text)
    if len(text) > LONGEST:
        head = text[:LONGEST]
        text = head[: max(head.rfind(","), head.rfind(". "), 0) or head.rfind(" ")]
    return text.strip(" ,.;:-'")


def parts(text: str) -> list[str]:
    """What `clean` cuts off a long prompt, cut at commas and ends of sentences into texts of the usual length."""
    found, part = [], ""
    for piece in re.split(r"(?<=[,.;!?]) ", cleaned_whole(text)):
        if part and len(part) + len(piece) >= LONGEST:
            found.append(part)
            part = ""
        part = f"{part} {piece}".strip()
    return [clean(part) for part in [*found, part][1:] if len(part) > SHORTEST_PART]


def cleaned_whole(text: str) -> str:
    """A prompt cleaned, but of any length."""
    text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    text = re.sub(r"(?<=\d) (?=\d\b)", "", text)  # one corpus writes "3 5 mm"
    text = SWITCHES.sub(" ", text)
    text = INVISIBLE.sub(" ", text)
    text = re.sub(r"[\[\](){}|*_\\/\"<>=+~^`#@]+", " ", text)
    text = re.sub(r"\s+", " ", text)
    return re.sub(r"\s*([,.;:!?])[\s,.;:!?]*", r"\1 ", text).strip(" ,.;:-'")


def prompts(folder: Path) -> Iterator[tuple[str, str]]:
    """(source, cleaned text) of every prompt list, each distinct text once."""
    seen: set[str] = set()
    for file in sorted((folder / "prompts").glob("*.txt.gz")):
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            for line in lines:
                text = clean(line)
                if sum(c.isalpha() for c in text) > 3 and text not in seen:
                    seen.add(text)
                    yield file.name.split(".")[0], text


def thinned(prompts: list[tuple[str, str]], most: int, seed: int) -> list[tuple[str, str]]:
    """At most so many texts of one source, drawn at random; returned in a shuffled order."""
    random.Random(seed).shuffle(prompts)
    counts: Counter[str] = Counter()
    drawn = []
    for source, text in prompts:
        counts[source] += 1
        if counts[source] <= most:
            drawn.append((source, text))
    return drawn


def pair_files(folder: Path) -> list[Path]:
    """The parquet files with the pictures to learn from."""
    if files := sorted((folder / "pairs").glob("*.parquet")):
        return files
    raise BadInput(f"{folder / 'pairs'} holds no *.parquet files: name the data folder with --data.")


def pair_rows(file: Path) -> list[dict[str, Any]]:
    """Text and source of the pairs of one file, and as `texts` of photographs all captions."""
    columns = ["text", "source", *(["texts"] if file.stem in PHOTOGRAPHS else [])]
    return parquet.read_table(file, columns=columns).to_pylist()


def pictures(file: Path) -> Iterator[Image.Image]:
    """The pictures of one file, in the same order."""
    for batch in parquet.ParquetFile(file).iter_batches(batch_size=64, columns=["image"]):
        for cell in batch.column("image").to_pylist():
            yield Image.open(BytesIO(cell["bytes"])).convert("RGB")


def clear_of(held_out: np.ndarray, embeddings: np.ndarray, near: float = TOO_NEAR) -> np.ndarray:
    """True where a text is no near copy of any held-out prompt."""
    clear = np.empty(len(embeddings), dtype=bool)
    for start in range(0, len(embeddings), 20_000):
        part = embeddings[start : start + 20_000].astype(np.float32)
        clear[start : start + 20_000] = (part @ held_out.T).max(1) < near
    return clear
