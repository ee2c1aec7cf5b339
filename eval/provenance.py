"""Where a model comes from: its files, and what it says it was trained on, compared with what it is measured on.

A model folder names its training data in `training_data.json`:
    {"sources": ["name", …], "fingerprints": ["…", …]}
or in the front matter of its README.md (`datasets:`); an index holds its prompts themselves. A fingerprint is
`fingerprint(text)` of a prompt, or the sha256 of a picture's upright RGB pixels; both may be cut to their first 16
digits.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pyarrow import parquet

from captioner import zoo
from captioner.errors import BadCheckpoint
from eval.baselines import index_of

if TYPE_CHECKING:
    from eval.data import Pairs

DIGITS = 16
_BLOCK = 2**20


@dataclass(frozen=True)
class TrainingData:
    """What a model says it has learnt from."""

    sources: tuple[str, ...] = ()
    fingerprints: frozenset[str] = frozenset()


def fingerprint(text: str) -> str:
    """Of a prompt, without case and spacing."""
    return hashlib.sha256(" ".join(text.casefold().split()).encode("utf-8", "surrogatepass")).hexdigest()[:DIGITS]


def places(name: str) -> list[Path]:
    """A model's folder or file; those of all members, too, if it is an ensemble."""
    found = index_of(name) or zoo.resolve(name).folder
    if found is None:
        return []
    if found.is_dir():
        return [found]
    members = [member["model"] for member in _json(found).get("members", [])]
    inside = [str(found.parent / m) if m not in zoo.ENTRIES and (found.parent / m).exists() else m for m in members]
    return [found, *(place for member in inside for place in places(member))]


def weights_hash(name: str) -> str | None:
    """sha256 of a model's files and its members'; None for one that has no files of its own."""
    digest = hashlib.sha256()
    found = places(name)
    for place in found:
        for file in [place] if place.is_file() else sorted(f for f in place.iterdir() if f.is_file()):
            digest.update(file.name.encode("utf-8", "surrogateescape"))
            with file.open("rb") as content:
                while block := content.read(_BLOCK):
                    digest.update(block)
    return digest.hexdigest() if found else None


def trained_on(name: str) -> TrainingData:
    """What a model and its members say about their training data."""
    sources: list[str] = []
    fingerprints: set[str] = set()
    for place in places(name):
        if (listed := place / "training_data.json").is_file():
            content = _json(listed)
            sources += [str(source) for source in content.get("sources", [])]
            fingerprints |= {str(f)[:DIGITS] for f in content.get("fingerprints", [])}
        if (held := place / "prompts.parquet").is_file():
            sources += _json(place / "index.json").get("data", [])
            fingerprints |= {fingerprint(prompt) for prompt in parquet.read_table(held)["prompts"].to_pylist()}
        if (card := place / "README.md").is_file():
            sources += _front_matter_datasets(card)
    return TrainingData(tuple(dict.fromkeys(sources)), frozenset(fingerprints))


def overlap_warning(data: TrainingData, pairs: Pairs) -> str | None:
    """What to say, after the model's name, if it has seen what it is measured on."""
    same_names = sorted(_plain(pairs.names) & _plain(data.sources))
    pictures = sum(item.image_hash[:DIGITS] in data.fingerprints for item in pairs.items)
    prompts = sum(any(fingerprint(truth) in data.fingerprints for truth in item.truths) for item in pairs.items)
    reasons = [f"its card names {', '.join(same_names)} as training data"] if same_names else []
    reasons += [f"{pictures:,} of the {len(pairs.items):,} pictures are in its training data"] if pictures else []
    reasons += [f"{prompts:,} of the {len(pairs.items):,} prompts are in its training data"] if prompts else []
    if not reasons:
        return None
    return f"was measured on what it was trained on ({'; '.join(reasons)}). Do not publish its figures."


def _plain(names: Iterable[str]) -> set[str]:
    """Names as they compare: `folder:~/my/Pictures@0.5` is `pictures`, `/data/heldout/pairs.parquet` is
    `heldout/pairs`, since files of many data sets are called alike."""
    plain = set()
    for name in names:
        bare = re.sub(r"^\w+:|@[\d.]+$", "", name.strip().casefold()).rstrip("/")
        stem, ending = os.path.splitext(bare)
        is_file = ending in (".parquet", ".json", ".jsonl", ".csv", ".zip")
        plain.add("/".join(stem.split("/")[-2:]) if is_file else bare.split("/")[-1])
    return plain - {""}


def _front_matter_datasets(card: Path) -> list[str]:
    import yaml
    from huggingface_hub.repocard import metadata_load

    try:
        found = (metadata_load(card) or {}).get("datasets") or []
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise BadCheckpoint(f"The front matter of {card} cannot be read ({error}).") from error
    return [found] if isinstance(found, str) else [str(name) for name in found]


def _json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadCheckpoint(f"{path} cannot be read as JSON ({error}).") from error
    if not isinstance(content, dict):
        raise BadCheckpoint(f"{path} should hold a JSON object.")
    return content
