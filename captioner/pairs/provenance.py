"""What a model says it was trained on, compared with the pairs that it is measured or fitted on.

A model folder names its training data in `training_data.json`:
    {"sources": ["name", …], "fingerprints": ["…", …]}
or in the front matter of its README.md (`datasets:`); an index holds its prompts themselves. A fingerprint is
`fingerprint(text)` of a prompt, or that of a picture's pixels; both may be cut to their first 16 digits.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captioner.errors import BadCheckpoint
from captioner.files.json import read_object
from captioner.pairs.fingerprint import DIGITS, fingerprint
from captioner.pairs.sources import PairSource


@dataclass(frozen=True)
class TrainingData:
    """What a model says it has learnt from."""

    sources: tuple[str, ...] = ()
    fingerprints: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Seen:
    """A picture that a model is measured on: its fingerprint, and the prompts that are true of it."""

    picture: str
    prompts: tuple[str, ...]


def trained_on(files: Iterable[Path]) -> TrainingData:
    """What these model folders say about their training data."""
    sources: list[str] = []
    fingerprints: set[str] = set()
    for folder in files:
        if (listed := folder / "training_data.json").is_file():
            content = read_object(listed)
            sources += _list_in(content, "sources", listed)
            fingerprints |= {one[:DIGITS] for one in _list_in(content, "fingerprints", listed)}
        if (held := folder / "prompts.parquet").is_file():
            sources += _list_in(read_object(folder / "index.json"), "data", folder / "index.json")
            fingerprints |= {fingerprint(prompt) for prompt in _prompts_in(held)}
        if (card := folder / "README.md").is_file():
            sources += _front_matter_datasets(card)
    return TrainingData(tuple(dict.fromkeys(sources)), frozenset(fingerprints))


def overlaps(data: TrainingData, names: Iterable[str], seen: Sequence[Seen]) -> list[str]:
    """The reasons to think that a model has learnt from what it is measured on, as clauses; none is good."""
    same_names = sorted(_plain(names) & _plain(data.sources))
    pictures = sum(one.picture[:DIGITS] in data.fingerprints for one in seen)
    prompts = sum(any(fingerprint(prompt) in data.fingerprints for prompt in one.prompts) for one in seen)
    reasons = [f"it names {', '.join(same_names)} as training data"] if same_names else []
    reasons += [f"{pictures:,} of the {len(seen):,} pictures are in its training data"] if pictures else []
    reasons += [f"{prompts:,} of the {len(seen):,} prompts are in its training data"] if prompts else []
    return reasons


def name_of(source: PairSource) -> str:
    """A file is called by its folder, too: "pairs.parquet" alone says nothing."""
    path = Path(source.location)
    return "/".join(path.parts[-2:]) if path.is_file() else source.name


def _plain(names: Iterable[str]) -> set[str]:
    """Names as they compare: `folder:~/my/Pictures@0.5` is `pictures`, `/data/heldout/pairs.parquet` is
    `heldout/pairs`, since files of many data sets are called alike."""
    plain = set()
    for name in names:
        bare = re.sub(r"^\w+:|@[\d.]+$", "", name.strip().casefold()).rstrip("/")
        stem, ending = os.path.splitext(re.sub(r"(\.json):\w+$", r"\1", bare))
        is_file = ending in (".parquet", ".json", ".jsonl", ".csv", ".zip")
        plain.add("/".join(stem.split("/")[-2:]) if is_file else bare.split("/")[-1])
    return plain - {""}


def _prompts_in(file: Path) -> list[str]:
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.read_table(file)["prompts"].to_pylist()
    except (OSError, KeyError, pyarrow.ArrowException) as error:
        raise BadCheckpoint(f"{file} cannot be read ({' '.join(str(error).split())[:200]}).") from error


def _front_matter_datasets(card: Path) -> list[str]:
    import yaml
    from huggingface_hub.repocard import metadata_load

    try:
        content = metadata_load(card) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise BadCheckpoint(f"The front matter of {card} cannot be read ({error}).") from error
    return [content["datasets"]] if isinstance(content.get("datasets"), str) else _list_in(content, "datasets", card)


def _list_in(content: Mapping[str, Any], name: str, file: Path) -> list[str]:
    """The texts of a list, which may be missing or empty."""
    listed = content.get(name) or []
    if not isinstance(listed, list):
        raise BadCheckpoint(f"{file}: {name} is no list.")
    return list(map(str, listed))
